"""One command under leases: what is refused beforehand, when it is tried again, what is told."""

from __future__ import annotations

import pytest
from boxes import device, host

from exo.gpu.coordination.runs import Listeners, RunPlan, run_command
from exo.gpu.nodes.local import LocalNode
from exo.gpu.vocabulary.errors import InvalidValue, UnknownName
from exo.gpu.vocabulary.request import Request


@pytest.mark.parametrize(
    "plan",
    [
        {"timeout_seconds": 0},
        {"timeout_seconds": float("nan")},
        {"retries": -1},
        {"wait_seconds": -1},
    ],
)
def test_a_plan_that_cannot_be_is_refused(plan):
    with pytest.raises(InvalidValue, match=next(iter(plan))):
        RunPlan(**plan)


def test_an_unknown_way_with_overruns_is_refused():
    with pytest.raises(UnknownName, match="did you mean 'kill'"):
        RunPlan(overrun="kil")


def test_each_try_is_leased_anew_and_told(two_fakes):
    """Between two tries nothing is held; the end counts them all."""
    held = []
    with LocalNode() as node:
        end = run_command(
            ["false"],
            Request(),
            plan=RunPlan(retries=2),
            listeners=Listeners(
                on_start=lambda decision: held.append(decision.chosen),
                on_retry=lambda ended: held.append((ended.status, len(node.leases()))),
            ),
            node=node,
        )
        assert node.leases() == ()
    assert held == [("cuda:0",), (1, 0), ("cuda:0",), (1, 0), ("cuda:0",)]
    assert (end.status, end.attempts, end.device_ids) == (1, 3, ("cuda:0",))


def test_a_card_that_fails_meanwhile_is_not_taken_again(use_box, tmp_path):
    """The next try goes where the first one's device is not, when that one is lost."""
    box = use_box(device("cuda:0", "NVIDIA", "cuda"), device("cuda:1", "NVIDIA", "cuda"), host())
    lost = tmp_path / "lost.json"
    lost.write_text(box.read_text().replace('"sample"', '"fail": "GPU is lost", "sample"', 1))
    script = f'echo $EXO_GPU_FAKE_VISIBLE >> {tmp_path}/seen; cp {lost} "$EXO_GPU_FAKE"; exit 1'
    end = run_command(["/bin/sh", "-c", script], Request(), plan=RunPlan(retries=1))
    assert end.attempts == 2
    assert (tmp_path / "seen").read_text() == "FAKE-cuda:0\nFAKE-cuda:1\n"


def test_after_an_end_that_was_asked_for_nothing_is_tried_again(two_fakes, tmp_path):
    """A signal to us means the end of all tries, though the command fails by it."""
    script = f"echo x >> {tmp_path}/tries; kill -TERM $PPID; sleep 1000"
    end = run_command(["/bin/sh", "-c", script], Request(), plan=RunPlan(retries=5))
    assert (end.status, end.interrupted, end.attempts) == (143, True, 1)
    assert (tmp_path / "tries").read_text() == "x\n"


def test_where_no_device_is_left_for_another_try_the_first_answer_stands(use_box, tmp_path):
    """The only card is lost: the failure is told as it was, not as "not now"."""
    box = use_box(device("cuda:0", "NVIDIA", "cuda"), host())
    lost = tmp_path / "lost.json"
    lost.write_text(box.read_text().replace('"sample"', '"fail": "GPU is lost", "sample"', 1))
    script = f'cp {lost} "$EXO_GPU_FAKE"; exit 3'
    end = run_command(
        ["/bin/sh", "-c", script], Request(devices=("cuda:0",)), plan=RunPlan(retries=1)
    )
    assert (end.status, end.attempts) == (3, 1)
