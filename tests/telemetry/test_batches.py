"""Batches of columns: what a sample may hold is what a line may hold, and one bad line spoils none."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo.gpu.telemetry.collector import TelemetryCollector
from exo.gpu.telemetry.table.batches import REFUSALS_TOLD
from exo.gpu.vocabulary.errors import InvalidValue, UnknownName
from exo.gpu.vocabulary.metrics import BOUNDS, SERIES, GPUMetrics
from tests.telemetry.collector_model import possible

NUMBERS = st.one_of(
    st.floats(allow_nan=False),
    st.integers(-5, 200).map(float),
    st.sampled_from((100.0, -273.15, -273.16, 0.0, -0.0, 2.0**53)),
)


@pytest.fixture
def collector():
    return TelemetryCollector(max_history=5, clock=lambda: 100.0)


@given(st.sampled_from(SERIES), NUMBERS)
def test_a_value_is_refused_where_a_sample_would_refuse_it(name, value):
    """Rule: the columns take exactly what ``GPUMetrics`` takes, and give it back as it was."""
    collector = TelemetryCollector(clock=lambda: 0.0)
    result = collector.record_batch(["a:0"], [1.0], {name: [value]})
    whole = BOUNDS[name].whole and math.isfinite(value) and value == math.floor(value)
    taken = possible(name, int(value) if whole else value)
    assert (result.reading_count, result.refused_reading_count) == (int(taken), int(not taken))
    sample = collector.get_metrics("a:0")
    assert getattr(sample, name) == (value if taken else None)
    assert (name in sample.missing_reasons) is not taken
    assert collector.get_metrics_history("a:0") == [sample]


def test_bad_lines_are_left_out_and_told(collector):
    """Rule: an id that is none or a time that is none costs its own sample alone."""
    result = collector.record_batch(
        ["a:0", "", 7, ["list"], "b:0", "c:0", "d:0"],
        [1.0, 1.0, 1.0, 1.0, math.nan, math.inf, 1.0],
        {"power_watts": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, -7.0]},
    )
    assert (result.sample_count, result.refused_sample_count) == (2, 5)
    assert (result.reading_count, result.refused_reading_count) == (1, 1)
    told = {(one.index, one.field) for one in result.refusals}
    assert told == {
        (6, "power_watts"),
        (4, "timestamp"),
        (5, "timestamp"),
        (1, "device_id"),
        (2, "device_id"),
        (3, "device_id"),
    }
    assert collector.get_metrics("a:0").power_watts == 1.0
    assert collector.get_metrics("d:0").power_watts is None
    assert collector.get_metrics("b:0") is None
    assert result.to_dict()["refusals"][0]["value"] == "-7.0"


def test_what_is_told_is_bounded_and_the_counts_are_whole(collector):
    """Rule: a sender of nonsense gets a short answer."""
    count = 3 * REFUSALS_TOLD
    result = collector.record_batch(["a:0"] * count, range(count), {"fan_percent": [200] * count})
    assert len(result.refusals) == REFUSALS_TOLD
    assert (result.sample_count, result.refused_reading_count) == (count, count)


def test_more_memory_used_than_there_is_costs_the_use_alone(collector):
    """Rule: what contradicts the total is left out."""
    columns = {"memory_used_bytes": [5, 2], "memory_total_bytes": [4, 4]}
    result = collector.record_batch(["a:0", "a:1"], [1.0, 1.0], columns)
    assert result.refused_reading_count == 1
    assert collector.get_metrics("a:0").memory_used_bytes is None
    assert collector.get_metrics("a:0").memory_total_bytes == 4
    assert collector.get_metrics("a:1").memory_used_bytes == 2


def test_none_and_nan_are_unknown_and_other_objects_are_refused(collector):
    """Rule: a column of objects is read value by value."""
    column = [None, math.nan, "hot", True, 10**400, 5]
    result = collector.record_batch(
        [f"a:{n}" for n in range(6)], [1.0] * 6, {"temperature_celsius": column}
    )
    assert (result.reading_count, result.refused_reading_count) == (1, 3)
    assert collector.get_metrics("a:5").temperature_celsius == 5


@pytest.mark.parametrize(
    ("columns", "error", "match"),
    [
        ({"timestamps": [1.0]}, InvalidValue, "timestamp"),
        ({"timestamps": ["now", "then"]}, InvalidValue, "timestamp"),
        ({"readings": {"power_watts": [1.0]}}, InvalidValue, "power_watts"),
        ({"readings": {"power_watts": [[1.0], [1.0, 2.0]]}}, InvalidValue, "power_watts"),
        ({"readings": {"power_watts": [True, False]}}, InvalidValue, "power_watts"),
        ({"readings": {"power": [1.0, 1.0]}}, UnknownName, "power_watts"),
        ({"received_at": [1.0]}, InvalidValue, "received_at"),
        ({"remarks": [None]}, InvalidValue, "remarks"),
    ],
)
def test_a_batch_of_the_wrong_form_is_refused_by_name(collector, columns, error, match):
    """Rule: what the caller built wrongly is no sender's bad line."""
    arguments = {"timestamps": [1.0, 1.0], "readings": {}, **columns}
    with pytest.raises(error, match=match):
        collector.record_batch(["a:0", "a:1"], **arguments)
    assert collector.aggregate().device_count == 0


