"""The side of a manager that a cluster is on: its devices come and go with the nodes."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Self

from exo.gpu.coordination.cluster import connect_node
from exo.gpu.vocabulary.errors import ManagerClosed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from exo.gpu.nodes.cluster.cluster_node import ClusterNode
    from exo.gpu.vocabulary.cluster import NodeStanding
    from exo.gpu.vocabulary.device import GPUDevice
    from exo.gpu.vocabulary.metrics import GPUMetrics


class ClusterSide:
    """What a manager has besides, once it is connected; before that it has nothing of it."""

    node: ClusterNode | None = None
    """What the work of a cluster goes through; None where this machine is all there is."""

    _news: threading.Event | None = None

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
        manager.node = connect_node(address, runtime_env=runtime_env, on_change=news.set)
        manager._follow()
        threading.Thread(target=manager._listen, name="exo-gpu-cluster", daemon=True).start()
        return manager

    def nodes(self) -> tuple[NodeStanding, ...]:
        """Every node that is or was in the cluster, and why one does not count."""
        return () if self.node is None else self.node.nodes()

    def leave(self) -> None:
        """Leave the cluster: what is held there ends; harmless twice and without a cluster."""
        if self.node is not None and self._news is not None:
            self.node.close()
            self._news.set()

    # What a manager gives.

    def register_device(self, device: GPUDevice) -> None:
        """Add a device."""
        raise NotImplementedError

    def unregister_device(self, device_id: str) -> bool:
        """Forget a device."""
        raise NotImplementedError

    def list_devices(self) -> list[GPUDevice]:
        """Every registered device."""
        raise NotImplementedError

    def _take(self, metrics: GPUMetrics) -> None:
        raise NotImplementedError

    def _listen(self) -> None:
        assert self._news is not None
        while True:
            self._news.wait()
            self._news.clear()
            try:
                self._follow()
            except ManagerClosed:
                return

    def _follow(self) -> None:
        """Register what has come, forget what has gone, and keep each newer sample."""
        assert self.node is not None
        states = {state.device.device_id: state for state in self.node.snapshot().devices}
        known = {device.device_id: device for device in self.list_devices()}
        for device_id, device in known.items():
            if device_id not in states or states[device_id].device != device:
                self.unregister_device(device_id)
        for device_id, state in states.items():
            if known.get(device_id) != state.device:
                self.register_device(state.device)
            if state.sample is not None:
                self._take(state.sample)
