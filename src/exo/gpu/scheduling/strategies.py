"""Splitting tasks among what a snapshot shows, by the strategy of the caller's choice."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar, cast

import msgspec

from exo.gpu.scheduling.distribution import Distribution
from exo.gpu.scheduling.distributor import STRATEGIES, Maxima, WorkloadDistributor, weigh
from exo.gpu.scheduling.selector import select
from exo.gpu.scheduling.transfers import with_transfers, within_network
from exo.gpu.vocabulary.errors import InvalidValue, NoSuchDevice, UnknownName
from exo.gpu.vocabulary.request import Request
from exo.gpu.vocabulary.snapshot import Snapshot
from exo.gpu.vocabulary.units import check_number

Task = TypeVar("Task")


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """What a strategy goes by; each has use for some of it."""

    capacities: Mapping[str, float] | None = None
    costs: Any = None
    max_per_device: Maxima = None
    seconds: float | None = None
    item_bytes: float | None = None
    """What is sent for each task."""
    rates: Mapping[str, float] = {}
    """Bytes a second to each node, where that is known."""
    clock: Callable[[], float] | None = None


def distribute(
    snapshot: Snapshot,
    tasks: Iterable[Task],
    strategy: str,
    terms: Terms,
) -> Distribution[Task]:
    """Split tasks among the devices of the snapshot that could be chosen now.

    ``dynamic`` weighs as ``capacity`` does, and by how busy others keep each device: it foretells
    how the pull-based executor would begin, which corrects itself as it goes on. With
    ``item_bytes`` a node is given no more than its network brings in the time.

    Raises:
        UnknownName: for another strategy.
        NoSuchDevice: for a device that is not in the snapshot.
        InvalidValue: for what a strategy has no use for, or lacks.

    """
    distributor = WorkloadDistributor()
    if strategy not in STRATEGIES:
        raise UnknownName("strategy", strategy, STRATEGIES)
    devices = {state.device.device_id: state.device for state in snapshot.devices}
    decision = select(snapshot, Request(all_devices=True))
    refused = {refusal.device_id: refusal.reason for refusal in decision.refusals}
    _check_bytes(strategy, terms)
    nodes = {name: device.node for name, device in devices.items()}
    if strategy == "cost":
        split, reasons = _by_cost(distributor, nodes, refused, list(tasks), terms)
    else:
        if terms.costs is not None:
            raise InvalidValue("costs", "a matrix", f"None, as {strategy!r} has no use for them")
        weights = weigh(devices, strategy, terms.capacities)
        if strategy == "dynamic":
            idle = _idle_shares(snapshot)
            weights = {name: weight * idle[name] for name, weight in weights.items()}
        if terms.item_bytes:
            weights = within_network(weights, nodes, terms.rates, terms.item_bytes)
        reasons = dict.fromkeys(devices.keys() - weights, "no capacity was given for it") | refused
        shares = {one: 0 if one in reasons else weights[one] for one in devices}
        split = distributor.distribute_by_capacity(shares, tasks, terms.max_per_device)
    excluded = [f"{one} takes no part: {reasons[one]}" for one in devices if one in reasons]
    return split.among(devices, excluded)


def _check_bytes(strategy: str, terms: Terms) -> None:
    check_number("item_bytes", terms.item_bytes, low=0, optional=True)
    if terms.item_bytes and strategy == "uniform":
        raise InvalidValue("item_bytes", terms.item_bytes, "None, as 'uniform' has no use for it")
    if terms.item_bytes and strategy != "cost" and terms.capacities is None:
        expected = "items a second by device id, which item_bytes is weighed against"
        raise InvalidValue("capacities", None, expected)


def _by_cost(
    distributor: WorkloadDistributor,
    nodes: Mapping[str, str],
    refused: Mapping[str, str],
    tasks: list[Task],
    terms: Terms,
) -> tuple[Distribution[Task], dict[str, str]]:
    if terms.capacities is not None:
        raise InvalidValue("capacities", terms.capacities, "None, as 'cost' has no use for them")
    devices = list(nodes)
    columns = _columns(devices, len(tasks), terms.costs)
    if terms.item_bytes:
        columns = with_transfers(columns, nodes, terms.rates, terms.item_bytes)
    reasons = dict.fromkeys(set(devices) - columns.keys(), "no costs were given for it")
    reasons |= refused
    taking = {name: column for name, column in columns.items() if name not in reasons}
    maxima = terms.max_per_device
    if isinstance(maxima, Mapping):
        _check_known("max_per_device", maxima, devices)
        maxima = {name: most for name, most in maxima.items() if name in taking}
    nowhere = all(cost == float("inf") for column in taking.values() for cost in column)
    if nowhere and tasks:
        why = f"{len(tasks)} unassigned: no device that can be chosen now has a finite cost"
        return Distribution({name: [] for name in devices}, tasks, [why]), reasons
    split = distributor.distribute_by_cost(
        taking, None, tasks, maxima, seconds=terms.seconds, clock=terms.clock
    )
    return split, reasons


def _columns(devices: list[str], count: int, costs: Any) -> dict[str, list[float]]:
    """The costs by device, checked: from a matrix in the order of the devices, or by their ids."""
    if costs is None:
        raise InvalidValue("costs", None, "a matrix, tasks x devices, which 'cost' goes by")
    from exo.gpu.scheduling.by_cost import Devices

    if isinstance(costs, Mapping):
        _check_known("costs", cast("Mapping[str, Any]", costs), devices)
        checked = Devices.of(costs, None)
    else:
        checked = Devices.of(costs, devices)
    if len(checked.costs) != count:
        expected = f"a row for each of the {count} tasks"
        raise InvalidValue("costs", f"{len(checked.costs)} rows", expected)
    return {name: checked.costs[:, at].tolist() for at, name in enumerate(checked.names)}


def _check_known(field: str, named: Iterable[Any], devices: list[str]) -> None:
    for device_id in named:
        if device_id not in devices:
            here = ", ".join(devices) or "none"
            raise NoSuchDevice(f"{field} names {device_id!r}, which is not here ({here})")


def _idle_shares(snapshot: Snapshot) -> dict[str, float]:
    """What a newcomer gets of each device: all, down to half where others keep it wholly busy.

    A device whose utilization is not known, or no longer, is taken as idle.
    """
    shares: dict[str, float] = {}
    for state in snapshot.devices:
        sample, age = state.sample, state.sample_age_seconds
        fresh = age is not None and age <= snapshot.stale_after_seconds
        busy = sample.compute_utilization_percent if sample is not None and fresh else None
        shares[state.device.device_id] = 1 - min(max(busy or 0.0, 0.0), 100.0) / 200
    return shares
