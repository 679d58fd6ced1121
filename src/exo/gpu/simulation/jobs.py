"""A job as a trace knows it: when it came, what it asked for, how long it ran."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from exo.gpu.vocabulary.request import Request
from exo.gpu.vocabulary.units import check_number, check_whole


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One job; it holds its GPUs from its start to its end.

    Raises:
        InvalidValue: for a negative time or amount.

    """

    name: str
    arrived_seconds: float
    """Since the trace began."""
    run_seconds: float
    """With its GPUs to itself, on a GPU whose speed is 1."""
    gpus: int = 1
    group: str = ""
    """What tells similar jobs: a team, a cluster, a kind of model. Predictions go by it."""
    seconds_by_model: Mapping[str, float] = {}
    """How long it runs on each model of GPU, where that was measured."""
    memory_bytes: int | None = None
    """Of each GPU; None takes one of its slots."""
    share: float | None = None
    """Of each GPU, above 0 and at most 1; None with no memory: the whole GPU."""
    expected_seconds: float | None = None
    """How long whoever asked said that it would run; None where nobody said."""
    host_cpus: int | None = None
    host_memory_bytes: int | None = None

    def __post_init__(self) -> None:
        """Check the amounts."""
        check_number("arrived_seconds", self.arrived_seconds, low=0)
        check_number("run_seconds", self.run_seconds, low=0)
        check_number("expected_seconds", self.expected_seconds, low=0, optional=True)
        check_whole("gpus", self.gpus, low=1)

    def at(self, seconds: float) -> Job:
        """The same job, arriving then."""
        return msgspec.structs.replace(self, arrived_seconds=seconds)

    def request(self, policy: str) -> Request:
        """What it asks of the scheduler."""
        alone = self.share is None and self.memory_bytes is None
        return Request(
            count=self.gpus,
            memory_bytes=self.memory_bytes,
            share=self.share,
            exclusive=alone,
            host_cpus=self.host_cpus,
            host_memory_bytes=self.host_memory_bytes,
            expected_seconds=self.expected_seconds,
            holder=self.name,
            policy=policy,
        )

    def seconds_on(self, model: str, speed: float) -> float:
        """How long it runs on a GPU of this model, else by the speed of the GPU."""
        measured = self.seconds_by_model.get(model)
        return self.run_seconds / speed if measured is None else measured
