"""Telemetry: what sampling costs, what the device table and the history on disk hold, and an hour.

Its four parts can be run alone: ``telemetry_sampling.py``, ``telemetry_table.py``,
``telemetry_store.py`` and ``telemetry_hour.py``.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

import telemetry_hour
import telemetry_sampling
import telemetry_store
import telemetry_table
from results import report

if TYPE_CHECKING:
    from collections.abc import Callable

    from results import Result

PARTS: dict[str, Callable[[bool], list[Result]]] = {
    "sampling": telemetry_sampling.results,
    "table": telemetry_table.results,
    "store": telemetry_store.results,
    "hour": telemetry_hour.results,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="measure less, for a first look")
    parser.add_argument("--part", choices=PARTS, action="append", help="only this; repeatable")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    options = parser.parse_args()
    try:
        rows = [row for name in options.part or PARTS for row in PARTS[name](options.quick)]
    except RuntimeError as error:  # a peer is missing, or a run is not what it should be
        print(f"bench_telemetry: {error}", file=sys.stderr)
        return 1
    return report("telemetry", rows, as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