def test_the_callers_columns_are_left_alone(collector):
    """Rule: a refused value is left out of what is kept, not out of what was handed over."""
    column = np.array([-1.0, 5.0])
    collector.record_batch(["a:0", "a:1"], np.ones(2), {"power_watts": column})
    assert column.tolist() == [-1.0, 5.0]
    column[1] = 9.0
    assert collector.get_metrics("a:1").power_watts == 5.0


def test_a_device_may_come_several_times_in_one_batch(collector):
    """Rule: its samples are taken in order, also when there are more than are kept."""
    times = [3.0, 1.0, 2.0, *range(4, 12)]
    collector.record_batch(["a:0"] * len(times), times, {"power_watts": times})
    assert collector.get_metrics("a:0").timestamp == 11.0
    kept = [(one.timestamp, one.power_watts) for one in collector.get_metrics_history("a:0")]
    assert kept == [(float(time), float(time)) for time in range(7, 12)]


def test_receipt_may_be_told_and_is_never_later_than_now(collector):
    """Rule: an agent says how long ago it read; nobody may say that it will."""
    collector.record_batch(["a:0", "a:1"], [1.0, 1.0], {}, received_at=[40.0, 1e9])
    assert collector.age_seconds("a:0") == 60.0
    assert collector.age_seconds("a:1") == 0.0
    collector.record_batch(["a:2"], [1.0], {}, received_at=99)
    assert collector.age_seconds("a:2") == 1.0


def test_an_empty_batch_changes_nothing(collector):
    """Rule: nothing in, nothing kept, no version."""
    before = collector.version
    assert collector.record_batch([], [], {"power_watts": []}).sample_count == 0
    assert collector.version == before


def test_threads_may_send_and_ask_at_once():
    """Rule: batches, single samples and questions from several threads lose nothing."""
    collector = TelemetryCollector(max_history=1000)

    def send(number):
        for step in range(100):
            ids = [f"rig{number}/a:{one}" for one in range(3)]
            collector.record_batch(ids, [float(step)] * 3, {"power_watts": [1.0] * 3})
            collector.observe(GPUMetrics("shared:0", float(step), power_watts=2.0))
            assert collector.aggregate().total_power_watts >= 5.0
            collector.statistics(ids[0], "power_watts")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(send, range(4)))
    assert len(collector.get_metrics_history("shared:0")) == 400
    assert all(len(collector.get_metrics_history(f"rig{n}/a:2")) == 100 for n in range(4))
    assert collector.aggregate().total_power_watts == 14.0


def test_a_device_that_goes_for_another_is_a_change():
    """Rule: the version rises when asking for rows pushes a device out."""
    collector = TelemetryCollector(max_devices=1)
    collector.observe(GPUMetrics("a:0", 1.0))
    before = collector.version
    collector.rows(["b:0"])
    assert collector.get_metrics("a:0") is None
    assert collector.version > before


class TestRows:
    def test_a_batch_by_row_is_one_by_id(self, collector):
        """Rule: rows stand for their devices, and some of them for some."""
        rows = collector.rows(["a:0", "b:0", "c:0"])
        collector.record_batch(rows, [1.0] * 3, {"power_watts": [1.0, 2.0, 3.0]})
        collector.record_batch(rows[1:], [2.0] * 2, {"power_watts": [4.0, 5.0]})
        found = [collector.get_metrics(one).power_watts for one in ("a:0", "b:0", "c:0")]
        assert found == [1.0, 4.0, 5.0]

    def test_a_row_without_a_sample_is_no_device_yet(self, collector):
        """Rule: asking for rows tells nothing of their devices."""
        collector.rows(["a:0"])
        assert collector.get_metrics("a:0") is None
        assert collector.age_seconds("a:0") is None
        assert collector.get_metrics_history("a:0") == []
        assert collector.get_aggregated_metrics() == {}

    def test_a_row_that_changed_hands_is_refused(self, collector):
        """Rule: what is sent for a forgotten device never becomes another's."""
        rows = collector.rows(["a:0", "b:0"])
        collector.forget("a:0")
        collector.rows(["c:0"])
        result = collector.record_batch(rows, [1.0, 1.0], {"power_watts": [1.0, 2.0]})
        assert (result.sample_count, result.refusals[0].field) == (1, "device_id")
        assert collector.get_metrics("c:0") is None
        assert collector.get_metrics("b:0").power_watts == 2.0

    def test_rows_of_another_collector_are_refused(self, collector):
        """Rule: a row number means something to its own table only."""
        collector.rows(["a:0"])
        stranger = TelemetryCollector().rows(["b:0"])
        assert collector.record_batch(stranger, [1.0], {}).refused_sample_count == 1

    @pytest.mark.parametrize("ids", [[""], [7], ["a:0", "b:0", "c:0"]])
    def test_rows_are_for_devices_that_there_is_room_for(self, ids):
        """Rule: what can get no row is said at once."""
        with pytest.raises(InvalidValue, match="device_ids"):
            TelemetryCollector(max_devices=2).rows(ids)
