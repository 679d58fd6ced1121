"""A cluster without a network: agents of scripted machines in this process, called as they are."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from boxes import write_box

from exo.gpu.nodes.cluster.cluster_node import ClusterNode
from exo.gpu.nodes.cluster.membership import Membership
from exo.gpu.nodes.cluster.roads import Place
from exo.gpu.nodes.cluster.service import AgentService
from exo.gpu.nodes.cluster.table import ClusterTable
from exo.gpu.nodes.cluster.wire import Shelf
from exo.gpu.vocabulary.errors import ClusterError, NodeLost

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Rig:
    """A machine with an agent; it can be unplugged."""

    def __init__(self, name: str, folder: Path, *devices: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        own = {"EXO_GPU_FAKE": str(write_box(folder, *devices)), "EXO_GPU_STATE": str(folder)}
        self.plugged = True
        self.service = AgentService(name, "0", lambda handle: handle, os.environ | own)

    def ask(self, call: str, *arguments: Any, timeout_seconds: float) -> Any:
        del timeout_seconds
        if not self.plugged:
            raise NodeLost("its cable was pulled")
        return getattr(self.service, call)(*arguments)

    def tell(self, call: str, *arguments: Any) -> None:
        if self.plugged:
            getattr(self.service, call)(*arguments)


class Cables:
    """Machines beside each other, and a head that may be gone."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.rigs: dict[str, Rig] = {}
        self.head_problem = ""
        self._joined = 0
        self._keys: dict[str, str] = {}

    def plug(self, name: str, *devices: dict[str, Any]) -> None:
        self._joined += 1
        self._keys[name] = str(self._joined)
        self.rigs[name] = Rig(name, self._folder / f"{name}-{self._joined}", *devices)

    def pull(self, name: str) -> None:
        rig = self.rigs.pop(name)
        rig.plugged = False
        rig.service.close()

    def pull_all(self) -> None:
        for name in tuple(self.rigs):
            self.pull(name)

    def places(self) -> list[Place]:
        if self.head_problem:
            raise ClusterError(self.head_problem)
        return [Place(name, self._keys[name]) for name in self.rigs]

    def road(self, place: Place) -> Rig:
        return self.rigs[place.name]

    def share(self, value: Any) -> Any:
        return value

    fetch = share

    here = ""

    def close(self) -> None:
        """Nothing is to be left."""

    def join(self, on_change: Callable[[], None]) -> ClusterNode:
        table = ClusterTable()
        membership = Membership(self, table, Shelf(self.share), "a test")
        membership.listen(on_change)
        membership.start()
        return ClusterNode(self, membership, table)
