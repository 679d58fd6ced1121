"""The score: 60 % memory, 40 % idleness, a penalty for heat; missing readings drop out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo.gpu.scheduling.scorer import DeviceScorer, natural_key, score_sample
from exo.gpu.vocabulary.device import DeviceCapabilities, DeviceType
from exo.gpu.vocabulary.errors import InvalidValue
from exo.gpu.vocabulary.metrics import GPUMetrics

GIB = 2**30


def sample(device_id="cuda:0", used=6, total=24, percent=50.0, celsius=60.0):
    return GPUMetrics(
        device_id,
        1.0,
        None if used is None else round(used * GIB),
        None if total is None else total * GIB,
        percent,
        100.0,
        celsius,
        1000,
    )


def capabilities(device_id="cuda:0", total=24):
    memory = None if total is None else total * GIB
    return DeviceCapabilities(device_id, DeviceType.CUDA, "card", "nvidia", 1, 1.0, memory, "1")


def score(**readings):
    return DeviceScorer.score_device(sample(**readings), capabilities())


def test_the_formula():
    assert score() == pytest.approx(0.6 * 0.75 + 0.4 * 0.5)


def test_what_the_driver_reserves_is_not_free():
    metrics = GPUMetrics("cuda:0", 1.0, 6 * GIB, 24 * GIB, memory_reserved_bytes=6 * GIB)
    assert DeviceScorer.score_device(metrics, capabilities()) == pytest.approx(0.5)
    assert DeviceScorer.find_best_device({"cuda:0": (metrics, capabilities())}, 13 * GIB) is None


@pytest.mark.parametrize(
    ("celsius", "penalty"),
    [(20, 1), (80, 1), (90, 0.75), (100, 0.5), (116, 0.1), (500, 0.1)],
)
def test_heat_takes_away_above_80_degrees_and_never_all(celsius, penalty):
    assert score(celsius=celsius) == pytest.approx(0.65 * penalty)


def test_free_and_total_come_from_the_same_sample():
    """D16: 8 of 16 GiB free is half, whatever the capabilities claim to hold."""
    metrics = sample(used=8, total=16, percent=100)
    assert DeviceScorer.score_device(metrics, capabilities(total=64)) == pytest.approx(0.3)


def test_the_capabilities_stand_in_where_the_sample_has_no_total():
    metrics = sample(used=6, total=None)
    assert DeviceScorer.score_device(metrics, capabilities(total=24)) == pytest.approx(0.65)


@pytest.mark.parametrize(
    ("missing", "expected"),
    [
        ({"percent": None}, 0.75),
        ({"used": None}, 0.5),
        ({"celsius": None}, 0.65),
        ({"used": None, "percent": None}, 0.0),
    ],
)
def test_a_missing_reading_drops_its_term_and_the_others_fill_up(missing, expected):
    """D12: None is normal on Metal, Vulkan, the CPU and MIG, and is no 0."""
    assert score(**missing) == pytest.approx(expected)


def test_no_total_anywhere_drops_the_memory_term():
    metrics = sample(used=6, total=None)
    assert DeviceScorer.score_device(metrics, capabilities(total=None)) == pytest.approx(0.5)
    assert score(used=0, total=0) == pytest.approx(0.5)


def test_each_part_stays_within_0_and_1():
    """More used than the capabilities hold is 0, not negative."""
    metrics = sample(used=30, total=None, percent=0)
    assert DeviceScorer.score_device(metrics, capabilities(total=24)) == pytest.approx(0.4)


def test_every_term_says_its_value_weight_and_what_was_missing():
    full = DeviceScorer.explain_device(sample(), capabilities())
    assert [(term.name, term.value, term.weight) for term in full.terms] == [
        ("memory", 0.75, 0.6),
        ("compute", 0.5, 0.4),
        ("heat", 1.0, 1.0),
    ]
    partial = DeviceScorer.explain_device(sample(percent=None, celsius=None), capabilities())
    notes = {term.name: term.note for term in partial.terms}
    assert partial.terms[0].weight == 1.0
    assert "scaled up" in notes["memory"]
    assert "not reported" in notes["compute"]
    assert "no penalty" in notes["heat"]


def test_leases_leave_less_than_the_sample_says():
    assert score_sample("cuda:0", sample(), free_bytes=12 * GIB).total == pytest.approx(0.5)


def test_no_sample_scores_nothing_and_says_so():
    unsampled = score_sample("cuda:0", None)
    assert unsampled.total == 0
    assert unsampled.notes == ("no sample yet",)


def table(*rows):
    return {
        device_id: (sample(device_id, **readings), capabilities(device_id))
        for device_id, readings in rows
    }


def test_rank_is_best_first():
    ranked = DeviceScorer.rank_devices(table(("cuda:0", {"used": 20}), ("cuda:1", {"used": 2})))
    assert [device_id for device_id, _ in ranked] == ["cuda:1", "cuda:0"]


def test_ties_break_by_free_memory_then_by_number():
    rows = [(f"cuda:{index}", {}) for index in (10, 2, 1)]
    ranked = DeviceScorer.rank_devices(table(*rows))
    assert [device_id for device_id, _ in ranked] == ["cuda:1", "cuda:2", "cuda:10"]
    larger = table(("cuda:0", {}), ("cuda:1", {"used": 12, "total": 48}))
    assert DeviceScorer.rank_devices(larger)[0][0] == "cuda:1"


def test_find_best_refuses_what_does_not_fit():
    devices = table(("cuda:0", {"used": 20}))
    assert DeviceScorer.find_best_device(devices, 3 * GIB) == "cuda:0"
    assert DeviceScorer.find_best_device(devices, 5 * GIB) is None


def test_a_full_busy_device_is_still_found_when_nothing_is_asked():
    """D13: a score of 0 is no refusal."""
    devices = table(("cuda:0", {"used": 24, "percent": 100.0}))
    assert DeviceScorer.score_device(*devices["cuda:0"]) == 0
    assert DeviceScorer.find_best_device(devices) == "cuda:0"


def test_unknown_use_counts_the_total_as_free_and_an_unknown_total_holds_nothing():
    devices = table(("metal:0", {"used": None}))
    assert DeviceScorer.find_best_device(devices, 24 * GIB) == "metal:0"
    nothing = {"x:0": (sample("x:0", used=None, total=None), capabilities("x:0", total=None))}
    assert DeviceScorer.find_best_device(nothing, 1) is None
    assert DeviceScorer.find_best_device(nothing) == "x:0"


def test_a_negative_requirement_is_refused_by_name():
    with pytest.raises(InvalidValue, match="min_memory_bytes"):
        DeviceScorer.find_best_device({}, -1)


@pytest.mark.parametrize(
    "order",
    [["a:1", "a:2", "a:10"], ["a", "a:0", "b"], ["rig2/cuda:0", "rig10/cuda:0"], ["1", "2", "a"]],
)
def test_numbers_in_ids_sort_as_numbers(order):
    shuffled = sorted(order, reverse=True)
    assert sorted(shuffled, key=natural_key)[0] == order[0] or order[0].isdigit()
    assert [one for one in sorted(shuffled, key=natural_key) if not one.isdigit()] == [
        one for one in order if not one.isdigit()
    ]


ratios = st.floats(0, 1)


@given(used=ratios, percent=st.floats(0, 100), celsius=st.floats(-50, 200))
def test_the_score_is_within_0_and_1_and_equals_its_terms(used, percent, celsius):
    metrics = sample(used=used * 24, percent=percent, celsius=celsius)
    scored = DeviceScorer.explain_device(metrics, capabilities())
    memory, compute, heat = scored.terms
    rebuilt = (memory.value * memory.weight + compute.value * compute.weight) * heat.value
    assert scored.total == pytest.approx(rebuilt)
    assert 0 <= scored.total <= 1


@given(used=ratios, more=ratios)
def test_more_free_memory_never_scores_less(used, more):
    low, high = sorted((used, more))
    assert score(used=low * 24) >= score(used=high * 24)
