"""The result of splitting work: which device has which items, what has none, and how good it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")


class Distribution(Mapping[str, list[Item]], Generic[Item]):
    """An assignment of items to devices, and what could not be assigned.

    It reads like ``{device_id: [items]}`` and equals such a dict; every device is a key, also one
    that gets nothing. ``reasons`` says why anything is in ``unassigned`` or why a device got none.

    A distribution by cost also knows ``loads`` (when each device ends), ``makespan`` (when the last
    one does), ``bound`` (before which no assignment of these items ends, proven), all in the unit
    of the costs, the ``places`` of the items in the order given (None for none), and by which
    ``method`` it was found. Elsewhere these are None, as nothing is known of what items cost.
    """

    def __init__(
        self,
        assigned: Mapping[str, list[Item]],
        unassigned: Iterable[Item] = (),
        reasons: Iterable[str] = (),
        *,
        loads: Mapping[str, float] | None = None,
        makespan: float | None = None,
        bound: float | None = None,
        places: Iterable[str | None] | None = None,
        method: str | None = None,
    ) -> None:
        self._assigned = dict(assigned)
        self.unassigned: list[Item] = list(unassigned)
        self.reasons: tuple[str, ...] = tuple(reasons)
        self.loads: dict[str, float] | None = None if loads is None else dict(loads)
        self.makespan = makespan
        self.bound = bound
        self.places: tuple[str | None, ...] | None = None if places is None else tuple(places)
        self.method = method

    def __getitem__(self, device_id: str) -> list[Item]:
        return self._assigned[device_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._assigned)

    def __len__(self) -> int:
        return len(self._assigned)

    def __repr__(self) -> str:
        rest = f", unassigned={self.unassigned!r}" if self.unassigned else ""
        return f"Distribution({self._assigned!r}{rest})"

    @property
    def assigned_count(self) -> int:
        """How many items found a device."""
        return sum(len(items) for items in self._assigned.values())

    @property
    def gap(self) -> float | None:
        """How far above the bound the makespan is, as a ratio; None where no bound is known."""
        if self.makespan is None or self.bound is None:
            return None
        if self.makespan == self.bound:
            return 0.0
        return self.makespan / self.bound - 1 if self.bound > 0 else None

    def among(self, devices: Iterable[str], reasons: Iterable[str]) -> Distribution[Item]:
        """The same among these devices, of which those that are new get nothing, with reasons."""
        return Distribution(
            {device_id: self._assigned.get(device_id, []) for device_id in devices},
            self.unassigned,
            (*self.reasons, *reasons),
            loads=self.loads,
            makespan=self.makespan,
            bound=self.bound,
            places=self.places,
            method=self.method,
        )

    def to_dict(self) -> dict[str, Any]:
        """``assigned``, ``unassigned`` and ``reasons`` as plain containers; by cost, more."""
        known = {
            "loads": self.loads,
            "makespan": self.makespan,
            "bound": self.bound,
            "gap": self.gap,
            "method": self.method,
        }
        return {
            "assigned": {device_id: list(items) for device_id, items in self._assigned.items()},
            "unassigned": list(self.unassigned),
            "reasons": list(self.reasons),
            **{name: value for name, value in known.items() if value is not None},
        }
