"""A distribution by cost: names and limits of the devices, the assignment, and the reasons."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self, cast

import msgspec
import numpy as np

from exo.gpu.scheduling.assignment import Assignment, assign
from exo.gpu.scheduling.constructive import NOWHERE
from exo.gpu.scheduling.costs import check_costs, check_row, memory_shares
from exo.gpu.scheduling.distribution import Distribution
from exo.gpu.vocabulary.errors import DuplicateDevice, InvalidValue
from exo.gpu.vocabulary.units import check_number, check_text, check_whole, format_size

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from exo.gpu.scheduling.lots import Lots

    Matrix = NDArray[np.float64]

_NAMED = 5
"""Items that a reason names before it counts the others."""


class Effort(msgspec.Struct, frozen=True, kw_only=True):
    """How hard to try: seconds by a clock, else rounds; by which lots; with the solver or not."""

    rounds: int | None = None
    seconds: float | None = None
    clock: Callable[[], float] | None = None
    lots: Lots | None = None
    solver: bool = True

    def __post_init__(self) -> None:
        """Refuse seconds that nothing counts."""
        check_whole("rounds", self.rounds, optional=True)
        check_number("seconds", self.seconds, low=0, optional=True)
        if self.seconds is not None and self.clock is None:
            raise InvalidValue("clock", None, "a function such as time.monotonic, to count seconds")


class Devices(msgspec.Struct, frozen=True, kw_only=True):
    """The columns of the costs: which devices, and what limits each."""

    names: tuple[str, ...]
    costs: NDArray[np.float64]
    maxima: tuple[int | None, ...] = ()
    memory_bytes: tuple[float, ...] | None = None
    slots: tuple[int, ...] | None = None
    ready_seconds: tuple[float, ...] | None = None

    @classmethod
    def of(cls, costs: Any, devices: Iterable[str] | None) -> Self:
        """Costs as a matrix or by device, with the names of the devices or their numbers."""
        if isinstance(devices, (str, bytes)):
            raise InvalidValue("devices", devices, "a list of device ids")
        names: tuple[str, ...]
        if isinstance(costs, Mapping):
            columns = cast("Mapping[str, Any]", costs)
            names = tuple(columns) if devices is None else tuple(devices)
            matrix = _from_columns(columns, names)
        else:
            matrix = check_costs(costs)
            names = tuple(map(str, range(matrix.shape[1]))) if devices is None else tuple(devices)
            if not matrix.size and not len(matrix):
                matrix = np.empty((0, len(names)))
        for index, name in enumerate(names):
            check_text("devices", name)
            if name in names[:index]:
                raise DuplicateDevice("devices", name, "named only once")
        if len(names) != matrix.shape[1]:
            expected = f"{matrix.shape[1]} devices, one for each column of the costs"
            raise InvalidValue("devices", f"{len(names)} devices", expected)
        return cls(names=names, costs=matrix)

    def with_limits(
        self,
        *,
        maxima: Sequence[int | None],
        memory_bytes: Sequence[float] | None,
        slots: Sequence[int] | None,
        ready_seconds: Sequence[float] | None,
    ) -> Self:
        """The same devices with their limits, each a value for every device, in their order."""
        count = len(self.names)
        for field, values in (
            ("device_memory_bytes", memory_bytes),
            ("ready_seconds", ready_seconds),
        ):
            if values is not None:
                check_row(field, values, count)
        return msgspec.structs.replace(
            self,
            maxima=tuple(maxima),
            memory_bytes=None if memory_bytes is None else tuple(memory_bytes),
            slots=None if slots is None else tuple(slots),
            ready_seconds=None if ready_seconds is None else tuple(ready_seconds),
        )


def distribute_by_cost(
    devices: Devices,
    workload_items: Iterable[Any] | None,
    memory_bytes: Sequence[float] | None,
    effort: Effort,
) -> Distribution[Any]:
    """Assign, and say of each item that has no device why.

    Raises:
        InvalidValue: for another number of items than the costs have, or memory of items without
            that of the devices, or the other way round.

    """
    count = len(devices.costs)
    items = list(range(count)) if workload_items is None else list(workload_items)
    if len(items) != count:
        raise InvalidValue("workload_items", f"{len(items)} items", f"{count}, a row of costs each")
    shares = _shares(devices, memory_bytes, count)
    found, makespan, bound = _levelled(devices, shares, effort)
    assigned: dict[str, list[Any]] = {name: [] for name in devices.names}
    places = [int(place) for place in found.places]
    for item, place in zip(items, places, strict=True):
        if place != NOWHERE:
            assigned[devices.names[place]].append(item)
    nowhere = [index for index, place in enumerate(places) if place == NOWHERE]
    return Distribution(
        assigned,
        [items[index] for index in nowhere],
        _reasons(devices, shares, memory_bytes, nowhere),
        loads=dict(zip(devices.names, found.loads, strict=True)),
        makespan=makespan,
        bound=bound,
        places=[None if at == NOWHERE else devices.names[at] for at in places],
        method=found.method or None,
    )


def _levelled(devices: Devices, shares: Matrix, effort: Effort) -> tuple[Assignment, float, float]:
    """The assignment, its makespan and the bound, where no device works longer than its items do.

    Beside others an item takes a share of a device, yet as long as alone; so the makespan is never
    below the longest item's cost. Where that is what counts, it is tried again without the places
    that take longer.
    """
    room = [len(shares) if most is None else most for most in devices.maxima]
    ready = np.array(devices.ready_seconds or [0.0] * len(devices.names))

    def tried(limit: float) -> tuple[Assignment, float]:
        allowed = np.isfinite(shares) & (devices.costs <= limit)
        with np.errstate(invalid="ignore"):
            taken = np.where(allowed, devices.costs * shares, np.inf)
        found = assign(
            taken,
            room=np.array(room, dtype=np.int64),
            ready=ready,
            rounds=effort.rounds,
            seconds=effort.seconds if limit == np.inf else (effort.seconds or 0.0) / 2,
            clock=effort.clock,
            lots=effort.lots,
            solver=effort.solver,
        )
        return found, max(found.makespan, longest(found))

    def longest(found: Assignment) -> float:
        placed = np.flatnonzero(found.places != NOWHERE)
        at = found.places[placed]
        return float((ready[at] + devices.costs[placed, at]).max(initial=0.0))

    found, makespan = tried(np.inf)
    fitting = np.min(np.where(np.isfinite(shares), devices.costs, np.inf), axis=1, initial=np.inf)
    placed = fitting[found.places != NOWHERE]
    least = float(placed.max(initial=0.0))
    if makespan > max(found.makespan, least):
        other, shorter = tried(max(found.makespan, least))
        same = (other.places == NOWHERE).sum() == (found.places == NOWHERE).sum()
        if same and shorter < makespan:
            found, makespan = msgspec.structs.replace(other, bound=found.bound), shorter
    return found, makespan, min(max(found.bound, least), makespan)


def _shares(devices: Devices, memory_bytes: Sequence[float] | None, count: int) -> Matrix:
    if memory_bytes is None and devices.memory_bytes is None:
        needs, sizes = [0.0] * count, [1.0] * len(devices.names)
    elif memory_bytes is None or devices.memory_bytes is None:
        expected = "given together: memory_bytes of the items, device_memory_bytes of the devices"
        raise InvalidValue("memory_bytes", memory_bytes, expected)
    else:
        check_row("memory_bytes", memory_bytes, count)
        needs, sizes = list(memory_bytes), list(devices.memory_bytes)
    shares = memory_shares(needs, sizes, devices.slots)
    return np.where(np.isfinite(devices.costs), shares, np.inf)


def _from_columns(costs: Mapping[str, Any], names: tuple[str, ...]) -> Matrix:
    if set(names) != set(costs):
        raise InvalidValue(
            "costs", list(costs), f"a column for each of {', '.join(names) or 'none'}"
        )
    columns = [list(costs[name]) for name in names]
    for name, column in zip(names, columns, strict=True):
        if len(column) != len(columns[0]):
            expected = f"{len(columns[0])} costs long, as the first column is"
            raise InvalidValue(f"costs[{name!r}]", column, expected)
    count = len(columns[0]) if columns else 0
    if not count:
        return np.empty((0, len(names)))
    return check_costs([list(row) for row in zip(*columns, strict=True)])


def _reasons(
    devices: Devices, shares: Matrix, memory_bytes: Sequence[float] | None, nowhere: list[int]
) -> list[str]:
    items: dict[str, list[int]] = {}
    for index in nowhere:
        items.setdefault(_reason(devices, shares, memory_bytes, index), []).append(index)
    return [
        f"{len(those)} unassigned (item {_listed(those)}): {why}" for why, those in items.items()
    ]


def _reason(
    devices: Devices, shares: Matrix, memory_bytes: Sequence[float] | None, index: int
) -> str:
    if not devices.names:
        return "no device takes part"
    fits = np.flatnonzero(np.isfinite(shares[index])).tolist()
    if fits:
        full = ", ".join(f"{devices.names[at]} {devices.maxima[at]}" for at in fits)
        return f"every device on which it fits is at its maximum ({full})"
    possible = np.flatnonzero(np.isfinite(devices.costs[index])).tolist()
    if not possible or memory_bytes is None or devices.memory_bytes is None:
        return "it fits on no device: its cost is infinite on each"
    nearest = max(possible, key=lambda at: (devices.memory_bytes or ())[at])
    short = memory_bytes[index] - devices.memory_bytes[nearest]
    return (
        f"it needs {format_size(memory_bytes[index])}, and the nearest device,"
        f" {devices.names[nearest]}, is {format_size(short)} short"
    )


def _listed(indices: list[int]) -> str:
    named = ", ".join(map(str, indices[:_NAMED]))
    more = len(indices) - _NAMED
    return f"{named} and {more} more" if more > 0 else named
