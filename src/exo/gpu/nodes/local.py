"""The short road: this machine's node agent, in this process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from exo.gpu.nodes.agent import NodeAgent

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from exo.gpu.discovery import DiscoveryReport, GPUDiscoveryService
    from exo.gpu.execution.state_directory import StorePlace
    from exo.gpu.nodes.leasing import OnWait
    from exo.gpu.nodes.transport import Grant
    from exo.gpu.nodes.watching import NodeEvent
    from exo.gpu.scheduling.job_queue import Turn
    from exo.gpu.telemetry.collector import TelemetryCollector
    from exo.gpu.vocabulary.health import Cordon, DeviceFault, HealthVerdict
    from exo.gpu.vocabulary.job import SlotEvent, SlotSetup, Work
    from exo.gpu.vocabulary.lease import Lease, Waiter
    from exo.gpu.vocabulary.process import ProcessList
    from exo.gpu.vocabulary.request import Request
    from exo.gpu.vocabulary.snapshot import Snapshot


class LocalNode:
    """A :class:`~exo.gpu.nodes.transport.Node` over a plain call; use it in a ``with`` block."""

    def __init__(
        self, environ: Mapping[str, str] | None = None, service: GPUDiscoveryService | None = None
    ) -> None:
        self._agent = NodeAgent(environ, service)

    def __enter__(self) -> LocalNode:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    @property
    def sample_failures(self) -> dict[str, str]:
        """Why a device gave no sample in the last snapshot, by device id."""
        return self._agent.sight.sample_failures

    @property
    def collector(self) -> TelemetryCollector:
        """The samples of the devices: the newest, or under a watch those of the last time."""
        return self._agent.sight.collector

    def watch(
        self,
        sink: Callable[[NodeEvent], None],
        *,
        cadence_seconds: float,
        search_seconds: float,
        max_history: int,
    ) -> None:
        """Sample the devices over and over until :meth:`unwatch`, and tell the sink of it."""
        self._agent.sight.watch(
            sink,
            cadence_seconds=cadence_seconds,
            search_seconds=search_seconds,
            max_history=max_history,
        )

    def unwatch(self, timeout_seconds: float = 1.0) -> None:
        """End the watch within the time; harmless where there is none."""
        self._agent.sight.unwatch(timeout_seconds)

    def verdict(self, device_id: str) -> HealthVerdict:
        """What is known of a device's health, by all that was heard under a watch."""
        return self._agent.sight.verdict(device_id)

    def report_fault(self, fault: DeviceFault) -> None:
        """Take a fault that somebody else heard of; harmless where nobody watches."""
        self._agent.sight.report_fault(fault)

    def clear_faults(self, device_id: str) -> None:
        """Let the faults of a device count no more; harmless where nobody watches."""
        self._agent.sight.clear_faults(device_id)

    @property
    def store_place(self) -> StorePlace:
        """Where the leases of this machine are kept, and who shares them."""
        return self._agent.store_place

    @property
    def registry_place(self) -> tuple[str, str] | None:
        """Path of the registry and why it could not be used, if so; None where none is kept."""
        return self._agent.sight.registry_place

    def inventory(
        self,
        *,
        refresh: bool = False,
        links: bool = True,
        deadline_seconds: float | None = None,
    ) -> DiscoveryReport:
        """Every device found, and what each backend said; with ``refresh`` asked anew."""
        return self._agent.sight.inventory(
            refresh=refresh, links=links, deadline_seconds=deadline_seconds
        )

    def forget(self, device_id: str) -> tuple[str, ...]:
        """Drop a missing device from the registry, and give back its labels."""
        return self._agent.sight.forget(device_id)

    def snapshot(self, *, leases: bool = True) -> Snapshot:
        """All devices now: fresh samples, health and, unless unwanted, live leases and cordons."""
        return self._agent.snapshot(leases=leases)

    def cordons(self) -> tuple[Cordon, ...]:
        """The cordons of this machine that hold now, also those of devices that are not here."""
        return self._agent.cordons.live()

    def put_cordon(self, cordon: Cordon) -> Cordon:
        """Keep a device out of scheduling; the cordon that holds from now on."""
        return self._agent.cordons.put(cordon)

    def lift_cordon(self, hardware_id: str, *, by_health_only: bool = False) -> Cordon | None:
        """End a cordon, or only one that health set; the one that was ended, or None."""
        return self._agent.cordons.lift(hardware_id, by_health_only=by_health_only)

    def processes(self) -> tuple[ProcessList, ...]:
        """Who works on each device, or why that is not known; bounded by a deadline."""
        return self._agent.processes()

    def acquire(
        self,
        request: Request,
        *,
        wait_seconds: float | None = None,
        lasts_seconds: float | None = None,
        on_wait: OnWait | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Grant:
        """Decide and take the leases as one step, or stand in the line for them."""
        return self._agent.acquire(
            request,
            wait_seconds=wait_seconds,
            lasts_seconds=lasts_seconds,
            on_wait=on_wait,
            cancelled=cancelled,
        )

    def release(self, lease_id: str) -> None:
        """Let go of a lease; harmless twice."""
        self._agent.release(lease_id)

    def open_slot(
        self, lease_id: str, setup: SlotSetup | None, sink: Callable[[SlotEvent], None]
    ) -> int:
        """Start a slot under a lease."""
        return self._agent.open_slot(lease_id, setup, sink)

    def submit(self, slot_id: int, work: Work) -> None:
        """Give a slot its next work."""
        self._agent.submit(slot_id, work)

    def close_slots(self, slot_ids: tuple[int, ...], *, kill: bool = False) -> None:
        """End slots together and release their leases."""
        self._agent.close_slots(slot_ids, kill=kill)

    def environment(
        self, device_ids: tuple[str, ...], lease_ids: tuple[str, ...] = ()
    ) -> dict[str, str | None]:
        """What pins a process to these devices, under these leases, and hides all others."""
        return self._agent.environment(device_ids, lease_ids)

    def leases(self) -> tuple[Lease, ...]:
        """All live leases, with what their processes are seen to hold now."""
        return self._agent.desk.report()

    def line(self) -> tuple[tuple[Waiter, Turn], ...]:
        """Everybody who waits, the first one first, each with what it would be told now."""
        return self._agent.desk.line()

    def end_lease(self, name: str, *, force: bool = False) -> Lease | Waiter:
        """Strike out a lease, or take a waiter out of the line, of this user or for root.

        Raises:
            NoSuchLease: for an id that neither has.
            LeaseKept: for another user's, or, without ``force``, one under which work goes on.

        """
        return self._agent.desk.end(name, force=force)

    def run_attached(
        self, argv: Sequence[str], lease_ids: tuple[str, ...], *, overrun: str = "warn"
    ) -> int:
        """Run a command under the leases with this process's terminal; its status as a shell's.

        Only the short road has it: a terminal does not travel. ``overrun`` says what becomes of
        one that takes more memory than was declared: ``warn``, ``kill`` or ``off``.
        """
        return self._agent.run_attached(argv, lease_ids, overrun=overrun)

    def close(self) -> None:
        """End all slots, at once, and let go of all leases; harmless twice."""
        self._agent.close()
