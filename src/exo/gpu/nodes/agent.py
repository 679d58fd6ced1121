"""Our presence on one machine: its devices, its lease store, and the slots that work there."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

from exo.gpu.backend import PinningAbility
from exo.gpu.discovery import GPUDiscoveryService
from exo.gpu.execution.cordon_store import CordonStore
from exo.gpu.execution.pinning import LEASES_VARIABLE, apply_changes, pinning_changes
from exo.gpu.execution.state_directory import StorePlace, choose_place
from exo.gpu.nodes.leasing import Eyes, LeaseDesk
from exo.gpu.nodes.sight import NodeSight
from exo.gpu.nodes.slot_keeper import SlotKeeper
from exo.gpu.vocabulary.errors import AbilityMissing, BackendError
from exo.gpu.vocabulary.snapshot import Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from exo.gpu.nodes.leasing import OnWait
    from exo.gpu.nodes.transport import Grant
    from exo.gpu.vocabulary.cluster import Surroundings
    from exo.gpu.vocabulary.command_end import CommandEnd
    from exo.gpu.vocabulary.device import GPUDevice
    from exo.gpu.vocabulary.job import SlotEvent, SlotOutput, SlotSetup
    from exo.gpu.vocabulary.process import ProcessList
    from exo.gpu.vocabulary.request import Request

logger = logging.getLogger("exo.gpu.nodes.agent")


class NodeAgent:
    """Everything that has to happen on the machine that owns the devices.

    ``environ`` is what processes inherit, restrictions included; the process's own by default.
    """

    def __init__(
        self, environ: Mapping[str, str] | None = None, service: GPUDiscoveryService | None = None
    ) -> None:
        self._environ = dict(os.environ if environ is None else environ)
        self._umbrella = tuple(filter(None, self._environ.get(LEASES_VARIABLE, "").split(",")))
        self._service = service or GPUDiscoveryService.of_this_user(self._environ)
        self.cordons = CordonStore(self.store_place)
        """What keeps devices of this machine out of scheduling."""
        self.sight = NodeSight(self._service, self.cordons, self._environ, self._umbrella)
        eyes = Eyes(
            lambda: self.sight.inventory().devices,
            self.sight.look,
            self.sight.look_for_others,
            self.sight.assemble,
            self.sight.seen_since,
            self.sight.driver_list,
        )
        self.desk = LeaseDesk(lambda: self.store_place, eyes, self._umbrella, environ=self._environ)
        self.slots = SlotKeeper(self._environ, self.desk, self.sight.configuration)

    @property
    def store_place(self) -> StorePlace:
        """Where the leases of this machine are kept."""
        return choose_place(self._environ)

    def snapshot(self, *, leases: bool = True, others: bool = False) -> Snapshot:
        """All devices now: samples, health and, unless unwanted, live leases and cordons.

        With ``others`` also who works on them under nobody's lease, which is dearer.
        """
        self.sight.look()
        if others:
            self.sight.look_for_others()
        if not leases:
            return self.sight.assemble((), cordons=())
        return self.sight.assemble(self.desk.live())

    def processes(self) -> tuple[ProcessList, ...]:
        """Who works on each device, or why that is not known; dearer than a snapshot."""
        return self.sight.processes()

    def acquire(
        self,
        request: Request,
        *,
        wait_seconds: float | None = None,
        lasts_seconds: float | None = None,
        on_wait: OnWait | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Grant:
        """Decide and take the leases as one step, while no other process can, or in the line."""
        return self.desk.acquire(
            request,
            wait_seconds=wait_seconds,
            lasts_seconds=lasts_seconds,
            on_wait=on_wait,
            cancelled=cancelled,
        )

    def release(self, lease_id: str) -> None:
        """Let go of a lease; harmless twice."""
        self.desk.release(lease_id)

    def run_attached(
        self, argv: Sequence[str], lease_ids: tuple[str, ...], **how: Any
    ) -> CommandEnd:
        """Run a command under the leases with the caller's terminal; how it ended."""
        from exo.gpu.nodes.attached import run_under_leases

        device_ids = tuple(self.desk.held[lease_id].lease.device_id for lease_id in lease_ids)
        environ = apply_changes(self._environ, self.environment(device_ids, lease_ids))
        return run_under_leases(argv, environ, self.desk, lease_ids, **how)

    def open_slot(
        self,
        lease_id: str,
        setup: SlotSetup | None,
        sink: Callable[[SlotEvent], None],
        on_output: Callable[[SlotOutput], None] | None = None,
        *,
        surroundings: Surroundings | None = None,
    ) -> int:
        """Start a slot on the leased device; with ``surroundings`` of its caller's."""
        device = self.sight.device(self.desk.held[lease_id].lease.device_id)
        backend = self._service.backend_of(device.device_id)
        changes = self.environment((device.device_id,), (lease_id,))
        if surroundings is not None:
            changes = {**surroundings.variables, **changes}
        return self.slots.open(
            lease_id,
            device,
            backend,
            changes,
            setup=setup,
            sink=sink,
            on_output=on_output,
            python=None if surroundings is None else surroundings.python,
        )

    def environment(
        self, device_ids: tuple[str, ...], lease_ids: tuple[str, ...] = ()
    ) -> dict[str, str | None]:
        """The variables that pin a process to these devices of one backend, under these leases."""
        devices = [self.sight.device(device_id) for device_id in device_ids]
        owners = [self._service.backend_of(device_id) for device_id in device_ids]
        backend = owners[0]
        if any(owner is not backend for owner in owners):
            names = ", ".join(f"{device.device_id} ({device.backend})" for device in devices)
            raise BackendError(f"one process cannot be pinned to devices of two kinds: {names}")
        if not isinstance(backend, PinningAbility):
            raise AbilityMissing(f"the {devices[0].backend} backend cannot pin a process")
        others = [
            self._twin_or_nothing(name, other, devices)
            for name, other in self._service.backends.items()
            if other is not backend and isinstance(other, PinningAbility)
        ]
        pinned = backend.pinning(devices, self._environ)
        changes = pinning_changes(pinned, others, devices[0])
        return changes | {LEASES_VARIABLE: ",".join((*self._umbrella, *lease_ids)) or None}

    def _twin_or_nothing(
        self, name: str, backend: PinningAbility, devices: Sequence[GPUDevice]
    ) -> dict[str, str | None]:
        """Variables by which another backend shows the same cards, or else nothing at all."""
        found = {
            device.device_id
            for finding in self.sight.inventory().findings
            if finding.backend == name
            for device in finding.devices
        }
        if all(found.intersection(device.aliases) for device in devices):
            try:
                return backend.pinning(devices, self._environ)
            except BackendError as error:  # such as: one variable for one device, of two asked for
                logger.debug("not shown through %s: %s", name, error)
        return backend.hiding()

    def close(self) -> None:
        """End all slots, at once, let go of all leases and end the watch; harmless twice."""
        self.sight.unwatch()
        self.slots.close(kill=True)
        self.desk.close()
