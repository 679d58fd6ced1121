"""Every driver asked at once who works on its devices, each on a thread that may be left behind."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from exo.gpu.backend import GPUBackend, ProcessAbility
from exo.gpu.execution.process_facts import describe
from exo.gpu.vocabulary.process import ProcessList

if TYPE_CHECKING:
    from collections.abc import Mapping

logger = logging.getLogger("exo.gpu.nodes.process_lists")


class ProcessLists:
    """Asks for the processes of devices, and remembers which drivers still owe an answer.

    A call that outlasts its deadline is left behind on its daemon thread, and its device is not
    asked again before it returned: at most one thread per device is ever lost.
    """

    def __init__(self) -> None:
        self._owed: dict[str, _Question] = {}

    def ask(
        self, backends: Mapping[str, GPUBackend | None], *, deadline_seconds: float = 2.0
    ) -> tuple[ProcessList, ...]:
        """The processes on each device, by its id and backend; returns within the deadline.

        Call it from one thread at a time.
        """
        ends = time.monotonic() + deadline_seconds
        owed = {name: one for name, one in self._owed.items() if not one.ended.is_set()}
        asked = {
            device_id: _Question(device_id, backend)
            for device_id, backend in backends.items()
            if isinstance(backend, ProcessAbility) and device_id not in owed
        }
        for device_id, question in asked.items():
            if not question.ended.wait(max(0.0, ends - time.monotonic())):
                logger.warning("%s: the driver does not list its processes in time", device_id)
                owed[device_id] = question
        self._owed = owed
        return tuple(
            (asked | owed)[device_id].result()
            if device_id in asked or device_id in owed
            else _unasked(device_id, backend)
            for device_id, backend in backends.items()
        )


def _unasked(device_id: str, backend: GPUBackend | None) -> ProcessList:
    name = "its" if backend is None else f"the {backend.name}"
    reason = f"{name} backend cannot tell who works on a device"
    return ProcessList(device_id=device_id, reason=reason)


class _Question:
    """One driver call, and the look at the processes that it names, on a daemon thread."""

    def __init__(self, device_id: str, backend: ProcessAbility) -> None:
        self._answer: ProcessList | None = None
        self.ended = threading.Event()
        self._device_id = device_id
        self._began = time.monotonic()
        threading.Thread(
            target=self._ask, args=(backend,), name=f"exo-gpu-processes-{device_id}", daemon=True
        ).start()

    def result(self) -> ProcessList:
        """The answer, or for how long there has been none."""
        if self._answer is not None:
            return self._answer
        seconds = time.monotonic() - self._began
        reason = f"the driver gave no answer within {seconds:.1f} s"
        return ProcessList(device_id=self._device_id, reason=reason)

    def _ask(self, backend: ProcessAbility) -> None:
        try:
            found = backend.processes(self._device_id)
            self._answer = ProcessList(
                device_id=self._device_id,
                processes=tuple(describe(one.pid, one.memory_bytes) for one in found),
            )
        except Exception as error:
            # The vendor-read border: whatever a driver does costs this device's list only.
            logger.debug("listing the processes of %s failed", self._device_id, exc_info=True)
            reason = str(error) or type(error).__name__
            self._answer = ProcessList(device_id=self._device_id, reason=reason)
        finally:
            self.ended.set()
