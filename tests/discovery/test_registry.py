"""The registry: labels that stay, what is missing, and a file that no fault makes matter."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import platformdirs
import pytest

from exo.gpu import file_lock
from exo.gpu.discovery import DiscoveryReport, GPUDiscoveryService
from exo.gpu.registry import MOST_ABSENT, Contents, DeviceRegistry, open_default
from exo.gpu.vocabulary.device import GPUDevice
from exo.gpu.vocabulary.errors import BackendUnavailable, NoSuchDevice
from tests.discovery.scripted import Reading, Scripted, device, service

UUID = "01234567-89ab-cdef-0123-456789abcdef"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "devices.json"


def card(place: int, identity: str, **facts: Any) -> GPUDevice:
    return device(f"cuda:{place}", hardware_id=identity, **facts)


def look(path: Path, *answers: tuple[str, Any], **options: Any) -> DiscoveryReport:
    """What a fresh process would report."""
    return service(*answers, registry_path=path, environ={}, **options).discover()


def labels(report: DiscoveryReport) -> dict[str, str]:
    return {found.hardware_id: found.device_id for found in report.devices}


# Labels


def test_a_label_follows_the_hardware_when_the_order_changes(path: Path) -> None:
    """Rule: after a re-ordering each card has the label that it had."""
    look(path, ("cuda", [card(0, "a"), card(1, "b"), card(2, "c")]))
    again = look(path, ("cuda", [card(0, "c"), card(1, "a"), card(2, "b")]))
    assert labels(again) == {"a": "cuda:0", "b": "cuda:1", "c": "cuda:2"}
    assert [found.device_id for found in again.devices] == ["cuda:0", "cuda:1", "cuda:2"]
    assert again.findings[0].devices == again.devices


def test_a_new_device_takes_a_free_label_and_none_that_is_missed(path: Path) -> None:
    """Rule: a missing card keeps its label; a new one takes its own where free, else the lowest."""
    look(path, ("cuda", [card(0, "a"), card(1, "b")]))
    replaced = look(path, ("cuda", [card(0, "new"), card(1, "b")]))
    assert labels(replaced) == {"b": "cuda:1", "new": "cuda:2"}
    back = look(path, ("cuda", [card(0, "a"), card(1, "b"), card(2, "new"), card(3, "d")]))
    assert labels(back) == {"a": "cuda:0", "b": "cuda:1", "new": "cuda:2", "d": "cuda:3"}
    assert back.missing == ()


def test_calls_by_label_reach_the_card_that_it_names(path: Path) -> None:
    """Rule: readings, pinning, links and owners go by label, whatever the driver counts."""
    look(path, ("cuda", [card(0, "a"), card(1, "b")]))
    turned = [card(0, "b", name="20"), card(1, "a", name="10")]
    made = GPUDiscoveryService(path, backends={"cuda": Reading("cuda", lambda: turned)}, environ={})
    report = made.discover()
    backend: Any = made.backend_of("cuda:0")
    assert backend is made.backends["cuda"]
    sample = backend.read("cuda:0")
    assert (sample.device_id, sample.power_watts) == ("cuda:0", 10)
    assert backend.pinning(report.devices, {}) == {"PINNED": "cuda:1,cuda:0"}


def test_two_cards_of_one_identity_are_both_kept(path: Path) -> None:
    """Rule: a UUID that two cards share costs neither its label, over any order."""
    first = [card(0, UUID, pci_address="0000:01:00.0"), card(1, UUID, pci_address="0000:02:00.0")]
    look(path, ("cuda", first))
    turned = [card(0, UUID, pci_address="0000:02:00.0"), card(1, UUID, pci_address="0000:01:00.0")]
    again = look(path, ("cuda", turned))
    assert [(found.device_id, found.pci_address) for found in again.devices] == [
        ("cuda:0", "0000:01:00.0"),
        ("cuda:1", "0000:02:00.0"),
    ]
    assert "bear the same identity" in again.findings[0].reason
    nowhere = [card(0, UUID), card(1, UUID)]
    assert len(look(path.with_name("other"), ("cuda", nowhere)).devices) == 2


# What is missing


def test_a_device_that_is_gone_is_reported_as_it_was_last_seen(path: Path) -> None:
    """Rule: identity, time and reason of what is missing; a broken driver is such a reason."""
    both = [card(0, "a", name="Old card"), card(1, "b")]
    look(path, ("cuda", both))
    (missing,) = look(path, ("cuda", both[1:])).missing
    assert (missing.device.device_id, missing.device.name) == ("cuda:0", "Old card")
    assert missing.reason == "its driver no longer lists it"
    assert missing.last_seen > 0
    broken = look(path, ("cuda", BackendUnavailable("no driver is loaded")))
    assert {one.device.device_id: one.reason for one in broken.missing} == {
        "cuda:0": "no driver is loaded",
        "cuda:1": "no driver is loaded",
    }
    assert broken.missing[0].last_seen == missing.last_seen


def test_a_card_that_two_backends_saw_is_missed_once_or_not_at_all(path: Path) -> None:
    """Rule: a card is missing when no backend sees it, and then once."""
    cuda = ("cuda", [card(0, f"GPU-{UUID}")])
    vulkan = ("vulkan", [device("vulkan:0", hardware_id=UUID)])
    look(path, cuda, vulkan)
    seen = look(path, ("cuda", BackendUnavailable("no NVML")), vulkan)
    assert seen.missing == ()
    assert [found.device_id for found in seen.devices] == ["vulkan:0"]
    (missing,) = look(path, ("cuda", []), ("vulkan", [])).missing
    assert (missing.device.device_id, missing.device.aliases) == ("cuda:0", ("vulkan:0",))


def test_what_the_environment_hides_is_not_missing(path: Path) -> None:
    """Rule: under a variable that can hide a backend's devices, none of them counts as missing."""
    found = [card(0, "a"), card(1, "b")]
    made = GPUDiscoveryService(path, backends={"cuda": Reading("cuda", lambda: found)}, environ={})
    made.discover()
    hidden = {"cuda": Reading("cuda", lambda: found[:1])}
    seen = GPUDiscoveryService(path, backends=hidden, environ={"HIDES_ALL": "0"}).discover()
    assert seen.missing == ()
    assert len(GPUDiscoveryService(path, backends=hidden, environ={}).discover().missing) == 1


