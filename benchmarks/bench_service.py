"""The service with 256 devices at 1 Hz and five who listen: its time, its answers, its memory.

A second part opens the dashboard with 100 devices in Debian's Chromium.
"""

from __future__ import annotations

import argparse
import http.client
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from results import Result, report

if TYPE_CHECKING:
    from collections.abc import Iterator

DEVICES, LISTENERS = 256, 5
ASKED_EVERY_SECONDS = 0.1
MOST_CPU, MOST_P99_SECONDS, MOST_GROWTH = 0.10, 0.020, 1.05
PAGE_DEVICES, MOST_PAINT_SECONDS, MOST_BYTES = 100, 1.0, 250_000
# By then the 600 samples that are kept of each device are there, and all who listen have been for
# as long: what grows on grows for ever.
SETTLED_SECONDS = 660.0
WARM_SECONDS = 10.0
PAINTS = 5


@contextmanager
def machine(devices: int) -> Iterator[tuple[psutil.Process, int]]:
    """A service over so many devices in a process of its own; the process and its port."""
    folder = tempfile.mkdtemp(prefix="exo-bench-")
    variables = {
        name: str(Path(folder) / name.lower())
        for name in ("EXO_GPU_STATE", "EXO_GPU_JOBS", "EXO_GPU_PROBES", "EXO_GPU_HISTORY")
    }
    child = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("service_machine.py")), str(devices)],
        env=os.environ | variables | {"EXO_GPU_CONFIG": os.devnull},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout is not None
        line = child.stdout.readline()
        if not line:
            raise RuntimeError("the service did not start: pip install 'exo-gpu[serve]'")
        yield psutil.Process(child.pid), int(line)
    finally:
        child.terminate()
        child.wait()
        shutil.rmtree(folder, ignore_errors=True)


def share(process: psutil.Process, seconds: float) -> float:
    """Which part of one core a process takes over that time."""
    before, began = process.cpu_times(), time.monotonic()
    time.sleep(seconds)
    after = process.cpu_times()
    spent = after.user + after.system - before.user - before.system
    return spent / (time.monotonic() - began)


class Listener(threading.Thread):
    """Reads the stream and counts what comes."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.received_bytes = 0
        self._connection = http.client.HTTPConnection("127.0.0.1", port)
        self._connection.request("GET", "/api/v1/stream")
        self._answer = self._connection.getresponse()

    def run(self) -> None:
        """Until the service ends."""
        try:
            while piece := self._answer.read1(65536):
                self.received_bytes += len(piece)
        except (OSError, http.client.HTTPException):
            return


def asked(port: int, seconds: float) -> list[float]:
    """How long each ``GET /api/v1/devices`` took, ten a second over one connection."""
    took: list[float] = []
    connection = http.client.HTTPConnection("127.0.0.1", port)
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        began = time.perf_counter()
        connection.request("GET", "/api/v1/devices")
        answer = connection.getresponse()
        body = answer.read()
        took.append(time.perf_counter() - began)
        if answer.status != 200 or len(body) < DEVICES * 100:
            raise RuntimeError(f"GET /api/v1/devices answered {answer.status}")
        time.sleep(max(0.0, ASKED_EVERY_SECONDS - took[-1]))
    connection.close()
    return sorted(took)


def load(seconds: float, settled_seconds: float) -> list[Result]:
    """Processor time, answers and memory, beside the same process with nobody who listens."""
    quiet_seconds = min(30.0, seconds / 2)
    with machine(DEVICES) as (process, port):
        time.sleep(min(WARM_SECONDS, settled_seconds))
        alone = share(process, quiet_seconds)
        listeners = [Listener(port) for _ in range(LISTENERS)]
        for listener in listeners:
            listener.start()
        asked(port, min(WARM_SECONDS, seconds / 2))
        time.sleep(settled_seconds)
        before_bytes = process.memory_info().rss
        busy = share(process, seconds / 2)
        took = asked(port, seconds / 2)
        after_bytes = process.memory_info().rss
        least = DEVICES * 100 * seconds / 2  # each second a sample of each, most of the time
        if any(listener.received_bytes < least for listener in listeners):
            raise RuntimeError("a listener did not hear all samples")
    p99 = took[int(0.99 * len(took))]
    median = took[len(took) // 2]
    name = "the same without listeners"
    more = busy - alone
    count = len(took)
    grown = after_bytes / before_bytes
    sizes = after_bytes / 2**20, before_bytes / 2**20, "when it had settled"
    return [
        Result("one core, 5 listeners", busy, alone, name, "", busy, MOST_CPU, "lower", 1),
        Result("listeners' part of it", more, alone, name, "", more, MOST_CPU, "lower", 1),
        Result("GET devices, p99 (s)", p99, median, "", "", p99, MOST_P99_SECONDS, "lower", count),
        Result("memory, end over settled", *sizes, "", grown, MOST_GROWTH, "lower", 1),
    ]


def page(paints: int) -> list[Result]:
    """First paint and transfer of the dashboard with 100 devices, each time without a cache."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        raise RuntimeError("no Chromium here: apt install chromium")
    from playwright.sync_api import sync_playwright

    with machine(PAGE_DEVICES) as (_, port), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        time.sleep(2)
        seen = [visit(browser, f"http://127.0.0.1:{port}/") for _ in range(paints)]
        browser.close()
    paint, tiles, transfer = (sorted(one)[len(one) // 2] for one in zip(*seen, strict=True))
    most = MOST_PAINT_SECONDS
    all_there = "all 100 tiles there"
    return [
        Result("first paint (s)", paint, tiles, all_there, "", paint, most, "lower", paints),
        Result("first visit (B)", transfer, 0, "", "", transfer, MOST_BYTES, "lower", paints),
    ]


def visit(browser: Any, url: str) -> tuple[float, float, float]:
    """Seconds to the first paint and to the last tile, and bytes over the wire."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    tab = context.new_page()
    tab.goto(url)
    tab.locator(".tile").nth(PAGE_DEVICES - 1).wait_for()
    tiles = tab.evaluate("performance.now()") / 1000
    paint = tab.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    transfer = tab.evaluate(
        "performance.getEntries().reduce((sum, one) => sum + (one.transferSize ?? 0), 0)"
    )
    context.close()
    return paint / 1000, tiles, transfer


def main() -> int:
    """Measure, print, and say whether the targets are met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="a JSON object as the last line")
    parser.add_argument("--seconds", type=float, default=600.0, help="under load")
    parser.add_argument("--settled", type=float, default=SETTLED_SECONDS, help="before it")
    parser.add_argument("--part", choices=("load", "page"), help="only this")
    options = parser.parse_args()
    results: list[Result] = []
    try:
        if options.part != "page":
            results += load(options.seconds, options.settled)
        if options.part != "load":
            results += page(PAINTS)
    except RuntimeError as error:
        print(f"bench_service: {error}", file=sys.stderr)
        return 1
    return report("service", results, as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
