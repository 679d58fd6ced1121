"""Many runs of a study, in processes of their own; their table, and their picture."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import msgspec

from exo.gpu.scheduling.policies import POLICIES, policy_named
from exo.gpu.simulation.outcome import Summary
from exo.gpu.simulation.placement import INFLATION, arrivals, gpu_milli_of, place_all
from exo.gpu.simulation.policies import CHOOSERS, chooser_named
from exo.gpu.simulation.replay import DISCIPLINES, discipline_named, replay
from exo.gpu.simulation.simulator import Simulator
from exo.gpu.simulation.study import Kind, Study


def policies_of(study: Study) -> tuple[str, ...]:
    """The names that a study can compare."""
    tables = {Kind.PLACEMENT: CHOOSERS, Kind.COUNT: DISCIPLINES, Kind.DEVICES: POLICIES}
    return tuple(tables[study.kind])


def check_policies(study: Study, names: Sequence[str]) -> None:
    """Refuse a name before anything runs.

    Raises:
        UnknownName: with all that are known, and the near spelling.

    """
    find = {
        Kind.PLACEMENT: chooser_named,
        Kind.COUNT: discipline_named,
        Kind.DEVICES: policy_named,
    }[study.kind]
    for name in names:
        find(name)


def run_all(
    study: Study, policies: Sequence[str], seeds: Sequence[int], *, processes: int = 1
) -> tuple[Summary, ...]:
    """Every policy with every seed, in this order.

    Raises:
        UnknownName: for a policy that is not known.

    """
    check_policies(study, policies)
    asked = [(policy, seed) for policy in policies for seed in seeds]
    if processes < 2 or len(asked) < 2:
        return tuple(run_one(study, policy, seed) for policy, seed in asked)
    with ProcessPoolExecutor(processes, get_context("spawn"), _remember, (study,)) as pool:
        return tuple(pool.map(_run_remembered, asked))


def run_one(study: Study, policy: str, seed: int) -> Summary:
    """One policy with one seed."""
    if study.kind is Kind.PLACEMENT:
        capacity = gpu_milli_of(study.machines)
        arriving = arrivals(study.pods, capacity, seed, study.inflation or INFLATION)
        done = place_all(study.machines, arriving, policy, seed, workload=study.pods)
        return Summary(
            policy=policy,
            seed=seed,
            jobs=len(arriving),
            completed=len(arriving) - done.dropped,
            refused=done.dropped,
            allocation_ratio=done.allocated_milli[-1] / capacity if arriving and capacity else None,
            fragmentation_ratio=done.unusable_milli / capacity if capacity else None,
        )
    if study.kind is Kind.COUNT:
        return replay(study.jobs, study.count, policy, seed)
    simulator = Simulator(study.devices, study.jobs, policy, seed=seed, weather=study.weather)
    return simulator.run()[0]


def means(summaries: Sequence[Summary]) -> dict[str, dict[str, float | None]]:
    """By policy, the mean over the seeds of each figure; None where a run has none."""
    found: dict[str, dict[str, float | None]] = {}
    for policy in dict.fromkeys(one.policy for one in summaries):
        runs = [msgspec.structs.asdict(one) for one in summaries if one.policy == policy]
        found[policy] = {
            name: _mean([run[name] for run in runs])
            for name in runs[0]
            if name not in {"policy", "seed"}
        }
    return found


def draw(summaries: Sequence[Summary], path: Path) -> None:
    """Write a picture with a panel for each figure that is known: bars, and a dot for each seed.

    Raises:
        ImportError: where matplotlib is not installed.
        ValueError: for a name whose ending is no kind of picture.

    """
    from matplotlib.figure import Figure

    by_policy = means(summaries)
    panels = [name for name in PANELS if all(one[name] is not None for one in by_policy.values())]
    figure: Any = Figure(figsize=(8, 1 + 2.4 * max(1, len(panels))), layout="constrained")
    axes = figure.subplots(max(1, len(panels)), 1, squeeze=False)[:, 0]
    for axis, name in zip(axes, panels, strict=False):
        words, unit = PANELS[name]
        for place, (policy, figures) in enumerate(by_policy.items()):
            axis.barh(place, (figures[name] or 0) * unit, color=f"C{place}", alpha=0.5)
            dots = [getattr(one, name) * unit for one in summaries if one.policy == policy]
            axis.plot(dots, [place] * len(dots), ".", color="black", markersize=4)
        axis.set_yticks(range(len(by_policy)), list(by_policy))
        axis.invert_yaxis()
        axis.set_xlabel(words)
    figure.savefig(path)


PANELS = {
    "allocation_ratio": ("allocation (%)", 100.0),
    "fragmentation_ratio": ("free and of no use (%)", 100.0),
    "completion_mean_seconds": ("mean completion (h)", 1 / 3600),
    "waiting_mean_seconds": ("mean waiting (h)", 1 / 3600),
    "waiting_p999_seconds": ("p99.9 waiting (h)", 1 / 3600),
    "makespan_seconds": ("makespan (h)", 1 / 3600),
    "utilization_ratio": ("utilization (%)", 100.0),
    "energy_joules": ("energy at the power limits (kWh)", 1 / 3.6e6),
}
"""What is drawn: figure, words, and the factor from base units."""


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if values and len(known) == len(values) else None


_remembered: list[Study] = []


def _remember(study: Study) -> None:
    """In a process of the pool: take the study once, not with every run."""
    _remembered[:] = [study]


def _run_remembered(asked: tuple[str, int]) -> Summary:
    return run_one(_remembered[0], *asked)
