"""The linear relaxation of an assignment: a proven lower bound, and the worth of devices' time.

Items may be cut in pieces here, which makes the least makespan a linear program:

    minimise T  with  sum_j x[i, j] = 1,  ready[j] + sum_i costs[i, j] x[i, j] <= T,  x >= 0.

It has many columns and few dense rows, so an interior-point method (Mehrotra's predictor-corrector)
needs to solve only devices x devices equations a step. Its weights w >= 0 with sum 1, one for each
device, prove a bound by themselves, however exact they are:

    T >= sum_j w[j] ready[j] + sum_i min_j w[j] costs[i, j].
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Matrix = NDArray[np.float64]
    Row = NDArray[np.float64]

_STEPS = 80
"""Of the method; it takes 10 to 30, and up to 60 where the first devices are best for all items."""
_CLOSE = 1e-7
"""A relative distance between bound and relaxed makespan at which it stops."""
_ROUNDING = 1e-9
"""What is taken off a bound, relatively, so that sums in floating point prove nothing too much."""
_SHORT_OF_WALL = 0.99
_LEAST = 1e-300


class Relaxation(msgspec.Struct, frozen=True):
    """``bound`` in seconds; ``weights`` of the devices; ``parts`` of each item on each device."""

    bound: float
    weights: NDArray[np.float64]
    parts: NDArray[np.float64]


def bound_by(weights: Row, costs: Matrix, ready: Row) -> float:
    """What ``weights``, all above 0, prove: no assignment ends before, in seconds."""
    weights = weights / weights.sum()
    return float(weights @ ready + (weights * costs).min(axis=1).sum()) * (1 - _ROUNDING)


def relax(
    costs: Matrix, ready: Row, horizon: float, is_over: Callable[[], bool] = lambda: False
) -> Relaxation:
    """Solve the relaxation, of the assignments that end by ``horizon`` (above 0), a makespan known.

    Every row must have a finite cost. The bound holds for every assignment that ends by then, so
    for any at all where it is below.
    """
    fits = np.isfinite(costs) & (costs <= horizon)
    method = _InteriorPoint(np.where(fits, costs / horizon, 0.0), fits, ready / horizon)
    with np.errstate(all="ignore"):
        method.run(is_over)
    bound = max(method.bound, 0.0) * horizon * (1 - _ROUNDING)
    return Relaxation(bound, method.best_weights, method.parts / method.parts.sum(1, keepdims=True))


class _InteriorPoint:
    """The state of the method, all in multiples of the horizon; ``costs`` is 0 where none fits."""

    def __init__(self, costs: Matrix, fits: NDArray[np.bool_], ready: Row) -> None:
        devices = costs.shape[1]
        self.costs, self.fits, self.ready = costs, fits, ready
        self.count = int(fits.sum()) + devices
        inverse = np.where(fits, 1 / np.maximum(costs, 1e-9), 0.0)
        self.parts = inverse / inverse.sum(axis=1, keepdims=True)
        loads = self.loads()
        self.makespan = float(loads.max()) * 1.05 + 1e-3
        self.slack = self.makespan - loads
        self.weights = np.full(devices, 1 / devices)
        cheapest = np.where(fits, costs / devices, np.inf).min(axis=1)
        self.prices = cheapest - max(float(cheapest.mean()), 1e-9) / 2
        self.excess = self.reduced()
        self.bound, self.best_weights = -np.inf, self.weights

    def loads(self) -> Row:
        """Of the relaxed assignment."""
        return self.ready + np.einsum("ij,ij->j", self.costs, self.parts)

    def reduced(self) -> Matrix:
        """What an item costs on a device above its price, in worth; 1 where it does not fit."""
        worth = self.weights * self.costs - self.prices[:, None]
        return np.where(self.fits, worth, 1.0)

    def prove(self) -> None:
        """Keep the best bound seen, and the weights that prove it."""
        weights = np.maximum(self.weights, _LEAST)
        weights = weights / weights.sum()
        worth = np.where(self.fits, weights * self.costs, np.inf)
        bound = float(weights @ self.ready + worth.min(axis=1).sum())
        if bound > self.bound:
            self.bound, self.best_weights = bound, weights

    def run(self, is_over: Callable[[], bool]) -> None:
        """Step until bound and relaxed makespan meet, or no step helps."""
        for _ in range(_STEPS):
            self.prove()
            whole = np.abs(1 - self.parts.sum(axis=1)).max() < 1e-7
            if whole and self.loads().max() - self.bound <= _CLOSE * self.bound:
                return
            if is_over() or not self.step():
                return

    def step(self) -> bool:
        """One predictor-corrector step; False where the numbers end."""
        parts, excess, slack, weights = self.parts, self.excess, self.slack, self.weights
        gap = (self._dot(parts, excess) + slack @ weights) / self.count
        try:
            system = _System(self)
        except np.linalg.LinAlgError:
            return False
        ahead = system.solve(-parts * excess, -slack * weights)
        here, there = self._lengths(ahead)
        after = self._dot(parts + here * ahead.parts, excess + there * ahead.excess)
        after += (slack + here * ahead.slack) @ (weights + there * ahead.weights)
        centre = gap * (after / self.count / gap) ** 3
        move = system.solve(
            np.where(self.fits, centre - parts * excess - ahead.parts * ahead.excess, 0.0),
            centre - slack * weights - ahead.slack * ahead.weights,
        )
        here, there = (_SHORT_OF_WALL * length for length in self._lengths(move))
        if (
            not np.isfinite(move.makespan)
            or not np.isfinite(here * there)
            or max(here, there) < 1e-9
        ):
            return False
        self.parts = parts + here * move.parts
        self.slack = slack + here * move.slack
        self.makespan += here * move.makespan
        self.prices = self.prices + there * move.prices
        self.weights = weights + there * move.weights
        self.excess = excess + there * move.excess
        return True

    def _dot(self, parts: Matrix, excess: Matrix) -> float:
        return float((parts * excess).sum(where=self.fits))

    def _lengths(self, move: _Move) -> tuple[float, float]:
        """How far the primal and the dual side may go before something turns negative."""
        primal = min(_length(self.parts, move.parts), _length(self.slack, move.slack))
        dual = min(_length(self.excess, move.excess), _length(self.weights, move.weights))
        return primal, dual


class _Move(msgspec.Struct):
    parts: NDArray[np.float64]
    slack: NDArray[np.float64]
    makespan: float
    prices: NDArray[np.float64]
    weights: NDArray[np.float64]
    excess: NDArray[np.float64]


class _System:
    """Newton's equations at one point, reduced to the weights of the devices and the makespan."""

    def __init__(self, at: _InteriorPoint) -> None:
        self.at = at
        self.ratio = np.where(at.fits, at.parts / at.excess, 0.0)
        self.heavy = self.ratio * at.costs
        self.sums = self.ratio.sum(axis=1)
        self.uncovered = 1 - at.parts.sum(axis=1)
        self.short = at.loads() + at.slack - at.makespan
        self.unpriced = np.where(at.fits, at.reduced() - at.excess, 0.0)
        devices = len(at.weights)
        matrix = np.zeros((devices + 1, devices + 1))
        diagonal = (self.heavy * at.costs).sum(axis=0) + at.slack / at.weights
        matrix[:devices, :devices] = np.diag(diagonal) - self.heavy.T @ (
            self.heavy / self.sums[:, None]
        )
        matrix[:devices, devices] = matrix[devices, :devices] = 1
        self.matrix, self.inverse = matrix, np.linalg.inv(matrix)

    def solve(self, products: Matrix, device_products: Row) -> _Move:
        """The move after which parts x excess and slack x weights change by the products given."""
        at = self.at
        step = np.where(at.fits, products / at.excess - self.ratio * self.unpriced, 0.0)
        lack = self.uncovered - step.sum(axis=1)
        right = np.empty(len(at.weights) + 1)
        right[:-1] = self.short + (at.costs * step).sum(axis=0) + device_products / at.weights
        right[:-1] += self.heavy.T @ (lack / self.sums)
        right[-1] = 1 - at.weights.sum()
        answer = self.inverse @ right
        answer += self.inverse @ (right - self.matrix @ answer)  # once more, for rounding
        weights = answer[:-1]
        prices = (lack + self.heavy @ weights) / self.sums
        worth = np.where(at.fits, at.costs * weights - prices[:, None], 0.0)
        return _Move(
            parts=step - self.ratio * worth,
            slack=(device_products - at.slack * weights) / at.weights,
            makespan=float(answer[-1]),
            prices=prices,
            weights=weights,
            excess=worth + self.unpriced,
        )


def _length(values: NDArray[np.float64], change: NDArray[np.float64]) -> float:
    """The longest step up to 1 that keeps all values above 0."""
    shrinking = change < 0
    if not shrinking.any():
        return 1.0
    return min(1.0, float((values[shrinking] / -change[shrinking]).min()))
