"""From readings, silence and faults to a verdict: whether a device can be relied on, or why not."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from typing import TYPE_CHECKING

from exo.gpu.telemetry.health.measures import Facts, planner, worst
from exo.gpu.telemetry.health.record import DeviceRecord
from exo.gpu.telemetry.health.rules import (
    DEFAULT_RULES,
    FAULT,
    RISE,
    SEVERITY,
    Limits,
    Rule,
    limits_of,
    stale_after,
)
from exo.gpu.vocabulary.errors import InvalidValue
from exo.gpu.vocabulary.health import FaultAction, Health, HealthEvent, HealthVerdict
from exo.gpu.vocabulary.snapshot import STALE_AFTER_SECONDS
from exo.gpu.vocabulary.units import check_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from exo.gpu.vocabulary.device import GPUDevice
    from exo.gpu.vocabulary.health import DeviceFault
    from exo.gpu.vocabulary.metrics import GPUMetrics

logger = logging.getLogger("exo.gpu.telemetry.health")

NO_SAMPLE = "no sample yet"

# Ten times the largest cluster aimed at, as the collector's; the one heard of last stays longest.
MAX_DEVICES = 10_000
# Faults of different numbers that are kept of one device; the oldest is dropped.
MAX_FAULTS = 8

_HARMLESS = (FaultAction.IGNORE, FaultAction.RESTART_APPLICATION)


_plan_without_history = planner(
    rule for rule in DEFAULT_RULES if not rule.looks_at.startswith((RISE, FAULT))
)


def assess(
    sample: GPUMetrics | None,
    age_seconds: float | None,
    stale_after_seconds: float = STALE_AFTER_SECONDS,
    *,
    device: GPUDevice | None = None,
    failure: str = "",
) -> tuple[Health, str]:
    """Judge a device by one sample and the time since it was received, without any history.

    The rules are those of :class:`HealthBook`, entered at once; ``failure`` says why the last
    read gave nothing. A device that was never sampled is taken as sound, with the reason ``no
    sample yet``: its capabilities are known, and it is chosen behind every sampled one.
    """
    if (sample is None or age_seconds is None) and not failure:
        return Health.OK, NO_SAMPLE
    facts = Facts()
    facts.sample = sample
    facts.failing = failure
    if not failure:
        facts.silent_seconds = age_seconds
        facts.fresh = (age_seconds or 0.0) <= stale_after_seconds
    found: list[tuple[Health, str]] = []
    for bound in _plan_without_history(limits_of(device, stale_after_seconds=stale_after_seconds)):
        value = bound.look(facts)
        if value is not None and value > bound.above:
            found.append((bound.health, bound.said(facts)))
    health, reasons = worst(found)
    return health, "; ".join(reasons)


class HealthBook:
    """Follows the health of devices over time; every call returns the changes that it brought.

    ``clock`` is monotonic, and all of ``received_at`` is on it; ``wall_clock`` gives Unix seconds
    for events. Calls from several threads are safe. Of more than ``max_devices``, the one not
    heard of for longest is dropped.
    """

    def __init__(
        self,
        rules: Sequence[Rule] = DEFAULT_RULES,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        max_devices: int = MAX_DEVICES,
    ) -> None:
        """Nothing was heard yet.

        Raises:
            InvalidValue: for a bound below 1, or two rules of one name.

        """
        check_whole("max_devices", max_devices, low=1)
        names = [rule.name for rule in rules]
        if len(set(names)) < len(names):
            raise InvalidValue("rules", names, "rules of different names")
        self._plan = planner(rules)
        self._clock = clock
        self._wall_clock = wall_clock
        self._max_devices = max_devices
        self._lock = threading.Lock()
        self._devices: OrderedDict[str, DeviceRecord] = OrderedDict()

    def watch(self, device: GPUDevice, *, cadence_seconds: float = 1.0) -> None:
        """Judge a device by its own limits from now on; stale after three cadences, or 30 s."""
        with self._lock:
            known = self._device(device.device_id)
            known.stale_seconds = stale_after(cadence_seconds)
            self._bind(known, device)

    def inventory(self, devices: Iterable[GPUDevice]) -> list[HealthEvent]:
        """Take what the last search found: a device that it missed is lost until one finds it."""
        with self._lock:
            present = {device.device_id: device for device in devices}
            for device_id, device in present.items():
                self._bind(self._device(device_id), device)
            for device_id, known in self._devices.items():
                known.missing = device_id not in present
            return self._judged(self._devices)

    def observe(self, sample: GPUMetrics, received_at: float) -> list[HealthEvent]:
        """Take a sample, received at a time of ``clock``."""
        with self._lock:
            known = self._device(sample.device_id)
            known.now = known.heard_at = received_at
            known.sample = sample
            known.failing, known.hanging = "", False
            if known.count(sample):
                known.faults.clear()
            return self._judged((sample.device_id,), now=received_at, fresh=True)

    def fail(
        self, device_id: str, reason: str, received_at: float, *, hanging: bool = False
    ) -> list[HealthEvent]:
        """Take a read that gave nothing; while one hangs, the device itself is silent."""
        with self._lock:
            known = self._device(device_id)
            known.failing, known.hanging = reason, hanging
            if not hanging:
                known.heard_at = received_at
            return self._judged((device_id,), now=received_at)

    def fault(self, fault: DeviceFault) -> list[HealthEvent]:
        """Take what a driver reported; it stands until a reset shows, or it is cleared.

        What concerns the program alone changes nothing.
        """
        if fault.action in _HARMLESS:
            return []
        with self._lock:
            known = self._device(fault.device_id)
            known.faults.pop(fault.code, None)
            known.faults[fault.code] = fault
            while len(known.faults) > MAX_FAULTS:
                del known.faults[next(iter(known.faults))]
            return self._judged((fault.device_id,))

    def clear_faults(self, device_id: str) -> list[HealthEvent]:
        """Forget the faults of a device that was reset, probed or uncordoned."""
        with self._lock:
            if device_id not in self._devices:
                return []
            self._devices[device_id].faults.clear()
            return self._judged((device_id,))

    def check(self) -> list[HealthEvent]:
        """See what time alone has changed; call it about once a second."""
        with self._lock:
            return self._judged(self._devices)

    def verdict(self, device_id: str) -> HealthVerdict:
        """What is known of a device's health; without a word of it, ok with ``no sample yet``."""
        with self._lock:
            known = self._devices.get(device_id)
            if known is None:
                return HealthVerdict(reasons=(NO_SAMPLE,))
            verdict = known.verdict
            unsampled = known.sample is None and verdict.health is Health.OK
            return HealthVerdict(
                health=verdict.health,
                reasons=(NO_SAMPLE,) if unsampled else verdict.reasons,
                since=verdict.since,
                faults=tuple(known.faults.values()),
            )

    def forget(self, device_id: str) -> None:
        """Drop all that is known of a device; harmless for one never heard of."""
        with self._lock:
            self._devices.pop(device_id, None)

    def _device(self, device_id: str) -> DeviceRecord:
        known = self._devices.get(device_id)
        if known is None:
            known = self._devices[device_id] = DeviceRecord(self._plan(Limits()))
        self._devices.move_to_end(device_id)
        while len(self._devices) > self._max_devices:
            self._devices.popitem(last=False)
        return known

    def _bind(self, known: DeviceRecord, device: GPUDevice) -> None:
        known.plan = self._plan(limits_of(device, stale_after_seconds=known.stale_seconds))

    def _judged(
        self, device_ids: Iterable[str], *, now: float | None = None, fresh: bool = False
    ) -> list[HealthEvent]:
        """Judge devices at a time, by default the present one; what changed with any of them."""
        at = self._clock() if now is None else now
        events: list[HealthEvent] = []
        for device_id in device_ids:
            known = self._devices[device_id]
            known.now, known.fresh = at, fresh
            known.silent_seconds = None if known.heard_at is None else at - known.heard_at
            known.evaluate()
            event = self._turned(device_id, known)
            if event is not None:
                events.append(event)
        return events

    def _turned(self, device_id: str, known: DeviceRecord) -> HealthEvent | None:
        """Keep the new verdict; the event where it is another than before."""
        (health, reasons), before = known.judge(), known.verdict
        same = health is before.health
        if same and reasons == before.reasons and before.since is not None:
            return None
        at = self._wall_clock()
        since = before.since if same and before.since is not None else at
        known.verdict = HealthVerdict(health=health, reasons=reasons, since=since)
        if same and reasons == before.reasons:
            return None
        return HealthEvent(
            device_id=device_id, before=before.health, after=health, reasons=reasons, at=at
        )


def log_event(event: HealthEvent) -> None:
    """One line in the log ``exo.gpu.telemetry.health.book``: a warning where it became worse."""
    worse = SEVERITY.index(event.after) > SEVERITY.index(event.before)
    logger.log(
        logging.WARNING if worse else logging.INFO,
        "%s is %s%s%s",
        event.device_id,
        event.after,
        "" if event.after is event.before else f", and was {event.before}",
        f": {'; '.join(event.reasons)}" if event.reasons else "",
    )
