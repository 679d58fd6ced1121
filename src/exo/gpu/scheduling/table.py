"""The device table: a row for each device, kept up to date event by event, found by any name."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import msgspec

from exo.gpu.scheduling.columns import Sizes
from exo.gpu.scheduling.kinds import KindTable
from exo.gpu.scheduling.lanes import Lane
from exo.gpu.scheduling.ledger import memory_figures, others_leases
from exo.gpu.scheduling.policies import Policy
from exo.gpu.scheduling.rows import Key, Row
from exo.gpu.scheduling.selector import facts_of
from exo.gpu.scheduling.standing import place_of
from exo.gpu.vocabulary.device import DeviceClass
from exo.gpu.vocabulary.request import Request
from exo.gpu.vocabulary.snapshot import DeviceState, Snapshot

_RANKS = tuple(device_class.rank for device_class in DeviceClass)


class DeviceTable:
    """Rows by device id, in order of arrival, and in the order of every policy that was asked for.

    A device whose memory is its own costs one row an update; those that share a pool, or whose
    leases hold memory of their machine, are worked out together with the others of their node.
    """

    def __init__(self, umbrella: tuple[str, ...] = (), sizes: Sizes | None = None) -> None:
        self._sizes = sizes or Sizes()
        self.rows: dict[str, Row] = {}
        self.kinds = KindTable()
        self._alone = Snapshot((), umbrella=umbrella)
        self._by_node: dict[str, dict[str, None]] = {}
        self._by_name: dict[str, dict[str, None]] = {}
        self._by_warm_key: dict[str, dict[str, None]] = {}
        self._lanes: dict[str, dict[int, Lane]] = {}
        self._filled: dict[str, list[Lane]] = {}
        self._policies: dict[str, Policy] = {}

    def put(self, state: DeviceState, now: float) -> None:
        """Add a device, or replace what is known of it."""
        device = state.device
        before = self.rows.get(device.device_id)
        if before is not None and before.state.device is not device:
            if before.state.device == device:
                state = msgspec.structs.replace(state, device=before.state.device)
            else:
                self.remove(device.device_id)
                before = None
        leases = others_leases(state, self._alone)
        alone = not _is_shared(state) and not (before and _is_shared(before.state))
        figures = memory_figures(state, self._alone) if alone else (None, None, None)
        row = Row(state, figures, leases, now, before)
        self._set(row, before)
        if not alone:
            self._work_out_node(device.node)

    def remove(self, device_id: str) -> bool:
        """Forget a device; False where it was not there."""
        row = self.rows.pop(device_id, None)
        if row is None:
            return False
        self._filled.clear()
        for lanes in self._lanes.values():
            lanes[row.rank].remove(row)
        device = row.state.device
        _strike(self._by_node, device.node, device_id)
        for name in row.names:
            _strike(self._by_name, name, device_id)
        for key in row.state.warm_keys:
            _strike(self._by_warm_key, key, device_id)
        if _is_shared(row.state):
            self._work_out_node(device.node)
        return True

    def named(self, names: Iterable[str]) -> list[Row] | None:
        """The rows of these devices; None where one of the names is not here."""
        found: dict[str, None] = {}
        for name in names:
            if name not in self._by_name:
                return None
            found |= self._by_name[name]
        return [self.rows[device_id] for device_id in found]

    def of_node(self, node: str) -> list[Row]:
        """The rows of one machine."""
        return [self.rows[device_id] for device_id in self._by_node.get(node, ())]

    def singled_out(self, request: Request) -> list[Row]:
        """The rows that the request prefers, or that are warm for it."""
        found = dict(self._by_warm_key.get(request.affinity_key, {}))
        for name in request.prefer:
            found |= self._by_name.get(name, {})
        return [self.rows[device_id] for device_id in found]

    def around(self, state: DeviceState) -> Snapshot:
        """As much of the table as the memory of one device depends on."""
        if not _is_shared(state):
            return self._alone
        states = tuple(row.state for row in self.of_node(state.device.node))
        return Snapshot(states, umbrella=self._alone.umbrella)

    def lanes(self, policy: Policy) -> list[Lane]:
        """The rows of each class that has any, best class first, in the order of a policy."""
        return self._filled.get(policy.name) or self._fill(policy)

    def lane_of(self, policy: Policy, rank: int) -> Lane:
        """The rows of one class."""
        return self._lanes[policy.name][rank]

    def _fill(self, policy: Policy) -> list[Lane]:
        """Put the rows in a policy's order where that was not done, and list what is not empty."""
        lanes = self._lanes.get(policy.name)
        if lanes is None:
            by_rank: dict[int, list[Row]] = {rank: [] for rank in _RANKS}
            for row in self.rows.values():
                row.keys[policy.name] = key_of(row, policy)
                by_rank[row.rank].append(row)
            lanes = {rank: Lane(policy.name, rows, self._sizes) for rank, rows in by_rank.items()}
            self._lanes[policy.name] = lanes
            self._policies[policy.name] = policy
        filled = [lane for lane in lanes.values() if lane]
        self._filled[policy.name] = filled
        return filled

    def _set(self, row: Row, before: Row | None) -> None:
        device_id = row.state.device.device_id
        if row.kind < 0:
            row.kind = self.kinds.number(row.state)
        self.rows[device_id] = row
        if before is None:
            self._filled.clear()
            _note(self._by_node, row.state.device.node, device_id)
            for name in row.names:
                _note(self._by_name, name, device_id)
        was = () if before is None else before.state.warm_keys
        if row.state.warm_keys != was:
            for key in was:
                _strike(self._by_warm_key, key, device_id)
            for key in row.state.warm_keys:
                _note(self._by_warm_key, key, device_id)
        for name, lanes in self._lanes.items():
            row.keys[name] = key_of(row, self._policies[name])
            lanes[row.rank].put(row, before)

    def _work_out_node(self, node: str) -> None:
        rows = self.of_node(node)
        snapshot = Snapshot(tuple(row.state for row in rows), umbrella=self._alone.umbrella)
        for row in rows:
            figures = memory_figures(row.state, snapshot)
            new = copy.copy(row)
            new.set_figures(figures)
            if (new.free_bytes, new.total_bytes, new.most) != (
                row.free_bytes,
                row.total_bytes,
                row.most,
            ):
                new.keys = {}
                self._set(new, row)


def key_of(row: Row, policy: Policy, *, preferred: bool = False, warm: bool = False) -> Key:
    """The place of a row in the order of its class, as the selector orders candidates."""
    state = row.state
    facts = facts_of(state, row.free_bytes, row.total_bytes)
    return (
        place_of(state, preferred=True) if preferred else row.place,
        -policy.total(facts, warm=warm, weight=state.settings.weight),
        -(state.measured_gflops or 0.0),
        -(row.free_bytes or 0),
        *row.identity,
    )


def _is_shared(state: DeviceState) -> bool:
    """Whether the memory of others depends on this device, or its own on others."""
    if state.device.memory_pool != state.device.hardware_id:
        return True
    return bool(state.leases) and any(lease.host_memory_bytes for lease in state.leases)


def _note(index: dict[str, dict[str, None]], key: str, device_id: str) -> None:
    index.setdefault(key, {})[device_id] = None


def _strike(index: dict[str, dict[str, None]], key: str, device_id: str) -> None:
    index[key].pop(device_id, None)
    if not index[key]:
        del index[key]
