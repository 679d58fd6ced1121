"""The history on disk of whoever hears samples: it is the one writer, or says why it is not."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

import msgspec

from exo.gpu.factory import FAKE_VARIABLE
from exo.gpu.telemetry.store.lock import WriterElsewhere
from exo.gpu.telemetry.store.schema import PATH_VARIABLE, history_path
from exo.gpu.telemetry.store.writer import MOST_WAITING, HistoryWriter
from exo.gpu.vocabulary.device import GPUDevice
from exo.gpu.vocabulary.errors import StoreError
from exo.gpu.vocabulary.metrics import GPUMetrics

if TYPE_CHECKING:
    from pathlib import Path

    from exo.gpu.vocabulary.health import DeviceFault, HealthEvent

logger = logging.getLogger("exo.gpu.coordination.recording")

# How soon somebody else's place as the writer is taken over once it is free.
RETRY_SECONDS = 30.0


class Recording(msgspec.Struct, frozen=True):
    """Whether samples reach the disk now, and where; ``reason`` says why not."""

    path: Path | None
    active: bool
    reason: str = ""


NOT_WANTED = Recording(None, active=False, reason="no history was asked for")


class HistoryKeeper:
    """Hands devices, samples and events on to the history, from any thread and without a wait.

    One process writes a history. Where another does, or the disk cannot be used, it is tried again
    every ``retry_seconds`` and what comes meanwhile is not kept. What comes before the first try
    has ended waits for it.
    """

    def __init__(self, *, retry_seconds: float = RETRY_SECONDS) -> None:
        """Nothing is opened yet."""
        self._retry_seconds = retry_seconds
        self._lock = threading.Lock()
        self._devices: dict[str, GPUDevice] = {}
        self._early: deque[GPUMetrics | HealthEvent | DeviceFault] = deque(maxlen=MOST_WAITING)
        self._tried = threading.Event()
        self._writer: HistoryWriter | None = None
        self._recording = Recording(None, active=False, reason="the history is being opened")
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="exo-gpu-keeper", daemon=True)

    @property
    def recording(self) -> Recording:
        """Whether samples reach the disk now."""
        with self._lock:
            writer, recording = self._writer, self._recording
        problem = None if writer is None else writer.statistics.problem
        if problem is None:
            return recording
        return msgspec.structs.replace(recording, active=False, reason=f"{problem}; tried again")

    def open(self) -> None:
        """Become the writer if nobody else is; waits for the disk. Later tries do not wait."""
        if not self._is_over():
            self._thread.start()

    def open_in_background(self) -> None:
        """The same without a wait."""
        self._thread.start()

    def register(self, device: GPUDevice) -> None:
        """Say what a device is; its samples are kept under its hardware id."""
        with self._lock:
            self._devices[device.device_id] = device
            if self._writer is not None:
                self._writer.register(device)

    def forget(self, device_id: str) -> None:
        """A device that later tries need not know; its history stays. Harmless for a stranger."""
        with self._lock:
            self._devices.pop(device_id, None)

    def add(self, told: GPUMetrics | HealthEvent | DeviceFault) -> None:
        """Keep a sample or an event."""
        with self._lock:
            if self._writer is not None:
                _hand_on(self._writer, told)
            elif not self._tried.is_set():
                self._early.append(told)

    def close(self, timeout_seconds: float = 10.0) -> None:
        """Write what waits and let go of the file, within the time; harmless twice."""
        ends = time.monotonic() + timeout_seconds
        if self._thread.ident is not None:  # what came early is written, if that is quick
            self._tried.wait(timeout_seconds)
        self._closed.set()
        with self._lock:
            writer, self._writer = self._writer, None
            self._tried.set()
            self._early.clear()
            path = self._recording.path
            self._recording = Recording(path, active=False, reason="the history was closed")
        if writer is not None:
            writer.close(max(0.0, ends - time.monotonic()))

    def _run(self) -> None:
        while not self._is_over() and not self._closed.wait(self._retry_seconds):
            pass

    def _is_over(self) -> bool:
        """Try once; True where there is nothing more to try."""
        if os.environ.get(FAKE_VARIABLE) and not os.environ.get(PATH_VARIABLE):
            reason = f"scripted devices leave none, unless {PATH_VARIABLE} names a file"
            self._failed(Recording(None, active=False, reason=reason))
            return True
        path = history_path(os.environ)
        try:
            opened = HistoryWriter.open(path)
        except StoreError as error:
            if self._failed(Recording(path, active=False, reason=str(error))):
                logger.warning("no history is kept: %s", error)
            return False
        if isinstance(opened, WriterElsewhere):
            if self._failed(Recording(path, active=False, reason=str(opened))):
                logger.info("no history is kept here: %s", opened)
            return False
        self._succeeded(opened, path)
        return True

    def _failed(self, recording: Recording) -> bool:
        """Keep the outcome of a try; whether it is another than the last one."""
        with self._lock:
            changed = recording != self._recording
            if not self._closed.is_set():
                self._recording = recording
            self._tried.set()
            self._early.clear()
            return changed

    def _succeeded(self, writer: HistoryWriter, path: Path) -> None:
        with self._lock:
            closed = self._closed.is_set()
            if not closed:
                for device in self._devices.values():
                    writer.register(device)
                for told in self._early:
                    _hand_on(writer, told)
                self._early.clear()
                self._tried.set()
                self._writer = writer
                self._recording = Recording(path, active=True)
        if closed:
            writer.close()
        else:
            logger.info("the history is kept in %s", path)


def _hand_on(writer: HistoryWriter, told: GPUMetrics | HealthEvent | DeviceFault) -> None:
    if isinstance(told, GPUMetrics):
        writer.add(told)
    else:
        writer.add_event(told)
