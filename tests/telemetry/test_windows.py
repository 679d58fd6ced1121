"""Statistics over a window: a plain loop gives the same, holes count for nothing, unknown is None."""

from __future__ import annotations

import json
import math
import statistics
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo.gpu.telemetry.collector import TelemetryCollector
from exo.gpu.vocabulary.device import GPUDevice
from exo.gpu.vocabulary.errors import InvalidValue, UnknownName
from exo.gpu.vocabulary.metrics import GPUMetrics
from tests.telemetry.collector_model import near

POWER = "power_watts"


def percentile(values, share):
    ordered = sorted(values)
    place = (len(ordered) - 1) * share
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def plain(groups, window_seconds=None, now=math.inf, cadence_seconds=None):
    """The figures of lists of (time of receipt, value or None), a list for each device."""
    first = -math.inf if window_seconds is None else now - window_seconds
    known = [
        sorted(
            ((at, v) for at, v in points if v is not None and first <= at <= now),
            key=lambda point: point[0],
        )
        for points in groups
    ]
    known = [points for points in known if points]
    values = [value for points in known for _, value in points]
    if not values:
        return {"device_count": 0, "count": 0, "mean": None, "covered_seconds": 0.0}
    integral = covered = spread = product = 0.0
    gaps, means = 0, []
    for points in known:
        steps = [b[0] - a[0] for a, b in pairwise(points)]
        apart = [step for step in steps if step > 0]
        cadence = cadence_seconds
        if cadence is None:
            cadence = statistics.median_low(apart) if apart else 0.0
        mine = seconds = 0.0
        for (start, before), (end, after) in pairwise(points):
            if end - start <= 3 * cadence * (1 + 1e-9):
                mine += (end - start) * (before + after) / 2
                seconds += end - start
            else:
                gaps += 1
        if seconds:
            means.append(mine / seconds)
        integral, covered = integral + mine, covered + seconds
        middle = statistics.fmean(at - points[0][0] for at, _ in points)
        level = statistics.fmean(value for _, value in points)
        for at, value in points:
            spread += (at - points[0][0] - middle) ** 2
            product += (at - points[0][0] - middle) * (value - level)
    return {
        "device_count": len(known),
        "count": len(values),
        "mean": statistics.fmean(values),
        "minimum": min(values),
        "maximum": max(values),
        "p50": percentile(values, 0.5),
        "p95": percentile(values, 0.95),
        "slope_per_second": product / spread if spread else None,
        "time_weighted_mean": integral / covered if means else None,
        "sum_of_means": sum(means) if means else None,
        "covered_seconds": covered,
        "gap_count": gaps,
    }


def agree(ours, theirs):
    return near({name: getattr(ours, name) for name in theirs}, theirs)


def fed(groups, *, max_history=100):
    """A collector that received these points, each device's in order of time."""
    now = [0.0]
    collector = TelemetryCollector(max_history, clock=lambda: now[0])
    for number, points in enumerate(groups):
        for order, (at, value) in enumerate(points):
            now[0] = at
            collector.observe(GPUMetrics(f"cuda:{number}", float(order), power_watts=value))
    return collector


points = st.lists(
    st.tuples(st.integers(0, 400).map(lambda tick: tick / 4), st.none() | st.integers(0, 300)),
    max_size=25,
)


@given(points, st.none() | st.integers(0, 120).map(float), st.integers(0, 100).map(float))
def test_one_device_is_as_a_plain_loop_says(line, window_seconds, now):
    """Rule: every figure is that of a loop over the samples received within the window."""
    collector = fed([line])
    ours = collector.statistics("cuda:0", POWER, window_seconds=window_seconds, now=now)
    assert agree(ours, plain([line], window_seconds, now))
    assert json.loads(json.dumps(ours.to_dict()))["metric"] == POWER


@given(st.lists(points, max_size=4), st.none() | st.sampled_from((0.25, 1.0, 5.0)))
def test_a_group_is_all_its_devices(lines, cadence_seconds):
    """Rule: values are pooled, seconds added up, and each device keeps its own cadence and middle."""
    ours = fed(lines).cluster_statistics(POWER, now=1000.0, cadence_seconds=cadence_seconds)
    assert agree(ours, plain(lines, None, 1000.0, cadence_seconds))


