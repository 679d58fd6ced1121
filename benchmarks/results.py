"""The form of every benchmark's answer: a table for people, a JSON object as the last line."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence


@dataclass(frozen=True)
class Result:
    """One comparison. ``value`` is what is held against ``target``; ``n`` runs stand behind it."""

    metric: str
    ours: float
    peer: float
    peer_name: str
    peer_version: str
    value: float
    target: float
    better: str
    n: int

    def __post_init__(self) -> None:
        if self.better not in {"higher", "lower"}:
            raise ValueError(f"better: {self.better!r} is neither 'higher' nor 'lower'")

    @property
    def ok(self) -> bool:
        """Whether the target is met."""
        return self.value >= self.target if self.better == "higher" else self.value <= self.target


def report(benchmark: str, results: Sequence[Result], *, as_json: bool) -> int:
    """Print the table, and with ``as_json`` the object; 0 when every target is met, else 1."""
    print(f"{benchmark}")
    print(f"  {'metric':<34} {'ours':>10} {'peer':>10} {'value':>8}  {'target':<9} {'n':>3}  met")
    for result in results:
        sign = ">=" if result.better == "higher" else "<="
        print(
            f"  {result.metric:<34} {result.ours:>10.4g} {result.peer:>10.4g} {result.value:>8.4g}"
            f"  {sign} {result.target:<6g} {result.n:>3}  {'yes' if result.ok else 'NO'}"
        )
    for name, version in sorted({(result.peer_name, result.peer_version) for result in results}):
        print(f"  peer: {name} {version}".rstrip())
    if as_json:
        rows = [{**asdict(result), "ok": result.ok} for result in results]
        print(json.dumps({"benchmark": benchmark, "results": rows}))
    return 0 if all(result.ok for result in results) else 1


def parsed_with_data(
    parser: argparse.ArgumentParser, folder: str, source: str
) -> argparse.Namespace:
    """The options, among them ``--data``, the folder with public data that lie at ``source``.

    By default it is ``folder`` below ``EXO_GPU_BENCH_DATA``; without either the program ends.
    """
    given = os.environ.get("EXO_GPU_BENCH_DATA")
    parser.add_argument("--data", type=Path, default=given and Path(given) / folder)
    options = parser.parse_args()
    if options.data is None:
        sys.exit(f"--data DIR/{folder}, or EXO_GPU_BENCH_DATA; the data are at {source}")
    return options
