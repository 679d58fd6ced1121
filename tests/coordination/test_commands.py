"""Shell commands over devices: each once, its output whole, the source read lazily."""

from __future__ import annotations

import itertools
import json

import pytest
from boxes import GIB, device, host

from exo.gpu.coordination.commands import CommandRun
from exo.gpu.nodes.local import LocalNode
from exo.gpu.vocabulary.errors import NeverAvailable
from exo.gpu.vocabulary.job import Ending
from exo.gpu.vocabulary.request import Request


def test_every_command_ends_once_with_its_output(two_fakes):
    commands = [f"echo {number}; exit {number % 3}" for number in range(40)]
    with CommandRun(commands, request=Request()) as run:
        done = list(run)
        assert run.slots == 2
    assert sorted(one.index for one in done) == list(range(40))
    for one in done:
        assert one.outcome.stdout == f"{one.index}\n".encode()
        assert (one.outcome.ending is Ending.SUCCEEDED) == (one.index % 3 == 0)
        assert one.outcome.exit_status == one.index % 3
        assert one.device_id in {"cuda:0", "cuda:1"}


def test_a_command_is_pinned_to_its_device(two_fakes):
    with CommandRun(["echo $EXO_GPU_FAKE_VISIBLE $EXO_GPU_DEVICE"], request=Request()) as run:
        (done,) = run
    visible, _, text = done.outcome.stdout.decode().partition(" ")
    assert visible == json.loads(text)["hardware_id"] == f"FAKE-{done.device_id}"


def test_the_source_is_read_only_a_little_ahead(two_fakes):
    """An endless source does no harm: what ended waits for the reader."""
    pulled = []

    def source():
        for number in itertools.count():
            pulled.append(number)
            yield f"echo {number}"

    with CommandRun(source(), request=Request()) as run:
        seen = [one.index for one in itertools.islice(run, 10)]
        assert len(seen) == 10
        assert len(pulled) <= 10 + 2 * run.slots + 1


def test_an_error_of_the_source_reaches_the_reader(two_fakes):
    def source():
        yield "true"
        raise ValueError("the list broke off")

    with (
        CommandRun(source(), request=Request()) as run,
        pytest.raises(ValueError, match="broke off"),
    ):
        list(run)


def test_leaving_early_ends_what_runs_and_frees_the_leases(two_fakes):
    with CommandRun(["echo up; sleep 600", "true", "true"], request=Request()) as run:
        next(iter(run))
    with LocalNode() as node:
        assert all(not state.leases for state in node.snapshot().devices)


def test_what_was_left_out_is_said(use_box):
    use_box(device("cuda:0", "NVIDIA", "cuda"), device("rocm:0", "AMD", "rocm"), host())
    with CommandRun(["true"], request=Request()) as run:
        assert [one.runtime for one in run.devices] == ["cuda"]
        assert {refusal.device_id for refusal in run.left_out} == {"rocm:0", "cpu:0"}
        list(run)


def test_no_device_means_nothing_is_started(two_fakes):
    with pytest.raises(NeverAvailable, match=r"8\.0 GiB"):
        CommandRun(["true"], request=Request(memory_bytes=99 * GIB))
