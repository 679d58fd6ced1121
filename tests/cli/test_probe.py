"""``exo-gpu probe``: what people and programs read, and the exit status."""

from __future__ import annotations

import json
import os

import msgspec
import pytest

from exo.gpu.cli.commands.devices import _measured
from exo.gpu.cli.commands.probe import _figure, _pairs_table, _table
from exo.gpu.coordination.probes import Probes
from exo.gpu.nodes.local import LocalNode
from exo.gpu.telemetry.pairs import both_unmeasured
from exo.gpu.telemetry.probe import FIGURES
from exo.gpu.telemetry.probe_cache import PairCache, pairs_path
from exo.gpu.vocabulary.links import Link
from exo.gpu.vocabulary.probe import Measure, PairResult, ProbeResult


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of this test's own, for the children too."""
    monkeypatch.setenv("EXO_GPU_PROBES", str(tmp_path / "probes.json"))


def test_what_cannot_be_measured_says_why_once(devices, exo_gpu):
    """Rule: a dash for each figure, each reason told once, within 80 columns."""
    done = exo_gpu("probe", "--device", "cuda:0")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "cuda:0"
    assert done.stdout.count("does not compute") == 1
    assert sum(line.split()[-1] == "-" for line in done.stdout.splitlines()) == 4
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_json_has_every_figure_or_its_reason(devices, exo_gpu):
    """Rule: programs get one object with results and refusals."""
    answer = json.loads(exo_gpu("probe", "--json").stdout)
    assert {"cuda:0", "rocm:0", "cpu:0"} == {one["device_id"] for one in answer["probes"]}
    assert answer["refused"] == []
    for one in answer["probes"]:
        assert all(one[name] is None and one["reasons"][name] for name in FIGURES)


def test_a_leased_device_is_not_now(devices, exo_gpu, command_line):
    """Rule: 75 for a device that was named and is taken; 0 where only others were."""
    inner = command_line("probe", "--device", "cuda:0")
    stripped = ["env", "-u", "EXO_GPU_LEASES", "-u", "EXO_GPU_FAKE_VISIBLE"]
    done = exo_gpu("run", "--device", "cuda:0", "--", *stripped, *inner)
    assert done.returncode == 75
    assert "leased by" in done.stdout
    everything = command_line("probe", "--json")
    done = exo_gpu("run", "--device", "cuda:0", "--", *stripped, *everything)
    assert done.returncode == 0
    assert [one["device_id"] for one in json.loads(done.stdout)["refused"]] == ["cuda:0"]


def test_an_unknown_device_is_never(devices, exo_gpu):
    """Rule: 69, and one line with the near spelling."""
    done = exo_gpu("probe", "--device", "cuda:00")
    assert (done.returncode, done.stdout) == (69, "")
    assert "did you mean 'cuda:0'" in done.stderr


def test_no_device_is_said(script, exo_gpu):
    """Rule: an empty machine is an answer."""
    script()
    assert exo_gpu("probe").stdout == "No device was found.\n"


def test_the_processor_of_this_machine_is_measured(exo_gpu):
    """Rule: on the real host the command measures, shows range and runs, and select knows it."""
    done = exo_gpu("probe", "--device", "cpu:0", "--force")
    assert done.returncode == 0, done.stderr
    assert "GFLOP/s" in done.stdout
    assert " runs" in done.stdout
    explained = exo_gpu("select", "--device", "cpu:0", "--explain")
    assert "breaks ties" in explained.stdout


def test_a_result_is_a_block_of_figures():
    """Rule: median, unit, range and runs in one line each, three digits that count."""
    figure = Measure(median=936.2, lowest=9.36, highest=1008.4, runs=7)
    launch = Measure(median=2.5e-6, lowest=2e-6, highest=3e-6, runs=9)
    result = ProbeResult(
        device_id="cuda:0",
        hardware_id="GPU-1",
        measured_at=1.0,
        memory_gbps=figure,
        launch_seconds=launch,
        reasons={"fp32_gflops": "a reason " * 12},
    )
    text = _table(Probes((result,), {"cuda:1": "not now: it is leased"}))
    assert "    memory                936 GB/s     9.36 .. 1,008 in 7 runs" in text
    assert "    launch               2.50 us       2.00 .. 3.00 in 9 runs" in text
    assert text.endswith("cuda:1\n    not now: it is leased")
    assert max(map(len, text.splitlines())) <= 80
    assert [_figure(value) for value in (0.1234, 12.34, 123.4, 12345.6)] == [
        "0.12",
        "12.3",
        "123",
        "12,346",
    ]


def test_pairs_are_measured_when_asked(devices, exo_gpu):
    """Rule: a line for each direction behind the devices, or "pairs" in JSON; else neither."""
    chosen = ("--device", "cuda:0", "--device", "rocm:0")
    shown = exo_gpu("probe", *chosen, "--pairs").stdout.splitlines()
    (head,) = [place for place, line in enumerate(shown) if line.startswith("from ")]
    assert shown[head].split() == ["from", "to", "GB/s", "via"]
    assert shown[head + 1].split()[:3] == ["cuda:0", "rocm:0", "-"]
    assert max(map(len, shown)) <= 80
    answer = json.loads(exo_gpu("probe", *chosen, "--pairs", "--json").stdout)
    assert all(one["gbps"] is None and one["reason"] for one in answer["pairs"])
    assert "pairs" not in json.loads(exo_gpu("probe", *chosen, "--json").stdout)


def test_a_pair_says_which_way_it_went():
    """Rule: by the host is told as such, and what a driver does not tell as well."""
    figure = Measure(median=12.34, lowest=9.36, highest=20.0, runs=7)
    result = PairResult(
        source="cuda:0",
        target="cuda:1",
        source_hardware_id="GPU-1",
        target_hardware_id="GPU-2",
        measured_at=1.0,
        gbps=figure,
        through_host=True,
    )
    direct = msgspec.structs.replace(result, through_host=False)
    unknown = msgspec.structs.replace(result, through_host=None)
    _, *lines = _pairs_table((result, direct, unknown))
    assert lines[0] == "cuda:0  cuda:1       12.3  the host  9.36 .. 20.0 in 7 runs"
    assert "  direct  " in lines[1]
    assert "  not told  " in lines[2]
    assert _pairs_table(()) == ["There are no two devices to copy between."]


def test_a_measured_pair_is_shown_with_its_link(devices):
    """Rule: under the present drivers the median stands with the link; the other way is unknown."""
    with LocalNode() as node:
        states = node.snapshot().devices
    first, second = (state.device for state in states[:2])
    figure = Measure(median=25.0, lowest=24.0, highest=26.0, runs=3)
    there = msgspec.structs.replace(both_unmeasured(first, second, "")[0], gbps=figure)
    PairCache(pairs_path(os.environ)).keep([there])
    ids = first.device_id, second.device_id
    links = [Link(source=one, target=other) for one, other in (ids, ids[::-1], ("cuda:0", "gone"))]
    assert [link.bandwidth_gbps for link in _measured(links, states)] == [25.0, None, None]
