"""From a request to leases on other machines: a central decision proposes, each node grants."""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
from typing import TYPE_CHECKING

import msgspec

from exo.gpu.nodes.cluster.table import FULL_DECISION_DEVICES
from exo.gpu.nodes.cluster.together import together
from exo.gpu.nodes.policies import policies_for
from exo.gpu.nodes.transport import Grant
from exo.gpu.scheduling.job_queue import Turn
from exo.gpu.vocabulary.decision import Decision, Refusal
from exo.gpu.vocabulary.errors import ExoGpuError, NodeLost, StoreError
from exo.gpu.vocabulary.lease import Waiter
from exo.gpu.vocabulary.request import DEFAULT_POLICY

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from exo.gpu.nodes.cluster.member import Member
    from exo.gpu.nodes.cluster.membership import Membership
    from exo.gpu.nodes.cluster.table import ClusterTable
    from exo.gpu.nodes.leasing import OnWait
    from exo.gpu.scheduling.policies import Policy
    from exo.gpu.vocabulary.request import Request

logger = logging.getLogger("exo.gpu.nodes.cluster.proposals")

# A node that refuses knows better; after so many refusals the answer is "not now".
MOST_DECISIONS = 3

# Who waits decides anew as often: a node tells what changed there within a second.
POLL_SECONDS = 0.5

# A node answers a proposal at once, unless memory is just coming back there, also for others who
# were before.
GRANT_SECONDS = 30.0
LOOK_SECONDS = 8.0


class _Part(msgspec.Struct, frozen=True):
    """What one node is asked for: its own ids, and their places among those chosen."""

    member: Member
    places: tuple[int, ...]
    device_ids: tuple[str, ...]


class Granted(msgspec.Struct, frozen=True):
    """A lease that this program holds at a node."""

    member: Member
    device_id: str
    """As it is called in the cluster."""


