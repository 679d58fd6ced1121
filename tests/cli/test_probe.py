"""``exo-gpu probe``: what people and programs read, and the exit status."""

from __future__ import annotations

import json

import pytest

from exo.gpu.cli.commands.probe import _figure, _table
from exo.gpu.coordination.probes import Probes
from exo.gpu.telemetry.probe import FIGURES
from exo.gpu.vocabulary.probe import Measure, ProbeResult


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
