"""The slots of one machine: opened under leases, given work, ended with whatever they started."""

from __future__ import annotations

import itertools
import sys
from typing import TYPE_CHECKING

from exo.gpu.execution.pinning import GUARDED_VARIABLE, apply_changes
from exo.gpu.nodes.returning import memory_return

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from exo.gpu.backend import GPUBackend
    from exo.gpu.configuration import Configuration
    from exo.gpu.execution.guardian import Guardian
    from exo.gpu.execution.supervisor import RunnerSupervisor
    from exo.gpu.nodes.leasing import LeaseDesk
    from exo.gpu.vocabulary.device import GPUDevice
    from exo.gpu.vocabulary.job import SlotEvent, SlotOutput, SlotSetup, Work

# A slot that is not done by then is killed.
STOP_SECONDS = 5.0


class SlotKeeper:
    """Opens and ends slots; ``environ`` is what their processes inherit, without any pin."""

    def __init__(
        self, environ: Mapping[str, str], desk: LeaseDesk, configuration: Configuration
    ) -> None:
        self._environ = environ
        self._desk = desk
        self._configuration = configuration
        self._slots: dict[int, tuple[RunnerSupervisor, str]] = {}
        self._numbers = itertools.count()
        self._guardian: Guardian | None = None

    def open(
        self,
        lease_id: str,
        device: GPUDevice,
        backend: GPUBackend | None,
        changes: Mapping[str, str | None],
        *,
        setup: SlotSetup | None,
        sink: Callable[[SlotEvent], None],
        on_output: Callable[[SlotOutput], None] | None,
        python: str | None = None,
    ) -> int:
        """Start a slot on a leased device; ``changes`` to the environment pin it there.

        ``python`` is the interpreter of its workers where a caller brings one of its own.
        """
        from exo.gpu.execution.out_of_memory import Patterns
        from exo.gpu.execution.supervisor import RunnerSupervisor

        held = self._desk.held[lease_id]
        slot_id = next(self._numbers)
        supervisor = RunnerSupervisor(
            slot_id,
            environ=apply_changes(self._environ, {**changes, **self._guarded()}),
            keep_open=(held.lock_fd,),
            setup=setup,
            sink=sink,
            python=python or self._configuration.python_of(device.runtime) or sys.executable,
            patterns=Patterns(
                device_lost=self._configuration.value("outcome.device_lost"),
                out_of_memory=self._configuration.value("outcome.out_of_memory"),
            ),
            settle=memory_return(held.lease, device, backend, self._desk.on_ledger),
            on_output=on_output,
        )
        self._slots[slot_id] = (supervisor, lease_id)
        self._desk.look_after()
        return slot_id

    def submit(self, slot_id: int, work: Work) -> None:
        """Give a slot its next work."""
        self._slots[slot_id][0].submit(work)

    def cancel(self, slot_id: int, work_id: int, item: int | None) -> None:
        """End an item of a piece of work, or all of it; harmless where it has ended."""
        if slot_id in self._slots:
            self._slots[slot_id][0].cancel(work_id, item)

    def recall(self, slot_id: int, work_id: int) -> None:
        """Take back what has not begun of a piece of work; harmless where all has."""
        if slot_id in self._slots:
            self._slots[slot_id][0].recall(work_id)

    def allow(self, slot_id: int, work_id: int, count: int) -> None:
        """Let a stream be so many chunks more ahead; harmless where it has ended."""
        if slot_id in self._slots:
            self._slots[slot_id][0].allow(work_id, count)

    def close(self, slot_ids: tuple[int, ...] | None = None, *, kill: bool = False) -> None:
        """End slots together, by default all, and release their leases; harmless twice."""
        ids = tuple(self._slots) if slot_ids is None else slot_ids
        ending = [self._slots.pop(slot_id) for slot_id in ids if slot_id in self._slots]
        for supervisor, _ in ending:
            supervisor.ask_to_stop(kill=kill)
        for supervisor, lease_id in ending:
            supervisor.stop(kill=kill, timeout_seconds=STOP_SECONDS)
            self._desk.release(lease_id)
        if slot_ids is None and self._guardian is not None:
            self._guardian.close()
            self._guardian = None

    def _guarded(self) -> dict[str, str]:
        """The mark of what the guardian ends with us; it is started with the first slot."""
        if sys.platform != "linux":
            return {}
        if self._guardian is None:
            from exo.gpu.execution.guardian import Guardian

            self._guardian = Guardian()
        return {GUARDED_VARIABLE: self._guardian.mark}
