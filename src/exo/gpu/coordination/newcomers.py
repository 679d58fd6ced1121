"""Devices of a cluster that join, or come back, while work is done on others."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from exo.gpu.nodes.transport import GrowingNode

# An agent that died is back in a few seconds, a node that was started anew in half a minute.
PATIENCE_SECONDS = 45.0
LOOK_SECONDS = 1.0

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from exo.gpu.nodes.transport import Node
    from exo.gpu.vocabulary.device import GPUDevice
    from exo.gpu.vocabulary.request import Request


class Newcomers:
    """Which devices are new, of those on which the work may be done as well.

    ``nudge`` is called from other threads when there may be some. Of a node that does not grow
    there are none.
    """

    def __init__(
        self,
        node: Node,
        requests: tuple[Request, ...],
        used: Mapping[int, GPUDevice],
        nudge: Callable[[], None],
    ) -> None:
        """``used`` are the devices of all slots that ever were, by slot number: one at least.

        Without other rules, the class and runtime of the first one count.
        """
        self._node = node if isinstance(node, GrowingNode) else None
        self._requests = requests
        self._used = used
        self._nudge = nudge
        self._version = -1
        self._known: set[str] = set()
        self._waits_since = 0.0
        self.look(())
        self._stop = None if self._node is None else self._node.listen(self._hear)

    def look(self, lost: Collection[str]) -> list[str]:
        """The ids of those that have come since the last call, each as often as it has slots.

        Those that are ``lost`` are not counted: an item found them gone.
        """
        if self._node is None or self._version == self._node.roster_version:
            return []
        self._version = self._node.roster_version
        devices = {device.device_id: device for device in self._node.inventory().devices}
        fresh = [device for name, device in devices.items() if name not in self._known]
        self._known = set(devices)
        return [
            device.device_id
            for device in fresh
            if device.device_id not in lost and self._serves(device)
            for _ in range(self._requests[0].slots or device.slots)
        ]

    def may_come(self) -> bool:
        """Whether to wait for some, as one of those that were used went with its node."""
        used = (device.device_id for device in self._used.values())
        if self._node is None or self._node.problem or self._known.issuperset(used):
            return False
        now = time.monotonic()
        self._waits_since = self._waits_since or now
        return now - self._waits_since < PATIENCE_SECONDS

    def came(self) -> None:
        """There are devices again."""
        self._waits_since = 0.0

    @property
    def look_seconds(self) -> float | None:
        """How long to wait for events before the next look; None where nothing is waited for."""
        return LOOK_SECONDS if self._waits_since else None

    def close(self) -> None:
        """Look no more; harmless twice."""
        if self._stop is not None:
            self._stop()
        self._node = self._stop = None

    def _hear(self) -> None:
        if self._node is not None and self._node.roster_version != self._version:
            self._nudge()

    def _serves(self, device: GPUDevice) -> bool:
        like = next(iter(self._used.values()))
        return any(
            device.device_id in request.devices
            if request.devices
            else request.all_devices
            or (device.device_class, device.runtime)
            == (like.device_class, request.runtime or like.runtime)
            for request in self._requests
        )
