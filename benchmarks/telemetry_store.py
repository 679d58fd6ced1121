"""The history on disk beside plain SQLite rows: writing, size, and reading a day of eight devices.

The peer keeps one row for each sample in one table, in a file that is written as durably (a
write-ahead log, one transaction for each batch); its rollups are one row for each reading, device
and minute. Both take the same samples in the same run, in turns.
"""

from __future__ import annotations

import argparse
import operator
import random
import sqlite3
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from results import Result, report

from exo.gpu.telemetry.store.blocks import SAMPLES
from exo.gpu.telemetry.store.reader import HistoryReader
from exo.gpu.telemetry.store.upkeep import HistoryLimits
from exo.gpu.telemetry.store.writer import HistoryWriter
from exo.gpu.vocabulary.metrics import GPUMetrics

if TYPE_CHECKING:
    from collections.abc import Sequence

DEVICES = 8
HOURS = 24
POINTS = 500
READS = 7
START = 1_700_002_800.0  # the first second of an hour
HOUR_SECONDS = 3600
GIB = 2**30
PEER = "sqlite3, one row a sample"
# The readings that the made-up cards give; the others stay unknown, as on a real card.
GIVEN = 17

_fields = operator.attrgetter(*SAMPLES.names)


class Card:
    """A busy card with noise in every reading that has noise on a real one."""

    def __init__(self, device_id: str) -> None:
        self.device_id = device_id
        self._draw = random.Random(device_id)
        self._used, self._temperature, self._energy = 8 * GIB, 60.0, 0.0

    def hour(self, start: float) -> list[GPUMetrics]:
        """Samples of an hour, one each second with a jitter of a few milliseconds."""
        return [self._sample(start + second) for second in range(HOUR_SECONDS)]

    def _sample(self, second: float) -> GPUMetrics:
        draw = self._draw
        busy = draw.random() < 0.9
        power = max(20.0, draw.gauss(280.0 if busy else 90.0, 12.0))
        self._energy += power
        drift = draw.choice((-1.0, 0.0, 0.0, 0.0, 1.0))
        self._temperature = min(85.0, max(40.0, self._temperature + drift))
        step = draw.choice((0, 0, 0, 0, 64, -64, 512, -512)) * 2**20
        self._used = min(24 * GIB, max(0, self._used + step))
        return GPUMetrics(
            self.device_id,
            second + draw.random() * 0.004,
            self._used,
            24 * GIB,
            float(draw.randint(70, 100) if busy else draw.randint(0, 20)),
            round(power, 3),
            self._temperature,
            1500.0 + 15 * draw.randint(0, 30),
            memory_reserved_bytes=425_984_000,
            memory_utilization_percent=float(draw.randint(20, 60)),
            memory_clock_mhz=10501.0,
            power_limit_watts=450.0,
            power_window_seconds=1.0,
            energy_joules=round(self._energy, 3),
            fan_percent=float(30 + int(self._temperature - 40)),
            corrected_errors=0,
            uncorrected_errors=0,
            pcie_generation=4,
            pcie_width=16,
        )


