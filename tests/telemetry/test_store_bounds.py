"""What keeps a history small, and what a reader makes of what is left."""

from __future__ import annotations

import sqlite3

import numpy as np
import pytest
from histories import START, plain, realistic

from exo.gpu.telemetry.store.blocks import SAMPLES
from exo.gpu.telemetry.store.reader import HistoryReader
from exo.gpu.telemetry.store.upkeep import HistoryLimits
from exo.gpu.telemetry.store.writer import HistoryWriter
from exo.gpu.vocabulary.errors import InvalidValue
from exo.gpu.vocabulary.health import Health, HealthEvent
from exo.gpu.vocabulary.metrics import GPUMetrics

HOUR = 3600.0


@pytest.fixture
def path(tmp_path):
    return tmp_path / "history.sqlite"


class Clock:
    """A wall clock that goes where it is told."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


def record(path, clock, hours: int, *, limits: HistoryLimits | None = None, cadence: float = 10.0):
    """A device sampled for so many hours of the clock; the power is the number of the hour."""
    with HistoryWriter.open(path, clock=clock, limits=limits) as writer:
        for _ in range(hours):
            hour = (clock.now - START) // HOUR
            count = int(HOUR / cadence)
            writer.add(
                GPUMetrics("cuda:0", clock.now + index * cadence, power_watts=hour)
                for index in range(count)
            )
            clock.now += HOUR
            assert writer.flush()


def read(path, *, since, until, points=500, metric="power_watts"):
    with HistoryReader(path) as reader:
        return reader.series("cuda:0", metric, since=since, until=until, points=points)


def test_raw_samples_and_rollups_have_their_own_age(path, clock):
    """Rule: beyond raw_seconds there are rollups alone, beyond rollup_seconds nothing."""
    limits = HistoryLimits(raw_seconds=2 * HOUR, rollup_seconds=5 * HOUR)
    record(path, clock, 9, limits=limits)
    whole = read(path, since=START, until=START + 9 * HOUR, points=9)
    assert whole.source == "rollups"
    assert whole.count[:3].tolist() == [0, 0, 0]
    assert whole.count[5:].tolist() == [360] * 4
    assert whole.mean[5:].tolist() == [5, 6, 7, 8]
    assert read(path, since=START + 8 * HOUR, until=START + 9 * HOUR).source == "raw"
    assert read(path, since=START + 5 * HOUR, until=START + 6 * HOUR).source == "rollups"
    with HistoryReader(path) as reader:
        statistics = reader.statistics
    assert 2 * 60 - 4 <= statistics.raw_minutes <= 3 * 60
    assert statistics.raw_since >= START + 6 * HOUR
    assert statistics.rollups_since >= START + 3 * HOUR


def test_hours_are_packed_and_read_as_if_they_were_not(path, clock):
    """Rule: what is packed an hour at a time is the same minute by minute."""
    record(path, clock, 4)
    tables = sqlite3.connect(path)
    assert tables.execute("SELECT count(*) FROM hours").fetchone()[0] >= 2
    assert tables.execute("SELECT count(*) FROM minutes").fetchone()[0] <= 2 * 60
    tables.close()
    series = read(path, since=START, until=START + 4 * HOUR, points=240)
    assert series.count.tolist() == [6] * 240
    assert series.mean.tolist() == [float(hour) for hour in range(4) for _ in range(60)]
    assert (series.minimum == series.maximum).all()


def test_a_late_minute_of_a_packed_hour_is_merged(path, clock):
    """Rule: samples for an hour that was packed already are counted with the others."""
    record(path, clock, 4)
    with HistoryWriter.open(path, clock=clock) as writer:
        writer.add(plain("cuda:0", 6, start=START + 0.5, cadence=10.0))
        writer.add(plain("other", 60, start=START + 4 * HOUR, cadence=60.0))
        assert writer.flush()
        first = read(path, since=START, until=START + 4 * HOUR, points=240).count[:2].tolist()
        writer.add(plain("other", 60, start=START + 5 * HOUR, cadence=60.0))
        assert writer.flush()
    assert first == [12, 6]
    assert read(path, since=START, until=START + 4 * HOUR, points=240).count[:2].tolist() == [12, 6]


def test_the_file_stays_within_its_bound(path, clock):
    """Rule: file and log together never exceed max_bytes, and what is left is the newest."""
    limits = HistoryLimits(max_bytes=2 << 20)
    largest = 0
    with HistoryWriter.open(path, clock=clock, limits=limits) as writer:
        for number in range(30):
            for device in range(4):
                writer.add(realistic(f"cuda:{device}", 900, start=clock.now, seed=number))
            clock.now += 900
            assert writer.flush()
            parts = [part for part in path.parent.iterdir() if not part.name.endswith("-shm")]
            largest = max(largest, sum(part.stat().st_size for part in parts))
    assert largest <= limits.max_bytes
    with HistoryReader(path) as reader:
        assert reader.statistics.used_bytes > limits.max_bytes // 2
        newest = reader.series(
            "cuda:0", "power_watts", since=clock.now - 900, until=clock.now, points=900
        )
        assert newest.source == "raw"
        assert newest.count.sum() == 900
        oldest = reader.series("cuda:0", "power_watts", since=START, until=START + 900)
        assert oldest.count.sum() == 0
        devices = reader.devices()
    assert len(devices) == 4
    tables = sqlite3.connect(path)
    assert tables.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert tables.execute("PRAGMA freelist_count").fetchone()[0] < 64
    tables.close()


def test_devices_that_are_gone_for_long_are_forgotten(path, clock):
    """Rule: a device without any history left is not listed for ever."""
    limits = HistoryLimits(raw_seconds=HOUR, rollup_seconds=HOUR)
    record(path, clock, 1, limits=limits)
    with HistoryWriter.open(path, clock=clock, limits=limits) as writer:
        writer.add(plain("cuda:1", 600, start=clock.now))
    clock.now += 10 * HOUR
    with HistoryWriter.open(path, clock=clock, limits=limits) as writer:
        writer.add(plain("cuda:2", 600, start=clock.now))
    with HistoryReader(path) as reader:
        assert "cuda:0" not in [device.device_id for device in reader.devices()]
        assert reader.find("cuda:2").last_seen == clock.now + 599


def test_old_events_go_with_the_rollups(path, clock):
    """Rule: events have the age of rollups."""
    limits = HistoryLimits(rollup_seconds=2 * HOUR)
    with HistoryWriter.open(path, clock=clock, limits=limits) as writer:
        for hour in range(4):
            at = START + hour * HOUR
            writer.add_event(
                HealthEvent(device_id="cuda:0", before=Health.OK, after=Health.LOST, at=at)
            )
    record(path, clock, 4, limits=limits)
    with HistoryReader(path) as reader:
        assert [event.at for event in reader.events()] == [START + 2 * HOUR, START + 3 * HOUR]


def test_short_points_need_samples_long_ones_rollups(path, clock):
    """Rule: the span decides what is read, and both agree on what there was."""
    record(path, clock, 2)
    raw = read(path, since=START, until=START + HOUR, points=120)
    rolled = read(path, since=START, until=START + HOUR, points=60)
    assert (raw.source, rolled.source) == ("raw", "rollups")
    assert raw.step_seconds == 30
    assert raw.times[:2].tolist() == [START, START + 30]
    assert raw.count.sum() == rolled.count.sum() == 360


def test_a_gap_is_a_gap(path, clock):
    """Rule: where nobody sampled there is no value, whatever is read."""
    record(path, clock, 1)
    clock.now += HOUR
    record(path, clock, 1)
    for points in (3, 1080):
        series = read(path, since=START, until=START + 3 * HOUR, points=points)
        third = points // 3
        assert series.count[:third].sum() == series.count[-third:].sum() == 360
        assert np.isnan(series.mean[third:-third]).all()


def test_a_point_begins_where_the_span_does(path, clock):
    """Rule: a span that begins within a minute or a second loses nothing at its ends."""
    record(path, clock, 1, cadence=1.0)
    part = read(path, since=START + 59.5, until=START + 120.5, points=61)
    assert part.count.tolist() == [1] * 61
    rolled = read(path, since=START + 30, until=START + HOUR, points=7)
    assert rolled.source == "rollups"
    assert rolled.count.sum() == 3600  # the minute in which it begins is there as a whole


def test_limits_that_cannot_be_are_refused():
    """Rule: nonsense in a configuration is named."""
    for bad in ({"raw_seconds": -1.0}, {"rollup_seconds": float("nan")}, {"max_bytes": 10}):
        with pytest.raises(InvalidValue, match=next(iter(bad))):
            HistoryLimits(**bad)


def test_a_day_of_a_real_device_is_small(path, clock):
    """Rule: raw readings take far less than 4 bytes on disk, rollups less than 60, all included."""
    samples = list(realistic("cuda:0", 6 * 3600))
    with HistoryWriter.open(path, clock=clock) as writer:
        writer.add(samples)
    known = [
        sum(getattr(sample, name) is not None for name in SAMPLES.names) for sample in samples[:1]
    ]
    tables = sqlite3.connect(path)
    hours, packed = tables.execute("SELECT count(*), sum(length(data)) FROM hours").fetchone()
    tables.close()
    assert packed / (hours * 60 * known[0]) < 60
    assert path.stat().st_size / (len(samples) * known[0]) < 4
