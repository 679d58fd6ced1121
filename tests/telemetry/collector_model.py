"""A plain collector of objects and lists, slow and obvious: what the columns must agree with."""

from __future__ import annotations

import bisect
import math
from collections import OrderedDict

import msgspec

from exo.gpu.vocabulary.metrics import BOUNDS, READINGS, GPUMetrics


class Record:
    def __init__(self):
        self.latest = None
        self.received_at = -math.inf
        self.stretch = 0
        self.history = []  # (stretch, timestamp, received_at, sample)


class Model:
    """The rules of the collector, one sample at a time."""

    def __init__(self, max_history, max_devices, stale_after_seconds):
        self.max_history = max_history
        self.max_devices = max_devices
        self.stale_after_seconds = stale_after_seconds
        self.records: OrderedDict[str, Record] = OrderedDict()

    def place(self, ids):
        """A batch names its devices: the known are heard of, then the newcomers get a place."""
        for one in ids:
            if one in self.records:
                self.records.move_to_end(one)
        newcomers = [one for one in dict.fromkeys(ids) if one not in self.records]
        newcomers = newcomers[-self.max_devices :]
        while len(self.records) + len(newcomers) > self.max_devices:
            self.records.popitem(last=False)
        for one in newcomers:
            self.records[one] = Record()

    def keep(self, sample, received_at):
        record = self.records[sample.device_id]
        self.records.move_to_end(sample.device_id)
        first = record.latest is None
        late = not first and sample.timestamp < record.latest.timestamp
        stale = received_at - record.received_at > self.stale_after_seconds
        if late and stale:
            record.stretch += 1
        if not late or stale:
            record.latest, record.received_at = sample, received_at
        entry = (record.stretch, sample.timestamp, received_at, sample)
        bisect.insort_right(record.history, entry, key=lambda one: one[:2])
        del record.history[: -self.max_history]

    def observe(self, sample, now):
        if sample.device_id not in self.records:
            if len(self.records) == self.max_devices:
                self.records.popitem(last=False)
            self.records[sample.device_id] = Record()
        self.keep(sample, now)

    def sampled(self):
        return {one: record for one, record in self.records.items() if record.latest is not None}


def possible(name, value):
    """What a reading may be, asked of the value itself."""
    try:
        GPUMetrics("x", 1.0, **{name: value})
    except ValueError:
        return False
    return True


def cleaned(device_id, timestamp, readings):
    """The sample that a line of a batch means, and how many of its values were refused."""
    values, reasons = {}, {}
    for name, value in readings.items():
        if math.isnan(value):
            continue
        whole = value == math.floor(value) if math.isfinite(value) else False
        exact = int(value) if BOUNDS[name].whole and whole else value
        if possible(name, exact):
            values[name] = exact
        else:
            reasons[name] = "refused"
    used, total = values.get("memory_used_bytes"), values.get("memory_total_bytes")
    if used is not None and total is not None and used > total:
        del values["memory_used_bytes"]
        reasons["memory_used_bytes"] = "refused"
    return GPUMetrics(device_id, timestamp, missing_reasons=reasons, **values)


def same(ours, theirs):
    """Equal, but for the words of a refusal."""
    if ours is None or theirs is None:
        return ours is theirs
    reasons = {
        name: "refused" if why.startswith("refused: not ") else why
        for name, why in ours.missing_reasons.items()
    }
    return msgspec.structs.replace(ours, missing_reasons=reasons) == theirs


def near(ours, theirs):
    """The same figures, as far as sums in another order can be the same."""
    if isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(near(ours[k], v) for k, v in theirs.items())
    if isinstance(theirs, float) and ours is not None:
        return math.isclose(ours, theirs, rel_tol=1e-9, abs_tol=1e-9)
    return ours == theirs or (isinstance(theirs, int) and math.isclose(ours, theirs, rel_tol=1e-15))


def totals(samples, shadows=()):
    """Aggregates of ``(sample, stale)`` by plain loops; ``shadows`` are ids without own memory."""
    fresh = [sample for sample, stale in samples if not stale]
    memory = [one for one in fresh if one.device_id not in shadows]

    def known(name, among=fresh):
        return [value for one in among if (value := getattr(one, name)) is not None]

    def added(values):
        return sum(values) if values else None

    def mean(values):
        return sum(values) / len(values) if values else None

    return {
        "device_count": len(samples),
        "stale_count": len(samples) - len(fresh),
        "total_memory_bytes": added(known("memory_total_bytes", memory)),
        "used_memory_bytes": added(known("memory_used_bytes", memory)),
        "available_memory_bytes": added(known("memory_free_bytes", memory)),
        "average_utilization_percent": mean(known("compute_utilization_percent")),
        "average_temperature_celsius": mean(known("temperature_celsius")),
        "maximum_temperature_celsius": max(known("temperature_celsius"), default=None),
        "total_power_watts": added(known("power_watts")),
        "reporting": {name: len(known(name)) for name in READINGS},
    }
