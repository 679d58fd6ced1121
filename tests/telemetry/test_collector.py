"""The collector: the newest sample wins, history and devices are bounded, unknown stays unknown."""

from __future__ import annotations

import subprocess
import sys
import threading
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo.gpu.telemetry.collector import TelemetryCollector
from exo.gpu.vocabulary.errors import InvalidValue
from exo.gpu.vocabulary.metrics import GPUMetrics

GIB = 2**30


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def collector(clock):
    return TelemetryCollector(max_history=5, clock=clock)


def sample(device_id="cuda:0", timestamp=1.0, **readings):
    return GPUMetrics(device_id, timestamp, **readings)


def times(collector, device_id="cuda:0"):
    return [one.timestamp for one in collector.get_metrics_history(device_id)]


@pytest.mark.anyio
async def test_a_recorded_sample_is_the_current_one(collector):
    await collector.record_metrics(sample(compute_utilization_percent=50.0))
    assert collector.get_metrics("cuda:0").compute_utilization_percent == 50.0
    assert collector.get_metrics("cuda:1") is None
    assert collector.get_metrics_history("cuda:1") == []


def test_a_late_sample_finds_its_place_and_replaces_nothing(collector, clock):
    """D10: 100.0 then 5.0 keeps 100.0."""
    collector.observe(sample(timestamp=100.0))
    clock.now = 110.0
    collector.observe(sample(timestamp=5.0))
    assert collector.get_metrics("cuda:0").timestamp == 100.0
    assert times(collector) == [5.0, 100.0]
    assert collector.age_seconds("cuda:0") == 10.0


def test_of_equal_times_the_last_received_wins(collector):
    collector.observe(sample(power_watts=1.0))
    collector.observe(sample(power_watts=2.0))
    assert collector.get_metrics("cuda:0").power_watts == 2.0
    assert [one.power_watts for one in collector.get_metrics_history("cuda:0")] == [1.0, 2.0]


def test_after_silence_an_older_time_means_a_clock_set_back(collector, clock):
    collector.observe(sample(timestamp=1e12))
    clock.now += 31
    collector.observe(sample(timestamp=2.0))
    assert collector.get_metrics("cuda:0").timestamp == 2.0
    assert collector.age_seconds("cuda:0") == 0


def test_age_counts_from_receipt_not_from_the_senders_clock(collector, clock):
    """A sample of 1970 that came just now is fresh."""
    collector.observe(sample(timestamp=1.0))
    clock.now += 3
    assert collector.age_seconds("cuda:0") == 3
    assert collector.age_seconds("cuda:1") is None


def test_history_is_bounded_and_drops_the_oldest(collector):
    for index in range(9):
        collector.observe(sample(timestamp=float(index)))
    assert times(collector) == [4, 5, 6, 7, 8]
    collector.observe(sample(timestamp=0.5))
    assert times(collector) == [4, 5, 6, 7, 8]


def test_a_history_handed_out_is_a_copy(collector):
    collector.observe(sample())
    collector.get_metrics_history("cuda:0").clear()
    assert times(collector) == [1.0]


def test_devices_are_bounded_and_the_one_silent_longest_goes_first():
    """D15: ids that somebody invents cannot fill the memory."""
    collector = TelemetryCollector(max_devices=2)
    for device_id in ("a:0", "b:0", "a:0", "c:0"):
        collector.observe(sample(device_id))
    assert collector.get_metrics("b:0") is None
    assert collector.get_aggregated_metrics()["device_count"] == 2


def test_the_same_name_on_two_nodes_is_two_devices(collector):
    """D9."""
    collector.observe(sample("cuda:0", power_watts=1.0))
    collector.observe(sample("rig2/cuda:0", power_watts=2.0))
    assert collector.get_metrics("cuda:0").power_watts == 1.0
    assert collector.get_metrics("rig2/cuda:0").power_watts == 2.0


def test_forgetting_is_harmless_twice(collector):
    """D15: a device that is gone leaves nothing behind."""
    collector.observe(sample())
    collector.forget("cuda:0")
    collector.forget("cuda:0")
    assert collector.get_metrics("cuda:0") is None
    assert collector.get_aggregated_metrics() == {}