class Rows:
    """The peer."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=NORMAL")
        columns = ", ".join(SAMPLES.names)
        self._connection.execute(
            f"CREATE TABLE IF NOT EXISTS samples (device TEXT, at REAL, {columns}, "
            "PRIMARY KEY (device, at)) WITHOUT ROWID"
        )
        marks = ", ".join("?" * (len(SAMPLES.names) + 2))
        self._insert = f"INSERT INTO samples VALUES ({marks})"

    def add(self, samples: Sequence[GPUMetrics]) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        rows = [(sample.device_id, sample.timestamp, *_fields(sample)) for sample in samples]
        self._connection.executemany(self._insert, rows)
        self._connection.execute("COMMIT")

    def series(self, device: str, metric: str, since: float, until: float) -> list[tuple]:
        step = (until - since) / POINTS
        return self._connection.execute(
            f"SELECT CAST((at - ?1) / ?2 AS INTEGER), min({metric}), avg({metric}), "
            f"max({metric}), count({metric}) FROM samples "
            "WHERE device = ?3 AND at >= ?1 AND at < ?4 GROUP BY 1",
            (since, step, device, until),
        ).fetchall()

    def close(self) -> None:
        self._connection.close()


def results(quick: bool = False) -> list[Result]:
    """Every comparison; ``quick`` takes an hour in place of a day."""
    hours = 1 if quick else HOURS
    with tempfile.TemporaryDirectory() as folder:
        ours, peer = Path(folder) / "ours.sqlite", Path(folder) / "rows.sqlite"
        rates = _write(ours, peer, hours)
        readings = hours * HOUR_SECONDS * DEVICES * GIVEN
        sizes = ours.stat().st_size / readings, peer.stat().st_size / readings
        times = _read(ours, peer, hours)
        rolled = _rollup_sizes(ours, Path(folder), hours)
    return [
        _result("samples written / s", rates, 100_000, "higher", hours),
        _result("bytes / raw reading, all included", sizes, 4, "lower", 1),
        _result("bytes / rollup of one reading", rolled, 60, "lower", 1),
        _result(f"{hours} h of {DEVICES} devices read, ms", times, 50, "lower", READS),
    ]


def _result(
    metric: str, both: tuple[float, float], target: float, better: str, runs: int
) -> Result:
    return Result(
        metric=metric,
        ours=both[0],
        peer=both[1],
        peer_name=PEER,
        peer_version=sqlite3.sqlite_version,
        value=both[0],
        target=target,
        better=better,
        n=runs,
    )


def _write(ours: Path, peer: Path, hours: int) -> tuple[float, float]:
    """Write hour after hour into both, in turns; the median rates, flush to disk included."""
    cards = [Card(f"cuda:{number}") for number in range(DEVICES)]
    rows = Rows(peer)
    end = START + hours * HOUR_SECONDS
    rates: list[tuple[float, float]] = []
    with _writer(ours, HistoryLimits(), end) as writer:
        for hour in range(hours):
            by_card = [card.hour(START + hour * HOUR_SECONDS) for card in cards]
            seconds = [list(batch) for batch in zip(*by_card, strict=True)]
            samples = [sample for batch in seconds for sample in batch]
            begun = time.perf_counter()
            for batch in seconds:
                writer.add(batch)
            if not writer.flush(timeout_seconds=300):
                raise SystemExit(f"nothing was written: {writer.statistics.problem}")
            between = time.perf_counter()
            rows.add(samples)
            ended = time.perf_counter()
            rates.append((len(samples) / (between - begun), len(samples) / (ended - between)))
        if writer.statistics.dropped:
            raise SystemExit(f"{writer.statistics.dropped} samples were dropped")
    rows.close()
    return median(rate for rate, _ in rates), median(rate for _, rate in rates)


def _writer(path: Path, limits: HistoryLimits, now: float) -> HistoryWriter:
    writer = HistoryWriter.open(path, limits=limits, clock=lambda: now)
    if not isinstance(writer, HistoryWriter):
        raise SystemExit(str(writer))
    return writer


def _read(ours: Path, peer: Path, hours: int) -> tuple[float, float]:
    """The power of every device to 500 points from the rollups: median milliseconds."""
    until = START + hours * HOUR_SECONDS
    devices = [f"cuda:{number}" for number in range(DEVICES)]
    points = min(POINTS, hours * 60)
    rows = Rows(peer)
    times: list[tuple[float, float]] = []
    for _ in range(READS):
        begun = time.perf_counter()
        with HistoryReader(ours) as reader:
            for device in devices:
                series = reader.series(
                    device, "power_watts", since=START, until=until, points=points
                )
                if series.source != "rollups" or series.count.sum() != hours * HOUR_SECONDS:
                    raise SystemExit(f"{series.count.sum()} samples read from {series.source}")
        between = time.perf_counter()
        for device in devices:
            rows.series(device, "power_watts", START, until)
        times.append((between - begun, time.perf_counter() - between))
    rows.close()
    return 1e3 * median(one for one, _ in times), 1e3 * median(one for _, one in times)


def _rollup_sizes(ours: Path, folder: Path, hours: int) -> tuple[float, float]:
    """Bytes of a rollup: of a file that keeps no samples, against one row for each."""
    end = START + hours * HOUR_SECONDS
    path, peer = folder / "rollups.sqlite", folder / "rollup-rows.sqlite"
    card = Card("cuda:0")
    with _writer(path, HistoryLimits(raw_seconds=0), end + HOUR_SECONDS) as writer:
        for hour in range(hours + 1):  # the last one ends those before
            writer.add(card.hour(START + hour * HOUR_SECONDS))
            writer.flush(timeout_seconds=300)
    rows = sqlite3.connect(peer, isolation_level=None)
    rows.execute(
        "CREATE TABLE rollups (device TEXT, metric TEXT, minute INTEGER, minimum REAL, mean REAL, "
        "maximum REAL, count INTEGER, PRIMARY KEY (device, metric, minute)) WITHOUT ROWID"
    )
    rows.execute("BEGIN")
    with HistoryReader(ours) as reader:
        for metric in reader.metrics("cuda:0", since=START, until=end):
            one = reader.series("cuda:0", metric, since=START, until=end, points=hours * 60)
            columns = (one.minimum, one.mean, one.maximum, one.count)
            figures = zip(*(column.tolist() for column in columns), strict=True)
            rows.executemany(
                "INSERT INTO rollups VALUES (?, ?, ?, ?, ?, ?, ?)",
                [("cuda:0", metric, minute, *parts) for minute, parts in enumerate(figures)],
            )
    rows.execute("COMMIT")
    rows.close()
    return (
        path.stat().st_size / ((hours + 1) * 60 * GIVEN),
        peer.stat().st_size / (hours * 60 * GIVEN),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="an hour in place of a day")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    options = parser.parse_args()
    return report("telemetry store", results(options.quick), as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
