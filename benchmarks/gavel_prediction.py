"""The study of prediction: cells of the table are hidden and told from what is left of it."""

from __future__ import annotations

import math
from random import Random
from statistics import fmean, median
from typing import TYPE_CHECKING

from results import Result

from exo.gpu.scheduling.prediction import SpeedPredictor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from gavel_table import Table

HIDDEN = 0.2
COVERAGE = (0.80, 0.95)
AIM = 0.15
ROUNDS_OF_POLISH = 20


def hide(table: Table, part: float, seed: int) -> list[tuple[str, str]]:
    """Cells drawn by lot, so many that each row keeps one; what does not fit is known anyway.

    The table has nothing but what jobs do alone and consolidated, so that the near copies of a
    cell are hidden with it: nothing here ever reads them.
    """
    cells = sorted(cell for cell, speed in table.items() if speed > 0)
    left: dict[str, int] = {}
    for kind, _ in cells:
        left[kind] = left.get(kind, 0) + 1
    want, hidden = round(part * len(cells)), []
    for cell in Random(seed).sample(cells, len(cells)):
        if len(hidden) < want and left[cell[0]] > 1:
            left[cell[0]] -= 1
            hidden.append(cell)
    return sorted(hidden)


def learned(table: Table, hidden: Iterable[tuple[str, str]]) -> SpeedPredictor:
    """A predictor that saw all cells but the hidden ones, each once."""
    kept_back, predictor = set(hidden), SpeedPredictor()
    for (kind, gpu), speed in sorted(table.items()):
        if speed > 0 and (kind, gpu) not in kept_back:
            predictor.learn(kind, gpu, 1 / speed)
    return predictor


def plain(seen: Table) -> Callable[[str, str], float]:
    """Median of the task x factor of the device: its median over tasks of speed / median."""
    tasks = _by_task(seen)
    medians = {kind: median(speeds.values()) for kind, speeds in tasks.items()}
    ratios: dict[str, list[float]] = {}
    for (kind, gpu), speed in seen.items():
        if len(tasks[kind]) > 1:
            ratios.setdefault(gpu, []).append(speed / medians[kind])
    factors = {gpu: median(of_gpu) for gpu, of_gpu in ratios.items()}
    return lambda kind, gpu: medians[kind] * factors[gpu]


def polished(seen: Table) -> Callable[[str, str], float]:
    """The same to its end: Tukey's median polish of the logarithms, which knows what is missing."""
    levels = {cell: math.log(speed) for cell, speed in seen.items()}
    gpus = sorted({gpu for _, gpu in levels})
    tasks, factors = {kind: 0.0 for kind, _ in levels}, dict.fromkeys(gpus, 0.0)
    for _ in range(ROUNDS_OF_POLISH):
        for kind, speeds in _by_task(seen).items():
            tasks[kind] = median(levels[kind, gpu] - factors[gpu] for gpu in speeds)
        for gpu in gpus:
            factors[gpu] = median(
                levels[cell] - tasks[cell[0]] for cell in levels if cell[1] == gpu
            )
    return lambda kind, gpu: math.exp(tasks[kind] + factors[gpu])


def prediction_study(table: Table, seeds: int) -> list[Result]:
    """Ours beside both plain methods on the same hidden cells."""
    errors: dict[str, list[float]] = {"ours": [], "plain": [], "median polish": []}
    covered: list[bool] = []
    for seed in range(seeds):
        hidden = hide(table, HIDDEN, seed)
        predictor = learned(table, hidden)
        seen = {cell: table[cell] for cell in table if table[cell] > 0 and cell not in hidden}
        found = {"plain": plain(seen), "median polish": polished(seen)}
        ours: list[float] = []
        for cell in hidden:
            forecast = predictor.predict(*cell)
            assert forecast is not None, "a row keeps a cell"
            ours.append(_error(1 / forecast.seconds, table[cell]))
            covered.append(forecast.low_seconds <= 1 / table[cell] <= forecast.high_seconds)
        errors["ours"].append(median(ours))
        for name, tell in found.items():
            errors[name].append(median(_error(tell(*cell), table[cell]) for cell in hidden))
    means = {name: fmean(values) for name, values in errors.items()}
    for name, mean in means.items():
        print(f"  prediction, {name:<14} median relative error {mean:.3f} (mean of {seeds} seeds)")
    return _results(means, fmean(covered), seeds)


def _results(means: dict[str, float], coverage: float, seeds: int) -> list[Result]:
    mean, usual = means["ours"], "task median x device factor"
    rows: list[Result] = []
    for name, peer in (("plain", usual), ("median polish", "median polish")):
        value = mean / means[name]
        rows.append(
            Result(f"prediction / {name}", mean, means[name], peer, "", value, 0.8, "lower", seeds)
        )
    rows.append(
        Result("median relative error", mean, means["plain"], usual, "", mean, AIM, "lower", seeds)
    )
    low, high = COVERAGE
    for name, target, better in (("at least", low, "higher"), ("at most", high, "lower")):
        rows.append(
            Result(
                f"90 % ranges hold {name}",
                coverage,
                0.9,
                "nominal",
                "",
                coverage,
                target,
                better,
                seeds,
            )
        )
    return rows


def _by_task(seen: Table) -> dict[str, dict[str, float]]:
    tasks: dict[str, dict[str, float]] = {}
    for (kind, gpu), speed in seen.items():
        tasks.setdefault(kind, {})[gpu] = speed
    return tasks


def _error(told: float, true: float) -> float:
    return abs(told - true) / true