def test_a_hole_is_not_integrated_over():
    """Rule: three cadences are no hole, more are: nobody knows what was in it."""
    line = [(0, 100.0), (1, 100.0), (2, 100.0), (5, 100.0), (6, 300.0), (100, 900.0), (101, 900.0)]
    found = fed([line]).statistics("cuda:0", POWER, now=101.0)
    assert (found.covered_seconds, found.gap_count) == (7.0, 1)
    assert found.time_weighted_mean == pytest.approx((5 * 100 + 200 + 900) / 7)
    assert found.mean == pytest.approx(sum(value for _, value in line) / 7)


def test_unknown_readings_are_holes_and_not_zeroes():
    """Rule: a sample without the reading counts for nothing."""
    line = [(0, 50.0), (1, None), (2, 50.0), (3, None), (4, 50.0)]
    found = fed([line]).statistics("cuda:0", POWER, now=4.0)
    assert (found.count, found.mean, found.minimum, found.covered_seconds) == (3, 50.0, 50.0, 4.0)


def test_one_value_has_a_mean_but_no_slope_and_no_weight():
    """Rule: what cannot be said is None."""
    found = fed([[(1, 5.0)]]).statistics("cuda:0", POWER)
    assert (found.mean, found.p95, found.maximum) == (5.0, 5.0, 5.0)
    assert found.slope_per_second is None
    assert found.time_weighted_mean is None
    assert found.covered_seconds == 0


def test_nobody_knows_a_stranger():
    """Rule: a device never heard of, or a reading never given, has no values and no figures."""
    collector = fed([[(1, 5.0)]])
    for found in (
        collector.statistics("cuda:9", POWER),
        collector.statistics("cuda:0", "fan_percent"),
        TelemetryCollector().cluster_statistics(POWER),
    ):
        assert (found.count, found.mean, found.time_weighted_mean) == (0, None, None)


def test_figures_of_each_group():
    """Rule: a group's figures are those of its own devices, and sums of means add up."""
    collector = fed([[(0, 10.0), (1, 10.0)], [(0, 20.0), (1, 40.0)], [(0, 5.0), (1, 5.0)]])
    for number, node in enumerate(("rig1", "rig1")):
        collector.describe(GPUDevice(f"cuda:{number}", "A card", "nvidia", "cuda", node=node))
    found = collector.statistics_by("node", POWER, now=1.0)
    assert {name: one.sum_of_means for name, one in found.items()} == {"": 5.0, "rig1": 40.0}
    assert (found["rig1"].mean, found["rig1"].device_count) == (20.0, 2)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"window_seconds": -1}, "window_seconds"),
        ({"window_seconds": math.nan}, "window_seconds"),
        ({"cadence_seconds": -1}, "cadence_seconds"),
        ({"now": math.inf}, "now"),
    ],
)
def test_an_impossible_window_is_refused_by_name(arguments, field):
    """Rule: an argument that cannot be is named."""
    with pytest.raises(InvalidValue, match=field):
        TelemetryCollector().statistics("cuda:0", POWER, **arguments)


def test_unknown_words_are_refused_with_the_near_one():
    """Rule: a metric or a grouping that nobody knows is named."""
    collector = TelemetryCollector()
    with pytest.raises(UnknownName, match="power_watts"):
        collector.statistics("cuda:0", "power_watt")
    with pytest.raises(UnknownName, match="node"):
        collector.statistics_by("nodes", POWER)
    with pytest.raises(UnknownName, match="vendor"):
        collector.aggregate_by("vendors")


def test_values_near_the_end_of_all_floats_make_no_noise():
    """Rule: a sum that no float holds is unknown, without a warning."""
    line = [(0, 1e308), (1, 1.7e308), (2, 1e308)]
    collector = fed([line])
    assert collector.statistics("cuda:0", POWER).maximum == 1.7e308
    collector.observe(GPUMetrics("cuda:1", 1.0, power_watts=1.7e308))
    collector.record_batch(["a:0", "a:1"], [1.0] * 2, {"memory_total_bytes": [1.7e308] * 2})
    found = collector.aggregate()
    assert (found.total_power_watts, found.total_memory_bytes) == (None, None)
