"""How samples come in: one by one, or many as columns, into a table of bounded size."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from exo.gpu.telemetry.table.roster import Description, Roster
from exo.gpu.telemetry.table.turns import Turns
from exo.gpu.telemetry.table.waiting import Waiting
from exo.gpu.vocabulary.device import GPUDevice
from exo.gpu.vocabulary.errors import InvalidValue
from exo.gpu.vocabulary.metrics import GPUMetrics
from exo.gpu.vocabulary.snapshot import STALE_AFTER_SECONDS
from exo.gpu.vocabulary.units import check_number, check_text, check_whole

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from exo.gpu.telemetry.table.columns import Columns, DeviceRows
    from exo.gpu.telemetry.table.figures import BatchResult
    from exo.gpu.telemetry.table.packed import Rows
    from exo.gpu.telemetry.table.remarks import Remark

# Ten times the largest cluster aimed at; a sender that invents ids cannot fill the memory.
MAX_DEVICES = 10_000

# Samples that wait to become columns: enough that a column costs little for each, few enough that
# turning them takes a millisecond or two.
_MAX_WAITING = 1024

# A GPUMetrics with ten readings and its record, measured with sys.getsizeof.
_SAMPLE_BYTES = 900


class _Newest:
    """The newest sample of a device as a value, and what decides whether the next one is newer."""

    __slots__ = ("received_at", "row", "sample", "timestamp")

    def __init__(self, row: int, timestamp: float, received_at: float) -> None:
        self.row = row
        self.sample: GPUMetrics | None = None
        self.timestamp = timestamp
        self.received_at = received_at


class Intake:
    """The half of the collector that keeps samples; :class:`TelemetryCollector` answers from it."""

    def __init__(
        self,
        max_history: int = 100,
        *,
        clock: Callable[[], float] = time.monotonic,
        max_devices: int = MAX_DEVICES,
        stale_after_seconds: float = STALE_AFTER_SECONDS,
    ) -> None:
        """Keep ``max_history`` samples of each of the ``max_devices`` heard from last.

        Raises:
            InvalidValue: for a bound below 1 or a stale limit that is not a number of seconds.

        """
        check_whole("max_history", max_history, low=1)
        check_whole("max_devices", max_devices, low=1)
        check_number("stale_after_seconds", stale_after_seconds, low=0)
        self._max_history = max_history
        self._max_devices = max_devices
        self._stale_after_seconds = stale_after_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._turns = Turns()
        self._roster = Roster()
        self._newest: dict[str, _Newest] = {}
        self._waiting = Waiting()
        self._opened: Columns | None = None
        self._version = 0

    @property
    def version(self) -> int:
        """Rises with everything that changes an answer, the passing of time apart."""
        return self._version

    @property
    def memory_bytes(self) -> int:
        """What it holds: the columns exactly, ids, facts and waiting samples by an estimate."""
        with self._lock:
            values = _SAMPLE_BYTES * (len(self._newest) + len(self._waiting))
            columns = 0 if self._opened is None else self._opened.memory_bytes
            return values + columns + self._roster.memory_bytes

    async def record_metrics(self, metrics: GPUMetrics) -> None:
        """Keep a sample. Other tasks get their turn first, once a millisecond in a loop of calls.

        A cancelled task is told so at a call that gives a turn, before the sample is kept; a call
        that comes alone always gives one.

        Raises:
            InvalidValue: for anything that is no GPUMetrics.

        """
        if self._turns.due():
            await self._turns.give()
        self.observe(metrics)

    def observe(self, metrics: GPUMetrics) -> None:
        """Keep a sample, received now.

        Raises:
            InvalidValue: for anything that is no GPUMetrics.

        """
        if not isinstance(metrics, GPUMetrics):
            raise InvalidValue("metrics", metrics, "a GPUMetrics")
        with self._lock:
            now = self._clock()
            newest = self._newest.get(metrics.device_id) or self._admit(metrics.device_id)
            silence = now - newest.received_at
            if metrics.timestamp >= newest.timestamp or silence > self._stale_after_seconds:
                newest.sample = metrics
                newest.timestamp = metrics.timestamp
                newest.received_at = now
            self._version += 1
            waiting = self._waiting
            waiting.rows.append(newest.row)
            waiting.receipts.append(now)
            waiting.samples.append(metrics)
            if len(waiting.samples) >= _MAX_WAITING:
                self._columns()

    def record_batch(
        self,
        devices: Sequence[str] | DeviceRows,
        timestamps: ArrayLike,
        readings: Mapping[str, ArrayLike],
        *,
        received_at: ArrayLike | None = None,
        remarks: Sequence[Remark | None] | None = None,
    ) -> BatchResult:
        """Keep many samples: sample ``i`` is of ``devices[i]`` and holds the i-th of each column.

        ``readings`` are columns by the names of ``SERIES``; NaN or None is unknown. A device may
        come several times, in order of arrival. ``received_at`` is on the collector's clock, one
        time or one for each, now at the latest (None: now). A value that no sample may hold is left
        out and told in the result, and so is a sample whose device or times cannot be: one bad line
        spoils no other. Whole numbers are exact up to 2**53.

        Raises:
            InvalidValue: for columns that are not numbers or not of the batch's length.
            UnknownName: for a reading that no sample has.

        """
        from exo.gpu.telemetry.table.batches import Batch
        from exo.gpu.telemetry.table.columns import devices_told

        batch = Batch(len(devices), timestamps, readings, received_at, remarks)
        with self._lock:
            columns = self._columns()
            rows = self._rows(columns, devices)
            batch.leave_out(
                rows < 0, "device_id", devices_told(devices), "a device with a row here"
            )
            result, renewed = columns.record(batch, rows, self._clock())
            self._drop(renewed)
            self._version += result.sample_count > 0
            return result

    def rows(self, device_ids: Sequence[str]) -> DeviceRows:
        """The rows of these devices, for ``record_batch``; new ones get theirs now.

        Raises:
            InvalidValue: for an id that is no text, or more devices than there may be.

        """
        for device_id in device_ids:
            check_text("device_ids", device_id)
        if len(set(device_ids)) > self._max_devices:
            expected = f"at most {self._max_devices} devices"
            raise InvalidValue("device_ids", len(device_ids), expected)
        with self._lock:
            columns = self._columns()
            return columns.handles(self._rows(columns, device_ids))

    def describe(self, device: GPUDevice, *, labels: Mapping[str, str] | None = None) -> None:
        """Tell what a device is, whether it was heard of or not: aggregates group by it.

        The facts stay until :meth:`forget`, also where the device falls silent.

        Raises:
            InvalidValue: for anything that is no GPUDevice, or more devices than there may be.

        """
        if not isinstance(device, GPUDevice):
            raise InvalidValue("device", device, "a GPUDevice")
        with self._lock:
            known = self._roster.descriptions
            if device.device_id not in known and len(known) >= self._max_devices:
                expected = f"one of at most {self._max_devices} devices: forget one first"
                raise InvalidValue("device", device.device_id, expected)
            self._roster.describe(Description(device, dict(labels or {})))
            self._version += 1

    def forget(self, device_id: str) -> None:
        """Drop all that is known of a device; harmless for one never heard of."""
        with self._lock:
            self._roster.undescribe(device_id)
            row = self._roster.rows.get(device_id)
            if row is not None:
                self._waiting = self._waiting.without(row)
                self._drop([device_id])
                if self._opened is not None:
                    self._opened.clear([row])
                self._roster.release([row])
            self._version += 1

    def _admit(self, device_id: str) -> _Newest:
        """The record of a device that has none yet, and a row if need be."""
        newest = self._find(device_id)
        if newest is None:
            if device_id not in self._roster.rows and len(self._roster) >= self._max_devices:
                self._drop(self._columns().evict(1))
            row = self._roster.rows.get(device_id)
            row = self._roster.place(device_id) if row is None else row
            newest = self._newest[device_id] = _Newest(row, -math.inf, -math.inf)
        return newest

    def _find(self, device_id: str) -> _Newest | None:
        """The record of a device that was sampled; its sample may be in the columns alone."""
        newest = self._newest.get(device_id)
        row = self._roster.rows.get(device_id)
        if newest is not None or row is None or self._opened is None:
            return newest
        timestamp, received_at = self._opened.newest(row)
        if received_at == -math.inf:
            return None
        newest = self._newest[device_id] = _Newest(row, timestamp, received_at)
        return newest

    def _drop(self, device_ids: Iterable[str]) -> None:
        """Forget the records of devices whose newest sample stands in the columns, or nowhere."""
        if self._newest:
            for device_id in device_ids:
                self._newest.pop(device_id, None)

    def _rows(self, columns: Columns, devices: Sequence[str] | DeviceRows) -> Rows:
        from exo.gpu.telemetry.table.columns import DeviceRows

        if isinstance(devices, DeviceRows):
            return columns.current(devices)
        rows, gone = columns.place(devices)
        self._drop(gone)
        self._version += len(gone)
        return rows

    def _columns(self) -> Columns:
        """The columns, with all that waited in them."""
        if self._opened is None:
            from exo.gpu.telemetry.table.columns import Columns

            self._opened = Columns(
                self._roster,
                max_history=self._max_history,
                max_devices=self._max_devices,
                stale_after_seconds=self._stale_after_seconds,
            )
        if self._waiting:
            waiting, self._waiting = self._waiting, Waiting()
            self._opened.take(waiting)
        return self._opened
