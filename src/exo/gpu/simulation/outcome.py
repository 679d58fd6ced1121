"""What came of a simulated workload, job by job and in sum."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np


class JobOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """One job; times in seconds since the trace began, None where it never came to that."""

    name: str
    gpus: int
    arrived_seconds: float
    began_seconds: float | None = None
    """Its last start, where failures made it start again."""
    ended_seconds: float | None = None
    devices: tuple[str, ...] = ()
    starts: int = 0
    refused: str = ""
    """Why no wait would have helped."""


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What a policy came to; None where it does not apply or is not known.

    *Completion* is from arrival to the end, *waiting* from arrival to the last start, and the
    *slowdown* is completion over running. *Utilization* is device time held over device time there
    was until the last job ended, within 0..1.
    """

    policy: str
    seed: int
    jobs: int
    completed: int
    refused: int
    makespan_seconds: float | None = None
    waiting_mean_seconds: float | None = None
    waiting_p999_seconds: float | None = None
    completion_mean_seconds: float | None = None
    completion_p50_seconds: float | None = None
    completion_p95_seconds: float | None = None
    completion_p999_seconds: float | None = None
    worst_slowdown: float | None = None
    utilization_ratio: float | None = None
    energy_joules: float | None = None
    """At the power limits of the devices while they are held."""
    allocation_ratio: float | None = None
    """Of all GPU, at the end of a trace that only fills a cluster."""
    fragmentation_ratio: float | None = None
    """Of all GPU: what is free and of no use to a typical demand, at that end."""


# Below this a slowdown says more of the clock than of the wait (Feitelson's bounded slowdown).
_SHORTEST_RUN_SECONDS = 10.0


def summarize(
    policy: str,
    seed: int,
    outcomes: Sequence[JobOutcome],
    *,
    devices: int,
    held_device_seconds: float,
    energy_joules: float | None = None,
) -> Summary:
    """The figures of one run."""
    done = [
        (one.arrived_seconds, one.began_seconds, one.ended_seconds)
        for one in outcomes
        if one.began_seconds is not None and one.ended_seconds is not None
    ]
    counted = Summary(
        policy=policy,
        seed=seed,
        jobs=len(outcomes),
        completed=len(done),
        refused=sum(bool(one.refused) for one in outcomes),
    )
    if not done:
        return counted
    arrived, began, ended = np.array(done, np.float64).T
    waiting, completion = began - arrived, ended - arrived
    run = np.maximum(ended - began, _SHORTEST_RUN_SECONDS)
    makespan = float(ended.max())
    p50, p95, p999 = (float(np.quantile(completion, part)) for part in (0.5, 0.95, 0.999))
    return msgspec.structs.replace(
        counted,
        makespan_seconds=makespan,
        waiting_mean_seconds=float(waiting.mean()),
        waiting_p999_seconds=float(np.quantile(waiting, 0.999)),
        completion_mean_seconds=float(completion.mean()),
        completion_p50_seconds=p50,
        completion_p95_seconds=p95,
        completion_p999_seconds=p999,
        worst_slowdown=float((np.maximum(completion, run) / run).max()),
        utilization_ratio=held_device_seconds / (devices * makespan) if makespan else None,
        energy_joules=energy_joules,
    )
