"""What sending the items costs: no machine does more of them than its network brings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def within_network(
    capacities: Mapping[str, float],
    nodes: Mapping[str, str],
    rates: Mapping[str, float],
    item_bytes: float,
) -> dict[str, float]:
    """Items a second by device, where each node gets its items over one way.

    ``nodes`` names the node of each device, ``rates`` the bytes a second to a node; one that is
    not in there is here, or its way is not known, and has no such limit. Items travel while
    others are worked on, so the slower of the two decides, for the devices of a node together.
    """
    together: dict[str, float] = {}
    for device_id, capacity in capacities.items():
        together[nodes[device_id]] = together.get(nodes[device_id], 0.0) + capacity
    parts = {
        node: min(1.0, rates[node] / item_bytes / capacity)
        for node, capacity in together.items()
        if node in rates and item_bytes and capacity
    }
    return {
        device_id: capacity * parts.get(nodes[device_id], 1.0)
        for device_id, capacity in capacities.items()
    }


def with_transfers(
    columns: Mapping[str, Sequence[float]],
    nodes: Mapping[str, str],
    rates: Mapping[str, float],
    item_bytes: float,
) -> dict[str, list[float]]:
    """Seconds of each task by device, with what sending it takes on the way of its own."""
    return {
        device_id: [cost + item_bytes / rates[nodes[device_id]] for cost in column]
        if nodes[device_id] in rates
        else list(column)
        for device_id, column in columns.items()
    }
