"""Writing and reading the history: what is added is found again, by whoever looks."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from histories import START, plain, realistic

from exo.gpu.telemetry.store.blocks import STEPS
from exo.gpu.telemetry.store.lock import WriterElsewhere
from exo.gpu.telemetry.store.minutes import IDLE_SECONDS, MOST_OPEN, OpenMinutes
from exo.gpu.telemetry.store.reader import HistoryReader
from exo.gpu.telemetry.store.rows import tabulate
from exo.gpu.telemetry.store.schema import history_path
from exo.gpu.telemetry.store.writer import HistoryWriter
from exo.gpu.vocabulary.device import GPUDevice
from exo.gpu.vocabulary.errors import InvalidValue, NoSuchDevice, StoreError, UnknownName
from exo.gpu.vocabulary.health import DeviceFault, FaultAction, Health, HealthEvent
from exo.gpu.vocabulary.metrics import GPUMetrics


@pytest.fixture
def path(tmp_path):
    return tmp_path / "data" / "history.sqlite"


def now(seconds: float = 0.0):
    """A clock that stands at a time after the first sample."""
    return lambda: START + 3600 + seconds


def powers(path, device="cuda:0", since=START, until=START + 600, points=600):
    """Count and mean of the power at each second of ten minutes."""
    with HistoryReader(path) as reader:
        return reader.series(device, "power_watts", since=since, until=until, points=points)


@pytest.mark.parametrize("seconds", [30, 400])
def test_what_was_added_is_read_again(path, seconds):
    """Rule: open minutes and those that are over give the same samples, none lost and none twice."""
    with HistoryWriter.open(path, clock=now()) as writer:
        for sample in plain("cuda:0", seconds):
            writer.add(sample)
        assert writer.flush()
        assert writer.statistics.written == seconds
        open_still = powers(path)
    series = powers(path)
    assert series.source == "raw"
    assert series.count[:seconds].tolist() == [1] * seconds
    assert series.count.sum() == seconds
    assert series.mean[:seconds].tolist() == list(range(seconds))
    assert np.array_equal(open_still.mean, series.mean, equal_nan=True)


def test_the_thread_flushes_on_its_own(path):
    """Rule: nobody has to ask: a reader sees a sample while the writer goes on."""
    writer = HistoryWriter.open(path, clock=now())
    writer.add(plain("cuda:0", 3))
    deadline = time.monotonic() + 60
    while writer.statistics.written < 3 and time.monotonic() < deadline:
        threading.Event().wait(0.01)
    assert powers(path).count.sum() == 3
    writer.close()


def test_adding_never_waits_for_the_disk(path):
    """Rule: while another process holds the file, samples are taken; too many drop the oldest."""
    from exo.gpu.database import immediate, open_history

    writer = HistoryWriter.open(path, clock=now(), most_waiting=50)
    other = open_history(path, write_ahead=True, journal_bytes=1 << 20)
    with immediate(other):
        writer.add(plain("cuda:0", 20))
        while (
            writer.statistics.waiting != 20 or not writer._writing
        ):  # a flush has begun, and waits
            threading.Event().wait(0.01)
        writer.add(plain("cuda:0", 80, start=START + 100))
        assert writer.statistics.dropped == 30
    other.close()
    assert writer.flush()
    writer.close()
    series = powers(path)
    assert series.count[:20].sum() == 20
    assert np.flatnonzero(series.count[100:200]).tolist() == list(range(30, 80))


def test_a_second_writer_is_told_who_the_first_is(path):
    """Rule: one process writes; another gets a value that names it, and may write afterwards."""
    import os

    first = HistoryWriter.open(path, clock=now())
    second = HistoryWriter.open(path)
    assert isinstance(second, WriterElsewhere)
    assert second.pid == os.getpid()
    assert second.since is not None
    assert f"process {os.getpid()}" in str(second)
    first.close()
    path.with_name(f"{path.name}.lock").write_text("nonsense")
    third = HistoryWriter.open(path, clock=now())
    assert isinstance(third, HistoryWriter)
    path.with_name(f"{path.name}.lock").write_text("nonsense")
    assert "another process" in str(HistoryWriter.open(path))
    third.close()


def test_devices_are_known_by_their_hardware(path):
    """Rule: history follows the hardware id when the label changes, and both names find it."""
    with HistoryWriter.open(path, clock=now()) as writer:
        writer.register(GPUDevice("cuda:0", "A card", "NVIDIA", "cuda", hardware_id="GPU-1"))
        writer.add(plain("cuda:0", 2))
        assert writer.flush()
        writer.register(GPUDevice("cuda:1", "A card", "NVIDIA", "cuda", hardware_id="GPU-1"))
        writer.register(GPUDevice("cuda:0", "Another", "NVIDIA", "cuda", hardware_id="GPU-2"))
        writer.add(plain("cuda:1", 3, start=START + 10))
        writer.add(plain("cuda:0", 4, start=START + 20))
        writer.add(plain("rig2/cuda:0", 1))
    assert powers(path, "cuda:1").count.sum() == 5
    assert powers(path, "GPU-1").count.sum() == 5
    assert powers(path, "cuda:0").count.sum() == 4
    with HistoryReader(path) as reader:
        known = reader.devices()
        assert [device.device_id for device in known] == ["cuda:0", "cuda:1", "rig2/cuda:0"]
        assert known[1].name == "A card"
        assert (known[1].first_seen, known[1].last_seen) == (START, START + 12)
        assert reader.find("GPU-2") == known[0]
        with pytest.raises(NoSuchDevice, match=r"cuda:0, cuda:1, rig2/cuda:0 \(did you mean"):
            reader.find("cuda:2")


def test_a_label_of_two_cards_means_the_one_seen_last(path):
    """Rule: a card that took the place of another is what its label finds."""
    with HistoryWriter.open(path, clock=now()) as writer:
        for number, hardware in enumerate(("GPU-old", "GPU-new")):
            writer.register(GPUDevice("cuda:0", "A card", "NVIDIA", "cuda", hardware_id=hardware))
            writer.add(plain("cuda:0", 1, start=START + number))
            assert writer.flush()
    with HistoryReader(path) as reader:
        assert reader.find("cuda:0").hardware_id == "GPU-new"
        assert reader.find("GPU-old").hardware_id == "GPU-old"


def test_unknown_stays_unknown(path):
    """Rule: a reading that was missing has the count 0 and no value, and 0 is a value."""
    with HistoryWriter.open(path, clock=now()) as writer:
        writer.add(GPUMetrics("cuda:0", START, power_watts=0.0))
        writer.add(GPUMetrics("cuda:0", START + 1, temperature_celsius=40.0))
    series = powers(path, points=600)
    assert series.count[:2].tolist() == [1, 0]
    assert series.mean[0] == 0
    assert series.to_dict()["mean"][:2] == [0.0, None]
    with HistoryReader(path) as reader:
        span = {"since": START, "until": START + 60}
        assert reader.metrics("cuda:0", **span) == ("power_watts", "temperature_celsius")
        assert reader.metrics("cuda:0", since=START + 60, until=START + 90) == ()


def test_every_reading_is_kept(path):
    """Rule: each number of a sample comes back to half its quantum."""
    samples = list(realistic("cuda:0", 150))
    with HistoryWriter.open(path, clock=now()) as writer:
        writer.add(samples)
    with HistoryReader(path) as reader:
        for name, steps in STEPS.items():
            series = reader.series("cuda:0", name, since=START, until=START + 150, points=150)
            expected = [getattr(sample, name) for sample in samples]
            if expected[0] is None:
                assert series.count.sum() == 0
            else:
                assert np.abs(series.mean - expected).max() * steps <= 0.5 + 1e-6


def test_a_clock_that_steps_back_an_hour_merges_minutes(path):
    """Rule: rows keep the order of their time, and a minute met twice is one minute."""
    with HistoryWriter.open(path, clock=now()) as writer:
        writer.add(plain("cuda:0", 600))
        assert writer.flush()
        writer.add(plain("cuda:0", 120, start=START + 3600))
        assert writer.flush()
        # An hour back: the same minutes once more, half a second beside the others.
        writer.add(plain("cuda:0", 120, start=START + 0.5))
        assert writer.flush()
        writer.add(plain("cuda:0", 600, start=START + 7200))
        assert writer.flush()
    series = powers(path, until=START + 120, points=120)
    assert series.source == "raw"
    assert series.count.tolist() == [2] * 120
    assert series.mean.tolist() == list(range(120))
    by_minute = powers(path, until=START + 60 * 240, points=240)
    assert by_minute.source == "rollups"
    assert by_minute.count[:11].tolist() == [120, 120, *[60] * 8, 0]
    assert by_minute.mean[0] == 29.5
    assert by_minute.maximum[1] == 119


def test_times_that_no_calendar_has_are_refused(path):
    """Rule: a nonsense time is counted and left out; the samples beside it are kept."""
    with HistoryWriter.open(path, clock=now()) as writer:
        writer.add([GPUMetrics("cuda:0", at, power_watts=1.0) for at in (-1.0, 1e300, START)])
        writer.add(GPUMetrics("cuda:0", START + 1, memory_used_bytes=10**400, power_watts=2.0))
        assert writer.flush()
        assert writer.statistics.refused == 2
        assert writer.statistics.written == 2
    assert powers(path).count[:3].tolist() == [1, 1, 0]


def test_what_is_no_sample_is_refused_at_once(path):
    """Rule: a caller's mistake reaches the caller, not the thread."""
    with HistoryWriter.open(path, clock=now()) as writer, pytest.raises(InvalidValue):
        writer.add([plain("cuda:0", 1)[0], "nonsense"])
    with pytest.raises(InvalidValue):
        HistoryWriter.open(path, most_waiting=0)


