"""The studies run on any files of the same form, and what they find can be checked by others."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def answer_of(script, *options):
    environ = {name: value for name, value in os.environ.items() if name != "EXO_GPU_BENCH_DATA"}
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / script), "--json", *map(str, options)],
        capture_output=True,
        text=True,
        timeout=100,
        env=environ,
    )
    assert done.stdout, done.stderr
    return done, json.loads(done.stdout.splitlines()[-1])


def openb(folder):
    """A small cluster and workload of the same form."""
    chance = random.Random(1)
    nodes = ["sn,cpu_milli,memory_mib,gpu,model"]
    nodes += [f"n{number},16000,65536,2,T4" for number in range(6)]
    (folder / "openb_node_list_gpu_node.csv").write_text("\n".join(nodes) + "\n")
    pods = ["name,cpu_milli,memory_mib,num_gpu,gpu_milli"]
    pods += [f"p{number},4000,1024,1,{chance.choice([470, 810, 1000])}" for number in range(14)]
    path = folder / "some_pods.csv"
    path.write_text("\n".join(pods) + "\n")
    return path


def test_openb_compares_ours_with_fgd_and_leaves_the_placements(tmp_path):
    """Rule: any pod list will do; the solution is feasible, in order of arrival, with its seed."""
    pods = openb(tmp_path)
    solution = tmp_path / "solution.json"
    options = ("--workload", pods, "--seeds", "3", "--solution", solution)
    done, answer = answer_of("bench_openb.py", "--data", tmp_path, *options)
    assert answer["benchmark"] == "openb"
    assert [row["target"] for row in answer["results"]] == [0.0, 1.5]
    assert done.returncode == (0 if all(row["ok"] for row in answer["results"]) else 1)
    told = json.loads(solution.read_text())
    assert told["seed"] == 3
    asked = {}
    for line in pods.read_text().splitlines()[1:]:
        name, cpu, _, gpus, milli = line.split(",")
        asked[name] = (int(cpu), int(gpus), int(milli))
    free = {f"n{number}": [16000, 1000, 1000] for number in range(6)}
    for name, node, gpus in told["placements"]:
        cpu, count, milli = asked[name]
        if node is None:
            assert gpus == []
            continue
        assert len(gpus) == count
        free[node][0] -= cpu
        for index in gpus:
            free[node][1 + index] -= milli
    assert all(left >= 0 for row in free.values() for left in row)


def test_online_compares_at_three_loads(tmp_path):
    """Rule: three comparisons of each of ours at each of three loads, for any jobs of this form."""
    lines = ["timestamp,duration,num_gpus,gpu_time,cluster"]
    lines += [
        f"2020-01-01 {minute // 60:02}:{minute % 60:02}:00,{600 + 7 * minute},1,0,c"
        for minute in range(0, 600, 5)
    ]
    (tmp_path / "philly.csv").write_text("\n".join(lines) + "\n")
    done, answer = answer_of("bench_online.py", "--data", tmp_path)
    assert [row["target"] for row in answer["results"]] == [1.0, 1.15, 1.1] * 6
    assert all(row["ours"] > 0 for row in answer["results"][0::3])
    assert done.returncode == (0 if all(row["ok"] for row in answer["results"]) else 1)


def test_without_data_one_line_says_where_they_can_be_had():
    """Rule: a study without its data ends at once, and names the public repository."""
    for script in ("bench_openb.py", "bench_mixes.py", "bench_online.py"):
        environ = {key: value for key, value in os.environ.items() if key != "EXO_GPU_BENCH_DATA"}
        done = subprocess.run(
            [sys.executable, str(BENCHMARKS / script)], capture_output=True, text=True, env=environ
        )
        assert done.returncode == 1
        assert "https://github.com/" in done.stderr
        assert done.stderr.count("\n") == 1
