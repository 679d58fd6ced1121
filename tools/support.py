"""Writes down how each backend was last shown to work, from what the last test run recorded.

``support.py`` reads ``.build/shown.json`` (written by the tests), brings
``src/exo/gpu/backends/support.json`` up to date and renders ``docs/SUPPORT.md`` from it. What was
shown on hardware once stays, with its date, until it is shown again; a lesser showing never
replaces a better one.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

from exo.gpu.backend import (  # noqa: E402 - the checkout's own source comes first
    ComputeAbility,
    FaultAbility,
    GPUBackend,
    PinningAbility,
    ProcessAbility,
    TelemetryAbility,
)
from exo.gpu.backends.support import ABILITIES, LEVELS  # noqa: E402
from exo.gpu.factory import GPUBackendFactory  # noqa: E402

SHOWN = ROOT / ".build/shown.json"
RECORD = ROOT / "src/exo/gpu/backends/support.json"
TABLE = ROOT / "docs/SUPPORT.md"

Record = dict[str, dict[str, dict[str, str]]]

NEVER = {"level": LEVELS[-1]}

_HEAD = """\
# What was shown to work

Written by `make support` from the record that the tests leave; do not edit. For every backend and
ability it says how the ability was last shown to work:

| level | meaning |
| --- | --- |
| hardware | on the device itself, with its own driver |
| software driver | with a real driver that needs no GPU; what is the vendor's own stays unproven |
| captured | on readings that were recorded on a real machine |
| fake | on a stand-in for the vendor's library, built by the tests |
| never run | written, and shown by nothing so far |

Nothing is called supported beyond its level: a device's support level is "full" where all was
shown on hardware, "partial" where a real driver answered, else "experimental". The scripted
devices of the `fake` backend are not listed, since they prove nothing about any vendor.

| backend | ability | level | on | driver | date |
| --- | --- | --- | --- | --- | --- |
"""


def offered(backend: GPUBackend) -> list[str]:
    """The abilities that a backend declares, in the order of the table."""
    has = {
        "finding": True,
        "telemetry": isinstance(backend, TelemetryAbility),
        "processes": isinstance(backend, ProcessAbility),
        "faults": isinstance(backend, FaultAbility),
        "memory": type(backend).allocate is not GPUBackend.allocate,
        "compute": isinstance(backend, ComputeAbility),
        "pinning": isinstance(backend, PinningAbility),
    }
    return [ability for ability in ABILITIES if has[ability]]


def updated(record: Record, rows: list[dict[str, Any]], date: str) -> Record:
    """The record with what the rows show; abilities that a backend lacks are dropped."""
    fresh: Record = {}
    for name in GPUBackendFactory.names():
        fresh[name] = {}
        for ability in offered(GPUBackendFactory.make(name)):
            before = record.get(name, {}).get(ability, NEVER)
            shown = _best(
                [row for row in rows if (row["backend"], row["ability"]) == (name, ability)]
            )
            if shown and LEVELS.index(shown["level"]) <= LEVELS.index(before["level"]):
                before = shown | {"date": date}
            fresh[name][ability] = before
    return fresh


def _best(rows: list[dict[str, Any]]) -> dict[str, str] | None:
    """One showing of the best level among the rows, naming all that it ran on."""
    if not rows:
        return None
    level = min((row["level"] for row in rows), key=LEVELS.index)
    chosen = [row for row in rows if row["level"] == level]
    joined = {
        field: "; ".join(sorted({row[field] for row in chosen if row.get(field)}))
        for field in ("model", "driver")
    }
    return {"level": level, **joined}


def render(record: Record) -> str:
    """The document, one line per backend and ability."""
    lines = [
        " | ".join(
            [
                f"| {name}",
                ability,
                showing["level"],
                *(showing.get(field) or "-" for field in ("model", "driver", "date")),
            ]
        )
        + " |"
        for name, abilities in record.items()
        for ability, showing in abilities.items()
    ]
    return _HEAD + "\n".join(lines) + "\n"


def main() -> int:
    """Bring both files up to date; 1 when no test run has left a record."""
    if not SHOWN.exists():
        print(f"{SHOWN.relative_to(ROOT)} is not there: run the tests first", file=sys.stderr)
        return 1
    date = datetime.fromtimestamp(SHOWN.stat().st_mtime, tz=UTC).date().isoformat()
    record = updated(json.loads(RECORD.read_text()), json.loads(SHOWN.read_text()), date)
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    TABLE.write_text(render(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
