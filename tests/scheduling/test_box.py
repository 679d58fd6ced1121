"""A box as people have them: no default mixes runtimes, or uses software or host beside hardware."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from exo.gpu.scheduling.fast import FastSelector
from exo.gpu.scheduling.policies import POLICIES
from exo.gpu.scheduling.selector import explain, select
from exo.gpu.vocabulary.device import HOST_POOL, DeviceClass
from exo.gpu.vocabulary.request import Request
from exo.gpu.vocabulary.snapshot import Snapshot
from tests.scheduling.states import GIB, lease, snapshot, state


def box(**changes):
    """RTX 4090, RTX 3060, RX 7900 XTX, an integrated GPU, llvmpipe and the processor."""
    found = {
        "cuda:0": state("cuda:0", 24, 2, name="RTX 4090"),
        "cuda:1": state("cuda:1", 12, 1, name="RTX 3060"),
        "rocm:0": state("rocm:0", 24, 6, name="RX 7900 XTX"),
        "vulkan:0": state("vulkan:0", 16, 6, name="Integrated", memory_pool=HOST_POOL),
        "vulkan:1": state("vulkan:1", 64, 0, name="llvmpipe", device_class=DeviceClass.SOFTWARE),
        "cpu:0": state("cpu:0", 64, 4, slots=16),
    }
    for device_id, change in changes.items():
        name = device_id.replace("_", ":")
        found[name] = change(found[name])
    return tuple(found.values())


def taken(one):
    name = one.device.device_id
    return msgspec.structs.replace(one, leases=(lease(name, exclusive=True),))


def with_display(one):
    device = msgspec.structs.replace(one.device, drives_display=True)
    return msgspec.structs.replace(one, device=device)


def test_by_default_one_runtime_of_hardware_works_and_the_rest_is_told():
    table = snapshot(*box())
    decision = select(table, Request())
    assert decision.chosen == ("cuda:0",)
    assert {one.device_id: one.rule for one in decision.left_out} == {
        "rocm:0": "runtime",
        "vulkan:0": "runtime",
        "vulkan:1": "class",
        "cpu:0": "class",
    }
    text = explain(decision, table)
    assert all(f"{one} [" in text for one in ("rocm:0", "vulkan:0", "vulkan:1", "cpu:0"))


@given(
    st.lists(st.sampled_from(["cuda_0", "cuda_1", "rocm_0", "vulkan_0"]), max_size=4, unique=True),
    st.integers(1, 4),
    st.sampled_from(list(POLICIES)),
    st.none() | st.integers(1, 30),
)
def test_no_default_mixes_runtimes_or_leaves_hardware_that_is_only_taken(names, count, policy, gib):
    """Rule: whatever is taken, wanted or weighed, one runtime; below hardware only if it cannot."""
    states = {one.device.device_id: one for one in box(**dict.fromkeys(names, taken))}
    request = Request(count=count, policy=policy, memory_bytes=gib and gib * GIB)
    chosen = select(Snapshot(tuple(states.values())), request).chosen
    devices = [states[one].device for one in chosen]
    assert len({device.runtime for device in devices}) <= 1
    assert len({device.device_class for device in devices}) <= 1
    hardware = [one.device for one in box() if one.device.device_class is DeviceClass.HARDWARE]
    could = [one for one in hardware if not gib or (one.memory_bytes or 0) >= gib * GIB]
    runtimes = [device.runtime for device in could]
    if any(runtimes.count(runtime) >= count for runtime in runtimes):
        assert all(device.device_class is DeviceClass.HARDWARE for device in devices)


def test_software_and_host_work_when_they_are_asked_for():
    decision = select(snapshot(*box(vulkan_0=taken)), Request(runtime="cpu"))
    assert decision.chosen == ("cpu:0",)
    software = Request(device_class=DeviceClass.SOFTWARE)
    assert select(snapshot(*box()), software).chosen == ("vulkan:1",)
    assert set(select(snapshot(*box()), Request(all_devices=True, count=6)).chosen) == {
        one.device.device_id for one in box()
    }


class TestDisplays:
    def test_a_display_card_is_ranked_last_of_its_runtime(self):
        table = snapshot(*box(cuda_0=with_display))
        decision = select(table, Request())
        assert decision.chosen == ("cuda:1",)
        order = [one.device_id for one in decision.ranking]
        assert order.index("cuda:1") < order.index("cuda:0")
        assert "drives a display: behind the others of its runtime" in explain(decision, table)

    def test_it_loses_nothing_to_another_runtime(self):
        """The only NVIDIA card stays before the integrated GPU, desktop or not."""
        lone = [one for one in box(cuda_0=with_display) if one.device.device_id != "cuda:1"]
        assert select(snapshot(*lone), Request()).chosen == ("cuda:0",)

    def test_it_serves_where_the_others_cannot(self):
        decision = select(snapshot(*box(cuda_0=with_display)), Request(memory_bytes=16 * GIB))
        assert decision.chosen == ("cuda:0",)

    def test_a_request_may_prefer_it(self):
        decision = select(snapshot(*box(cuda_0=with_display)), Request(prefer=("cuda:0",)))
        assert decision.chosen == ("cuda:0",)

    def test_room_for_the_desktop_is_kept(self):
        """The use by nobody's lease and 512 MiB are kept, whoever asks."""
        (card,) = [one for one in box(cuda_0=with_display) if one.device.device_id == "cuda:0"]
        assert select(snapshot(card), Request(memory_bytes=21 * GIB)).chosen == ("cuda:0",)
        decision = select(snapshot(card), Request(memory_bytes=22 * GIB))
        assert not decision.chosen
        assert not decision.never
        assert "2.5 GiB kept for others" in decision.refusals[0].reason

    def test_the_fast_selector_says_the_same(self):
        states = box(cuda_0=with_display, rocm_0=with_display)
        for asked in ({}, {"memory_bytes": 16 * GIB}, {"prefer": ("cuda:0",)}):
            request = Request(**asked)
            expected = select(snapshot(*states), request).chosen
            assert FastSelector(states).choose(request).chosen == expected
