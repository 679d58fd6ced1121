"""The benchmark of a cluster runs small on a real Ray cluster; its simulated agents run without."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

# One Ray cluster at a time, whoever starts it.
pytestmark = pytest.mark.xdist_group("cluster")


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="it needs the extra ray")
@pytest.mark.timeout(300)
def test_every_figure_has_its_row():
    """Rule: five rows with target, none without a figure, and a status that says what is met."""
    words = [sys.executable, str(BENCHMARKS / "bench_cluster.py"), "--quick", "--json"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=280)
    assert done.stdout, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["benchmark"] == "cluster"
    assert len(answer["results"]) == 5
    assert all(row["ours"] > 0 and row["value"] > 0 and row["n"] > 0 for row in answer["results"])
    assert done.returncode == (0 if all(row["ok"] for row in answer["results"]) else 1)


def test_simulated_agents_send_what_real_ones_would():
    """Rule: in each round every node sends a batch, and its devices are all there to be chosen."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        from bench_cluster import DEVICES, batches
    finally:
        sys.path.remove(str(BENCHMARKS))
    from exo.gpu.nodes.cluster.batches import BatchMaker
    from exo.gpu.nodes.cluster.table import ClusterTable
    from exo.gpu.vocabulary.request import Request

    table, makers = ClusterTable(), [BatchMaker(f"node{number}") for number in range(3)]
    for round_number in range(2):
        sent = batches(round_number, makers, 3)
        assert len(sent) == 3
        assert all(table.take(encoded) for encoded in sent)
    assert len(table) == 3 * DEVICES
    assert table.choose(Request(memory_bytes=2**30), {})
