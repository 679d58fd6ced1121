"""What coordination sees of a machine, wherever it is: the road to a node agent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from exo.gpu.vocabulary.decision import Decision
from exo.gpu.vocabulary.messages import WireValue

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from exo.gpu.discovery import DiscoveryReport
    from exo.gpu.scheduling.job_queue import Turn
    from exo.gpu.vocabulary.command_end import CommandEnd
    from exo.gpu.vocabulary.health import Cordon
    from exo.gpu.vocabulary.job import SlotEvent, SlotOutput, SlotSetup, Work
    from exo.gpu.vocabulary.lease import Waiter
    from exo.gpu.vocabulary.process import ProcessList
    from exo.gpu.vocabulary.request import Request
    from exo.gpu.vocabulary.snapshot import Snapshot


class Grant(WireValue, frozen=True):
    """The decision, and one lease id for each chosen device, in the same order."""

    decision: Decision
    lease_ids: tuple[str, ...] = ()


class Node(Protocol):
    """One machine as a partner. Only values cross, so that any road can carry them."""

    def inventory(self) -> DiscoveryReport:
        """Every device found, and what each backend said."""
        ...

    def snapshot(self, *, leases: bool = True, others: bool = False) -> Snapshot:
        """All devices now: fresh samples, health and, unless unwanted, live leases and cordons.

        With ``others`` also who works on them under nobody's lease, which is dearer.
        """
        ...

    def processes(self) -> tuple[ProcessList, ...]:
        """Who works on each device, or why that is not known; bounded by a deadline."""
        ...

    def acquire(
        self,
        request: Request,
        *,
        wait_seconds: float | None = None,
        lasts_seconds: float | None = None,
        on_wait: Callable[[Waiter, Turn], None] | None = None,
        cancelled: Callable[[], bool] = ...,
    ) -> Grant:
        """Decide and take the leases as one step; the decision says why where none was taken.

        With ``wait_seconds`` the request stands in the line so long; with ``lasts_seconds`` the
        leases end then, whoever still works under them. ``on_wait`` hears once of the wait, and
        ``cancelled`` is asked whether to go on with it, at least once a second.
        """
        ...

    def release(self, lease_id: str) -> None:
        """Let go of a lease; it ends with the last process under it. Harmless twice."""
        ...

    def open_slot(
        self,
        lease_id: str,
        setup: SlotSetup | None,
        sink: Callable[[SlotEvent], None],
        on_output: Callable[[SlotOutput], None] | None = None,
    ) -> int:
        """Start a slot under a lease; without ``setup`` it runs shell commands only.

        ``on_output`` hears what workers print, from threads of the node; without it that comes
        out where the node's process prints.
        """
        ...

    def submit(self, slot_id: int, work: Work) -> None:
        """Give a slot its next work; returns at once, the sink hears how it went."""
        ...

    def cancel(self, slot_id: int, work_id: int, item: int | None = None) -> None:
        """End an item of a piece of work, or all of it; harmless where it has ended."""
        ...

    def recall(self, slot_id: int, work_id: int) -> None:
        """Take back what has not begun of a piece of work; the sink hears what that was.

        It hears nothing where all has begun, or ended.
        """
        ...

    def allow(self, slot_id: int, work_id: int, count: int) -> None:
        """Let a stream be so many chunks more ahead; harmless where it has ended."""
        ...

    def close_slots(self, slot_ids: tuple[int, ...], *, kill: bool = False) -> None:
        """End slots together and release their leases; with ``kill`` not waiting for their work."""
        ...

    def close(self) -> None:
        """End all slots, at once, and let go of all leases; harmless twice."""
        ...

    def environment(
        self, device_ids: tuple[str, ...], lease_ids: tuple[str, ...] = ()
    ) -> dict[str, str | None]:
        """What pins a process to these devices, under these leases, and hides all others."""
        ...


class LeaseNode(Node, Protocol):
    """A node at which leases are held by themselves, and not for slots alone."""

    def look_after(self) -> None:
        """Tell the log where what is held takes more memory than it declared, from now on."""
        ...


class RunNode(Node, Protocol):
    """A node that runs one command for whoever waits for it."""

    def run_attached(
        self,
        argv: Sequence[str],
        lease_ids: tuple[str, ...],
        *,
        overrun: str = "warn",
        timeout_seconds: float | None = None,
    ) -> CommandEnd:
        """Run it under the leases to its end; how it ended."""
        ...


@runtime_checkable
class FarNode(Protocol):
    """A node that takes a while to hear and to answer."""

    @property
    def latency_seconds(self) -> float:
        """How long it may take from the end of an item there to the next one's begin."""
        ...


@runtime_checkable
class GrowingNode(Protocol):
    """A node whose devices come and go, with the machines that they are in."""

    @property
    def roster_version(self) -> int:
        """Rises when devices have come, gone or changed."""
        ...

    @property
    def problem(self) -> str:
        """Why no device can come any more; empty while they can."""
        ...

    def inventory(self) -> DiscoveryReport:
        """Every device that is here now."""
        ...

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call the listener, from other threads, when anything is new; what ends that."""
        ...


@runtime_checkable
class CordonKeeper(Protocol):
    """A node that keeps devices out of scheduling, for all who share its machine."""

    def cordons(self) -> tuple[Cordon, ...]:
        """Those that hold now, also of devices that are not here.

        Raises:
            StoreError: when they cannot be read.

        """
        ...

    def put_cordon(self, cordon: Cordon) -> Cordon:
        """Keep a device out of scheduling; the cordon that holds from now on.

        Raises:
            StoreError: when it cannot be kept.

        """
        ...

    def lift_cordon(self, hardware_id: str, *, by_health_only: bool = False) -> Cordon | None:
        """End a cordon, or only one that health set; the one that was ended, or None.

        Raises:
            StoreError: when cordons cannot be read or written.

        """
        ...
