"""The selector: best class, one runtime, all or nothing, and the same answer every time."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from exo.gpu.scheduling.selector import DeviceSelector, explain, select, select_many
from exo.gpu.vocabulary.decision import Decision
from exo.gpu.vocabulary.device import DeviceCapabilities, DeviceClass, DeviceType
from exo.gpu.vocabulary.metrics import GPUMetrics
from exo.gpu.vocabulary.request import Request
from exo.gpu.vocabulary.snapshot import Health
from tests.scheduling.states import GIB, lease, snapshot, state

SOFTWARE, HOST = DeviceClass.SOFTWARE, DeviceClass.HOST


def pick(*states, **asked):
    return select(snapshot(*states), Request(**asked))


def order(decision: Decision) -> list[str]:
    return [score.device_id for score in decision.ranking]


def left_out(decision: Decision) -> dict[str, str]:
    return {one.device_id: one.rule for one in decision.left_out}


def box():
    """An NVIDIA and an AMD card, a software driver and the host."""
    return (
        state("cuda:0", 24, 4),
        state("rocm:0", 16, 8),
        state("vulkan:0", 16, None, percent=None, celsius=None, device_class=SOFTWARE),
        state("cpu:0", 64, 1, slots=8),
    )


class TestClassAndRuntime:
    def test_only_the_best_class_and_runtime_work_by_default(self):
        decision = pick(*box())
        assert decision.chosen == ("cuda:0",)
        assert left_out(decision) == {"rocm:0": "runtime", "vulkan:0": "class", "cpu:0": "class"}

    def test_what_is_left_out_says_how_to_ask_for_it(self):
        reasons = {one.device_id: one.reason for one in pick(*box()).left_out}
        assert reasons["rocm:0"] == (
            "belongs to runtime rocm, while the best that can serve, cuda:0, is cuda; "
            "ask for runtime rocm, for device rocm:0, or for all devices"
        )
        assert reasons["cpu:0"] == (
            "is of class host, while the best that can serve, cuda:0, is hardware; "
            "ask for device cpu:0, or for all devices"
        )

    def test_the_best_class_is_the_best_that_is_eligible(self):
        cards = [msgspec.structs.replace(one, health=Health.LOST) for one in box()[:2]]
        decision = pick(*cards, *box()[2:])
        assert decision.chosen == ("vulkan:0",)
        assert left_out(decision) == {"cpu:0": "class"}

    def test_all_devices_takes_every_class_and_runtime_best_class_first(self):
        decision = pick(*box(), all_devices=True, count=4)
        assert decision.chosen == ("cuda:0", "rocm:0", "vulkan:0", "cpu:0")
        assert decision.left_out == ()

    def test_a_named_runtime_still_keeps_to_the_best_class(self):
        """Software never works beside hardware unless it is asked for."""
        hardware = state("vulkan:1", 8, 7, percent=99)
        decision = pick(*box(), hardware, runtime="vulkan")
        assert decision.chosen == ("vulkan:1",)
        assert left_out(decision) == {"vulkan:0": "class"}

    def test_a_better_class_that_is_only_taken_is_waited_for(self):
        """Work for a GPU does not land on the host because the GPU is busy for now."""
        nvidia, amd, *rest = box()
        taken = msgspec.structs.replace(nvidia, leases=(lease("cuda:0"),))
        decision = pick(taken, *rest)
        assert decision.chosen == ()
        assert not decision.never
        assert left_out(decision) == {"vulkan:0": "class", "cpu:0": "class"}
        assert pick(taken, *rest, device_class=DeviceClass.HOST).chosen == ("cpu:0",)
        assert pick(taken, *rest, all_devices=True).chosen == ("vulkan:0",)
        assert pick(taken, amd, *rest).chosen == ("rocm:0",)

    def test_a_class_too_small_for_the_gang_is_not_waited_for(self):
        nvidia, _, software, host = box()
        taken = msgspec.structs.replace(nvidia, leases=(lease("cuda:0"),))
        more = state("vulkan:1", 16, None, percent=None, celsius=None, device_class=SOFTWARE)
        assert pick(taken, software, more, host, count=2).chosen == ("vulkan:0", "vulkan:1")

    def test_a_named_class_still_keeps_to_one_runtime(self):
        decision = pick(*box(), device_class=DeviceClass.HARDWARE)
        assert decision.chosen == ("cuda:0",)
        assert left_out(decision) == {"rocm:0": "runtime"}

    def test_named_devices_may_be_of_any_class_and_runtime(self):
        decision = pick(*box(), devices=("cpu:0", "rocm:0"), count=2)
        assert decision.chosen == ("rocm:0", "cpu:0")

    def test_the_same_answer_for_two_cards_of_unlike_vendors(self):
        """D8: nothing takes CUDA for granted."""
        assert pick(state("cuda:0", 24, 20), state("rocm:0", 24, 2)).chosen == ("rocm:0",)


class TestSeveral:
    def test_several_are_all_or_nothing(self):
        decision = pick(state("cuda:0"), state("cuda:1", leases=(lease("cuda:1"),)), count=2)
        assert decision.chosen == ()
        assert not decision.never

    def test_the_first_runtime_that_has_enough_is_taken(self):
        cards = (state("cuda:0", 24, 1), state("rocm:0"), state("rocm:1"))
        decision = pick(*cards, count=2)
        assert decision.chosen == ("rocm:0", "rocm:1")
        assert left_out(decision) == {"cuda:0": "runtime"}

    def test_too_few_of_any_runtime_is_never(self):
        decision = pick(state("cuda:0"), state("rocm:0"), count=2)
        assert decision.never
        assert "hardware cuda 1, hardware rocm 1" in decision.never_reason
        assert "all devices" in decision.never_reason

    def test_too_few_together_is_never_without_that_advice(self):
        decision = pick(state("cuda:0"), state("rocm:0"), count=3)
        assert decision.never
        assert "all devices" not in decision.never_reason

    def test_enough_of_one_runtime_later_is_not_now(self):
        busy = state("rocm:1", leases=(lease("rocm:1"),))
        decision = pick(state("cuda:0"), state("rocm:0"), busy, count=2)
        assert not decision.chosen
        assert not decision.never

    def test_a_busy_one_of_another_runtime_makes_no_hope(self):
        busy = state("rocm:0", leases=(lease("rocm:0"),))
        assert pick(state("cuda:0"), busy, count=2).never


class TestOrder:
    def test_a_busy_device_is_taken_when_nothing_better_is_left(self):
        """D13: score 0 is no refusal."""
        full = state("cuda:0", 24, 24, percent=100)
        decision = pick(full)
        assert decision.chosen == ("cuda:0",)
        assert decision.ranking[0].total == 0

    def test_never_sampled_comes_behind_every_sampled_one(self):
        decision = pick(state("cuda:0", 48, sampled=False), state("cuda:1", 24, 24, percent=100))
        assert order(decision) == ["cuda:1", "cuda:0"]
        assert any("no sample yet" in note for note in decision.ranking[1].notes)

    def test_asleep_comes_behind_awake_and_before_never_sampled(self):
        decision = pick(
            state("cuda:2", sampled=False),
            state("cuda:0", sleeping=True, health=Health.SLEEPING),
            state("cuda:1", 24, 24, percent=100),
        )
        assert order(decision) == ["cuda:1", "cuda:0", "cuda:2"]
        assert any("asleep" in note for note in decision.ranking[1].notes)

    def test_degraded_comes_behind_sound_and_says_why(self):
        weak = state("cuda:0", 24, 0, health=Health.DEGRADED, why="row remapping pending")
        decision = pick(weak, state("cuda:1", 24, 20))
        assert order(decision) == ["cuda:1", "cuda:0"]
        assert "row remapping pending" in decision.ranking[1].notes
        nameless = state("cuda:0", health=Health.DEGRADED)
        assert any("degraded" in note for note in pick(nameless).ranking[0].notes)

    def test_equal_scores_break_by_free_memory(self):
        assert order(pick(state("cuda:0", 24, 12), state("cuda:1", 48, 24))) == ["cuda:1", "cuda:0"]

    def test_before_that_they_break_by_measured_speed(self):
        """What a probe measured counts more than free memory, and less than the score."""
        slow = msgspec.structs.replace(state("cuda:0", 48, 24), measured_gflops=100.0)
        fast = msgspec.structs.replace(state("cuda:1", 24, 12), measured_gflops=2000.0)
        never = state("cuda:2", 80, 40)
        decision = pick(slow, fast, never)
        assert order(decision) == ["cuda:1", "cuda:0", "cuda:2"]
        assert "measured at 2,000 GFLOP/s: breaks ties" in decision.ranking[0].notes
        assert not any("measured" in note for note in decision.ranking[2].notes)
        better = state("cuda:3", 24, 2)
        assert order(pick(fast, better)) == ["cuda:3", "cuda:1"]

    def test_then_by_identity_with_numbers_as_numbers(self):
        cards = [state(f"vulkan:{index}") for index in (10, 2, 1)]
        assert order(pick(*cards)) == ["vulkan:1", "vulkan:2", "vulkan:10"]

    def test_two_nodes_may_have_the_same_card_name(self):
        """D9: devices are told apart by their qualified id."""
        cards = (state("cuda:0", node="rig1"), state("rig2/cuda:0", node="rig2"))
        assert pick(*cards, count=2).chosen == ("cuda:0", "rig2/cuda:0")

    def test_a_lease_lowers_the_score_before_its_memory_is_taken(self):
        """D14: what is promised does not look free, so the next request goes elsewhere."""
        leased = state("cuda:0", 24, 1, leases=(lease(held=12, before=1),))
        decision = pick(leased, state("cuda:1", 24, 2), memory_bytes=GIB)
        assert order(decision) == ["cuda:1", "cuda:0"]

    def test_the_answer_carries_request_and_version(self):
        request = Request(memory_bytes=GIB)
        decision = select(snapshot(state("cuda:0"), version=7), request)
        assert (decision.request, decision.table_version) == (request, 7)


def test_an_unknown_name_leads_the_refusals():
    decision = pick(state("cuda:0"), devices=("cuda:9",))
    assert decision.never
    assert [one.device_id for one in decision.refusals] == ["cuda:9", "cuda:0"]


def test_no_device_is_never():
    assert pick().never


healths = st.sampled_from(list(Health))
cards = st.builds(
    lambda name, used, percent, sampled, age, health, leased: state(
        name,
        24,
        used,
        percent=percent,
        sampled=sampled,
        age=age,
        health=health,
        leases=(lease(name, 4, before=0),) if leased else (),
        device_class=SOFTWARE if name.startswith("vulkan") else DeviceClass.HARDWARE,
    ),
    st.sampled_from(
        [f"{kind}:{index}" for kind in ("cuda", "rocm", "vulkan", "cpu") for index in range(3)]
    ),
    st.none() | st.integers(0, 24),
    st.none() | st.floats(0, 100),
    st.booleans(),
    st.floats(0, 60),
    healths,
    st.booleans(),
)
tables = st.lists(cards, max_size=8, unique_by=lambda one: one.device.device_id)
requests = st.builds(
    Request,
    memory_bytes=st.none() | st.integers(1, 30).map(lambda gib: gib * GIB),
    count=st.integers(1, 3),
    exclusive=st.booleans(),
    runtime=st.none() | st.sampled_from(["cuda", "rocm", "vulkan"]),
)


@given(tables, requests)
def test_every_device_is_accounted_for_and_nothing_unfit_is_chosen(states, request):
    decision = select(snapshot(*states), request)
    known = {one.device.device_id: one for one in states}
    ranked, refused = order(decision), [one.device_id for one in decision.refusals]
    assert sorted([*ranked, *refused]) == sorted(known)
    assert len(decision.chosen) in {0, request.count}
    assert not set(decision.chosen) & set(left_out(decision))
    for device_id in decision.chosen:
        chosen = known[device_id]
        assert chosen.health not in {Health.FAILED, Health.LOST}
        assert chosen.sample is None or chosen.sample_age_seconds <= 30
        assert not (request.exclusive and chosen.leases)
    runtimes = {known[one].device.runtime for one in decision.chosen}
    classes = {known[one].device.device_class for one in decision.chosen}
    assert len(runtimes) <= 1
    assert request.runtime or len(classes) <= 1


@given(tables, requests)
def test_the_order_of_registration_does_not_matter(states, request):
    answers = {
        (select(snapshot(*some), request).chosen, select(snapshot(*some), request).never)
        for some in itertools.islice(itertools.permutations(states), 6)
    }
    assert len(answers) == 1


@given(tables, requests)
def test_never_is_true_only_when_no_wait_helps(states, request):
    """With every passing trouble gone, a request is answered unless it was answered "never"."""
    decision = select(snapshot(*states), request)
    recovered = [
        msgspec.structs.replace(
            state(one.device.device_id, 24, 0, device_class=one.device.device_class),
            device=one.device,
        )
        for one in states
    ]
    assert decision.never == (not select(snapshot(*recovered), request).chosen)


speeds = st.none() | st.sampled_from([0.0, 10.0, 500.0])


@given(tables, requests, st.lists(speeds, min_size=8, max_size=8))
def test_measured_speed_decides_between_equals_only(states, request, figures):
    """Who may serve, and every score, are as without; within one score the faster comes first."""
    measured = [
        msgspec.structs.replace(one, measured_gflops=figure)
        for one, figure in zip(states, figures, strict=False)
    ]
    plain, decision = select(snapshot(*states), request), select(snapshot(*measured), request)
    # Of equals with one memory behind them, the slower one is the one that finds no room beside.
    assume(not any("shares its memory" in one.reason for one in plain.refusals))
    assert decision.refusals == plain.refusals
    assert sorted(order(decision)) == sorted(order(plain))
    assert [one.total for one in decision.ranking] == [one.total for one in plain.ranking]
    speed = {one.device.device_id: one.measured_gflops or 0.0 for one in measured}
    known = {one.device.device_id: one for one in measured}
    for first, second in itertools.pairwise(decision.ranking):
        one, other = known[first.device_id], known[second.device_id]
        same = (one.device.device_class, one.health, one.sample is None) == (
            other.device.device_class,
            other.health,
            other.sample is None,
        )
        if same and first.total == second.total:
            assert speed[first.device_id] >= speed[second.device_id]


class TestMany:
    def test_each_sees_what_the_earlier_ones_took(self):
        table = snapshot(state("cuda:0", 24, 0), state("cuda:1", 24, 2))
        asked = [Request(memory_bytes=14 * GIB, holder=name) for name in ("one", "two", "three")]
        first, second, third = select_many(table, asked)
        assert (first.decision.chosen, second.decision.chosen) == (("cuda:0",), ("cuda:1",))
        assert not third.decision.chosen
        assert not third.decision.never
        (lease_,) = first.taken
        assert (lease_.device_id, lease_.memory_bytes, lease_.holder) == ("cuda:0", 14 * GIB, "one")
        assert third.taken == ()

    def test_a_gang_takes_every_device_and_its_machine_once(self):
        table = snapshot(state("cuda:0"), state("cuda:1"), state("cpu:0", 64, 0, slots=8))
        asked = Request(count=2, exclusive=True, host_cpus=6, host_memory_bytes=GIB)
        gang, refused = select_many(table, [asked, Request(count=2, runtime="cuda")])
        assert [one.device_id for one in gang.taken] == ["cuda:0", "cuda:1"]
        assert [one.host_cpus for one in gang.taken] == [6, None]
        assert all(one.exclusive for one in gang.taken)
        assert not refused.decision.chosen


def test_every_rule_that_objects_is_told():
    """Rule: the first decides, the others are told with it."""
    one = state("cuda:0", 24, 20, percent=90, leases=(lease(exclusive=True),))
    table = snapshot(one)
    decision = select(table, Request(memory_bytes=8 * GIB, min_idle_percent=50))
    (refusal,) = decision.refusals
    assert refusal.rule == "exclusive"
    assert [text.split()[0] for text in refusal.also] == ["has", "is"]
    assert "; also has 4.0 GiB free" in " ".join(explain(decision, table).split())


class TestDeviceSelector:
    @pytest.fixture
    def devices(self):
        def one(device_id, used, percent):
            metrics = GPUMetrics(
                device_id, 1.0, used * 10**9, 24 * 10**9, percent, 150.0, 65.0, 2500
            )
            facts = DeviceCapabilities(
                device_id, DeviceType.CUDA, "RTX 4090", "nvidia", 128, 936.0, 24 * 10**9, "550.0"
            )
            return metrics, facts

        return {"cuda:0": one("cuda:0", 8, 50.0), "cuda:1": one("cuda:1", 20, 80.0)}

    def test_it_ranks_and_picks(self, devices):
        selector = DeviceSelector(devices)
        assert [one for one, _ in selector.rank_devices()] == ["cuda:0", "cuda:1"]
        assert selector.select_best_device() == "cuda:0"
        assert selector.select_best_device(min_memory_bytes=16 * 10**9) == "cuda:0"
        assert selector.select_best_device(17 * 10**9) is None

    def test_it_keeps_the_devices_as_they_were(self, devices):
        selector = DeviceSelector(devices)
        devices.clear()
        assert selector.select_best_device() == "cuda:0"
