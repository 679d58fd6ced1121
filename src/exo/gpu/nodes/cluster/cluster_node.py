"""All machines of a cluster as one node: decided here, granted there, done there."""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import shlex
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from exo.gpu.nodes.cluster.batches import leases_of_node
from exo.gpu.nodes.cluster.far_command import run_far
from exo.gpu.nodes.cluster.member import FarSlot
from exo.gpu.nodes.cluster.proposals import Proposals
from exo.gpu.nodes.cluster.together import together
from exo.gpu.nodes.policies import policies_for
from exo.gpu.vocabulary.errors import BackendError, ClusterError, LeaseKept, NodeLost, NoSuchLease
from exo.gpu.vocabulary.inventory import DiscoveryReport
from exo.gpu.vocabulary.job import SlotFailed
from exo.gpu.vocabulary.lease import Lease

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from exo.gpu.nodes.cluster.member import Member
    from exo.gpu.nodes.cluster.membership import Membership
    from exo.gpu.nodes.cluster.roads import Carrier, Place
    from exo.gpu.nodes.cluster.table import ClusterTable
    from exo.gpu.nodes.leasing import OnWait
    from exo.gpu.nodes.transport import Grant
    from exo.gpu.scheduling.job_queue import Turn
    from exo.gpu.vocabulary.cluster import NodeStanding, Surroundings
    from exo.gpu.vocabulary.command_end import CommandEnd
    from exo.gpu.vocabulary.job import SlotEvent, SlotOutput, SlotSetup, Work
    from exo.gpu.vocabulary.lease import Waiter
    from exo.gpu.vocabulary.links import Route
    from exo.gpu.vocabulary.process import ProcessList
    from exo.gpu.vocabulary.request import Request
    from exo.gpu.vocabulary.snapshot import DeviceState, Snapshot

# What a report and its answer take within the processes that they pass, on a busy machine.
HOPS_SECONDS = 0.04

# Looking into processes and leases of a node takes its drivers a while.
LOOK_SECONDS = 10.0


