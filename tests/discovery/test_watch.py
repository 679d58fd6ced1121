"""Hot-plug: what comes, goes and comes back is told once, and silence is no loss."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from exo.gpu.discovery import GPUDiscoveryService
from exo.gpu.vocabulary.device import GPUDevice
from exo.gpu.vocabulary.inventory import DeviceChange
from tests.discovery.scripted import Scripted, device

UUID = "01234567-89ab-cdef-0123-456789abcdef"
A, B = device("cuda:0", hardware_id="a"), device("cuda:1", hardware_id="b")


class Plugged(Scripted):
    """What is plugged in changes with each search, and stays at the last."""

    def __init__(self, name: str, *searches: list[GPUDevice] | Callable[[], Any]) -> None:
        self.searches = list(searches)
        super().__init__(name, self.next)

    def next(self) -> list[GPUDevice]:
        now = self.searches.pop(0) if len(self.searches) > 1 else self.searches[0]
        return now() if callable(now) else now


def watch(count: int, *backends: Scripted, **options: Any) -> list[tuple[str, str]]:
    """The first changes."""
    made = GPUDiscoveryService(
        backends={backend.name: backend for backend in backends}, environ={}, **options
    )
    seen: list[DeviceChange] = []

    async def run() -> None:
        changes = made.watch(0)
        async for change in changes:
            seen.append(change)
            if len(seen) == count:
                break
        await changes.aclose()

    anyio.run(run)
    return [(change.kind.value, change.device.device_id) for change in seen]


def test_what_comes_and_goes_is_told_once() -> None:
    """Rule: added when never seen, lost when gone, returned when it was here before."""
    searches = [A], [A, B], [A, B], [B], [A, B]
    assert watch(3, Plugged("cuda", *searches)) == [
        ("added", "cuda:1"),
        ("lost", "cuda:0"),
        ("returned", "cuda:0"),
    ]


def test_a_device_of_an_earlier_time_returns(tmp_path: Path) -> None:
    """Rule: what the registry misses at the start is not new when it comes, and keeps its label."""
    path = tmp_path / "registry.json"
    GPUDiscoveryService(path, backends={"cuda": Plugged("cuda", [A, B])}, environ={}).discover()
    back = device("cuda:0", hardware_id="b")
    assert watch(1, Plugged("cuda", [A], [A, back]), registry_path=path) == [("returned", "cuda:1")]


def test_a_card_that_changes_its_driver_has_not_moved() -> None:
    """Rule: hardware that another backend sees is neither lost nor added."""
    cuda = Plugged("cuda", [device("cuda:0", hardware_id=f"GPU-{UUID}")], [])
    vulkan = Plugged("vulkan", [device("vulkan:0", hardware_id=UUID)])
    host = Plugged("cpu", [], [], [device("cpu:0")])
    assert watch(1, cuda, vulkan, host) == [("added", "cpu:0")]


def test_a_silent_driver_takes_nothing_away() -> None:
    """Rule: an error or a hang is no loss; what is there afterwards was there all the time."""

    def fail() -> list[GPUDevice]:
        raise OSError("driver reloads")

    assert watch(1, Plugged("cuda", [A], fail, fail, [A], [])) == [("lost", "cuda:0")]


def test_many_searches_leave_no_threads_behind() -> None:
    """Rule: a driver that hangs while watched costs one thread, whatever the number of searches."""
    release = threading.Event()
    before = set(threading.enumerate())

    def hang() -> list[GPUDevice]:
        release.wait(30)
        return [A]

    searches: list[list[GPUDevice]] = [[]] * 12
    host = Plugged("cpu", *searches, [device("cpu:0")])
    changes = watch(1, Plugged("cuda", [A], hang), host, deadline_seconds=0.01)
    ours = [one.name for one in threading.enumerate() if one not in before]
    release.set()
    assert changes == [("added", "cpu:0")]
    assert [name for name in ours if name.startswith("exo-gpu-find-")] == ["exo-gpu-find-cuda"]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_watching_runs_on_either_loop(backend: str) -> None:
    """Rule: any event loop of anyio's, and cancelling ends it."""
    made = GPUDiscoveryService(backends={"cuda": Plugged("cuda", [], [A])}, environ={})

    async def run() -> DeviceChange | None:
        changes = made.watch(0)
        first = None
        with anyio.fail_after(20):
            async for change in changes:
                first = change
                break
        await changes.aclose()
        return first

    change = anyio.run(run, backend=backend)
    assert change is not None
    assert DeviceChange.from_json(change.to_json()) == change
