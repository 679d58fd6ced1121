"""The side of a manager that a cluster is on: its devices come and go with the nodes."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Self

from exo.gpu.coordination.cluster import connect_node
from exo.gpu.vocabulary.errors import ManagerClosed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from exo.gpu.nodes.cluster.cluster_node import ClusterNode
    from exo.gpu.vocabulary.cluster import NodeStanding
    from exo.gpu.vocabulary.device import GPUDevice
    from exo.gpu.vocabulary.metrics import GPUMetrics

# However much a large cluster tells, devices that came or went are looked for as often at most.
_LOOK_SECONDS = 1.0


class ClusterSide(ABC):
    """What a manager has besides, once it is connected; before that it has nothing of it."""

    node: ClusterNode | None = None
    """What the work of a cluster goes through; None where this machine is all there is."""

    _news: threading.Event | None = None
    _gone: threading.Event

    @classmethod
    def connect(
        cls,
        address: str | None = None,
        *,
        runtime_env: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Self:
        """A manager of all devices of all nodes of a cluster, called ``rig2/cuda:0`` and so on.

        Until :meth:`shutdown` they come and go with the nodes. Leases are granted by the store of
        their own node, and so collide with nobody there. ``address`` is ``HOST:6379``,
        ``ray://HOST:10001`` or ``auto``; by default what ``RAY_ADDRESS`` says, else the cluster of
        this machine. ``runtime_env`` is Ray's, for the workers of this program. ``options`` are
        the manager's own.

        Raises:
            ClusterError: where there is none, or none of its nodes answers, with what to do.

        """
        manager = cls(**options)
        manager._news = news = threading.Event()
        manager._gone = threading.Event()
        node = connect_node(address, runtime_env=runtime_env, on_change=news.set)
        manager.node = node
        try:
            manager._follow()
        except BaseException:
            node.close()
            raise
        threading.Thread(target=manager._listen, name="exo-gpu-cluster", daemon=True).start()
        return manager

    def nodes(self) -> tuple[NodeStanding, ...]:
        """Every node that is or was in the cluster, and why one does not count."""
        return () if self.node is None else self.node.nodes()

    def leave(self) -> None:
        """Leave the cluster: what is held there ends; harmless twice and without a cluster."""
        if self.node is not None and self._news is not None:
            self._gone.set()
            self._news.set()
            self.node.close()

    # What a manager gives.

    @abstractmethod
    def register_device(self, device: GPUDevice) -> None:
        """Add a device."""

    @abstractmethod
    def unregister_device(self, device_id: str) -> bool:
        """Forget a device."""

    @abstractmethod
    def list_devices(self) -> list[GPUDevice]:
        """Every registered device."""

    @abstractmethod
    def _take(self, metrics: GPUMetrics) -> None:
        """Keep a sample of a registered device."""

    def _rates(self) -> dict[str, float]:
        """Bytes a second from here to each other node, where its way was measured."""
        return {} if self.node is None else self.node.rates()

    def _listen(self) -> None:
        assert self._news is not None
        assert self.node is not None
        seen = -1
        while True:
            self._news.wait()
            self._news.clear()
            if self.node.roster_version != seen:
                seen = self.node.roster_version
                try:
                    self._follow()
                except ManagerClosed:
                    return
            self._gone.wait(_LOOK_SECONDS)
            if self._gone.is_set():
                return

    def _follow(self) -> None:
        """Register what has come, and forget what has gone."""
        assert self.node is not None
        here = {device.device_id: device for device in self.node.inventory().devices}
        known = {device.device_id: device for device in self.list_devices()}
        for device_id, device in known.items():
            if here.get(device_id) != device:
                self.unregister_device(device_id)
        for device_id, device in here.items():
            if known.get(device_id) != device:
                self.register_device(device)

    def _catch_up(self) -> None:
        """Take the newest samples of a cluster in: as nobody else does, when they are asked for."""
        if self.node is None:
            return
        registered = {device.device_id for device in self.list_devices()}
        for state in self.node.snapshot().devices:
            if state.sample is not None and state.device.device_id in registered:
                self._take(state.sample)
