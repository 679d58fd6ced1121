"""What ``exo-gpu top --cluster`` shows: frames of all machines, by what their agents tell."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from exo.gpu.coordination.cluster import connect_node
from exo.gpu.coordination.top_source import LocalTopSource, Watched
from exo.gpu.telemetry.collector import TelemetryCollector

if TYPE_CHECKING:
    from collections.abc import Generator

    from exo.gpu.nodes.cluster.cluster_node import ClusterNode
    from exo.gpu.nodes.transport import Node
    from exo.gpu.vocabulary.snapshot import Snapshot


class ClusterTopSource(LocalTopSource):
    """The same frames of a cluster, which is joined for as long as the block lasts."""

    @contextmanager
    def _watched(self) -> Generator[Watched]:
        with connect_node() as node:
            yield _Followed(node, self._history_samples)


class _Followed:
    """Keeps the samples that a cluster tells, each as it is looked at."""

    def __init__(self, node: ClusterNode, history_samples: int) -> None:
        self._node = node
        self._collector = TelemetryCollector(history_samples)

    @property
    def node(self) -> Node:
        """The cluster."""
        return self._node

    @property
    def collector(self) -> TelemetryCollector:
        """The samples that were looked at."""
        return self._collector

    def snapshot(self, *, leases: bool = True) -> Snapshot:
        """All devices as they are known now."""
        snapshot = self._node.snapshot(leases=leases)
        for state in snapshot.devices:
            known = self._collector.get_metrics(state.device.device_id)
            sample = state.sample
            if sample is not None and (known is None or known.timestamp != sample.timestamp):
                self._collector.observe(sample)
        return snapshot
