"""``exo-gpu simulate``: the table, the JSON, and what is refused."""

from __future__ import annotations

import json

import pytest

JOBS = "arrived_seconds,run_seconds,memory\n0,3600,8GiB\n0,600,8GiB\n0,60,8GiB\n"
NODES = "sn,cpu_milli,memory_mib,gpu,model\nn0,8000,1024,1,T4\n"
PODS = "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec\np,1000,1,1,500,\nq,1000,1,1,600,\n"


@pytest.fixture
def trace(tmp_path):
    path = tmp_path / "jobs.csv"
    path.write_text(JOBS)
    return str(path)


def test_disciplines_stand_beside_each_other(exo_gpu, trace):
    """Rule: a line for each policy, in the order asked for, with the same columns."""
    done = exo_gpu("simulate", "--cluster", "1", "--trace", trace, "--policy", "fifo,shortest-true")
    head, fifo, shortest = done.stdout.splitlines()
    assert done.returncode == 0
    assert head.split()[:3] == ["POLICY", "DONE", "ALL"]
    assert (fifo.split()[0], shortest.split()[0]) == ("fifo", "shortest-true")
    assert fifo.split()[2] == shortest.split()[2] == "4260.00"
    assert float(fifo.split()[4]) > float(shortest.split()[4])


def test_the_json_has_every_run_and_the_means(exo_gpu, trace, devices, tmp_path):
    """Rule: one object, by policy and by seed; what is not known is null."""
    done = exo_gpu(
        "simulate", "--cluster", str(devices), "--trace", trace, "--policy", "pack", "--seeds", "2",
        "--fail-every", "1h", "--delay", "5s", "--add", "4090=1", "--json", "--processes", "1",
    )  # fmt: skip
    answer = json.loads(done.stdout)
    assert answer["kind"] == "devices"
    assert [run["seed"] for run in answer["runs"]] == [42, 43]
    assert answer["means"]["pack"]["completed"] == 3
    assert answer["means"]["pack"]["allocation_ratio"] is None


def test_machines_that_fill_up(exo_gpu, tmp_path):
    """Rule: pods and machines are told by their columns, and compared by what is allocated."""
    nodes, pods = tmp_path / "n.csv", tmp_path / "p.csv"
    nodes.write_text(NODES)
    pods.write_text(PODS)
    done = exo_gpu("simulate", "--cluster", str(nodes), "--trace", str(pods), "--processes", "1")
    assert "ALLOCATED %" in done.stdout
    assert {line.split()[0] for line in done.stdout.splitlines()[1:]} >= {"fgd", "fragmentation"}


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (["--policy", "fifi"], 2, "policy: 'fifi' is not one of fifo, fifo-backfill, line"),
        (["--add", "4090=1"], 2, "--add needs MODEL=N and a script of devices"),
        (["--delay", "5s"], 2, "need a script of devices"),
        (["--repair", "banana"], 2, "--repair: 'banana'"),
        (["--plot", "picture.xyz"], 2, "cannot be drawn"),
    ],
)
def test_bad_input_is_one_line(exo_gpu, trace, options, status, words, tmp_path):
    """Rule: nothing runs, and the line says what was wrong."""
    done = exo_gpu("simulate", "--cluster", "2", "--trace", trace, *options)
    assert done.returncode == status
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_what_ran_is_run_again_with_a_card_more(exo_gpu, devices, tmp_path):
    """Rule: the folder of journals is a workload; each item asks for what its job asked for."""
    jobs = str(tmp_path / "jobs")
    mapped = exo_gpu("map", "--memory", "2GiB", "true {}", ":::", "1", "2", EXO_GPU_JOBS=jobs)
    assert mapped.returncode == 0
    done = exo_gpu(
        "simulate", "--cluster", str(devices), "--trace", jobs, "--json",
        "--policy", "fragmentation", "--add", "4090=1", "--processes", "1",
    )  # fmt: skip
    means = json.loads(done.stdout)["means"]["fragmentation"]
    assert (means["jobs"], means["completed"], means["refused"]) == (2, 2, 0)
    empty = tmp_path / "empty"
    empty.mkdir()
    none = exo_gpu("simulate", "--cluster", "2", "--trace", str(empty))
    assert none.returncode == 1
    assert "there is no journal in it" in none.stderr


def test_a_fault_in_the_trace_has_its_place(exo_gpu, tmp_path):
    """Rule: file, line and column; status 1, for the command was right."""
    path = tmp_path / "bad.csv"
    path.write_text("arrived_seconds,run_seconds\n0,soon\n")
    done = exo_gpu("simulate", "--cluster", "2", "--trace", str(path))
    assert done.returncode == 1
    assert f"{path}, line 2, column run_seconds: 'soon' is not a number" in done.stderr
