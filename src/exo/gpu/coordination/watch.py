"""What an overview asks of whoever watches devices, be they of one machine or of many."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from exo.gpu.coordination.recording import Recording
    from exo.gpu.nodes.watching import NodeEvent
    from exo.gpu.scheduling.job_queue import Turn
    from exo.gpu.telemetry.collector import TelemetryCollector
    from exo.gpu.vocabulary.cluster import NodeStanding
    from exo.gpu.vocabulary.device import GPUDevice
    from exo.gpu.vocabulary.inventory import DiscoveryReport, MissingDevice
    from exo.gpu.vocabulary.lease import Lease, Waiter
    from exo.gpu.vocabulary.process import ProcessList
    from exo.gpu.vocabulary.snapshot import Snapshot


class WatchedNode(Protocol):
    """What an overview asks of a node beside the watch; a machine of this process has it."""

    def inventory(self) -> DiscoveryReport:
        """Every device found, and what each backend said."""
        ...

    def snapshot(self, *, leases: bool = True, others: bool = False) -> Snapshot:
        """All devices now; with ``others`` also who works there under nobody's lease."""
        ...

    def processes(self) -> tuple[ProcessList, ...]:
        """Who works on each device, or why that is not known."""
        ...

    def leases(self) -> tuple[Lease, ...]:
        """All live leases."""
        ...

    def line(self) -> tuple[tuple[Waiter, Turn], ...]:
        """Everybody who waits, the first one first."""
        ...


class WatchedCluster(WatchedNode, Protocol):
    """The same of many machines, which are left at the end."""

    @property
    def problem(self) -> str:
        """Why the cluster, or its head, does not answer; empty while it does."""
        ...

    def nodes(self) -> tuple[NodeStanding, ...]:
        """Every node that is or was in the cluster, and why one does not count."""
        ...

    def close(self) -> None:
        """Leave the cluster; harmless twice."""
        ...


class Listening(Protocol):
    """Events of a watch, in order."""

    def get(self, timeout_seconds: float | None) -> NodeEvent | None:
        """The next event; None when the time is over."""
        ...

    def close(self) -> None:
        """Hear of nothing more."""
        ...


class Watch(Protocol):
    """What is watched: this machine by a ``Monitor``, or many machines by a ``ClusterWatch``."""

    @property
    def node(self) -> WatchedNode:
        """What is asked for more than samples."""
        ...

    @property
    def collector(self) -> TelemetryCollector:
        """The samples of the last minutes."""
        ...

    @property
    def recording(self) -> Recording:
        """Whether samples reach the disk."""
        ...

    @property
    def nodes(self) -> tuple[NodeStanding, ...]:
        """Every node that is or was in the cluster; none where one machine is watched."""
        ...

    @property
    def problem(self) -> str:
        """Why less is heard of the whole than there is; empty while all is well."""
        ...

    @property
    def devices(self) -> tuple[GPUDevice, ...]:
        """The devices as the last search found them."""
        ...

    @property
    def missing(self) -> tuple[MissingDevice, ...]:
        """Devices that were here before."""
        ...

    def snapshot(self, *, leases: bool = True) -> Snapshot:
        """All devices as they are known now."""
        ...

    def subscribe(self) -> Listening:
        """Hear of every event from now on."""
        ...
