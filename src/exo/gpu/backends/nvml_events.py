"""XIDs, the errors that an NVIDIA driver reports by number, as they happen."""

from __future__ import annotations

import collections
import ctypes
import logging
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from exo.gpu.backends import nvml_library
from exo.gpu.vocabulary.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from exo.gpu.backends.nvml_readings import Target

logger = logging.getLogger("exo.gpu.backends.cuda")

# How long the driver is waited for at a time, and so how long closing may take.
_WAIT_MILLISECONDS = 200
_CLOSE_SECONDS = 2.0
# A GPU that fails repeats itself; what nobody fetched is dropped, the oldest first.
_MOST_KEPT = 256


class Xid(NamedTuple):
    """One XID of one device; a MIG instance's arrive under its GPU."""

    device_id: str
    xid: int


class XidWatch:
    """Waits for XIDs on a daemon thread of its own until it is closed.

    ``refused`` says by device id why the driver reports none of a device. NVML counts who opened
    it: this is one more, so that a search for devices, which opens it anew, ends no waiting.
    """

    def __init__(self, nvml: Any, targets: Sequence[Target]) -> None:
        self.refused: dict[str, str] = {}
        self._nvml = nvml
        self._kept: collections.deque[Xid] = collections.deque(maxlen=_MOST_KEPT)
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._failure = ""
        try:
            nvml.nvmlInit()
            self._set = self._new_set()
        except nvml.NVMLError as error:
            raise BackendError(f"the driver reports no XIDs: {error}") from error
        self._names: dict[int | None, str] = {}
        for target in targets:
            self._register(target)
        self._thread = threading.Thread(target=self._listen, name="exo-gpu-xid", daemon=True)
        self._thread.start()

    def xids(self, *, timeout_seconds: float) -> Iterator[Xid]:
        """What happened so far and within the time, as it comes.

        Raises:
            BackendError: when the driver stopped reporting; what came before is given first.

        """
        ends = time.monotonic() + timeout_seconds
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._kept or self._failure or self._closing.is_set(),
                    timeout=max(0.0, ends - time.monotonic()),
                )
                found = self._kept.popleft() if self._kept else None
            if found is None:
                if self._failure:
                    raise BackendError(f"the driver stopped reporting XIDs: {self._failure}")
                return
            yield found

    def close(self) -> None:
        """Stop waiting; harmless twice. A driver that hangs is left behind."""
        self._closing.set()
        with self._changed:
            self._changed.notify_all()
        self._thread.join(_CLOSE_SECONDS)

    def _new_set(self) -> Any:
        try:
            return self._nvml.nvmlEventSetCreate()
        except self._nvml.NVMLError:
            self._nvml.nvmlShutdown()
            raise

    def _register(self, target: Target) -> None:
        nvml = self._nvml
        handle = target.handle if target.parent is None else target.parent
        device_id = target.device.device_id
        label = device_id if target.parent is None else device_id.rpartition(":")[0]
        place = ctypes.cast(handle, ctypes.c_void_p).value
        if place in self._names:
            return
        try:
            nvml.nvmlDeviceRegisterEvents(handle, nvml.nvmlEventTypeXidCriticalError, self._set)
        except nvml.NVMLError as error:
            self.refused[device_id] = nvml_library.REASONS.get(error.value) or str(error)
            return
        self._names[place] = label

    def _listen(self) -> None:
        nvml = self._nvml
        while not self._closing.is_set():
            try:
                event = nvml.nvmlEventSetWait_v2(self._set, _WAIT_MILLISECONDS)
            except nvml.NVMLError as error:
                if error.value == nvml_library.TIMED_OUT:
                    continue
                self._fail(str(error))
                break
            place = ctypes.cast(event.device, ctypes.c_void_p).value
            with self._changed:
                self._kept.append(Xid(self._names.get(place, "unknown"), event.eventData))
                self._changed.notify_all()
        for let_go in (lambda: nvml.nvmlEventSetFree(self._set), nvml.nvmlShutdown):
            try:
                let_go()
            except nvml.NVMLError as error:
                logger.debug("the end of a watch for XIDs: %s", error)

    def _fail(self, reason: str) -> None:
        with self._changed:
            self._failure = reason
            self._changed.notify_all()
