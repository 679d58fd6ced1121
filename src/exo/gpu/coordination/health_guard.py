"""What health does by itself: a device that needs a reset is cordoned, and taken back after it."""

from __future__ import annotations

import logging
import queue
import threading
from typing import TYPE_CHECKING

from exo.gpu.coordination.cordons import cordon_by_health
from exo.gpu.vocabulary.errors import StoreError
from exo.gpu.vocabulary.health import Health

if TYPE_CHECKING:
    from collections.abc import Callable

    from exo.gpu.nodes.local import LocalNode
    from exo.gpu.vocabulary.health import HealthEvent

logger = logging.getLogger("exo.gpu.coordination.health_guard")

# How soon it shows in a device's health that somebody or a probe has lifted its cordon.
LOOK_SECONDS = 2.0


class HealthGuard:
    """Cordons devices by health and follows those cordons, on a daemon thread of its own.

    The store of cordons may keep it waiting; whoever tells it of a change never waits.
    """

    def __init__(self, node: LocalNode, *, look_seconds: float = LOOK_SECONDS) -> None:
        """Nothing runs yet."""
        self._node = node
        self._look_seconds = look_seconds
        self._failed: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._cordoned: dict[str, str] = {}
        self._thread = threading.Thread(target=self._run, name="exo-gpu-guard", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self, timeout_seconds: float) -> None:
        """End within the time; harmless twice, and before the start."""
        self._failed.put(None)
        if self._thread.ident is not None:
            self._thread.join(timeout_seconds)

    def take(self, event: HealthEvent) -> None:
        """Hear of a change of health; returns at once."""
        if event.after is Health.FAILED:
            self._failed.put(event.device_id)

    def _run(self) -> None:
        while True:
            try:
                device_id = self._failed.get(timeout=self._look_seconds)
            except queue.Empty:
                self._guarded(self._follow)
                continue
            if device_id is None:
                return
            self._guarded(lambda name=device_id: self._cordon(name))

    def _guarded(self, act: Callable[[], None]) -> None:
        try:
            act()
        except StoreError as error:
            logger.warning("cordons by health cannot be kept: %s", error)

    def _cordon(self, device_id: str) -> None:
        """Cordon a device where its verdict calls for it."""
        device = next(
            (one for one in self._node.inventory().devices if one.device_id == device_id), None
        )
        if device is None:
            return
        cordon = cordon_by_health(device, self._node.verdict(device_id), node=self._node)
        if cordon is not None and cordon.by_health:
            self._cordoned[device.hardware_id] = device_id
            logger.warning("%s is cordoned by health: %s", device_id, cordon.why)

    def _follow(self) -> None:
        """Where a cordon that was set here is gone, what led to it counts no more."""
        if not self._cordoned:
            return
        live = {cordon.hardware_id for cordon in self._node.cordons()}
        for hardware_id in [one for one in self._cordoned if one not in live]:
            self._node.clear_faults(self._cordoned.pop(hardware_id))