class Proposals:
    """Takes leases at the nodes in the name of this program, and gives them back."""

    def __init__(self, table: ClusterTable, membership: Membership) -> None:
        self.granted: dict[str, Granted] = {}
        """What this program holds, by lease id."""
        self._under: dict[int, str] = {}
        self._numbers = itertools.count()
        self._table = table
        self._membership = membership

    def acquire(
        self,
        request: Request,
        *,
        wait_seconds: float | None,
        lasts_seconds: float | None,
        on_wait: OnWait | None,
        cancelled: Callable[[], bool],
    ) -> Grant:
        """Leases on all devices that a request gets, or none with the decision that says why."""
        ends = time.monotonic() + (wait_seconds or 0.0)
        while True:
            grant = self._try(request, wait_seconds, lasts_seconds)
            over = time.monotonic() >= ends or cancelled()
            if grant.lease_ids or grant.decision.never or not wait_seconds or over:
                return grant
            if on_wait is not None:
                waiter = Waiter(waiter_id="", request=request)
                on_wait(waiter, Turn(decision=grant.decision))
                on_wait = None
            time.sleep(min(POLL_SECONDS, max(0.0, ends - time.monotonic())))

    def release(self, lease_id: str) -> None:
        """Let go of a lease; harmless twice."""
        granted = self.granted.pop(lease_id, None)
        if granted is not None:
            granted.member.settle("release", lease_id)

    def opened(self, slot_id: int, lease_id: str) -> None:
        """A slot works under a lease, which ends with it."""
        self._under[slot_id] = lease_id

    def closed(self, slot_id: int) -> None:
        """A slot is gone, and its node lets go of the lease."""
        lease_id = self._under.pop(slot_id, None)
        if lease_id is not None:
            self.granted.pop(lease_id, None)

    def _try(
        self, request: Request, wait_seconds: float | None, lasts_seconds: float | None
    ) -> Grant:
        policies = policies_for(request)
        refused: Grant | None = None
        for _ in range(MOST_DECISIONS):
            decision = self._decide(request, policies)
            if not decision.chosen and not decision.never:
                # What a node told last is a second old, and may have changed for the better.
                self.refresh(request)
                decision = self._decide(request, policies)
            if not decision.chosen:
                return Grant(decision)
            lease_ids, refused = self._propose(decision, wait_seconds, lasts_seconds)
            if lease_ids:
                return Grant(decision, lease_ids)
        assert refused is not None, "whoever gets no leases was refused"
        return refused

    def _decide(self, request: Request, policies: Mapping[str, Policy]) -> Decision:
        if len(self._table) > FULL_DECISION_DEVICES:
            chosen = self._table.choose(request, policies)
            if chosen:
                return Decision(request=request, chosen=chosen)
        return self._table.decide(request, policies)

    def refresh(self, request: Request) -> None:
        """Have the nodes tell how they are now; one that does not answer is lost soon enough.

        Where the request names devices or a node, only those that it names are asked.
        """
        named = {one.partition("/")[0] for one in request.devices} or {request.node} - {None}
        members = [
            member
            for name, member in self._membership.members.items()
            if not named or name in named
        ]

        def look(member: Member) -> None:
            with contextlib.suppress(NodeLost):
                self._membership.heard(member, member.ask("look", timeout_seconds=LOOK_SECONDS))

        together(look, members)

    def _propose(
        self, decision: Decision, wait_seconds: float | None, lasts_seconds: float | None
    ) -> tuple[tuple[str, ...], Grant | None]:
        """Ask each node for its part; all leases in the order of the devices, or a refusal."""
        try:
            parts = self._parts(decision.chosen)
        except NodeLost:
            return (), _nothing(decision)

        def ask(part: _Part) -> Grant | ExoGpuError:
            own = _for_node(decision.request, part.device_ids)
            # What is just coming back is worth a moment only where it is all that is asked for.
            wait = 0.0 if wait_seconds is not None or len(parts) > 1 else None
            number = next(self._numbers)
            try:
                grant, batch = part.member.ask(
                    "acquire", number, own, wait, lasts_seconds, timeout_seconds=GRANT_SECONDS
                )
            except BaseException as error:
                # It may be granted all the same, or be so later: nobody would know of it.
                part.member.order("disown", number)
                if isinstance(error, (NodeLost, StoreError)):
                    return error
                raise
            self._membership.heard(part.member, batch)
            for lease_id, device_id in zip(grant.lease_ids, grant.decision.chosen, strict=True):
                self.granted[lease_id] = Granted(part.member, f"{part.member.name}/{device_id}")
            return grant

        answers = together(ask, parts)
        leases: dict[int, str] = {}
        for part, answer in zip(parts, answers, strict=True):
            if isinstance(answer, Grant) and answer.lease_ids:
                leases |= dict(zip(part.places, answer.lease_ids, strict=True))
        if len(leases) == len(decision.chosen):
            return tuple(leases[place] for place in range(len(leases))), None
        for lease_id in leases.values():
            self.release(lease_id)
        return (), self._refusal(decision, parts, answers)

    def _parts(self, chosen: Sequence[str]) -> list[_Part]:
        places: dict[str, list[int]] = {}
        for place, device_id in enumerate(chosen):
            places.setdefault(device_id.partition("/")[0], []).append(place)
        return [
            _Part(
                self._membership.member(name),
                tuple(of_node),
                tuple(chosen[place].partition("/")[2] for place in of_node),
            )
            for name, of_node in places.items()
        ]

    def _refusal(
        self, decision: Decision, parts: Sequence[_Part], answers: Sequence[Grant | ExoGpuError]
    ) -> Grant:
        """What the first node that refused had to say, under the names of the cluster."""
        for part, answer in zip(parts, answers, strict=True):
            if isinstance(answer, Grant) and not answer.lease_ids:
                name = part.member.name
                logger.info("node %s refused: what was decided on has changed since", name)
                refusals = tuple(
                    # Of these devices that may be said, but there are others.
                    msgspec.structs.replace(
                        one, device_id=f"{name}/{one.device_id}", permanent=False
                    )
                    for one in answer.decision.refusals
                )
                return Grant(Decision(request=decision.request, refusals=refusals))
        return _nothing(decision)


def _for_node(request: Request, device_ids: tuple[str, ...]) -> Request:
    """The request for exactly these devices of a node, under the ids that it has for them."""
    return msgspec.structs.replace(
        request,
        devices=device_ids,
        count=len(device_ids),
        runtime=None,
        device_class=None,
        all_devices=False,
        node=None,
        same_node=False,
        without_devices=(),
        prefer=(),
        # The devices are chosen; a policy of the driver's may not be installed there.
        policy=DEFAULT_POLICY,
    )


def _nothing(decision: Decision) -> Grant:
    """Nobody refused: a node was lost in between."""
    refusals = tuple(
        Refusal(
            device_id=device_id, rule="node", reason="its node does not answer now", permanent=False
        )
        for device_id in decision.chosen
    )
    return Grant(Decision(request=decision.request, refusals=refusals))
