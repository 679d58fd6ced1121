"""The benchmark of splitting reads any cluster of the form, and its solutions can be checked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SCRIPT = BENCHMARKS / "bench_split.py"

CLUSTER = """
[NodeNames]
total_compute_nodes=2
[SourceNode]
connected_nodes=[0, 1]
[SinkNode]
connected_nodes=[1]
[ComputeNode-0]
type=big
connected_nodes=['source', 1]
[ComputeNode-1]
type=small
connected_nodes=['source', 0, 'sink']
"""
LINKS = ("source-0", "source-1", "1-sink", "0-1")


def run(*arguments, **variables):
    environ = {name: one for name, one in os.environ.items() if name != "EXO_GPU_BENCH_DATA"}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=110,
        env=environ | variables,
    )


@pytest.fixture
def data(tmp_path):
    """A cluster of two nodes with a model of five layers."""
    links = "".join(f"[Link-{one}]\nbandwidth=1000 * mbps\nlatency=1 * MilliSec\n" for one in LINKS)
    (tmp_path / "small.ini").write_text(CLUSTER + links)
    table = {
        "cluster_file": "small.ini",
        "num_layers": 5,
        "activation_bytes_per_token": 1000,
        "token_bytes": 2,
        "layer_count_to_tokens_per_s": {
            "big": {"1": 90.0, "2": 50.0, "3": 30.0},
            "small": {"1": 60.0, "2": 20.0},
        },
    }
    (tmp_path / "layer_throughput.json").write_text(json.dumps({"a case": table}))
    return tmp_path


def test_solutions_are_placements_and_every_figure_is_there(data, tmp_path):
    """Rule: first and end layer of each node, and the peers stand in the same run."""
    solution = tmp_path / "solution.json"
    options = ("--cases", 5, "--boxes", 12, "--solution", solution)
    done = run("--data", data, "--json", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["benchmark"] == "split"
    peers = {row["peer_name"] for row in answer["results"]}
    assert {"Petals' rule", "every split", "exo's ring", "llama.cpp", "equal layers"} <= peers
    assert json.loads(solution.read_text()) == {"a case": {"0": [0, 3], "1": [3, 5]}}
    run("--data", data, "--case", "a case", *options)
    assert json.loads(solution.read_text()) == {"0": [0, 3], "1": [3, 5]}


def test_data_that_are_not_there_are_named(tmp_path):
    """Rule: without data one line says where they can be had."""
    assert "github.com/Thesys-lab/Helix" in run().stderr
    assert "github.com/Thesys-lab/Helix" in run("--data", tmp_path).stderr


def test_an_unknown_case_is_refused(data):
    """Rule: a name that no table has is an error, not an empty pass."""
    assert "no case 'x'" in run("--data", data, "--case", "x").stderr


def test_published_clusters_reach_what_was_published():
    """Rule: on the published clusters the flow is at least the published one, under the bound."""
    folder = os.environ.get("EXO_GPU_BENCH_DATA")
    if not folder or not (Path(folder) / "helix").is_dir():
        pytest.skip("EXO_GPU_BENCH_DATA names no folder with helix")
    sys.path.insert(0, str(BENCHMARKS))
    from split_clusters import read_cases

    from exo.gpu.scheduling.split_placement import place_layers

    least = {"cluster10.ini": 0.99 * 286.59, "cluster24.ini": 1289.56}
    for case in read_cases(Path(folder) / "helix"):
        plan = place_layers(case.network, tries=100)
        assert least[case.file] <= plan.tokens_per_second <= plan.bound * (1 + 1e-9)
