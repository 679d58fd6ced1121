"""Leases for people: the best device, held, pinned for children, and let go."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from boxes import GIB, device, host

import exo.gpu as gpu
from exo.gpu.coordination.leases import decide, lease
from exo.gpu.coordination.runs import Listeners, run_command
from exo.gpu.coordination.wishes import GangWishes, Wishes, request_of
from exo.gpu.nodes.local import LocalNode
from exo.gpu.vocabulary.errors import BackendError, InvalidValue, NeverAvailable, NotNow
from exo.gpu.vocabulary.request import Request


def test_two_holders_get_two_devices_and_a_third_must_wait(two_fakes):
    with lease() as first, lease() as second:
        assert {first.device_id, second.device_id} == {"cuda:0", "cuda:1"}
        with pytest.raises(NotNow, match="slots"), lease():
            pass
    with lease() as again:
        assert again.device_id == first.device_id


def test_the_policy_is_the_one_that_is_set(use_box, monkeypatch):
    """Rule: gpu.lease and gpu.map weigh as configured, and a policy in the call comes before it."""
    busy, hot = {"compute_utilization_percent": 60}, {"temperature_celsius": 79.0}
    use_box(
        device("cuda:0", "NVIDIA", "cuda", sample=hot),
        device("cuda:1", "NVIDIA", "cuda", sample=busy | {"temperature_celsius": 30.0}),
    )
    with lease() as best:
        assert best.device_id == "cuda:0"
    monkeypatch.setenv("EXO_GPU_POLICY", "coolest")
    with lease() as best:
        assert best.device_id == "cuda:1"
    with lease(policy="balanced") as best:
        assert best.device_id == "cuda:0"
    with gpu.GPUExecutor() as executor:
        assert executor.devices[0].device_id == "cuda:1"


def test_declared_memory_is_counted_before_it_is_taken(two_fakes):
    """Eight GiB a card: 6 + 6 fill both, and 3 more are refused although nothing is in use."""
    with lease(memory="6GiB") as first, lease(memory="6GiB") as second:
        assert first.device_id != second.device_id
        with pytest.raises(NotNow, match=r"2\.0 GiB"), lease(memory="3GiB"):
            pass
        with lease(memory="2GiB") as third:
            assert third.device_id in {first.device_id, second.device_id}


def test_an_exclusive_lease_is_alone(two_fakes):
    with lease(exclusive=True, devices="cuda:0"):
        with pytest.raises(NotNow, match="wholly leased"), lease(memory="1GiB", devices="cuda:0"):
            pass
        with lease(memory="1GiB") as other:
            assert other.device_id == "cuda:1"
            with pytest.raises(NotNow, match="alone"), lease(exclusive=True, devices="cuda:1"):
                pass


def test_never_differs_from_not_now(two_fakes):
    with pytest.raises(NeverAvailable, match=r"8\.0 GiB"), lease(memory="9GiB"):
        pass
    with pytest.raises(NeverAvailable, match="cuda:7"), lease(devices="cuda:7"):
        pass
    with pytest.raises(InvalidValue, match="banana"), lease(memory="banana"):
        pass


def test_a_child_of_the_holder_can_be_pinned(two_fakes):
    with lease(devices="cuda:1") as device_, LocalNode() as node:
        environ = device_.environment()
        assert environ["EXO_GPU_FAKE_VISIBLE"] == "FAKE-cuda:1"
        code = "import exo.gpu as gpu; print(gpu.current_device().device_id)"
        done = subprocess.run(
            [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True
        )
        assert done.stdout == "cuda:1\n"
        (state,) = [state for state in node.snapshot().devices if state.leases]
        assert state.device.device_id == "cuda:1"


def test_a_node_can_be_shared(two_fakes):
    with LocalNode() as node:
        with lease(node=node) as first:
            decision, snapshot = decide(Request(), node=node)
            assert decision.chosen != (first.device_id,)
            assert sum(len(state.leases) for state in snapshot.devices) == 1
        assert sum(len(state.leases) for state in node.snapshot().devices) == 0


def test_deciding_takes_nothing(two_fakes):
    assert decide(Request())[0].chosen == decide(Request())[0].chosen == ("cuda:0",)


def test_a_command_runs_pinned_and_its_status_comes_back(two_fakes, tmp_path):
    started = []
    script = f"echo $EXO_GPU_FAKE_VISIBLE > {tmp_path}/seen; exit 9"
    end = run_command(
        ["/bin/sh", "-c", script], Request(), listeners=Listeners(on_start=started.append)
    )
    assert end.status == 9
    assert started[0].chosen == ("cuda:0",)
    assert (tmp_path / "seen").read_text() == "FAKE-cuda:0\n"
    assert run_command(["/bin/sh", "-c", "kill -TERM $$"], Request()).status == 143


def test_a_gang_gets_all_its_devices_or_none(two_fakes, tmp_path):
    script = f"echo $EXO_GPU_FAKE_VISIBLE > {tmp_path}/seen"
    assert run_command(["/bin/sh", "-c", script], Request(count=2)).status == 0
    assert (tmp_path / "seen").read_text() == "FAKE-cuda:0,FAKE-cuda:1\n"
    with lease(), pytest.raises(NotNow):
        run_command(["true"], Request(count=2))
    with pytest.raises(NeverAvailable):
        run_command(["true"], Request(count=3))


def test_a_command_without_a_device_is_not_started(two_fakes, tmp_path):
    with pytest.raises(NeverAvailable):
        run_command(["touch", str(tmp_path / "ran")], Request(memory_bytes=99 * GIB))
    assert not (tmp_path / "ran").exists()


def test_an_inherited_restriction_is_the_universe(two_fakes, monkeypatch):
    monkeypatch.setenv("EXO_GPU_FAKE_VISIBLE", "FAKE-cuda:1")
    with lease() as device_:
        assert device_.device_id == "cuda:1"
        with pytest.raises(NotNow), lease():
            pass
    with pytest.raises(NeverAvailable), lease(devices="cuda:0"):
        pass


def test_a_device_that_cannot_be_read_is_refused_with_the_reason(use_box):
    use_box(
        device("cuda:0", "NVIDIA", "cuda", fail="GPU is lost"),
        device("cuda:1", "NVIDIA", "cuda"),
        host(),
    )
    decision, _ = decide(Request())
    assert decision.chosen == ("cuda:1",)
    (refusal,) = [one for one in decision.refusals if one.device_id == "cuda:0"]
    assert "GPU is lost" in refusal.reason


def test_three_lines_of_python(two_fakes):
    with gpu.lease(memory="8GiB") as device_:
        assert device_.device_id == "cuda:0"
    assert gpu.map(abs, [-1, -2], memory="2GiB") == [1, 2]
    assert os.environ.get("EXO_GPU_DEVICE") is None


def test_an_unknown_device_has_no_environment(two_fakes):
    with LocalNode() as node, pytest.raises((LookupError, BackendError), match="cuda:9"):
        node.environment(("cuda:9",))


def test_work_under_a_lease_may_use_what_was_leased_for_it(two_fakes, tmp_path):
    """`exo-gpu run python script.py`, where the script spreads its own work: its slot is its own."""
    script = "import exo.gpu as gpu; print(gpu.map(abs, [-1]), gpu.current_device().device_id)"
    nested = f"{sys.executable} -c '{script}' > {tmp_path}/out"
    with lease(devices="cuda:0"):
        assert run_command(["/bin/sh", "-c", nested], Request()).status == 0
    assert (tmp_path / "out").read_text() == "[1] cuda:1\n"
    assert run_command(["/bin/sh", "-c", nested], Request(exclusive=True)).status == 0
    assert (tmp_path / "out").read_text() == "[1] cuda:0\n"


def test_what_works_under_an_inner_lease_knows_the_outer_ones_too(two_fakes, tmp_path):
    script = "import os, exo.gpu as gpu; print(gpu.map(os.getenv, ['EXO_GPU_LEASES'])[0])"
    nested = f'{sys.executable} -c "{script}" > {tmp_path}/out'
    assert run_command(["/bin/sh", "-c", nested], Request()).status == 0
    assert len((tmp_path / "out").read_text().split(",")) == 2


def test_no_memory_is_no_request(two_fakes):
    with pytest.raises(InvalidValue, match="memory_bytes: 0"), lease(memory=0):
        pass


def test_every_wish_of_a_request_can_be_said_in_python():
    """Rule: what a request has, a lease takes, sizes as people write them and one name alone."""
    request = request_of(
        "2GiB",
        host_memory="1GiB",
        labels="big",
        vendors=["NVIDIA"],
        policy="pack",
        min_idle_percent=50,
        priority=3,
        interconnect="nvlink",
        count=2,
    )
    assert request == Request(
        memory_bytes=2 * GIB,
        host_memory_bytes=GIB,
        labels=("big",),
        vendors=("NVIDIA",),
        policy="pack",
        min_idle_percent=50,
        priority=3,
        interconnect="nvlink",
        count=2,
    )
    typed = {**Wishes.__annotations__, **GangWishes.__annotations__}
    known = {name for name in Request.__struct_fields__ if not name.endswith("_bytes")}
    assert {*typed} == known - {"node", "despite_cordon", "memory_basis"} | {"host_memory"}


@pytest.mark.parametrize(
    ("word", "near"), [("lables", "labels"), ("memory_bytes", "memory"), ("nod", "known: ")]
)
def test_an_unknown_wish_stops_with_the_near_spelling(two_fakes, word, near):
    with pytest.raises(TypeError, match=near), lease(**{word: "x"}):
        pass
    with pytest.raises(TypeError, match=near):
        gpu.map(str, [1], **{word: "x"})


def test_wishes_decide_which_device_is_leased(two_fakes):
    """Rule: a share is held of a device, and one that is ruled out is not taken."""
    with lease(share=0.5, without_devices="cuda:0") as first:
        assert first.device_id == "cuda:1"
        refused = pytest.raises(NotNow, match=r"share of 0\.5 free")
        with refused, lease(share=0.6, devices=["cuda:1"]):
            pass


def test_several_devices_are_leased_all_or_none(two_fakes):
    """Rule: the block holds the whole gang, and a child of it sees all of it."""
    with lease(count=2, holder="a gang") as best:
        assert [one.device_id for one in best.gang] == ["cuda:0", "cuda:1"]
        assert best.device_id == "cuda:0"
        ids = {one.hardware_id for one in best.gang}
        assert ids == {*best.environment()["EXO_GPU_FAKE_VISIBLE"].split(",")}
        with pytest.raises(NotNow, match="2 devices are asked for"), lease(count=2):
            pass
    with pytest.raises(TypeError, match="'count' is for several devices"):
        gpu.map(str, [1], count=2)