def test_a_missing_device_can_be_forgotten(path: Path) -> None:
    """Rule: forgetting frees the label; only what is missing can be forgotten."""
    look(path, ("cuda", [card(0, "a"), card(1, "b")]))
    made = service(("cuda", [card(0, "b")]), registry_path=path, environ={})
    made.discover()
    with pytest.raises(NoSuchDevice, match=r"no missing device 'cuda:1' \(missing: cuda:0\)"):
        made.forget("cuda:1")
    assert made.forget("a") == ("cuda:0",)
    with pytest.raises(NoSuchDevice, match="missing: none"):
        made.forget("a")
    again = look(path, ("cuda", [card(0, "b"), card(1, "new")]))
    assert labels(again) == {"b": "cuda:1", "new": "cuda:0"}
    assert again.missing == ()


def test_the_list_of_missing_devices_is_bounded(path: Path) -> None:
    """Rule: of the devices that are gone, the newest are kept."""
    for number in range(MOST_ABSENT + 3):
        look(path, ("cuda", [card(0, f"card {number}")]))
    look(path, ("cuda", []))
    missing = look(path, ("cuda", [])).missing
    assert len(missing) == MOST_ABSENT
    assert "card 2" not in {one.device.hardware_id for one in missing}


# The file


def test_the_file_holds_the_report_too(path: Path) -> None:
    """Rule: people and programs read the last report in the registry."""
    report = look(path, ("cuda", [card(0, "a")]))
    assert DiscoveryReport.from_json(path.read_text()) == report


