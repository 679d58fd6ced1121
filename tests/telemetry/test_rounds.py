"""Sampling: all devices at once, one deadline, and a wedged driver costs its own device only."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from exo.gpu.telemetry.sampling.rounds import DeviceSampler
from exo.gpu.vocabulary.errors import DeviceLost
from exo.gpu.vocabulary.metrics import GPUMetrics


def reader(device_id: str) -> Callable[[], GPUMetrics]:
    return lambda: GPUMetrics(device_id, 1.0, temperature_celsius=50)


@pytest.fixture
def wedged() -> Iterator[threading.Event]:
    """A driver call returns when this is set."""
    release = threading.Event()
    yield release
    release.set()


def hang(release: threading.Event) -> Callable[[], GPUMetrics]:
    def read() -> GPUMetrics:
        release.wait()
        return GPUMetrics("slow:0", 1.0)

    return read


def test_every_device_gives_its_sample() -> None:
    """Rule: samples come back by device id, and nothing failed."""
    taken = DeviceSampler().sample({name: reader(name) for name in ("cuda:0", "cuda:1")})
    assert {name: sample.device_id for name, sample in taken.samples.items()} == {
        "cuda:0": "cuda:0",
        "cuda:1": "cuda:1",
    }
    assert taken.failures == {}
    assert DeviceSampler().sample({}).samples == {}


def test_one_failing_device_costs_no_other() -> None:
    """Rule: whatever a driver raises becomes that device's reason."""

    def lost() -> GPUMetrics:
        raise DeviceLost("cuda:0: GPU is lost")

    def odd() -> GPUMetrics:
        raise KeyError

    readers = {"cuda:0": lost, "odd:0": odd, "cpu:0": reader("cpu:0")}
    taken = DeviceSampler().sample(readers)
    assert set(taken.samples) == {"cpu:0"}
    assert taken.failures == {"cuda:0": "cuda:0: GPU is lost", "odd:0": "KeyError"}


def test_a_wedged_device_is_left_behind_and_not_asked_again(wedged: threading.Event) -> None:
    """Rule: a hanging call has a reason, takes one thread at most, and ends when it returns."""
    sampler = DeviceSampler()
    readers = {"slow:0": hang(wedged), "cpu:0": reader("cpu:0")}
    first = sampler.sample(readers, deadline_seconds=0.05)
    assert set(first.samples) == {"cpu:0"}
    assert first.failures == {"slow:0": "no answer within 0.05 s"}
    assert sampler.hanging == ("slow:0",)
    count = threading.active_count()
    again = sampler.sample(readers, deadline_seconds=0.05)
    assert set(again.samples) == {"cpu:0"}
    assert "still hangs" in again.failures["slow:0"]
    assert threading.active_count() <= count
    wedged.set()
    for thread in threading.enumerate():
        if thread.name == "exo-gpu-read-slow:0":
            thread.join()
    assert sampler.hanging == ()
    assert set(sampler.sample(readers).samples) == {"slow:0", "cpu:0"}


def test_a_wedged_driver_does_not_keep_the_program_from_exiting() -> None:
    """Rule: a program with a hanging driver call ends by itself."""
    program = (
        "import threading\n"
        "from exo.gpu.telemetry.sampling.rounds import DeviceSampler\n"
        "taken = DeviceSampler().sample({'slow:0': threading.Event().wait}, deadline_seconds=0.05)\n"
        "print(taken.failures['slow:0'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "no answer within 0.05 s"
