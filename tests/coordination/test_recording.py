"""Who keeps the history on disk: one process, told about, and followed by the next."""

from __future__ import annotations

import logging
import math
import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from exo.gpu.coordination.manager import GPUClusteringManager
from exo.gpu.coordination.recording import HistoryKeeper
from exo.gpu.telemetry.store.reader import HistoryReader
from exo.gpu.telemetry.store.schema import history_path
from exo.gpu.telemetry.store.writer import HistoryWriter
from exo.gpu.telemetry_protocol import Heartbeat
from exo.gpu.vocabulary.device import GPUDevice
from exo.gpu.vocabulary.metrics import GPUMetrics
from exo.gpu.vocabulary.snapshot import Health

WAIT_SECONDS = 30
NOON = 1_767_268_800.0
CARD = GPUDevice("cuda:0", "Card", "NVIDIA", "cuda", hardware_id="GPU-1", memory_bytes=8)


@pytest.fixture
def anyio_backend():
    return "asyncio"


def sample(watts: float, at: float | None = None, **readings) -> GPUMetrics:
    return GPUMetrics("cuda:0", time.time() if at is None else at, power_watts=watts, **readings)


def kept_watts() -> set[float]:
    with HistoryReader(history_path(os.environ)) as reader:
        kept = reader.series("GPU-1", "power_watts", since=0.0, until=4e9, points=100)
        return {value for value in (*kept.minimum, *kept.maximum) if not math.isnan(value)}


def until(fits) -> None:
    ends = time.monotonic() + WAIT_SECONDS
    while not fits():
        assert time.monotonic() < ends
        time.sleep(0.01)


@pytest.mark.anyio
class TestManager:
    async def test_what_is_recorded_is_on_disk_after_the_shutdown(self):
        """Rule: samples and heartbeats are kept under the card's own identity, the earliest too."""
        async with GPUClusteringManager(history=True) as manager:
            manager.register_device(CARD)
            await manager.record_metrics(sample(5.0))
            await manager.record_heartbeat(Heartbeat("cuda:0", sample(7.0)))
            await manager.record_metrics(GPUMetrics("cuda:9", time.time(), power_watts=9.0))
        assert kept_watts() == {5.0, 7.0}
        assert manager.recording.reason == "the history was closed"
        await manager.shutdown()

    async def test_changes_of_health_are_kept_and_logged(self, caplog):
        """Rule: a card that grows hot is degraded until it has cooled by more than a trifle."""
        caplog.set_level(logging.INFO, "exo.gpu")
        async with GPUClusteringManager(history=True) as manager:
            manager.register_device(CARD)
            found = []
            for celsius in (70.0, 81.0, 79.0, 77.0):
                await manager.record_metrics(sample(5.0, temperature_celsius=celsius))
                found.append(manager.snapshot().devices[0].health)
        assert found == [Health.OK, Health.DEGRADED, Health.DEGRADED, Health.OK]
        assert "cuda:0 is degraded, and was ok: hot: above 80 C" in caplog.text
        with HistoryReader(history_path(os.environ)) as reader:
            events = reader.events(since=0.0, until=4e9)
        assert [event.to_dict()["kind"] for event in events] == ["health", "health"]

    async def test_a_late_sample_changes_no_health(self):
        """Rule: what was hot before the newest sample is history."""
        manager = GPUClusteringManager()
        manager.register_device(CARD)
        await manager.record_metrics(sample(5.0, NOON, temperature_celsius=50.0))
        await manager.record_metrics(sample(5.0, NOON - 9, temperature_celsius=99.0))
        assert manager.snapshot().devices[0].health is Health.OK

    async def test_it_holds_the_place_of_the_writer_and_lets_go_of_it(self):
        """Rule: while it lives nobody else writes; after it anybody may."""
        path = history_path(os.environ)
        async with GPUClusteringManager(history=True) as manager:
            until(lambda: manager.recording.active)
            assert manager.recording.path == path
            assert f"process {os.getpid()}" in str(HistoryWriter.open(path))
        with HistoryWriter.open(path) as writer:
            assert isinstance(writer, HistoryWriter)

    async def test_without_a_history_nothing_is_written(self):
        async with GPUClusteringManager() as manager:
            manager.register_device(CARD)
            await manager.record_metrics(sample(5.0))
            assert manager.recording.reason == "no history was asked for"
        assert not history_path(os.environ).exists()


def test_another_writer_is_named_and_followed():
    """Rule: it says who writes, keeps nothing meanwhile, and takes over when that one ends."""
    first, second = HistoryKeeper(), HistoryKeeper(retry_seconds=0.01)
    first.open()
    second.register(CARD)
    second.open()
    assert not second.recording.active
    assert f"process {os.getpid()}" in second.recording.reason
    second.add(sample(1.0))
    first.close()
    until(lambda: second.recording.active)
    second.add(sample(2.0))
    second.close()
    assert kept_watts() == {2.0}


def test_a_place_that_cannot_be_used_is_told_once(tmp_path, monkeypatch, caplog):
    """Rule: one warning and a reason, however often it is tried; and no sample is piled up."""
    (tmp_path / "a file").touch()
    monkeypatch.setenv("EXO_GPU_HISTORY", str(tmp_path / "a file" / "history.sqlite"))
    keeper = HistoryKeeper(retry_seconds=0.001)
    keeper.open()
    for _ in range(20):
        keeper.add(sample(1.0))
        time.sleep(0.002)  # lets it try again; nothing below depends on how often it did
    assert "a file" in keeper.recording.reason
    keeper.close()
    told = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(told) == 1


def test_a_disk_that_fails_later_is_told(monkeypatch):
    """Rule: while the file cannot be written the recording is not active, and says why."""
    keeper = HistoryKeeper()
    keeper.register(CARD)
    keeper.open()
    assert keeper.recording.active
    from exo.gpu.telemetry.store.recorder import Recorder
    from exo.gpu.vocabulary.errors import StoreError

    def full(*_: object) -> int:
        raise StoreError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "write", full)  # a full disk cannot be had without root
        keeper.add(sample(3.0))
        until(lambda: not keeper.recording.active)
        assert keeper.recording.reason == "no space left on device; tried again"
    keeper.close()
    assert kept_watts() == {3.0}


def test_one_that_is_closed_before_it_opened_lets_go(monkeypatch):
    """Rule: whoever leaves while the disk hangs waits no longer than was said."""
    gate, opened = threading.Event(), HistoryWriter.open

    def slow(path: Path) -> object:
        gate.wait()
        return opened(path)

    monkeypatch.setattr(HistoryWriter, "open", slow)
    keeper = HistoryKeeper()
    keeper.open_in_background()
    keeper.close(timeout_seconds=0.01)
    gate.set()
    keeper._thread.join(WAIT_SECONDS)
    assert keeper.recording.reason == "the history was closed"
    monkeypatch.undo()


PROGRAM = """
    import anyio
    from exo.gpu import GPUClusteringManager

    async def main():
        manager = GPUClusteringManager(history=True)
        print(manager.recording.active)

    anyio.run(main)
"""


def test_a_program_that_forgets_it_ends_all_the_same():
    """Rule: no thread of the history keeps a program from exiting."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM)], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
