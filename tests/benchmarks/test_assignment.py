"""The benchmark of the assignment reads any file of the form, and its solutions can be checked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("highspy")

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SCRIPT = BENCHMARKS / "bench_assignment.py"
sys.path.insert(0, str(BENCHMARKS))

from instances import CLASSES, generate, read  # noqa: E402 - they lie in the benchmarks' folder


def run(*arguments):
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=110,
    )


def write(path, costs):
    """An instance in the form of HCSP."""
    lines = [f"{costs.shape[0]} {costs.shape[1]} 0", *(f"{cost:.6f}" for cost in costs.ravel())]
    path.write_text("\n".join(lines) + "\n")


def test_solutions_are_complete_and_every_figure_is_there(tmp_path):
    """Rule: the device of each task, in the instance's order; the peers stand in the same run."""
    costs = generate("i_lolo", 40, 4, seed=1)
    write(tmp_path / "u_i_lolo.7", costs)
    solution = tmp_path / "solution.json"
    options = ("--seconds", 0.2, "--large", 0, "--noise-runs", 0, "--solution", solution)
    done = run("--data", tmp_path, "--json", *options)
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["benchmark"] == "assignment"
    peers = {row["peer_name"] for row in answer["results"]}
    assert {"HiGHS", "min-min", "sufferage", "MCT"} <= peers
    places = json.loads(solution.read_text())["u_i_lolo.7"]
    assert len(places) == 40
    assert set(places) <= {0, 1, 2, 3}
    assert done.returncode == (0 if all(row["ok"] for row in answer["results"]) else 1)


def test_a_file_is_read_task_by_task(tmp_path):
    """Rule: what is written in the published form comes back the same."""
    costs = generate("c_hihi", 5, 3, seed=2)
    write(tmp_path / "u_c_hihi.1", costs)
    assert np.allclose(read(tmp_path / "u_c_hihi.1"), costs, atol=1e-6)


def test_classes_are_what_they_say():
    """Rule: consistent rows rise; semi-consistent ones in every second column; none repeats."""
    made = {name: generate(name, 30, 6, seed=3) for name in CLASSES}
    assert len(made) == 12
    assert (np.diff(made["c_hihi"]) >= 0).all()
    assert (np.diff(made["s_hilo"][:, ::2]) >= 0).all()
    assert (np.diff(made["i_lolo"]) < 0).any()
    assert len({costs.tobytes() for costs in made.values()}) == 12


def test_data_that_are_not_there_are_named(tmp_path):
    """Rule: without data one line says where they can be had; a short file is refused by name."""
    assert "github.com/chgogos/hcsp" in run("--data", tmp_path).stderr
    (tmp_path / "u_x.0").write_text("3 2 0\n1 2 3\n")
    assert "3 times, while its header says 3 x 2" in run("--data", tmp_path).stderr


def test_noise_compares_with_lpt_and_pulling():
    """Rule: both kinds of noise, each beside the same peers, against a bound that knows all."""
    from assignment_noise import noise_study

    results = noise_study({"one": generate("s_lolo", 48, 4, seed=4)}, 1)
    assert {"LPT", "dynamic pulling"} <= {row.peer_name for row in results}
    assert {row.metric for row in results} == {"noise by item: / bound", "noise by cell: / bound"}
    assert all(row.ours >= 1 for row in results)
