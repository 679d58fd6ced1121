"""The decisions of the selector over a table that is kept up to date row by row.

Identical to the plain definition, at a price that hardly grows with the number of devices. What
it does not answer itself is handed to the plain definition: several devices at once, cores or
memory of the machine beside a device, and policies that bring filters of their own or look at
more than one device.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from exo.gpu.scheduling.columns import Question, Sizes
from exo.gpu.scheduling.constraints import contradictions
from exo.gpu.scheduling.ledger import lease_for
from exo.gpu.scheduling.policies import POLICIES, Policy, policy_named
from exo.gpu.scheduling.rows import ELIGIBLE, NEVER, TAKEN, Key, Row, verdict
from exo.gpu.scheduling.selector import leases_of, select
from exo.gpu.scheduling.table import DeviceTable, key_of
from exo.gpu.vocabulary.decision import Choice, Decision
from exo.gpu.vocabulary.lease import Lease
from exo.gpu.vocabulary.links import Link
from exo.gpu.vocabulary.request import Request
from exo.gpu.vocabulary.snapshot import STALE_AFTER_SECONDS, DeviceState, Snapshot

_Entry = tuple[int, Key, Row]


class FastSelector:
    """Takes one update for each event, and answers requests.

    ``now`` is the caller's monotonic clock in seconds; the age of a sample grows with it. Use it
    from one thread at a time.
    """

    def __init__(
        self,
        states: Iterable[DeviceState] = (),
        *,
        now: float = 0.0,
        stale_after_seconds: float = STALE_AFTER_SECONDS,
        umbrella: tuple[str, ...] = (),
        links: tuple[Link, ...] = (),
        policies: Mapping[str, Policy] | None = None,
        sizes: Sizes | None = None,
    ) -> None:
        self.version = 0
        self._stale_after_seconds = stale_after_seconds
        self._umbrella = umbrella
        self._links = links
        self._policies = {**(policies or {}), **POLICIES}
        self._table = DeviceTable(umbrella, sizes)
        for state in states:
            self.update(state, now=now)

    def __len__(self) -> int:
        return len(self._table.rows)

    def update(self, state: DeviceState, *, now: float = 0.0) -> None:
        """Add a device, or say what is known of it; the age of its sample is that at ``now``."""
        self._table.put(state, now)
        self.version += 1

    def remove(self, device_id: str) -> None:
        """Forget a device; harmless for one that is not there."""
        if self._table.remove(device_id):
            self.version += 1

    def snapshot(self, *, now: float = 0.0) -> Snapshot:
        """All that is known at that moment: what the plain definition and people look at."""
        return Snapshot(
            tuple(_aged(row, now) for row in self._table.rows.values()),
            self.version,
            self._stale_after_seconds,
            self._umbrella,
            self._links,
        )

    def decide(self, request: Request, *, now: float = 0.0) -> Decision:
        """The same choice by the plain definition, with the ranking and all reasons.

        Raises:
            UnknownName: for a policy that is not known, with the near spelling.

        """
        return select(self.snapshot(now=now), request, policies=self._policies)

    def choose(self, request: Request, *, now: float = 0.0) -> Choice:
        """What :func:`~exo.gpu.scheduling.selector.select` would choose, without the reasons.

        Raises:
            UnknownName: for a policy that is not known, with the near spelling.

        """
        policy = self._policies.get(request.policy)
        if policy is None:
            policy = policy_named(request.policy, self._policies)
        if (
            request.count > 1
            or policy.filters
            or policy.asking
            or request.host_memory_bytes is not None
            or request.host_cpus is not None
        ):
            return Choice(self.decide(request, now=now).chosen, self.version)
        row = self._best(request, policy, now)
        return Choice(() if row is None else (row.state.device.device_id,), self.version)

    def choose_many(self, requests: Iterable[Request], *, now: float = 0.0) -> list[Choice]:
        """Answer requests one after the other, each seeing what the earlier ones took.

        What they took stays taken in this table until an update of the device says otherwise; the
        leases have no id yet, and are for the caller to take.

        Raises:
            UnknownName: for a policy that is not known, with the near spelling.

        """
        choices: list[Choice] = []
        for request in requests:
            choice = self.choose(request, now=now)
            taken = self._leases(choice.chosen, request)
            for device_id, lease in zip(choice.chosen, taken, strict=True):
                row = self._table.rows[device_id]
                self.update(_aged(row, now, leases=(*row.state.leases, lease)), now=now)
            choices.append(Choice(choice.chosen, choice.table_version, taken))
        return choices

    def _leases(self, chosen: tuple[str, ...], request: Request) -> tuple[Lease, ...]:
        if len(chosen) == 1:
            state = self._table.rows[chosen[0]].state
            return (lease_for(state, self._table.around(state), request),)
        return leases_of(self.snapshot(), chosen, request) if chosen else ()

    def _best(self, request: Request, policy: Policy, now: float) -> Row | None:
        """The row that is chosen for a request of one device."""
        if contradictions(request):
            return None
        kinds = self._table.kinds.mask(request)
        question = Question(request, kinds, now, self._stale_after_seconds)
        if request.devices or request.node is not None:
            return self._best_of_few(policy, question)
        for lane in self._table.lanes(policy):
            row = lane.first(question)
            if row is not None:
                plain = not (row.display or request.prefer or request.affinity_key)
                return row if plain else self._best_but_for(row, policy, question)
            if not request.all_devices and lane.holds(question):
                return None
        return None

    def _best_but_for(self, row: Row, policy: Policy, question: Question) -> Row:
        """The best, where wishes of the request or a display may put another before ``row``."""
        request = question.request
        best: _Entry = (row.rank, row.keys[policy.name], row)
        few: Sequence[_Entry] = ()
        if request.prefer or request.affinity_key:
            few = _entries(self._table.singled_out(request), request, policy)
            best = min((best, *_will_do(few, question)), key=_order)
        if not best[2].display:
            return best[2]
        beside = self._table.kinds.mask(request, no_display_of=best[2].state.device.runtime)
        lane = self._table.lane_of(policy, best[0])
        other = lane.first(msgspec.structs.replace(question, kinds=beside), best[1][0])
        others = [*few] if other is None else [*few, (other.rank, other.keys[policy.name], other)]
        return _not_behind_display(best, others, question)

    def _best_of_few(self, policy: Policy, question: Question) -> Row | None:
        """The same among devices that the request names, or those of one machine."""
        request = question.request
        if not request.devices:
            rows = self._table.of_node(request.node or "")
        else:
            named = self._table.named(request.devices)
            rows = named or []
            if request.node is not None:
                rows = [row for row in rows if row.state.device.node == request.node]
        entries = _entries(rows, request, policy)
        best = next(_will_do(entries, question), None)
        if best is None:
            return None
        if not request.devices and not request.all_devices and _is_held(best, entries, question):
            return None
        return _not_behind_display(best, entries, question)


def _entries(rows: Iterable[Row], request: Request, policy: Policy) -> list[_Entry]:
    """The rows in the order in which the selector ranks them for this request."""
    return sorted(
        (
            (
                row.rank,
                key_of(
                    row,
                    policy,
                    preferred=not row.names.isdisjoint(request.prefer),
                    warm=bool(request.affinity_key) and request.affinity_key in row.state.warm_keys,
                ),
                row,
            )
            for row in rows
        ),
        key=_order,
    )


def _order(entry: _Entry) -> tuple[int, Key]:
    return entry[:2]


def _will_do(entries: Iterable[_Entry], question: Question) -> Iterator[_Entry]:
    return (entry for entry in entries if _verdict(entry[2], question) == ELIGIBLE)


def _is_held(best: _Entry, entries: Iterable[_Entry], question: Question) -> bool:
    """Whether a device of a better class is only taken for now."""
    return any(rank < best[0] and _verdict(row, question) == TAKEN for rank, _, row in entries)


def _verdict(row: Row, question: Question) -> int:
    kinds = question.kinds
    if kinds is not None and not kinds.allowed[row.kind]:
        return NEVER
    return verdict(row, question.request, question.now, question.stale_after_seconds)


def _not_behind_display(best: _Entry, entries: Iterable[_Entry], question: Question) -> Row:
    """The best, but not a card that drives a display where another of its runtime does as well."""
    rank, key, row = best
    if not row.display:
        return row
    runtime = row.state.device.runtime
    others = (
        entry
        for entry in _will_do(entries, question)
        if entry[0] == rank
        and entry[1][0] == key[0]
        and entry[2].state.device.runtime == runtime
        and not entry[2].display
    )
    return min(others, key=_order, default=best)[2]


def _aged(row: Row, now: float, **changes: Any) -> DeviceState:
    """What was told of the device, with its sample as old as it is by now, and with changes."""
    if row.received_at != math.inf:
        changes["sample_age_seconds"] = now - row.received_at
    return msgspec.structs.replace(row.state, **changes) if changes else row.state
