"""What every item costs on every device: a matrix of seconds, infinite where it does not fit.

A row is an item, a column is a device. Everything here checks what it is given and returns a new
matrix; nothing here knows where speeds and sizes were measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import msgspec
import numpy as np

from exo.gpu.vocabulary.errors import InvalidValue
from exo.gpu.vocabulary.units import check_number

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Matrix = NDArray[np.float64]
    Row = NDArray[np.float64]

# Far above any time, and a hundred million such items still have a finite sum.
_LARGEST_SECONDS = 1e300
_BYTES_PER_GB = 1e9
_CELL = f"a number of seconds within 0..{_LARGEST_SECONDS:g}, or infinity where it does not fit"


class Road(msgspec.Struct, frozen=True):
    """A way that data take: its measured ``bandwidth_gbps``, in GB/s (10**9 bytes), and delay."""

    bandwidth_gbps: float
    latency_seconds: float = 0.0

    def __post_init__(self) -> None:
        """Refuse a road without a bandwidth: nothing would ever arrive."""
        check_number("bandwidth_gbps", self.bandwidth_gbps, low=0)
        check_number("latency_seconds", self.latency_seconds, low=0)
        if self.bandwidth_gbps == 0:
            raise InvalidValue("bandwidth_gbps", self.bandwidth_gbps, "above 0")


def check_costs(costs: Any) -> Matrix:
    """The matrix as floats of its own, items x devices; one without items may be written ``[]``.

    Raises:
        InvalidValue: for rows of unequal length, another shape, text, NaN, a negative number, or a
            matrix in which no item fits anywhere; it names the row and the cell.

    """
    lengths = [len(row) for row in costs] if _is_rows(costs) else []
    for index, length in enumerate(lengths):
        if length != lengths[0]:
            expected = f"{lengths[0]} costs long, as the first row is"
            raise InvalidValue(f"costs[{index}]", costs[index], expected)
    try:
        matrix = np.array(costs, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidValue("costs", costs, "a matrix of numbers, items x devices") from error
    if matrix.shape == (0,):
        matrix = matrix.reshape(0, 0)
    if matrix.ndim != 2:
        raise InvalidValue("costs", matrix.shape, "the shape of a matrix, items x devices")
    refuse = np.isnan(matrix) | (matrix < 0) | (np.isfinite(matrix) & (matrix > _LARGEST_SECONDS))
    if refuse.any():
        item, device = (int(place) for place in np.argwhere(refuse)[0])
        raise InvalidValue(f"costs[{item}][{device}]", float(matrix[item, device]), _CELL)
    if matrix.size and np.isinf(matrix).all():
        raise InvalidValue("costs", "infinity everywhere", "a matrix in which some item fits")
    return matrix


def uniform_costs(work: Sequence[float], speeds: Sequence[float]) -> Matrix:
    """Costs on uniform machines: each item's work over each device's speed, in any one unit.

    Equal speeds are identical machines. A speed of 0 fits nothing.

    Raises:
        InvalidValue: for work or a speed that is negative, NaN or infinite.

    """
    amounts, rates = check_row("work", work), check_row("speeds", speeds)
    with np.errstate(divide="ignore", invalid="ignore"):
        matrix = amounts[:, None] / rates[None, :]
    matrix[:, rates == 0] = np.inf
    return matrix


def with_transfers(
    costs: Any,
    item_bytes: Sequence[float],
    roads: Sequence[Sequence[Road]],
    *,
    item_nodes: Sequence[str | None] | None = None,
    device_nodes: Sequence[str] | None = None,
    node_roads: dict[str, Road] | None = None,
) -> Matrix:
    """Costs and the time until an item's data are there: network-aware costs.

    ``roads`` names for each device the ways within its machine, such as its PCIe link, which every
    item takes. An item takes its device's node's road too, unless ``item_nodes`` says that its data
    are there already. Roads are taken one after another, the whole item at a time.

    Raises:
        InvalidValue: for sizes that are negative, NaN or infinite, lengths that differ from the
            matrix, or a device's node without a road where data must come to it.

    """
    matrix = check_costs(costs)
    items, devices = matrix.shape
    sizes = check_row("item_bytes", item_bytes, items)
    _check_length("roads", roads, devices)
    for column, ways in enumerate(roads):
        for way in ways:
            matrix[:, column] += _seconds(way, sizes)
    if device_nodes is None:
        return matrix
    _check_length("device_nodes", device_nodes, devices)
    places = [None] * items if item_nodes is None else list(item_nodes)
    _check_length("item_nodes", places, items)
    for column, node in enumerate(device_nodes):
        away = np.array([place != node for place in places], dtype=bool)
        if not away.any():
            continue
        if node not in (node_roads or {}):
            raise InvalidValue("node_roads", node, "left out: data must come to this node")
        matrix[away, column] += _seconds((node_roads or {})[node], sizes[away])
    return matrix


def memory_shares(
    item_bytes: Sequence[float], device_bytes: Sequence[float], slots: Sequence[int] | None = None
) -> Matrix:
    """The share of each device that each item takes; infinite where it does not fit at all.

    The model: a device works on several items at once, each at its own full speed, as long as their
    memory fits and it has slots. So an item takes memory / the device's memory of it, and 1 / slots
    at least, and the load of a device is the sum of cost x share. With one slot, the default, that
    is the sum of costs.

    Raises:
        InvalidValue: for sizes that are negative, NaN or infinite, or slots below 1.

    """
    needs, sizes = check_row("item_bytes", item_bytes), check_row("device_bytes", device_bytes)
    counts = np.ones(len(sizes)) if slots is None else check_row("slots", slots, len(sizes))
    if (counts < 1).any():
        raise InvalidValue("slots", list(counts), "at least 1 for every device")
    with np.errstate(divide="ignore", invalid="ignore"):
        used = np.where(needs[:, None] > 0, needs[:, None] / sizes[None, :], 0.0)
    return np.where(used <= 1, np.maximum(used, 1 / counts), np.inf)


def _seconds(road: Road, sizes: Row) -> Row:
    moved = np.where(sizes > 0, road.latency_seconds, 0.0)  # what has no data sends nothing
    return moved + sizes / (road.bandwidth_gbps * _BYTES_PER_GB)


def _is_rows(costs: Any) -> bool:
    if not isinstance(costs, Sequence):
        return False
    rows = cast("Sequence[Any]", costs)
    return all(isinstance(row, (Sequence, np.ndarray)) and not isinstance(row, str) for row in rows)


def check_row(field: str, values: Sequence[float], length: int | None = None) -> Row:
    """Numbers of at least 0 as floats, ``length`` of them where that is given.

    Raises:
        InvalidValue: naming the field and the place of what is none.

    """
    try:
        numbers = np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidValue(field, values, "a list of numbers") from error
    if numbers.ndim != 1:
        raise InvalidValue(field, values, "a list of numbers")
    if length is not None:
        _check_length(field, numbers, length)
    for index, value in enumerate(numbers):
        check_number(f"{field}[{index}]", float(value), low=0)
    return numbers


def _check_length(field: str, values: Any, length: int) -> None:
    if len(values) != length:
        raise InvalidValue(field, f"{len(values)} values", f"{length} values, as the costs have")
