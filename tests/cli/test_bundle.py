"""``exo-gpu doctor --bundle``: a capture that gives the same readings, and names nobody."""

from __future__ import annotations

import getpass
import json
import os
import platform
import tarfile
from pathlib import Path
from typing import Any

import pytest

from exo.gpu.backends import capture as capture_room
from exo.gpu.backends.capture import MOST_BYTES, capture
from exo.gpu.backends.cpu import CPUBackend
from exo.gpu.backends.rocm import RocmBackend
from exo.gpu.bundle import Mask, masked, secrets, write
from exo.gpu.cli.commands import doctor
from exo.gpu.cli.commands.doctor import write_bundle
from exo.gpu.discovery import GPUDiscoveryService
from exo.gpu.nodes.local import LocalNode
from tests.backends.nvml.fake_nvml import H100, VARIABLE, FakeNvml, build
from tests.backends.sysfs import ARC, RX, card

UNIQUE = RX["device/unique_id"]
UUID = "GPU-01234567-89ab-cdef-0123-456789abcdef"


def unpacked(path: Path) -> Path:
    folder = path.with_suffix(".unpacked")
    with tarfile.open(path) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """An AMD and an Intel card."""
    root = tmp_path / "drm"
    card(root, 0, RX)
    card(root, 1, ARC)
    return root


def bundled(machine: Path, path: Path, **findings: Any) -> Path:
    backends = {"rocm": RocmBackend(root=machine, environ={}), "cpu": CPUBackend()}
    service = GPUDiscoveryService(backends=backends, environ={})
    with LocalNode(dict(os.environ), service) as node:
        write_bundle(path, node, findings, root=machine)
    return unpacked(path)


def test_a_capture_gives_the_same_readings(machine: Path, tmp_path: Path) -> None:
    """Rule: a backend that is pointed at the unpacked tree reads what it read on the machine."""
    folder = bundled(machine, tmp_path / "capture.tar.gz")
    here, there = RocmBackend(root=machine), RocmBackend(root=folder / "sysfs")
    (device,), (again,) = here.find(), there.find()
    sample, copy = (backend.read("rocm:0").to_dict() for backend in (here, there))
    for values in (sample, copy):
        del values["timestamp"]
    assert sample == copy
    assert sample["temperature_celsius"] is not None
    assert again.name == device.name
    assert again.hardware_id == f"GPU-{masked(UNIQUE)}"
    samples = json.loads((folder / "samples.json").read_text())
    assert samples[0]["sample"]["power_watts"] == sample["power_watts"]
    report = json.loads((folder / "discovery.json").read_text())
    assert report["devices"][0]["hardware_id"] == again.hardware_id


def test_nothing_in_a_capture_names_a_machine_or_a_device(machine: Path, tmp_path: Path) -> None:
    """Rule: host, user, serial numbers and UUIDs are gone from every file."""
    (machine / "card0/device/serial_number").write_text("PCB0123456789\n")
    (machine / "card0/device/note").write_text(f"board PCB0123456789, {UUID}\n")
    folder = bundled(
        machine,
        tmp_path / "capture.tar.gz",
        variables={"CUDA_VISIBLE_DEVICES": UUID},
        place=f"{platform.node()}:/tmp",
    )
    everything = b"\n".join(
        path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    ).decode(errors="replace")
    for secret in (UNIQUE, "PCB0123456789", UUID.removeprefix("GPU-"), f'"{platform.node()}:'):
        assert secret not in everything
    assert "host:/tmp" in everything
    assert f"GPU-{masked(UUID.removeprefix('GPU-'))}" in everything
    versions = json.loads((folder / "versions.json").read_text())
    assert versions["kernel"] == platform.release()
    assert versions["packages"]["psutil"]


def test_the_command_writes_a_capture(devices: Path, exo_gpu: Any, tmp_path: Path) -> None:
    """Rule: the command says how many files there are, and to look at them first."""
    path = tmp_path / "capture.tar.gz"
    done = exo_gpu("doctor", "--bundle", str(path))
    assert done.returncode == 0
    assert "look at them before you send it" in done.stderr
    folder = unpacked(path)
    findings = json.loads((folder / "doctor.json").read_text())
    assert list(findings["backends"][0]["devices"]) == ["cuda:0", "rocm:0", "cpu:0"]
    failed = exo_gpu("doctor", "--bundle", str(tmp_path / "no/such/folder.tar.gz"))
    assert failed.returncode == 1
    assert "No such file" in failed.stderr