class ClusterNode:
    """A :class:`~exo.gpu.nodes.transport.Node` over many machines; use it in a ``with`` block.

    A device is called ``rig2/cuda:0`` here, after its node.
    """

    def __init__(
        self,
        carrier: Carrier,
        membership: Membership,
        table: ClusterTable,
        surroundings: Callable[[Place], Surroundings | None] = lambda _: None,
    ) -> None:
        """Carrier and membership are closed with this node, at the program's end at the latest.

        ``surroundings`` are those of this program's workers on a node.
        """
        self._carrier = carrier
        self._membership = membership
        self._table = table
        self._surroundings = surroundings
        self._proposals = Proposals(table, membership)
        self._slots: dict[int, Member] = {}
        self._numbers = itertools.count()
        self._closed = False
        # Before Ray leaves by itself, in the middle of a call of ours.
        atexit.register(self.close)

    def __enter__(self) -> ClusterNode:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    @property
    def sample_failures(self) -> dict[str, str]:
        """Why a device gave no sample; agents tell it as the reason of its health."""
        return {}

    @property
    def latency_seconds(self) -> float:
        """From the end of an item on the farthest node to the begin of the next one."""
        members = self._membership.members.values()
        return HOPS_SECONDS + 2 * max((one.latency_seconds for one in members), default=0.0)

    def nodes(self) -> tuple[NodeStanding, ...]:
        """Every node that is or was here, and why one does not count."""
        devices: dict[str, list[str]] = {}
        for state in self._table.snapshot().devices:
            devices.setdefault(state.device.node, []).append(state.device.device_id)
        return tuple(
            msgspec.structs.replace(one, devices=tuple(devices.get(one.node, ())))
            for one in self._membership.standings()
        )

    @property
    def roster_version(self) -> int:
        """Rises when devices have come, gone or changed."""
        return self._table.roster_version

    @property
    def problem(self) -> str:
        """Why the cluster's head does not answer; empty while it does."""
        return self._membership.head_problem

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call it, from other threads, when nodes came, went or told anything; what ends that."""
        return self._membership.listen(listener)

    def choose(self, request: Request) -> tuple[str, ...]:
        """The ids that a request would get, without reasons: quick over thousands of devices."""
        return self._table.choose(request, policies_for(request))

    def inventory(self, **_: Any) -> DiscoveryReport:
        """Every device of every node that answers."""
        snapshot = self._table.snapshot()
        return DiscoveryReport(
            devices=tuple(state.device for state in snapshot.devices), links=snapshot.links
        )

    def snapshot(self, *, leases: bool = True, others: bool = False) -> Snapshot:
        """All devices as their agents last told, within a second or two."""
        del others  # an agent looks for them before it grants a whole device
        snapshot = self._table.snapshot()
        change = self._as_ours if leases else _without_leases
        return msgspec.structs.replace(snapshot, devices=tuple(map(change, snapshot.devices)))

    def _as_ours(self, state: DeviceState) -> DeviceState:
        """With what was granted to this program under its own pid, as on one machine."""
        mine = self._proposals.granted
        if not any(lease.lease_id in mine for lease in state.leases):
            return state
        pid = os.getpid()
        leases = tuple(
            msgspec.structs.replace(lease, pid=pid) if lease.lease_id in mine else lease
            for lease in state.leases
        )
        return msgspec.structs.replace(state, leases=leases)

    def processes(self) -> tuple[ProcessList, ...]:
        """Who works on each device, as far as the nodes tell in time."""
        return tuple(
            msgspec.structs.replace(one, device_id=f"{name}/{one.device_id}")
            for name, lists in self._of_all("processes")
            for one in lists
        )

    def acquire(
        self,
        request: Request,
        *,
        wait_seconds: float | None = None,
        lasts_seconds: float | None = None,
        on_wait: OnWait | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Grant:
        """Decide over all nodes, and have the chosen ones grant it by their own stores.

        A node may refuse, since it knows better: then it is decided again, three times in all.
        With ``wait_seconds`` that is done over and over, so long.
        """
        return self._proposals.acquire(
            request,
            wait_seconds=wait_seconds,
            lasts_seconds=lasts_seconds,
            on_wait=on_wait,
            cancelled=cancelled,
        )

    def look_after(self) -> None:
        """Agents look after what is held at their nodes by themselves."""

    def release(self, lease_id: str) -> None:
        """Let go of a lease; harmless twice."""
        self._proposals.release(lease_id)

    def open_slot(
        self,
        lease_id: str,
        setup: SlotSetup | None,
        sink: Callable[[SlotEvent], None],
        on_output: Callable[[SlotOutput], None] | None = None,
    ) -> int:
        """Start a slot under a lease; that it cannot be started is told to the sink."""
        member = self._proposals.granted[lease_id].member
        number = next(self._numbers)
        self._slots[number] = member
        self._proposals.opened(number, lease_id)
        slot = FarSlot(sink, on_output, deque())
        try:
            around = self._surroundings(member.place)
            if around is not None and setup is not None:
                setup = msgspec.structs.replace(
                    setup,
                    import_path=(*around.import_path, *setup.import_path),
                    directory=around.directory,
                )
            member.open_slot(number, slot, lease_id, setup, around)
        except ClusterError as error:
            sink(SlotFailed(number, str(error)))
        return number

    def submit(self, slot_id: int, work: Work) -> None:
        """Give a slot its next work; a command starts in this directory where the node has it."""
        if work.command is not None:
            around = self._surroundings(self._slots[slot_id].place)
            folder = (around.directory if around else "") or str(Path.cwd())
            command = f"cd {shlex.quote(folder)} 2>/dev/null\n{work.command}"
            work = msgspec.structs.replace(work, command=command)
        self._slots[slot_id].submit(slot_id, work)

    def cancel(self, slot_id: int, work_id: int, item: int | None = None) -> None:
        """End an item of a piece of work, or all of it; harmless where it has ended."""
        self._slots[slot_id].order("cancel", slot_id, work_id, item)

    def recall(self, slot_id: int, work_id: int) -> None:
        """Take back what has not begun of a piece of work; harmless where all has."""
        self._slots[slot_id].order("recall", slot_id, work_id)

    def allow(self, slot_id: int, work_id: int, count: int) -> None:
        """Let a stream be so many chunks more ahead; harmless where it has ended."""
        self._slots[slot_id].order("allow", slot_id, work_id, count)

    def close_slots(self, slot_ids: tuple[int, ...], *, kill: bool = False) -> None:
        """End slots together and release their leases, of all nodes at once."""
        of: dict[Member, list[int]] = {}
        for slot_id in slot_ids:
            member = self._slots.pop(slot_id, None)
            if member is not None:
                of.setdefault(member, []).append(slot_id)
        together(lambda one: one[0].close_slots(tuple(one[1]), kill=kill), tuple(of.items()))
        for slot_id in slot_ids:
            self._proposals.closed(slot_id)

    def environment(
        self, device_ids: tuple[str, ...], lease_ids: tuple[str, ...] = ()
    ) -> dict[str, str | None]:
        """What pins a process of their node to these devices, all of one node.

        Raises:
            BackendError: for devices of several nodes.
            NodeLost: when their node is.

        """
        parts = [device_id.partition("/") for device_id in device_ids]
        names = {name for name, _, _ in parts}
        if len(names) != 1:
            raise BackendError(
                f"one process cannot be pinned to devices of several nodes: {', '.join(device_ids)}"
            )
        local = tuple(device_id for _, _, device_id in parts)
        member = self._membership.member(names.pop())
        return member.ask("answer", "environment", local, lease_ids)

    def routes(self) -> tuple[Route, ...]:
        """How fast each node reaches each other one, as their agents measured it, if they did.

        What is known already is told at once. What is not takes an agent a moment for each node,
        and is not measured while anybody works there.
        """
        members = sorted(self._membership.members.items())
        found: list[Route] = []
        for name, member in members:
            others = tuple(other for other, _ in members if other != name)
            with contextlib.suppress(NodeLost):
                found += member.ask("routes", others, timeout_seconds=LOOK_SECONDS * len(members))
        return tuple(found)

    def rates(self) -> dict[str, float]:
        """Bytes a second from here to each other node, where its way was measured."""
        home = self._membership.home
        return {
            route.target: route.bandwidth_bytes_per_second
            for route in self._table.snapshot().routes
            if home and route.source == home and route.bandwidth_bytes_per_second is not None
        }

    def run_attached(
        self,
        argv: Sequence[str],
        lease_ids: tuple[str, ...],
        *,
        overrun: str = "warn",
        timeout_seconds: float | None = None,
    ) -> CommandEnd:
        """Run a command under leases of one node, at that node; what it prints comes out here.

        A terminal does not travel: it has no standard input. Its agent looks after its memory.

        Raises:
            BackendError: for devices of several nodes, or an ``overrun`` of ``kill``.
            WorkerDied: when its node was lost before it had ended.

        """
        if overrun == "kill":
            raise BackendError("on another machine nothing is ended for its memory: --overrun warn")
        device_ids = tuple(self._proposals.granted[one].device_id for one in lease_ids)
        changes = self.environment(device_ids, lease_ids)
        end = run_far(self, argv, lease_ids[0], changes, timeout_seconds=timeout_seconds)
        return msgspec.structs.replace(end, device_ids=device_ids)

    def leases(self) -> tuple[Lease, ...]:
        """All live leases of all nodes, with what their processes are seen to hold now."""
        return tuple(
            lease for name, found in self._of_all("leases") for lease in leases_of_node(name, found)
        )

    def line(self) -> tuple[tuple[Waiter, Turn], ...]:
        """Everybody who waits at a node, node by node."""
        return tuple(one for _, line in self._of_all("line") for one in line)

    def end_lease(self, name: str, *, force: bool = False) -> Lease | Waiter:
        """Strike out a lease at its node, or take a waiter out of the line there.

        Raises:
            NoSuchLease: for an id that no node has.
            LeaseKept: for one under which work goes on, without ``force``.

        """
        for member in self._membership.members.values():
            try:
                ended = member.ask("answer", "end_lease", name, force)
            except NoSuchLease:
                continue
            except LeaseKept as error:
                raise LeaseKept(f"node {member.name}: {error}", error.pids) from None
            return leases_of_node(member.name, (ended,))[0] if isinstance(ended, Lease) else ended
        raise NoSuchLease(f"no node of the cluster has a lease or waiter {name!r}")

    def close(self) -> None:
        """End all slots, let go of all leases, and leave the cluster; harmless twice."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        self._membership.close()
        self._carrier.close()

    def _of_all(self, call: str) -> list[tuple[str, Any]]:
        """What each node that answers in time answers, in the order of their names."""
        members = sorted(self._membership.members.items())

        def ask(member: Member) -> Any:
            try:
                return member.ask("answer", call, timeout_seconds=LOOK_SECONDS)
            except NodeLost:
                return ()

        answers = together(ask, [member for _, member in members])
        return [(name, answer) for (name, _), answer in zip(members, answers, strict=True)]


def _without_leases(state: DeviceState) -> DeviceState:
    return msgspec.structs.replace(state, leases=(), cordon=None)