@pytest.mark.parametrize(
    "garbage", [b"", b"\xff\x00garbage", b"[]", b'{"known": [{"backend": 1}]}', b'{"known": 3']
)
def test_garbage_is_set_aside_and_a_new_file_started(
    path: Path, garbage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Rule: a damaged file costs its memory, never a discovery, and is kept for people."""
    path.parent.mkdir()
    for number in (1, 2):
        path.write_bytes(garbage)
        assert len(look(path, ("cuda", [card(0, "a")])).devices) == 1
        assert path.with_name(f"{path.name}.corrupt-{number}").read_bytes() == garbage
    assert "is damaged" in caplog.text
    assert len(DeviceRegistry(path).read().known) == 1


def test_two_writers_lose_nothing(path: Path) -> None:
    """Rule: processes that write at once each find a whole file, and no label is given twice."""
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from tests.discovery.scripted import device, service\n"
        "own = [device('cuda:0', hardware_id=sys.argv[2])]\n"
        "for _ in range(20):\n"
        "    made = service(('cuda', own), registry_path=sys.argv[1], environ={})\n"
        "    report = made.discover()\n"
        "print(report.devices[0].device_id)\n"
    )
    root = Path(__file__).parents[2]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "src")])}
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(path), name],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environ,
        )
        for name in "abcd"
    ]
    outputs = [writer.communicate(timeout=60) for writer in writers]
    assert [error for _, error in outputs] == [""] * 4
    assert {output.strip() for output, _ in outputs} == {f"cuda:{n}" for n in range(4)}
    assert len(DeviceRegistry(path).read().known) == 4
    assert list(path.parent.iterdir()) == [path]


def test_a_lock_that_is_never_given_back_is_not_waited_for(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: another process that stands still costs a bounded time, and nothing is lost."""
    path.parent.mkdir()
    folder = os.open(path.parent, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    monkeypatch.setattr(file_lock, "LOCK_SECONDS", 0.02)
    look(path, ("cuda", [card(0, "a")]))
    os.close(folder)
    assert len(DeviceRegistry(path).read().known) == 1


def test_a_file_system_without_locks_is_used_all_the_same(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: where there are no locks, the file is replaced whole as ever."""

    def refuse(*_: object) -> None:
        raise OSError("no locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    look(path, ("cuda", [card(0, "a")]))
    assert len(DeviceRegistry(path).read().known) == 1


def test_a_home_that_cannot_be_used_is_said_and_costs_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Rule: the usual place is a convenience: without it there is no warning, but a reason."""
    (tmp_path / "file").write_text("")
    caplog.set_level(logging.INFO)
    kept = DeviceRegistry(tmp_path / "file" / "devices.json", chosen=False)
    made = service(("cuda", [card(0, "a")]), registry=kept, environ={})
    assert len(made.discover().devices) == 1
    assert "was not written" in kept.problem
    assert {record.levelname for record in caplog.records} == {"INFO"}


def test_a_file_that_cannot_be_replaced_leaves_no_draft(path: Path) -> None:
    """Rule: a write that fails leaves nothing behind."""
    path.mkdir(parents=True)  # a folder where the file should be
    kept = DeviceRegistry(path)
    service(("cuda", [card(0, "a")]), registry=kept, environ={}).discover()
    assert "was not written" in kept.problem
    assert list(path.parent.iterdir()) == [path]


def test_damage_that_cannot_be_set_aside_is_said(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: a damaged file in a read-only folder is named, and devices are found."""
    path.parent.mkdir()
    path.write_text("garbage")

    def refuse(*_: object) -> None:
        raise PermissionError("read-only file system")

    monkeypatch.setattr(Path, "replace", refuse)
    kept = DeviceRegistry(path)
    assert kept.read() == Contents()
    assert "cannot be set aside" in kept.problem


# Where it is


def test_the_registry_is_the_users_and_the_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: a named path is used; else platformdirs' state folder, by the machine's name."""
    named = tmp_path / "named.json"
    assert open_default({"EXO_GPU_REGISTRY": str(named)}).path == named
    usual = open_default({"XDG_STATE_HOME": str(tmp_path)}).path
    assert usual.parent == tmp_path / "exo-gpu"
    assert usual.name.startswith("devices-")
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    for empty in ({}, {"XDG_STATE_HOME": " "}):
        assert open_default(empty).path.parent == platformdirs.user_state_path("exo-gpu")


def test_scripted_devices_are_kept_nowhere(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: with a script of fake devices no registry is read or written."""
    script = tmp_path / "box.json"
    script.write_text(json.dumps({"devices": []}))
    environ = {"EXO_GPU_FAKE": str(script), "EXO_GPU_REGISTRY": str(path)}
    made = GPUDiscoveryService.of_this_user(environ)
    made.discover()
    assert made.registry is None
    assert not path.exists()
    kept = GPUDiscoveryService.of_this_user({"EXO_GPU_REGISTRY": str(path)})
    assert kept.registry is not None
    assert kept.registry.path == path


# Answers of slow drivers


class Slow(Scripted):
    """A backend whose search starts from the answer of an earlier time."""

    def __init__(self, searches: list[str]) -> None:
        super().__init__("vulkan", list)
        self.answers: dict[str, str] | None = None
        self.searches = searches

    def find(self) -> list[GPUDevice]:
        if self.answers is not None and "answer" not in self.answers:
            self.searches.append("asked")
            self.answers["answer"] = "said"
        return [device("vulkan:0")]


def test_slow_answers_are_kept_and_asked_again_on_request(path: Path) -> None:
    """Rule: a backend is handed what it left; a refresh hands it nothing."""
    searches: list[str] = []
    answer: Callable[[], GPUDiscoveryService] = lambda: GPUDiscoveryService(  # noqa: E731
        path, backends={"vulkan": Slow(searches)}, environ={}
    )
    answer().discover()
    answer().discover()
    assert searches == ["asked"]
    answer().discover(refresh=True)
    assert searches == ["asked", "asked"]
    assert DeviceRegistry(path).read().answers == {"vulkan": {"answer": "said"}}
    look(path, ("cuda", [card(0, "a")]))
    assert "vulkan" in DeviceRegistry(path).read().answers
