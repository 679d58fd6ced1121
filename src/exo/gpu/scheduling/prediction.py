"""How long work will take on a device: from its outcomes there, else from what is alike.

A kind of work that was seen often enough on a device is told by that alone. One that was not is
told by a Gaussian process (Rasmussen and Williams 2006, chapter 2) over all that was seen:
the kind on other devices, its relatives, and other work on the device. The range is as wide as it
must have been for nine of ten of what was seen already, each told from the rest.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from exo.gpu.scheduling.prediction_relations import UNSEEN, Cell, Field, Traits, family_of
from exo.gpu.scheduling.prediction_tracks import Lesson, Track
from exo.gpu.vocabulary.forecast import COVERED, Forecast

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Row = NDArray[np.float64]

# From so many outcomes on, a kind on a device is told by them alone.
ENOUGH = 3

# Of the normal distribution, for nine of ten.
_USUAL_RANGE = 1.645

# With fewer cells than these the range is the usual one: a quantile of a handful says nothing.
_TELLING = 20

# The newest cells that are compared: some tens of milliseconds, once after something was learned.
MOST_CELLS = 400


class _Fitted(msgspec.Struct, frozen=True):
    """All that was seen, ready to be asked."""

    field: Field
    inverse: NDArray[np.float64]
    weights: NDArray[np.float64]
    middle: float
    scatter: float
    width: float
    families: frozenset[str]


class SpeedPredictor:
    """Learns seconds per item of (kind of work, device), and tells them also where none was seen.

    ``traits`` are what is known of devices by the same names; a device without any may be told of
    too. The same lessons in the same order always give the same forecasts.
    """

    def __init__(
        self, lessons: Iterable[Lesson] = (), traits: Mapping[str, Traits] | None = None
    ) -> None:
        self._traits = dict(traits or {})
        self._tracks = {Cell(one.kind, one.device): one.track for one in lessons}
        self._fitted: _Fitted | None = None

    @property
    def lessons(self) -> tuple[Lesson, ...]:
        """What was learned, the newest last: to be kept."""
        return tuple(
            Lesson(kind=cell.kind, device=cell.device, track=track)
            for cell, track in self._tracks.items()
        )

    def describe(self, device: str, traits: Traits) -> None:
        """What is known of a device, in the place of what was known."""
        if self._traits.get(device) != traits:
            self._traits[device] = traits
            self._fitted = None

    def learn(self, kind: str, device: str, seconds: float, items: int = 1) -> None:
        """Items of a kind took so many seconds together on a device.

        A time that is not above 0 and finite, or no items, teach nothing.
        """
        if items <= 0 or not 0 < seconds < math.inf:
            return
        cell = Cell(kind, device)
        track = self._tracks.pop(cell, None) or Track(level=0.0)
        track.take(seconds / items)
        self._tracks[cell] = track
        self._fitted = None

    def predict(self, kind: str, device: str) -> Forecast | None:
        """How long an item of a kind takes there; None where nothing like it was ever seen."""
        track = self._tracks.get(Cell(kind, device))
        if track is not None and track.weight >= ENOUGH:
            return _of_its_own(track)
        fitted = self._fit()
        if fitted is None or family_of(kind) not in fitted.families:
            return None
        asked = Field((Cell(kind, device),), self._traits)
        known = asked.relation(fitted.field)[0]
        level = fitted.middle + float(known @ fitted.weights) - float(asked.trend[0])
        left = float(asked.relation(asked)[0, 0] + UNSEEN - known @ fitted.inverse @ known)
        scatter = fitted.scatter if track is None else track.spread
        half = fitted.width * math.sqrt(max(left, 0.0) + scatter**2)
        return _forecast(level, half, 0 if track is None else track.samples, self._basis(kind))

    def _basis(self, kind: str) -> str:
        others = sum(cell.kind == kind for cell in self._tracks)
        if others:
            return f"told from it on {others} device{'s' if others > 1 else ''} and from its like"
        return "never seen: told from tasks of its like"

    def _fit(self) -> _Fitted | None:
        if self._fitted is None and self._tracks:
            self._fitted = self._fresh()
        return self._fitted

    def _fresh(self) -> _Fitted:
        newest = list(self._tracks.items())[-MOST_CELLS:]
        field = Field([cell for cell, _ in newest], self._traits)
        levels = np.array([track.level for _, track in newest]) + field.trend
        spreads = np.array([track.spread for _, track in newest])
        noise = spreads**2 / np.array([max(track.weight, 1.0) for _, track in newest])
        # A single outcome tells nothing of scatter; the rest of the table does.
        seen_twice = [track.spread for _, track in newest if track.samples > 1]
        scatter = float(np.median(seen_twice)) if seen_twice else 0.0
        noise = np.array(
            [
                scatter**2 if track.samples == 1 else own
                for (_, track), own in zip(newest, noise, strict=True)
            ]
        )
        covariance = field.relation(field) + np.diag(noise + UNSEEN)
        middle = float(np.median(levels))
        inverse: NDArray[np.float64] = np.linalg.inv(covariance).astype(np.float64)
        weights = inverse @ (levels - middle)
        return _Fitted(
            field=field,
            inverse=inverse,
            weights=weights,
            middle=middle,
            scatter=scatter,
            width=_width(weights, np.diag(inverse)),
            families=frozenset(family_of(cell.kind) for cell, _ in newest),
        )


def _width(weights: Row, precisions: Row) -> float:
    """Standard deviations that hold nine of ten of the cells, each told from the others.

    An error is weight / precision and its deviation 1 / sqrt(precision), each in closed form.
    """
    count = len(weights)
    if count < _TELLING:
        return _USUAL_RANGE
    ranked = np.sort(np.abs(weights) / np.sqrt(precisions))
    return float(ranked[min(count, math.ceil(COVERED * (count + 1))) - 1])


def _of_its_own(track: Track) -> Forecast:
    # The next outcome scatters, and so did those that made the level and the spread.
    half = _USUAL_RANGE * track.spread * math.sqrt(1 + 1 / track.weight) * (1 + 1 / track.weight)
    words = f"seen here in {track.samples} outcomes"
    return _forecast(track.level, half, track.samples, words)


def _forecast(level: float, half: float, samples: int, basis: str) -> Forecast:
    # e**300 is beyond any time, and not beyond floating point.
    low, middle, high = (math.exp(min(max(one, -300.0), 300.0)) for one in _around(level, half))
    return Forecast(
        seconds=middle, low_seconds=low, high_seconds=high, samples=samples, basis=basis
    )


def _around(level: float, half: float) -> tuple[float, float, float]:
    return level - half, level, level + half
