"""Who sent something for a device that is not registered: each named once, and not for ever."""

from __future__ import annotations

import logging

logger = logging.getLogger("exo.gpu.coordination.manager")

# Enough to name every stray sender of a real cluster once, without a log that grows for ever.
STRANGERS_NAMED = 100


class Strangers:
    """Remembers whom it has named."""

    def __init__(self) -> None:
        self._named: set[str] = set()

    def refuse(self, device_id: str) -> bool:
        """Warn of a stranger, the first time only; always False."""
        if device_id not in self._named and len(self._named) < STRANGERS_NAMED:
            self._named.add(device_id)
            logger.warning("dropped what %r sent: it is not registered", device_id)
        return False

    def welcome(self, device_id: str) -> None:
        """It is no stranger any more."""
        self._named.discard(device_id)
