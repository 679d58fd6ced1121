"""Who gets how many items: largest-remainder apportionment in blocks, with maxima; or by cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from itertools import islice
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, TypeVar

from exo.gpu.scheduling.distribution import Distribution
from exo.gpu.vocabulary.device import GPUDevice
from exo.gpu.vocabulary.errors import (
    DuplicateDevice,
    InvalidValue,
    NoSuchDevice,
    UnknownName,
)
from exo.gpu.vocabulary.units import check_text, check_whole

if TYPE_CHECKING:
    from exo.gpu.scheduling.lots import Lots

Item = TypeVar("Item")

WEIGHTED = ("uniform", "capacity", "dynamic")
STRATEGIES = (*WEIGHTED, "cost")

Maxima = int | Mapping[str, int] | None


class WorkloadDistributor:
    """Splits items among devices.

    Without maxima no device's count is a whole item away from its exact share. Items may be
    anything, also unhashable; each device gets one contiguous block, in the order given.
    """

    def distribute_uniform(
        self,
        devices: Iterable[str],
        workload_items: Iterable[Item],
        max_per_device: Maxima = None,
    ) -> Distribution[Item]:
        """The same share for each; what is over goes to those named first.

        Raises:
            DuplicateDevice: for a device named twice.
            InvalidValue: for an id that is no text, or a maximum below 0.
            NoSuchDevice: for a maximum of a device that takes no part.

        """
        if isinstance(devices, (str, bytes)):
            raise InvalidValue("devices", devices, "a list of device ids")
        shares: dict[str, Fraction] = {}
        for device_id in devices:
            check_text("devices", device_id)
            if device_id in shares:
                raise DuplicateDevice("devices", device_id, "named only once")
            shares[device_id] = Fraction(1)
        return _distribute(shares, workload_items, max_per_device)

    def distribute_by_capacity(
        self,
        capacities: Mapping[str, float],
        workload_items: Iterable[Item],
        max_per_device: Maxima = None,
    ) -> Distribution[Item]:
        """Shares in proportion to ``capacities``, in any one unit; a capacity of 0 gets nothing.

        Raises:
            InvalidValue: for a capacity that is negative, NaN or infinite, naming its device, or a
                maximum below 0.
            NoSuchDevice: for a maximum of a device that takes no part.

        """
        if not isinstance(capacities, Mapping):
            raise InvalidValue("capacities", capacities, "a mapping of device id to capacity")
        shares: dict[str, Fraction] = {}
        for device_id, capacity in capacities.items():
            check_text("capacities", device_id)
            shares[device_id] = _exact(f"capacities[{device_id!r}]", capacity)
        return _distribute(shares, workload_items, max_per_device)

    def distribute_by_cost(
        self,
        costs: Any,
        devices: Iterable[str] | None = None,
        workload_items: Iterable[Item] | None = None,
        max_per_device: Maxima = None,
        *,
        memory_bytes: Sequence[float] | None = None,
        device_memory_bytes: Sequence[float] | None = None,
        slots: Sequence[int] | None = None,
        ready_seconds: Sequence[float] | None = None,
        rounds: int | None = None,
        seconds: float | None = None,
        clock: Callable[[], float] | None = None,
        lots: Lots | None = None,
        solver: bool = True,
    ) -> Distribution[Any]:
        """Who gets which items, so that the last device ends as early as can be found.

        ``costs`` is a matrix, items x devices, or a column for each device id; infinity means that
        an item does not fit there. Without ``devices`` and ``workload_items`` both go by number.
        With ``memory_bytes`` of the items a device works on as many at once as
        ``device_memory_bytes`` and ``slots`` allow, see
        :func:`~exo.gpu.scheduling.costs.memory_shares`. ``ready_seconds`` is what each device still
        has to do. The result says by ``gap`` how far from the optimum it is at most.

        It works for ``seconds`` by the ``clock``, else for ``rounds``, and then the same costs and
        ``lots`` give the same answer. ``solver=False`` leaves HiGHS out where it is installed.

        Raises:
            InvalidValue: for costs that are ragged, NaN, negative or infinite everywhere, naming
                the cell, and for anything else that does not go with them.
            DuplicateDevice: for a device named twice.
            NoSuchDevice: for a maximum of a device that takes no part.

        """
        from exo.gpu.scheduling.by_cost import Devices, Effort, distribute_by_cost

        columns = Devices.of(costs, devices)
        maxima = _maxima(dict.fromkeys(columns.names, Fraction(1)), max_per_device)
        columns = columns.with_limits(
            maxima=list(maxima.values()),
            memory_bytes=device_memory_bytes,
            slots=slots,
            ready_seconds=ready_seconds,
        )
        effort = Effort(rounds=rounds, seconds=seconds, clock=clock, lots=lots, solver=solver)
        return distribute_by_cost(columns, workload_items, memory_bytes, effort)


def weigh(
    devices: Mapping[str, GPUDevice], strategy: str, capacities: Mapping[str, float] | None = None
) -> dict[str, float]:
    """What each device weighs under a strategy; one that is missing was given no capacity.

    Without ``capacities``, ``capacity`` and ``dynamic`` weigh by memory bandwidth where every
    device states it, else by memory where every device states that, else equally.

    Raises:
        UnknownName: for another strategy.
        NoSuchDevice: for a capacity of a device that is not among them.
        InvalidValue: for an impossible capacity, or any with ``uniform``.

    """
    if strategy not in WEIGHTED:
        raise UnknownName("strategy", strategy, STRATEGIES)
    if capacities is None:
        facts = () if strategy == "uniform" else ("bandwidth_gbps", "memory_bytes")
        for fact in facts:
            stated = {one: getattr(device, fact) for one, device in devices.items()}
            if all(stated.values()):
                return stated
        return dict.fromkeys(devices, 1)
    if strategy == "uniform":
        raise InvalidValue("capacities", capacities, "None, as 'uniform' has no use for them")
    for device_id, capacity in capacities.items():
        if device_id not in devices:
            here = ", ".join(devices) or "none"
            raise NoSuchDevice(f"capacities names {device_id!r}, which is not here ({here})")
        _exact(f"capacities[{device_id!r}]", capacity)
    return dict(capacities)


def apportion(total: int, shares: Sequence[Fraction], maxima: Sequence[int | None]) -> list[int]:
    """Whole counts that add up to ``total``, or to what the maxima let through.

    Whoever's exact share exceeds its maximum gets the maximum, and the others share what is left
    by the same rule; the remainder goes to the largest fractions, then the larger share, then the
    order given (Hamilton's method).
    """
    counts = [0] * len(shares)
    active: list[int] = [index for index, share in enumerate(shares) if share > 0]
    while active:
        whole = sum((shares[index] for index in active), Fraction())
        exact = {index: total * shares[index] / whole for index in active}
        full = {index for index in active if _exceeds(exact[index], maxima[index])}
        if not full:
            _round(counts, exact, shares, total)
            break
        for index in full:
            counts[index] = maxima[index] or 0
            total -= counts[index]
        active = [index for index in active if index not in full]
    return counts


def _round(
    counts: list[int], exact: Mapping[int, Fraction], shares: Sequence[Fraction], total: int
) -> None:
    for index, share in exact.items():
        counts[index] = math.floor(share)
    left = total - sum(counts[index] for index in exact)
    order = sorted(exact, key=lambda index: (counts[index] - exact[index], -shares[index], index))
    for index in order[:left]:
        counts[index] += 1


def _exceeds(share: Fraction, maximum: int | None) -> bool:
    return maximum is not None and share > maximum


def _distribute(
    shares: Mapping[str, Fraction], workload_items: Iterable[Item], max_per_device: Maxima
) -> Distribution[Item]:
    maxima = _maxima(shares, max_per_device)
    items = list(workload_items)
    counts = apportion(len(items), list(shares.values()), [maxima[one] for one in shares])
    rest = iter(items)
    assigned = {
        device_id: list(islice(rest, count))
        for device_id, count in zip(shares, counts, strict=True)
    }
    unassigned = list(rest)
    return Distribution(assigned, unassigned, _reasons(shares, maxima, len(unassigned)))


def _reasons(
    shares: Mapping[str, Fraction], maxima: Mapping[str, int | None], left: int
) -> list[str]:
    if not left:
        return []
    if not shares:
        return [f"{left} unassigned: no device takes part"]
    if not any(shares.values()):
        return [f"{left} unassigned: no device has a capacity above 0"]
    full = ", ".join(f"{one} {maxima[one]}" for one, share in shares.items() if share)
    return [f"{left} unassigned: every device with a capacity is at its maximum ({full})"]


def _maxima(shares: Mapping[str, Fraction], max_per_device: Maxima) -> dict[str, int | None]:
    if not isinstance(max_per_device, Mapping):
        check_whole("max_per_device", max_per_device, optional=True)
        return dict.fromkeys(shares, max_per_device)
    for device_id, maximum in max_per_device.items():
        if device_id not in shares:
            known = ", ".join(shares) or "none"
            raise NoSuchDevice(f"max_per_device names {device_id!r}, which takes no part ({known})")
        check_whole(f"max_per_device[{device_id!r}]", maximum)
    return {device_id: max_per_device.get(device_id) for device_id in shares}


def _exact(field: str, capacity: object) -> Fraction:
    if isinstance(capacity, Real) and not isinstance(capacity, bool):
        # NumPy's scalars are Real and Integral too, and Fraction takes only Python's own.
        number = int(capacity) if isinstance(capacity, Integral) else float(capacity)
        if math.isfinite(number) and number >= 0:
            return Fraction(number)
    raise InvalidValue(field, capacity, "a finite number of at least 0")