def test_what_nvml_answers_is_in_a_capture(
    machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: NVIDIA's answers come along, masked as everywhere; a driver that hangs is left out."""
    try:
        nvml = FakeNvml(build(tmp_path), tmp_path / "nvml.txt")
    except FileNotFoundError:
        pytest.skip("no C compiler on this machine: apt install gcc libc6-dev")
    monkeypatch.setenv(VARIABLE, str(nvml.description))
    nvml.write(H100 | {"uuid": UUID})
    path = tmp_path / "capture.tar.gz"
    service = GPUDiscoveryService(backends={"cpu": CPUBackend()}, environ={})
    with LocalNode(dict(os.environ), service) as node:
        write_bundle(path, node, {}, root=machine, nvml=nvml.library)
        answers = (unpacked(path) / "nvml.txt").read_text()
        assert "0.name=NVIDIA H100 PCIe" in answers
        assert UUID not in answers
        assert f"GPU-{masked(UUID.removeprefix('GPU-'))}" in answers
        nvml.change("0.latency", 100)
        monkeypatch.setattr(doctor, "NVML_SECONDS", 0.01)
        write_bundle(tmp_path / "hung.tar.gz", node, {}, root=machine, nvml=nvml.library)
        assert not (unpacked(tmp_path / "hung.tar.gz") / "nvml.txt").exists()


# Masking


def test_masking_keeps_the_form_and_is_the_same_each_time() -> None:
    """Rule: one identity becomes one other identity, however it is written around."""
    mask = Mask({"rig": "host", "ada": "user", "": "x"}, [UUID, UNIQUE, "0000:03:00.0", "cpu"])
    hidden = masked(UUID.removeprefix("GPU-"))
    assert hidden != UUID.removeprefix("GPU-")
    assert [len(part) for part in hidden.split("-")] == [8, 4, 4, 4, 12]
    assert mask.text(f"{UUID} and {UUID}") == f"GPU-{hidden} and GPU-{hidden}"
    assert mask.text(f"id {UNIQUE}") == f"id {masked(UNIQUE)}"
    assert mask.text("0000:03:00.0 of cpu on rig by ada in adapter") == (
        "0000:03:00.0 of cpu on host by user in adapter"
    )
    other = "FEDCBA98-0000-4000-8000-000000000001"
    assert mask.text(other) == masked(other)
    assert masked("0000000000000000") == "0000000000000000"


def test_only_whole_identities_are_secrets(tmp_path: Path) -> None:
    """Rule: files named for an identity are masked whole; binary readings stay as they are."""
    files = {"a/unique_id": b"abcdef0123456789\n", "a/gpu_metrics": b"\xff\x00", "a/name": b"x"}
    assert secrets(files) == ["abcdef0123456789"]
    path = tmp_path / "capture.tar.gz"
    assert write(path, files, Mask({}, secrets(files))) == 3
    folder = unpacked(path)
    assert (folder / "a/gpu_metrics").read_bytes() == b"\xff\x00"
    assert (folder / "a/unique_id").read_text() == masked("abcdef0123456789") + "\n"
    with tarfile.open(path) as archive:
        assert getpass.getuser() not in {info.uname for info in archive}


# What is copied


def test_only_small_files_that_everybody_may_read_are_copied(machine: Path) -> None:
    """Rule: no configuration space, no EDID, nothing large, private, binary or behind a link."""
    device = machine / "card0/device"
    (device / "config").write_bytes(b"secret")
    (device / "resource0").write_bytes(b"secret")
    (device / "large").write_bytes(b"x" * MOST_BYTES)
    (device / "binary").write_bytes(b"a\0b")
    (device / "gpu_metrics").write_bytes(b"a\0b")
    (device / "private").write_text("secret")
    (device / "private").chmod(0o600)
    (device / "link").symlink_to(device / "uevent")
    (device / "subsystem").symlink_to(machine)
    (machine / "card0/card0-DP-1").mkdir()
    (machine / "card0/card0-DP-1/edid").write_bytes(b"screen")
    (machine / "card0/card0-DP-1/status").write_text("connected")
    found = capture(machine)
    names = {name.removeprefix("card0/device/") for name in found if name.startswith("card0/")}
    assert names & {
        "config", "resource0", "large", "binary", "private", "link", "subsystem",
        "card0/card0-DP-1/edid",
    } == set()  # fmt: skip
    assert found["card0/device/gpu_metrics"] == b"a\0b"
    assert found["card0/card0-DP-1/status"] == b"connected"
    assert not any("HDMI-A-1/" in name for name in found)
    assert capture(machine / "nowhere") == {}


def test_a_sleeping_card_is_not_woken(machine: Path) -> None:
    """Rule: of a card that sleeps, only what its backend asks a sleeping card too is read."""
    (machine / "card0/device/power/runtime_status").write_text("suspended\n")
    names = {name for name in capture(machine) if name.startswith("card0/")}
    assert "card0/device/uevent" in names
    assert "card0/device/gpu_busy_percent" not in names
    assert not any("hwmon" in name for name in names)


def test_a_card_that_hangs_is_left_out(
    machine: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Rule: an attribute that never answers costs its card, in a bounded time; a fifo stands in."""
    monkeypatch.setattr(capture_room, "CARD_SECONDS", 0.05)
    monkeypatch.setattr(capture_room, "_MOST_FILES", 1)
    status = machine / "card0/device/power/runtime_status"
    status.unlink()
    os.mkfifo(status)
    found = capture(machine)
    assert [name.partition("/")[0] for name in found] == ["card1"]
    assert "was left out" in caplog.text
    status.open("w").close()  # lets the reader go
