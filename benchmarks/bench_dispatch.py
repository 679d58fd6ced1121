"""What dispatch costs: rates of tasks, large arrays, a cold start, busy devices and turnaround."""

from __future__ import annotations

import argparse
import importlib.util
import sys

import dispatch_busy
import dispatch_rates
from results import report

PARTS = {
    "tasks": dispatch_rates.tasks,
    "arrays": dispatch_rates.arrays,
    "first": dispatch_rates.first_result,
    "busy": dispatch_busy.utilisation,
    "turnaround": dispatch_busy.turnaround,
}
if importlib.util.find_spec("dispatch_commands") is not None:
    import dispatch_commands

    PARTS["commands"] = dispatch_commands.results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", choices=PARTS, help="one part; repeatable")
    parser.add_argument("--quick", action="store_true", help="once and small, to see that it runs")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    options = parser.parse_args()
    rows = [row for name in options.only or PARTS for row in PARTS[name](quick=options.quick)]
    return report("dispatch", rows, as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
