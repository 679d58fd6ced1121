"""The benchmark of unlike devices: what it counts, and that a missing peer is no pass."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import bench_balance  # noqa: E402 - the scripts import each other from their own folder

ROUND = {
    "llvmpipe": {"seconds": 4.0, "iterations": 1200.0, "balance": 1.0},
    "SwiftShader": {"seconds": 12.0, "iterations": 1200.0, "balance": 1.0},
    "equal": {"seconds": 6.0, "iterations": 1200.0, "balance": 1.5, "efficiency": 0.5},
    "pull": {"seconds": 3.2, "iterations": 1200.0, "balance": 1.01, "efficiency": 0.94},
    "joblib": {"seconds": 3.4, "iterations": 1200.0, "balance": 1.02, "efficiency": 0.88},
    "ray": {"seconds": 3.6, "iterations": 1200.0, "balance": 1.03, "efficiency": 0.83},
}


def test_every_row_is_held_against_its_own_target():
    """Rule: balance and efficiency are ours, the others are ratios of seconds to ours."""
    one = ROUND | {name: {"efficiency": 0.0} | figures for name, figures in ROUND.items()}
    rows = {row.metric: row for row in bench_balance.rows([one], {"joblib": "1", "ray": "2"})}
    assert rows["balance"].value == 1.01
    assert rows["efficiency"].value == 0.94
    assert rows["seconds, equal split / pull"].value == pytest.approx(6.0 / 3.2)
    assert rows["seconds, joblib / pull"].value == pytest.approx(3.4 / 3.2)
    assert all(row.ok for row in rows.values())
    slow = one | {"pull": one["pull"] | {"seconds": 4.0, "balance": 1.06, "efficiency": 0.89}}
    missed = [row for row in bench_balance.rows([slow], {"joblib": "1", "ray": "2"}) if not row.ok]
    assert len(missed) == 4


def test_a_missing_peer_is_an_error():
    """Rule: what cannot be compared is no pass, and the line says what to install."""
    with pytest.raises(SystemExit, match="pip install no-such-peer"):
        bench_balance.peer_version("no-such-peer")


def test_both_drivers_work_each_alone_and_together(vulkan_manifests):
    """Rule: on the real drivers every tile is computed once each way, and the speeds alone add up."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core for both drivers is not what is measured")
    tiles = bench_balance.View.in_tiles(64, 64, 16, 50).tiles()
    with ExitStack() as stack:
        both = bench_balance.places()
        ours = bench_balance.our_executor(stack, both)
        ways = {
            place.name: bench_balance.streaming(bench_balance.our_executor(stack, (place,)))
            for place in both
        }
        ways |= {"pull": bench_balance.streaming(ours), "equal": bench_balance.splitting(ours)}
        records, _ = ways["pull"](tiles)
        assert sorted(record.tile for record in records) == list(range(len(tiles)))
        measured = bench_balance.one_round(ways, tiles)
    work = {figures["iterations"] for figures in measured.values()}
    assert len(work) == 1
    alone = [measured[place.name]["efficiency"] for place in both]
    assert sum(alone) == pytest.approx(1.0)
    assert all(figures["balance"] > 0 for figures in measured.values())
