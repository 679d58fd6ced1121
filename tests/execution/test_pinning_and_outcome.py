"""The environment of a pinned process, as a value; and what the end of a process means."""

from __future__ import annotations

import pytest

from exo.gpu.execution.outcome import describe_exit, shell_status
from exo.gpu.execution.pinning import apply_changes, current_device, pinning_changes
from exo.gpu.vocabulary.device import GPUDevice

DEVICE = GPUDevice("cuda:0", "Card", "NVIDIA", "cuda", hardware_id="GPU-1")


def test_every_other_vendor_is_hidden_and_the_pin_wins():
    changes = pinning_changes(
        {"CUDA_VISIBLE_DEVICES": "GPU-1", "SHARED": "mine"},
        [{"ROCR_VISIBLE_DEVICES": "none"}, {"HIP_VISIBLE_DEVICES": None, "SHARED": "hidden"}],
        DEVICE,
    )
    environ = apply_changes({"HIP_VISIBLE_DEVICES": "3", "HOME": "/home/me"}, changes)
    assert environ["CUDA_VISIBLE_DEVICES"] == "GPU-1"
    assert environ["ROCR_VISIBLE_DEVICES"] == "none"
    assert environ["SHARED"] == "mine"
    assert environ["HOME"] == "/home/me"
    assert "HIP_VISIBLE_DEVICES" not in environ
    assert current_device(environ).to_json() == DEVICE.to_json()


def test_outside_a_worker_there_is_no_current_device(monkeypatch):
    monkeypatch.delenv("EXO_GPU_DEVICE", raising=False)
    assert current_device() is None


@pytest.mark.parametrize(
    ("returncode", "words", "status"),
    [
        (0, "exited with status 0", 0),
        (3, "exited with status 3", 3),
        (-9, "was killed by SIGKILL", 137),
        (-15, "was killed by SIGTERM", 143),
        (-250, "was killed by signal 250", 378),
    ],
)
def test_an_exit_in_words_and_as_a_shell_counts_it(returncode, words, status):
    assert describe_exit(returncode) == words
    assert shell_status(returncode) == status


def test_a_process_that_runs_has_no_status_yet():
    assert describe_exit(None) == "is still running"