def test_events_are_kept_beside_the_samples(path):
    """Rule: changes of health and faults come back in the order of their time."""
    change = HealthEvent(
        device_id="cuda:0", before=Health.OK, after=Health.LOST, reasons=("gone",), at=START + 5
    )
    fault = DeviceFault(
        device_id="cuda:1", code=79, what="fallen off the bus", action=FaultAction.CHECK, at=START
    )
    with HistoryWriter.open(path, clock=now()) as writer:
        writer.add_event(change)
        writer.add_event(fault)
    with HistoryReader(path) as reader:
        first, second = reader.events()
        assert (first.kind, first.device_id, first.at) == ("fault", "cuda:1", START)
        assert DeviceFault.from_dict(first.fields) == fault
        assert HealthEvent.from_dict(second.fields) == change
        assert reader.events(since=START + 1) == (second,)
        assert reader.events(until=START + 1) == (first,)
        assert reader.events(device="cuda:0") == (second,)
        assert reader.statistics.events == 2


def test_the_next_writer_goes_on_with_the_open_minute(path):
    """Rule: closing in the middle of a minute and opening again loses nothing and doubles nothing."""
    for part in range(4):
        with HistoryWriter.open(path, clock=now()) as writer:
            writer.add(plain("cuda:0", 100, start=START + 100 * part))
    with HistoryWriter.open(path, clock=now()) as writer:
        writer.add(plain("other", 600, start=START + 1000))  # so that all others are over
    assert powers(path).count[:400].tolist() == [1] * 400
    assert powers(path).count.sum() == 400


