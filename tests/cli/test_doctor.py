"""``exo-gpu doctor``: what is here, what is not and why, and where leases are kept."""

from __future__ import annotations

import json
import os
import sys

import pytest

from exo.gpu.backends.fake import FakeBackend
from exo.gpu.cli.commands.doctor import _variables
from exo.gpu.discovery import GPUDiscoveryService
from exo.gpu.nodes.local import LocalNode


def test_what_was_found_and_where_leases_are_kept(devices, exo_gpu, state_folder):
    """Rule: devices per backend, the lease store with who shares it, in 80 columns."""
    done = exo_gpu("doctor")
    assert done.returncode == 0
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80 + len(str(state_folder))
    text = " ".join(done.stdout.split())
    assert "cuda:0: NVIDIA GeForce RTX 4090" in text
    assert f"leases {state_folder} (EXO_GPU_STATE)" in text
    assert f"Python {sys.version.split()[0]}" in text


def test_a_missing_backend_is_a_reason_not_a_failure(exo_gpu, monkeypatch):
    """Rule: on this machine every backend is named, with devices or the reason; status 0."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = exo_gpu("doctor", "--json")
    assert done.returncode == 0
    report = json.loads(done.stdout)
    names = [backend["backend"] for backend in report["backends"]]
    assert names == ["cuda", "rocm", "level_zero", "vulkan", "cpu"]
    for backend in report["backends"]:
        assert backend["devices"] or backend["reason"]
    assert report["backends"][-1]["devices"]
    assert report["lease_store"]["problem"] is None


def test_without_even_a_host_the_status_is_1(script, exo_gpu):
    """Rule: a machine without any host device is broken, and the reason is shown."""
    script(fail="no scripted driver")
    done = exo_gpu("doctor")
    assert done.returncode == 1
    assert "no scripted driver" in done.stdout


def test_a_store_that_cannot_be_used_is_said(devices, exo_gpu, tmp_path):
    """Rule: a broken lease store is reported, and the rest all the same."""
    (tmp_path / "a file").touch()
    place = tmp_path / "a file" / "state"
    report = json.loads(exo_gpu("doctor", "--json", EXO_GPU_STATE=str(place)).stdout)
    assert str(place) in report["lease_store"]["problem"]
    assert report["backends"][0]["devices"]


def test_inherited_restrictions_are_shown(devices, exo_gpu):
    """Rule: a variable that restricts is listed with its value."""
    report = json.loads(exo_gpu("doctor", "--json", EXO_GPU_FAKE_VISIBLE="GPU-1111").stdout)
    assert report["variables"] == {"EXO_GPU_FAKE_VISIBLE": "GPU-1111"}
    assert report["warnings"] == []
    assert list(report["backends"][0]["devices"]) == ["cuda:0"]


def test_counting_devices_is_ambiguous(script, devices, exo_gpu):
    """Rule: a restriction by number is warned of, since programs count in different orders."""
    entries = json.loads(devices.read_text())["devices"]
    script(*(entry | {"hardware_id": str(place)} for place, entry in enumerate(entries)))
    report = json.loads(exo_gpu("doctor", "--json", EXO_GPU_FAKE_VISIBLE="0").stdout)
    assert len(report["warnings"]) == 1
    assert "EXO_GPU_FAKE_VISIBLE=0" in report["warnings"][0]


def test_a_device_that_cannot_be_pinned_is_warned_of(devices):
    """Rule: a device that is found but excluded for processes is no surprise later."""
    environ = {"EXO_GPU_FAKE_VISIBLE": "another"}
    service = GPUDiscoveryService(backends={"fake": FakeBackend(devices, environ={})})
    with LocalNode({**os.environ, **environ}, service) as node:
        findings = _variables(node, node.inventory())
    assert [warning.partition(":")[0] for warning in findings["warnings"]] == [
        "cuda",
        "rocm",
        "cpu",
    ]
    assert all("cannot be pinned" in warning for warning in findings["warnings"])


def test_missing_devices_and_the_registry_are_shown(remembered, exo_gpu):
    """Rule: what is missing is named with what drops it, and the registry with its place."""
    text = " ".join(exo_gpu("doctor").stdout.split())
    assert "missing cuda:7 (NVIDIA Museum Piece)" in text
    assert "exo-gpu devices --forget cuda:7" in text
    assert f"registry {remembered}" in text


def test_a_registry_that_cannot_be_used_is_said(exo_gpu, tmp_path):
    """Rule: a read-only place costs nothing else, and is named."""
    (tmp_path / "file").touch()
    place = str(tmp_path / "file" / "devices.json")
    report = json.loads(exo_gpu("doctor", "--json", EXO_GPU_REGISTRY=place).stdout)
    assert report["registry"]["path"] == place
    assert "was not written" in report["registry"]["problem"]
    assert report["backends"][-1]["devices"]
    text = " ".join(exo_gpu("doctor", EXO_GPU_REGISTRY=place).stdout.split())
    assert "was not written" in text


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The version of an installed exo-gpu whose extras need what is and what is not here."""
    folder = tmp_path / "site" / "exo_gpu-9.9.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(
        "Metadata-Version: 2.4\nName: exo-gpu\nVersion: 9.9\n"
        "Requires-Dist: click>=8.1\n"
        "Requires-Dist: no-such-dist>=1; extra == 'vulkan'\n"
        "Requires-Dist: msgspec; (sys_platform != 'darwin') and extra == 'cuda'\n"
        "Requires-Dist: exo-gpu[cuda,vulkan]; extra == 'all'\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(folder.parent))
    return "9.9"


def test_extras_come_from_the_package_itself(installed, devices, exo_gpu):
    """Rule: each extra is installed, or named with the line that installs it."""
    report = json.loads(exo_gpu("doctor", "--json").stdout)
    assert report["exo_gpu"] == installed
    assert report["extras"] == [
        {"extra": "cuda", "missing": [], "install": "pip install 'exo-gpu[cuda]'"},
        {
            "extra": "vulkan",
            "missing": ["no-such-dist"],
            "install": "pip install 'exo-gpu[vulkan]'",
        },
    ]


def test_where_the_history_lies_and_how_large_it_is(devices, exo_gpu, tmp_path, monkeypatch):
    """Rule: whoever looks for what happened last night is told which file has it."""
    place = tmp_path / "history.sqlite"
    monkeypatch.setenv("EXO_GPU_HISTORY", str(place))
    assert f"history {place} (none yet" in " ".join(exo_gpu("doctor").stdout.split())
    exo_gpu("watch", "--every", "0.2s", "--for", "1s")
    assert json.loads(exo_gpu("doctor", "--json").stdout)["history"]["size_bytes"] > 0