@pytest.mark.parametrize("junk", [None, {"device_id": "cuda:0"}, "cuda:0"])
def test_what_is_no_sample_is_refused(collector, junk):
    with pytest.raises(InvalidValue, match="metrics"):
        collector.observe(junk)


@pytest.mark.parametrize(
    ("bound", "value"),
    [
        ("max_history", 0),
        ("max_history", 1.5),
        ("max_devices", 0),
        ("stale_after_seconds", -1),
        ("stale_after_seconds", float("nan")),
    ],
)
def test_an_impossible_bound_is_refused_by_name(bound, value):
    with pytest.raises(InvalidValue, match=bound):
        TelemetryCollector(**{bound: value})


class TestAggregate:
    def test_nothing_known_is_empty(self, collector):
        assert collector.get_aggregated_metrics() == {}

    def test_sums_and_means(self, collector):
        for index in range(3):
            collector.observe(
                GPUMetrics(
                    f"cuda:{index}", 1.0, 8 * GIB, 24 * GIB, 30.0 + 10 * index, 150.0, 65.0, 2500
                )
            )
        found = collector.get_aggregated_metrics()
        assert datetime.fromisoformat(found.pop("timestamp")).tzinfo is not None
        assert found == {
            "device_count": 3,
            "total_memory_bytes": 72 * GIB,
            "used_memory_bytes": 24 * GIB,
            "available_memory_bytes": 48 * GIB,
            "average_utilization_percent": 40.0,
            "average_temperature_celsius": 65.0,
            "total_power_watts": 450.0,
            "stale_count": 0,
            "reporting": {
                "memory_used_bytes": 3,
                "memory_total_bytes": 3,
                "compute_utilization_percent": 3,
                "power_watts": 3,
                "temperature_celsius": 3,
                "clock_rate_mhz": 3,
            },
        }

    def test_missing_readings_take_no_part_and_are_counted_as_missing(self, collector):
        """D12: no TypeError, and no 0 that would look cool and idle."""
        collector.observe(sample("cuda:0", temperature_celsius=70.0, memory_total_bytes=GIB))
        collector.observe(sample("metal:0", memory_used_bytes=5, memory_total_bytes=GIB))
        found = collector.get_aggregated_metrics()
        assert found["average_temperature_celsius"] == 70.0
        assert found["average_utilization_percent"] is None
        assert found["total_power_watts"] is None
        assert found["total_memory_bytes"] == 2 * GIB
        assert found["available_memory_bytes"] == GIB - 5
        assert found["reporting"]["temperature_celsius"] == 1
        assert found["reporting"]["power_watts"] == 0

    def test_all_silent_figures_are_none(self, collector):
        collector.observe(sample())
        found = collector.get_aggregated_metrics()
        assert found["total_memory_bytes"] is None
        assert found["available_memory_bytes"] is None

    def test_it_says_how_many_say_nothing_about_now(self, collector, clock):
        collector.observe(sample("cuda:0"))
        clock.now += 31
        collector.observe(sample("cuda:1"))
        assert collector.get_aggregated_metrics()["stale_count"] == 1


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=20))
def test_whatever_the_order_of_arrival_the_newest_is_current_and_history_is_sorted(arrivals):
    collector = TelemetryCollector(max_history=7, clock=lambda: 0.0)
    for timestamp in arrivals:
        collector.observe(sample(timestamp=timestamp))
    assert collector.get_metrics("cuda:0").timestamp == max(arrivals)
    assert times(collector) == sorted(arrivals)[-7:]


def test_threads_may_call_at_once():
    collector = TelemetryCollector(max_history=4000, max_devices=3)

    def report(device_id):
        for index in range(300):
            collector.observe(sample(device_id, float(index)))
            collector.get_aggregated_metrics()

    threads = [threading.Thread(target=report, args=(f"cuda:{index % 2}",)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(times(collector, f"cuda:{index}")) for index in range(2)] == [600, 600]


def test_importing_it_loads_neither_numpy_nor_anyio():
    code = (
        "import sys, exo.gpu.telemetry.collector as c; c.TelemetryCollector();"
        "print({'numpy', 'anyio'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
