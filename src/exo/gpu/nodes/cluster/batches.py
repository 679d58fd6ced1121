"""Snapshots of a node as columnar batches, and back: an agent makes them, a driver reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from exo.gpu.vocabulary.cluster import NodeBatch
from exo.gpu.vocabulary.metrics import SERIES, GPUMetrics

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from exo.gpu.vocabulary.device import GPUDevice
    from exo.gpu.vocabulary.lease import Lease
    from exo.gpu.vocabulary.links import Route
    from exo.gpu.vocabulary.snapshot import DeviceState, Snapshot

# The fields of a sample that are no numbers; a batch tells them only when one has changed.
_REMARKS = (
    "missing_reasons",
    "sleeping",
    "utilization_is_lower_bound",
    "throttle_reasons",
    "throttle_kinds",
    "carried_readings",
)

DECODER = msgspec.msgpack.Decoder(NodeBatch)


class BatchMaker:
    """Makes the batches of one node; call it from one thread at a time."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._rare: bytes = b""
        self._changed_number = 0
        self.newest: NodeBatch | None = None

    def make(self, snapshot: Snapshot, routes: tuple[Route, ...] = ()) -> NodeBatch:
        """The batch of a snapshot that was taken just now, with the ways to other nodes."""
        number = 1 if self.newest is None else self.newest.number + 1
        states = snapshot.devices
        samples = [state.sample for state in states]
        readings: dict[str, tuple[int | float | None, ...]] = {}
        for name in SERIES:
            column = tuple(None if one is None else getattr(one, name) for one in samples)
            if any(value is not None for value in column):
                readings[name] = column
        batch = NodeBatch(
            node=self._node,
            number=number,
            timestamps=tuple(None if one is None else one.timestamp for one in samples),
            ages_seconds=tuple(state.sample_age_seconds for state in states),
            readings=readings,
            states=tuple(_without_sample(state) for state in states),
            remarks=tuple(_remarks_of(one) for one in samples),
            links=snapshot.links,
            unseen=snapshot.unseen,
            routes=routes,
        )
        rare = msgspec.msgpack.encode(
            (batch.states, batch.remarks, batch.links, batch.unseen, batch.routes)
        )
        if rare != self._rare:
            self._rare, self._changed_number = rare, number
        self.newest = msgspec.structs.replace(batch, changed_number=self._changed_number)
        return self.newest


def _without_sample(state: DeviceState) -> DeviceState:
    return msgspec.structs.replace(state, sample=None, sample_age_seconds=None)


def _remarks_of(sample: GPUMetrics | None) -> dict[str, Any]:
    if sample is None:
        return {}
    return {name: getattr(sample, name) for name in _REMARKS if getattr(sample, name)}


def names_of_node(node: str, states: Sequence[DeviceState]) -> tuple[DeviceState, ...]:
    """The states of a node's devices under the names that they have in a cluster."""
    return tuple(
        msgspec.structs.replace(
            state,
            device=device_of_node(node, state.device),
            leases=leases_of_node(node, state.leases),
        )
        for state in states
    )


def device_of_node(node: str, device: GPUDevice) -> GPUDevice:
    """A device under the name that it has in a cluster; what it is stays."""
    return msgspec.structs.replace(device, device_id=f"{node}/{device.device_id}", node=node)


def leases_of_node(node: str, leases: Sequence[Lease]) -> tuple[Lease, ...]:
    """Leases under the names that their devices have in a cluster."""
    return tuple(
        msgspec.structs.replace(lease, device_id=f"{node}/{lease.device_id}") for lease in leases
    )


def sample_of(
    device_id: str, place: int, batch: NodeBatch, remarks: Mapping[str, Any]
) -> GPUMetrics | None:
    """The sample of the device at a place of the columns, or None where it has none."""
    timestamp = batch.timestamps[place]
    if timestamp is None:
        return None
    values: dict[str, Any] = {name: column[place] for name, column in batch.readings.items()}
    if not remarks:
        return GPUMetrics(device_id, timestamp, **values)
    return msgspec.convert(
        {"device_id": device_id, "timestamp": timestamp, **values, **remarks}, GPUMetrics
    )
