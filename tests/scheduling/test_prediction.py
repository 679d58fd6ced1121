"""How long work takes on a device: learned from what ended, told also where nothing was seen."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo.gpu.scheduling.peak_memory import LEAST_MARGIN_BYTES, PEAKS_KEPT, Peaks
from exo.gpu.scheduling.prediction import SpeedPredictor
from exo.gpu.scheduling.prediction_relations import Traits
from exo.gpu.scheduling.prediction_tracks import Lesson, Track
from exo.gpu.vocabulary.errors import InvalidValue
from exo.gpu.vocabulary.forecast import Forecast, MemoryAdvice

seconds = st.floats(1e-4, 1e4)


def learned(times: dict[tuple[str, str], float], count: int = 5) -> SpeedPredictor:
    """Each kind on each device seen so often, always with the same time."""
    predictor = SpeedPredictor()
    for (kind, device), one in times.items():
        for _ in range(count):
            predictor.learn(kind, device, one)
    return predictor


def test_nothing_seen_is_nothing_told():
    """Rule: without anything like it there is no forecast, rather than a guess."""
    assert SpeedPredictor().predict("render", "a") is None
    assert learned({("render", "a"): 2.0}).predict("something else", "a") is None


@given(st.lists(seconds, min_size=3, max_size=30))
def test_a_forecast_lies_within_what_was_seen(times):
    """Rule: the median and its range are times, in order, and the median is among the outcomes."""
    predictor = SpeedPredictor()
    for one in times:
        predictor.learn("render", "a", one)
    told = predictor.predict("render", "a")
    assert told is not None
    assert 0 <= told.low_seconds <= told.seconds <= told.high_seconds < math.inf
    assert min(times) * 0.999 <= told.seconds <= max(times) * 1.001


def test_one_outlier_moves_little_and_a_change_that_stays_is_followed():
    """Rule: a hiccup is no news; a device that throttles is forgotten as it was."""
    predictor = SpeedPredictor()
    for _ in range(20):
        predictor.learn("render", "a", 1.0)
    predictor.learn("render", "a", 50.0)
    told = predictor.predict("render", "a")
    assert told is not None
    assert told.seconds == pytest.approx(1.0, rel=0.1)
    for _ in range(6):
        predictor.learn("render", "a", 3.0)
    told = predictor.predict("render", "a")
    assert told is not None
    assert told.seconds == pytest.approx(3.0, rel=0.2)


@given(st.lists(st.tuples(st.integers(1, 50), seconds), min_size=1, max_size=10))
def test_a_chunk_teaches_as_its_mean_item(chunks):
    """Rule: many items together are learned by the time of one."""
    together, alone = SpeedPredictor(), SpeedPredictor()
    for items, one in chunks:
        together.learn("render", "a", one * items, items)
        alone.learn("render", "a", one)
    assert [one.track.level for one in together.lessons] == pytest.approx(
        [one.track.level for one in alone.lessons], abs=1e-9
    )


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_a_time_that_cannot_be_teaches_nothing(bad):
    predictor = SpeedPredictor()
    predictor.learn("render", "a", bad)
    predictor.learn("render", "a", 1.0, 0)
    assert predictor.lessons == ()
    track = Track(level=0.0)
    track.take(bad)
    assert track.samples == 0


def test_what_is_slow_elsewhere_is_told_slow_here():
    """Rule: one kind on other devices and other kinds on this device tell what was never seen."""
    factors = {"fast": 1.0, "slow": 4.0}
    kinds = {f"train {width}": 1.0 + width for width in range(6)}
    times = {
        (kind, device): work * factor
        for kind, work in kinds.items()
        for device, factor in factors.items()
        if (kind, device) != ("train 5", "slow")
    }
    told = learned(times).predict("train 5", "slow")
    assert told is not None
    assert (told.samples, told.basis) == (
        0,
        "told from it on 1 device and from its like",
    )
    assert 12.0 < told.seconds < 48.0
    assert told.low_seconds < 24.0 < told.high_seconds


def test_a_device_is_told_by_its_probes_before_its_first_work():
    """Rule: of two new devices, the one that was measured faster is told faster."""
    traits = {
        name: Traits(model=name, memory_gbps=gbps, gflops=gbps * 20)
        for name, gbps in (("a", 100.0), ("b", 400.0), ("quick", 800.0), ("weak", 50.0))
    }
    predictor = SpeedPredictor((), traits)
    for kind in ("train 1", "train 2", "train 3", "infer 1"):
        for device, time in (("a", 4.0), ("b", 1.0)):
            for _ in range(4):
                predictor.learn(kind, device, time)
    quick, weak = (predictor.predict("train 1", name) for name in ("quick", "weak"))
    assert quick is not None
    assert weak is not None
    assert quick.seconds < weak.seconds


def test_the_same_lessons_tell_the_same_after_they_were_kept():
    """Rule: what is written down and read again gives the same forecasts."""
    predictor = learned({("k 1", "a"): 1.0, ("k 2", "a"): 2.0, ("k 1", "b"): 3.0}, count=2)
    encoded = msgspec.msgpack.encode(predictor.lessons)
    again = SpeedPredictor(msgspec.msgpack.decode(encoded, type=tuple[Lesson, ...]))
    for kind in ("k 1", "k 2", "k 3"):
        for device in ("a", "b", "c"):
            assert again.predict(kind, device) == predictor.predict(kind, device)


@pytest.mark.parametrize("times", [(2.0, 1.0, 3.0), (-1.0, -2.0, 1.0), (1.0, 0.5, math.nan)])
def test_a_forecast_that_cannot_be_is_refused(times):
    middle, low, high = times
    if times == (2.0, 1.0, 3.0):
        assert Forecast(seconds=middle, low_seconds=low, high_seconds=high).samples == 0
        return
    with pytest.raises(InvalidValue):
        Forecast(seconds=middle, low_seconds=low, high_seconds=high)


@given(st.lists(st.integers(-5, 2**40), max_size=300))
def test_advice_is_the_largest_but_one_in_a_hundred_and_a_margin(peaks):
    """Rule: 99 % of the newest runs would have fitted what was seen, and all with the margin."""
    book = Peaks(kind="render")
    for one in peaks:
        book.take(one)
    kept = [one for one in peaks if one > 0][-PEAKS_KEPT:]
    advice = book.advice
    if not kept:
        assert advice is None
        return
    assert isinstance(advice, MemoryAdvice)
    assert advice.samples == len(kept)
    assert sum(one <= advice.seen_bytes for one in kept) >= 0.99 * len(kept)
    assert advice.advised_bytes >= advice.seen_bytes + LEAST_MARGIN_BYTES
