"""What an executor's chunks teach: bounded, by kind and device, and written down once at the end."""

from __future__ import annotations

import os

import functions
import pytest

from exo.gpu.coordination.cargo import Sent, Slot
from exo.gpu.coordination.executor import GPUExecutor
from exo.gpu.coordination.outcomes_learned import CHUNKS_KEPT, KINDS_KEPT, OutcomesLearned
from exo.gpu.nodes.experience import Experience, experience_path
from exo.gpu.vocabulary.device import GPUDevice


@pytest.fixture
def experience(tmp_path, monkeypatch):
    """This user's experience, empty."""
    monkeypatch.setenv("EXO_GPU_PROBES", str(tmp_path / "learned" / "probes.json"))
    return Experience(experience_path(os.environ))


def named(experience):
    return {one.kind: one.track for one in experience.lessons()}


def test_a_map_is_learned_by_its_functions_name_and_a_lambda_by_none(two_fakes, experience):
    """Rule: each device's seconds of an item are kept with the end of the executor, not before."""
    with GPUExecutor() as executor:
        list(executor.map(functions.slowly, range(40)))
        list(executor.map(lambda number: number, range(40)))
        assert experience.lessons() == ()
    assert set(named(experience)) == {"functions.slowly"}
    used = {device.hardware_id for device in executor.devices}
    assert {one.device for one in experience.lessons()} <= used
    assert sum(one.track.samples for one in experience.lessons()) >= 2


def test_a_kind_that_was_named_stands_for_all_work(two_fakes, experience):
    """Rule: ``kind`` is what whoever asks calls it, whatever the functions are."""
    with GPUExecutor(kind="resize") as executor:
        list(executor.map(functions.double, range(1000)))
        executor.submit(functions.double, 1).result(60)
    assert set(named(experience)) == {"resize"}


def test_what_failed_teaches_no_speed(two_fakes, experience):
    with GPUExecutor() as executor, pytest.raises(ValueError, match="no 1"):
        executor.submit(functions.fail, 1).result(60)
    assert experience.lessons() == ()


def sent(name, *, reported=1):
    """A chunk of items of a kind, as the dispatcher keeps it, of which so many were reported."""
    chunk = Sent(0, range(10), name, None, name)
    chunk.heard(reported)
    return chunk


def test_a_program_without_end_is_remembered_within_bounds(experience):
    """Rule: the newest chunks of each kind and device, and no more than so many kinds."""
    card = GPUDevice(
        device_id="cuda:0",
        name="Card",
        vendor="NVIDIA",
        backend="fake",
        runtime="cuda",
        hardware_id="GPU-1",
        memory_bytes=2**33,
    )
    slot = Slot(0, card)
    learned = OutcomesLearned("")
    for seconds in range(1, 3 * CHUNKS_KEPT):
        learned.add(slot, sent("often"), float(seconds))
    for number in range(2 * KINDS_KEPT):
        learned.add(slot, sent(f"kind {number}"), 1.0)
    learned.add(slot, sent("", reported=5), 1.0)
    learned.add(slot, sent("nothing done", reported=0), 1.0)
    learned.keep()
    kept = named(experience)
    assert len(kept) == KINDS_KEPT
    assert kept["often"].samples <= CHUNKS_KEPT
    assert "nothing done" not in kept
