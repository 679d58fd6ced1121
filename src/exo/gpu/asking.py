"""One backend asked for its devices and links, on a daemon thread that may be left behind."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from exo.gpu.backend import TopologyAbility
from exo.gpu.vocabulary.errors import BackendUnavailable
from exo.gpu.vocabulary.inventory import Finding

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exo.gpu.backend import GPUBackend
    from exo.gpu.vocabulary.device import GPUDevice
    from exo.gpu.vocabulary.links import Link

logger = logging.getLogger("exo.gpu.discovery")

_LONGER = "wait longer for it: exo-gpu devices --refresh"


class Question:
    """One backend asked for its devices, and then for how they are joined.

    A driver that hangs in the second question costs the links alone: what it found stands.
    """

    def __init__(self, name: str, backend: GPUBackend, *, links: bool = True) -> None:
        """``links`` says whether to ask for them too."""
        self.finding: Finding | None = None
        self._name = name
        self._asks_links = links
        self._links: tuple[Link, ...] = ()
        self._began = time.monotonic()
        self._found = threading.Event()
        self._ended = threading.Event()
        threading.Thread(
            target=self._ask, args=(backend,), name=f"exo-gpu-find-{name}", daemon=True
        ).start()

    @property
    def ended(self) -> bool:
        """True when its thread has nothing more to do."""
        return self._ended.is_set()

    def wait(self, ends: float) -> Finding:
        """What was found until then, in seconds of the monotonic clock."""
        self._found.wait(max(0.0, ends - time.monotonic()))
        if self.finding is not None:
            return self.finding
        seconds = time.monotonic() - self._began
        reason = f"the driver gave no answer within {seconds:.1f} s"
        logger.warning("%s: %s", self._name, reason)
        return Finding(
            backend=self._name, reason=reason, hint=_LONGER, seconds=seconds, failed=True
        )

    def links(self, ends: float) -> tuple[Link, ...]:
        """The links known until then; none where devices were not found."""
        if self.finding is not None and not self._ended.wait(max(0.0, ends - time.monotonic())):
            logger.warning(
                "%s: the driver did not tell in time how its devices are joined", self._name
            )
        return self._links

    def _ask(self, backend: GPUBackend) -> None:
        try:
            self._find(backend)
            self._found.set()
            if self.finding is not None and len(self.finding.devices) > 1:
                self._join(backend)
        finally:
            self._ended.set()

    def _find(self, backend: GPUBackend) -> None:
        devices: Sequence[GPUDevice] = ()
        reason, hint, failed = "", "", False
        try:
            devices = backend.find()
            reason = backend.remark or ("" if devices else "its driver lists no device")
        except BackendUnavailable as error:
            reason, hint = error.reason, error.hint
        except Exception as error:
            # The vendor-read border: whatever a driver does must not hide the other vendors.
            logger.warning("%s: finding devices failed", self._name, exc_info=True)
            reason, failed = f"{type(error).__name__}: {error}", True
        self.finding = Finding(
            backend=self._name,
            devices=tuple(devices),
            reason=reason,
            hint=hint,
            seconds=time.monotonic() - self._began,
            failed=failed,
            hidden=() if failed else backend.hidden,
        )

    def _join(self, backend: GPUBackend) -> None:
        if not self._asks_links or not isinstance(backend, TopologyAbility):
            return
        try:
            self._links = tuple(backend.links())
        except Exception:  # the vendor-read border: devices without links are devices
            logger.warning("%s: asking for links failed", self._name, exc_info=True)