def test_closing_twice_and_adding_afterwards_is_harmless(path):
    """Rule: a closed writer takes nothing, says so in its figures, and breaks nothing."""
    writer = HistoryWriter.open(path, clock=now())
    assert writer.close()
    assert writer.close()
    writer.add(plain("cuda:0", 2))
    assert writer.statistics.dropped == 2
    assert not writer.flush()


def test_minutes_end_by_silence_by_number_and_never_by_a_late_one():
    """Rule: a minute is over after a silence, or when too many others were touched since."""

    def rows(*minutes: int):
        samples = [GPUMetrics("cuda:0", 60.0 * minute, power_watts=1.0) for minute in minutes]
        return tabulate(samples, lambda _: 0)

    book = OpenMinutes([], now=0.0)

    def feed(*minutes: int, at: float) -> tuple[list[int], list[int]]:
        plan = book.plan(rows(*minutes), now=at)
        book.accept(plan)
        over = sorted(set(plan.over.minutes.tolist())) if plan.over else []
        return over, sorted(plan.after)

    assert feed(7, 8, at=0.0) == ([], [7, 8])
    assert feed(8, at=IDLE_SECONDS) == ([], [7, 8])
    assert feed(at=IDLE_SECONDS + 1) == ([7], [8])
    assert feed(*range(20, 20 + MOST_OPEN), at=IDLE_SECONDS + 2) == ([8], [20, 21, 22, 23])
    assert feed(20, 3, at=IDLE_SECONDS + 3) == ([21], [3, 20, 22, 23])


def test_a_flood_into_one_minute_does_not_stay_in_memory(monkeypatch):
    """Rule: beyond a bound the minutes untouched for longest are written."""
    from exo.gpu.telemetry.store import minutes as store_minutes

    monkeypatch.setattr(store_minutes, "MOST_OPEN_ROWS", 100)
    book = OpenMinutes([], now=0.0)
    first = tabulate(plain("cuda:0", 60), lambda _: 0)
    second = tabulate(plain("cuda:0", 60, start=START + 60), lambda _: 0)
    book.accept(book.plan(first, now=0.0))
    plan = book.plan(second, now=1.0)
    assert plan.over is not None
    assert len(plan.over) == 60
    assert list(plan.after) == [int(START // 60) + 1]


def test_the_file_is_where_the_environment_says(tmp_path, monkeypatch):
    """Rule: EXO_GPU_HISTORY, else the data folder of the user as platformdirs names it."""
    import platformdirs

    assert history_path({"EXO_GPU_HISTORY": "/a/b"}).as_posix() == "/a/b"
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    usual = platformdirs.user_data_path("exo-gpu", appauthor=False) / "history.sqlite"
    assert history_path({"XDG_DATA_HOME": str(tmp_path)}) == usual
    monkeypatch.delenv("XDG_DATA_HOME")
    usual = platformdirs.user_data_path("exo-gpu", appauthor=False) / "history.sqlite"
    assert history_path({}) == usual


def test_questions_that_cannot_be_are_refused(path):
    """Rule: an unknown reading, an empty span and no file are told apart, by name."""
    with pytest.raises(StoreError, match="no history"):
        HistoryReader(path)
    with HistoryWriter.open(path, clock=now()) as writer:
        writer.add(plain("cuda:0", 2))
        assert writer.flush()
        with HistoryReader(path) as reader:
            with pytest.raises(UnknownName, match="did you mean 'power_watts'"):
                reader.series("cuda:0", "power_wats", since=START)
            with pytest.raises(InvalidValue, match="since"):
                reader.series("cuda:0", "power_watts", since=START, until=START)
            with pytest.raises(InvalidValue, match="points"):
                reader.series("cuda:0", "power_watts", since=START, points=0)
            assert reader.series("cuda:0", "power_watts", since=START).count.sum() == 2
