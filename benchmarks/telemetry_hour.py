"""An hour of sampling 200 devices on a virtual clock: does a tick drift, does memory grow?"""

from __future__ import annotations

import argparse
import gc
import random
import sys
import tracemalloc

from results import Result, report

from exo.gpu.telemetry.collector import TelemetryCollector
from exo.gpu.telemetry.sampling.readers import PowerFromEnergy
from exo.gpu.telemetry.sampling.schedule import Schedule
from exo.gpu.vocabulary.metrics import GPUMetrics

DEVICES = 200
HOUR_SECONDS = 3600.0
# By then every history is full, also of devices that sleep; memory has no reason to grow any more.
SETTLED_SECONDS = 900.0
# Of a hundred devices so many fail now and then, sleep, or hang for longer than the deadline.
FAILING, SLEEPING, HANGING = 5, 5, 5
MOST_DRIFT_SECONDS = 1e-6
MOST_GROWTH = 1.01


class Hour:
    """The schedule, power from energy and the collector, driven from one event to the next."""

    def __init__(self, devices: int, seed: int = 3) -> None:
        self.now = 0.0
        self.drift_seconds = 0.0
        self.samples = 0
        self._chance = random.Random(seed)
        self._schedule = Schedule(jitter=self._chance.random)
        self._power = PowerFromEnergy()
        self._collector = TelemetryCollector(clock=lambda: self.now)
        self._returns: list[tuple[float, str]] = []
        self._kinds: dict[str, int] = {}
        for place in range(devices):
            name = f"cuda:{place}"
            self._kinds[name] = 100 * place // devices
            self._schedule.add(name, self.now)

    def run(self, until: float) -> None:
        """Go on to a moment of the virtual clock."""
        while (at := self._next()) <= until:
            self.now = at
            for ends, name in [one for one in self._returns if one[0] <= at]:
                self._returns.remove((ends, name))
                self._answer(name)
            for tick in self._schedule.turn(at).ask:
                self._begin(tick.device_id)

    def _next(self) -> float:
        planned = self._schedule.next_at()
        waiting = [ends for ends, _ in self._returns]
        return min([*waiting, *([] if planned is None else [planned])])

    def _begin(self, name: str) -> None:
        kind = self._kinds[name]
        if kind >= FAILING + SLEEPING + HANGING:  # sound: each tick must be on its second
            self.drift_seconds = max(self.drift_seconds, abs(self.now - round(self.now)))
        elif kind >= FAILING + SLEEPING and self._chance.random() < 0.1:
            self._returns.append((self.now + 10 * self._chance.random(), name))
            return
        self._answer(name)

    def _answer(self, name: str) -> None:
        kind = self._kinds[name]
        failed = kind < FAILING and self._chance.random() < 0.2
        asleep = FAILING <= kind < FAILING + SLEEPING
        self._schedule.answered(name, self.now, failed=failed, sleeping=asleep)
        if failed:
            return
        readings = {} if asleep else {"temperature_celsius": 50.0, "energy_joules": 90 * self.now}
        sample = GPUMetrics(name, self.now, sleeping=asleep, **readings)
        sample = self._power.complete(sample, name, at=self.now, cadence_seconds=1)
        self._collector.observe(sample)
        self.samples += 1

    def held_bytes(self) -> int:
        """What is held once no sample waits to become columns."""
        self._collector.get_metrics_history("")
        self._collector.get_aggregated_metrics()
        gc.collect()
        return tracemalloc.get_traced_memory()[0]


def results(quick: bool = False) -> list[Result]:
    """Drift of the sound devices' ticks, and memory at the end against when it had settled."""
    devices, length = (20, 2 * SETTLED_SECONDS) if quick else (DEVICES, HOUR_SECONDS)
    hour = Hour(devices)
    tracemalloc.start()
    try:
        hour.run(SETTLED_SECONDS)
        settled = hour.held_bytes()
        hour.run(length)
        end = hour.held_bytes()
    finally:
        tracemalloc.stop()
    if hour.samples < 0.8 * devices * length:
        raise RuntimeError(f"{hour.samples} samples of {devices} devices in {length:.0f} s")
    return [
        Result(
            metric="drift of any tick, seconds",
            ours=hour.drift_seconds,
            peer=0.0,
            peer_name="the clock",
            peer_version="",
            value=hour.drift_seconds,
            target=MOST_DRIFT_SECONDS,
            better="lower",
            n=hour.samples,
        ),
        Result(
            metric="bytes at the end / once settled",
            ours=end,
            peer=settled,
            peer_name="itself, once every history was full",
            peer_version="",
            value=end / settled,
            target=MOST_GROWTH,
            better="lower",
            n=hour.samples,
        ),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer devices, half the time")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    options = parser.parse_args()
    return report("telemetry_hour", results(quick=options.quick), as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
