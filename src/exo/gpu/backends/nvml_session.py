"""One opening of NVML in this process: kept, renewed after a fork or a driver reload, let go."""

from __future__ import annotations

import logging
import os
import threading
from typing import TYPE_CHECKING, Any, TypeVar

from exo.gpu.backends import nvml_library
from exo.gpu.vocabulary.errors import ReadingMissing

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger("exo.gpu.backends.cuda")

Result = TypeVar("Result")


class NvmlSession:
    """NVML, opened when it is first needed; its handles live as long as one opening.

    ``library`` is the path of the library, None for the one that the loader finds; ``opened`` is
    called after each opening, when everything learnt before is void.
    """

    def __init__(self, nvml: Any, library: str | None, opened: Callable[[], None]) -> None:
        self.nvml = nvml
        self.lock = threading.RLock()
        self._library = library
        self._opened = opened
        self._opened_by: int | None = None
        self._openings = 0
        self._handles: dict[str, Any] = {}

    def open(self) -> None:
        """Initialise NVML once per process: it does not survive a fork.

        Raises:
            BackendUnavailable: with the exact reason and what to install.

        """
        if self._opened_by == os.getpid():
            return
        if self._opened_by is not None:  # forked: a thread that is not here may hold the lock
            self.lock = threading.RLock()
        with self.lock:
            if self._opened_by == os.getpid():
                return
            self._handles = {}
            self._opened()
            try:
                nvml_library.load(self.nvml, self._library)
                self.nvml.nvmlInit()
            except self.nvml.NVMLError as error:
                raise nvml_library.unavailable(error) from error
            self._opened_by = os.getpid()
            self._openings += 1

    def close(self) -> None:
        """Let go of NVML; harmless twice. It blocks while the driver does."""
        with self.lock:
            if self._opened_by == os.getpid():
                try:
                    self.nvml.nvmlShutdown()
                except self.nvml.NVMLError as error:
                    logger.debug("nvmlShutdown: %s", error)
            self._opened_by = None
            self._handles = {}

    def handle(self, hardware_id: str, find: Callable[[], Any]) -> Any:
        """NVML's handle of a device, found once per opening."""
        self.open()
        handle = self._handles.get(hardware_id)
        if handle is None:
            handle = find()
            self._handles[hardware_id] = handle
        return handle

    def ask(self, device_id: str, question: Callable[[], Result]) -> Result:
        """Ask something of one device; where NVML was replaced or opened anew meanwhile, twice.

        Raises:
            DeviceLost: when the GPU fell off the bus or needs a reset.
            BackendError: for any other refusal, with NVML's words.

        """
        self.open()
        opening = self._openings
        try:
            answer = question()
        except self.nvml.NVMLError as error:
            if error.value not in nvml_library.REOPEN:
                raise nvml_library.failure(device_id, error) from error
        else:
            if opening == self._openings:
                return answer
            # NVML was opened anew meanwhile: a part of it was asked of dead handles.
        with self.lock:
            if opening == self._openings:  # else another device's reading opened it anew
                self.close()
        self.open()
        try:
            return question()
        except self.nvml.NVMLError as error:
            raise nvml_library.failure(device_id, error) from error

    def fact(self, call: Callable[[], Any]) -> Any:
        """A fact that may be absent, such as a name; what concerns the whole GPU is raised."""
        try:
            return call()
        except self.nvml.NVMLError as error:
            if error.value in nvml_library.WHOLE:
                raise
        except ReadingMissing:
            return None
        except Exception:  # the vendor-read border: it costs this fact, not the GPU
            logger.warning("a fact about an NVIDIA GPU could not be read", exc_info=True)
        return None
