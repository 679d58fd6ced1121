"""The line: in order, nobody for ever, and nobody delayed by one who came later."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from exo.gpu.scheduling.job_queue import (
    LOOK_AHEAD,
    PRIORITY_SECONDS,
    in_order,
    reserve,
    take_turn,
)
from exo.gpu.scheduling.selector import leases_of
from exo.gpu.vocabulary.device import GPUDevice
from exo.gpu.vocabulary.lease import Lease, Waiter
from exo.gpu.vocabulary.metrics import GPUMetrics
from exo.gpu.vocabulary.request import Request
from exo.gpu.vocabulary.snapshot import DeviceState, Health, Snapshot

GIB = 2**30
TOTAL = 24 * GIB


def card(index, leases=(), *, used=0, **more):
    device = GPUDevice(
        device_id=f"cuda:{index}",
        name="a card",
        vendor="NVIDIA",
        backend="cuda",
        runtime="cuda",
        hardware_id=f"GPU-{index}",
        memory_bytes=TOTAL,
        slots=2,
    )
    sample = GPUMetrics(
        device.device_id, timestamp=1.0, memory_used_bytes=used, memory_total_bytes=TOTAL
    )
    return DeviceState(
        device=device, sample=sample, sample_age_seconds=0.1, leases=tuple(leases), **more
    )


def lease(index, gib=None, *, name="old", at=0.0, exclusive=False, expected=None):
    return Lease(
        lease_id=name,
        device_id=f"cuda:{index}",
        hardware_id=f"GPU-{index}",
        memory_pool=f"GPU-{index}",
        memory_bytes=None if gib is None else gib * GIB,
        exclusive=exclusive,
        used_before_bytes=0,
        granted_seconds=at,
        expected_seconds=expected,
    )


def waiter(name, gib=None, *, at=1.0, number=0, **more):
    facts = {key: more.pop(key) for key in ("umbrella", "visible", "reserved") if key in more}
    since = more.pop("since", None)
    request = Request(memory_bytes=None if gib is None else gib * GIB, **more)
    return Waiter(
        waiter_id=name,
        request=request,
        arrived_seconds=at,
        number=number,
        reserved_seconds=since,
        **facts,
    )


def turn(line, asker, *cards, now=10.0):
    return take_turn(line, asker, Snapshot(tuple(cards)), now)


def test_without_a_line_it_is_the_plain_choice():
    assert turn([], waiter("me", 4), card(0)).decision.chosen == ("cuda:0",)


def test_who_came_first_is_served_first():
    """Rule: what the first one would take now is not there for the second."""
    first, second = waiter("first", exclusive=True), waiter("second", exclusive=True, at=2.0)
    assert turn([second, first], first, card(0)).decision.chosen == ("cuda:0",)
    answer = turn([second, first], second, card(0))
    assert answer.decision.chosen == ()
    assert answer.served_first == (first,)
    assert turn([second, first], second, card(0), card(1)).decision.chosen == ("cuda:1",)


def test_priority_is_worth_minutes_and_no_more():
    """Rule: a step of priority overtakes those of its minutes; who waited longer stays first."""
    early = waiter("early", at=0.0)
    soon = waiter("soon", at=PRIORITY_SECONDS - 1, priority=1)
    late = waiter("late", at=PRIORITY_SECONDS + 1, priority=1)
    assert in_order([early, late, soon]) == (soon, early, late)


def test_a_small_one_passes_a_big_one_that_it_does_not_delay():
    """Rule (backfill): 20 of 24 GiB are kept on a card that 10 hold; 4 more fit beside the 20."""
    head = waiter("head", 20)
    busy = card(0, [lease(0, 10)])
    answer = turn([head], waiter("small", 4, at=2.0), busy)
    assert answer.decision.chosen == ("cuda:0",)
    assert answer.head.reserved == ("cuda:0",)


def test_a_small_one_does_not_pass_where_it_would_delay_the_big_one():
    """Rule: 5 GiB would fit now, but not beside the 20 that the first one waits for."""
    head = waiter("head", 20)
    answer = turn([head], waiter("small", 5, at=2.0), card(0, [lease(0, 10)]))
    assert answer.decision.chosen == ()
    (refusal,) = answer.decision.refusals
    assert (refusal.rule, refusal.permanent) == ("line", False)
    assert "first in the line" in refusal.reason
    cards = (card(0, [lease(0, 10)]), card(1, [lease(1, 8)]))
    elsewhere = turn([head], waiter("small", 5, at=2.0), *cards)
    assert elsewhere.head.reserved == ("cuda:1",)
    assert elsewhere.decision.chosen == ("cuda:0",)


def test_passers_add_up():
    """Rule: what passed already stays, as far as anybody knows, and counts against the next one."""
    head = waiter("head", 20, reserved=("cuda:0",), since=5.0)
    once = card(0, [lease(0, 10), lease(0, 3, name="passer", at=6.0)])
    assert turn([head], waiter("small", 1, at=7.0), once).decision.chosen == ("cuda:0",)
    assert turn([head], waiter("small", 2, at=7.0), once).decision.chosen == ()


def test_who_ends_before_the_first_can_begin_passes():
    """Rule (EASY backfill): by what both said; who said nothing, or would be late, waits."""
    head = waiter("head", count=2, exclusive=True, at=0.0)
    cards = (card(0), card(1, [lease(1, exclusive=True, at=5.0, expected=3600.0)]))

    def chosen(*held, **asked):
        asker = waiter("passer", exclusive=True, at=1e6, **asked)
        return turn([head], asker, *(held or cards)).decision.chosen

    assert chosen(expected_seconds=3595.0) == ("cuda:0",)
    assert chosen(expected_seconds=3596.0) == ()
    assert chosen() == ()
    silent = (card(0), card(1, [lease(1, exclusive=True, at=5.0)]))
    late = (card(0), card(1, [lease(1, exclusive=True, at=5.0, expected=4.0)]))
    assert chosen(*silent, expected_seconds=1.0) == ()
    assert chosen(*late, expected_seconds=1.0) == ()


def test_what_is_kept_for_a_whole_card_is_kept_whole():
    head = waiter("head", exclusive=True)
    assert turn([head], waiter("small", 1, at=2.0), card(0, [lease(0, 1)])).decision.chosen == ()


def test_a_gang_holds_nothing_but_keeps_its_place():
    """Rule: two free of three that are needed are not held, and not taken by a later one for long."""
    gang = waiter("gang", count=2, exclusive=True)
    cards = (card(0), card(1, [lease(1)]), card(2, [lease(2), lease(2, name="b")]))
    answer = turn([gang], waiter("one", at=2.0), *cards)
    assert answer.head.reserved == ("cuda:0", "cuda:1")
    assert answer.decision.chosen == ()
    enough = turn([gang], waiter("one", at=2.0), *cards, card(3))
    assert enough.served_first == (gang,)
    assert enough.decision.chosen == ("cuda:1",), "a slot that the gang does not need"


def test_a_reservation_does_not_wander():
    """Rule: it stays on its device while others there come and go, until it cannot serve."""
    head = waiter("head", exclusive=True, reserved=("cuda:1",), since=5.0)
    busy = [lease(1), lease(1, name="b")]
    kept = reserve(Snapshot((card(0, [lease(0)]), card(1, busy))), head, 10.0)
    assert kept is head
    failed = card(1, busy, health=Health.FAILED)
    moved = reserve(Snapshot((card(0, [lease(0)]), failed)), head, 10.0)
    assert (moved.reserved, moved.reserved_seconds) == (("cuda:0",), 10.0)


def test_nothing_is_kept_where_the_end_of_every_lease_would_not_help():
    """Rule: somebody else's 20 GiB are in the way, whoever's leases end: others may pass."""
    head = waiter("head", 10)
    cards = [card(0, [lease(0, 1)], used=20 * GIB)]
    cards[0] = replace(cards[0], leases=(replace(cards[0].leases[0], used_before_bytes=20 * GIB),))
    answer = turn([head], waiter("small", 2, at=2.0), *cards)
    assert answer.head.reserved == ()
    assert answer.decision.chosen == ("cuda:0",)


def test_who_can_never_be_served_holds_up_nobody():
    lost = waiter("lost", 99)
    assert turn([lost], waiter("small", 1, at=2.0), card(0)).decision.chosen == ("cuda:0",)


def test_work_under_a_lease_uses_what_is_its_own_whoever_waits():
    """Rule: a program's own workers are not stopped by the line for its own device."""
    head = waiter("head", exclusive=True)
    own = card(0, [lease(0, name="mine")])
    snapshot = Snapshot((own,), umbrella=("mine",))
    asker = waiter("inner", at=2.0, umbrella=("mine",))
    assert take_turn([head], asker, snapshot, 10.0).decision.chosen == ("cuda:0",)


def test_a_waiter_that_sees_other_devices_is_judged_by_those():
    """Rule: an inherited restriction is a waiter's universe, also for those who look for it."""
    head = waiter("head", exclusive=True, visible=("GPU-1",))
    cards = (card(0), card(1, [lease(1)]))
    answer = turn([head], waiter("other", exclusive=True, at=2.0), *cards)
    assert answer.head.reserved == ("cuda:1",)
    assert answer.decision.chosen == ("cuda:0",)


def test_who_stands_far_back_is_told_so():
    line = [waiter(f"w{number}", 1, number=number) for number in range(LOOK_AHEAD + 1)]
    answer = turn(line, waiter("last", 1, at=2.0), *(card(index) for index in range(8)))
    assert answer.decision.chosen == ()
    assert "those ahead in the line" in answer.decision.refusals[-1].reason
    assert not answer.decision.never


def test_who_comes_after_one_for_whom_nothing_can_be_kept_is_protected_in_its_place():
    """Rule: a stranger's 20 GiB hold up the first; that lets nobody starve the second."""
    first = waiter("first", 10, devices=("cuda:0",))
    second = waiter("second", exclusive=True, devices=("cuda:1",), at=2.0)
    cards = (card(0, used=20 * GIB), card(1, [lease(1, 10)]))
    answer = turn([first, second], waiter("small", 1, at=3.0, devices=("cuda:1",)), *cards)
    assert (answer.head.waiter_id, answer.head.reserved) == ("second", ("cuda:1",))
    assert answer.decision.chosen == ()
    own = turn([first, second], second, *cards)
    assert (own.head.waiter_id, own.head.reserved) == ("second", ("cuda:1",))


def test_a_reservation_on_a_hidden_device_is_left_alone_by_who_does_not_see_it():
    """Rule: only the waiter itself can tell that a device is gone, and not just hidden."""
    head = waiter("head", exclusive=True, reserved=("cuda:1",), since=5.0)
    busy = card(0, [lease(0)])
    answer = turn([head], waiter("other", exclusive=True, at=2.0), busy)
    assert (answer.head.reserved, answer.head.reserved_seconds) == (("cuda:1",), 5.0)
    assert turn([head], head, busy).head.reserved == ("cuda:0",)


requests = st.fixed_dictionaries(
    {
        "gib": st.sampled_from([None, 1, 4, 10, 20, 24]),
        "exclusive": st.booleans(),
        "count": st.integers(1, 2),
        "priority": st.integers(-1, 2),
    }
)
events = st.lists(st.one_of(requests, st.integers(0, 30)), max_size=30)


class Machine:
    """Three cards and a line in virtual time: who comes, who is served, what ends."""

    def __init__(self):
        self.cards = [card(index) for index in range(3)]
        self.line = {}
        self.now = 0.0
        self.count = 0
        self.served = []

    def snapshot(self):
        return Snapshot(tuple(self.cards))

    def arrive(self, request):
        self.count += 1
        name = f"w{self.count}"
        self.line[name] = waiter(name, at=self.now, number=self.count, **request)

    def end(self, which):
        names = sorted({one.lease_id for state in self.cards for one in state.leases})
        if names:
            gone = names[which % len(names)]
            self.cards = [
                replace(one, leases=tuple(x for x in one.leases if x.lease_id != gone))
                for one in self.cards
            ]

    def serve(self, order):
        """Each who waits asks once, in that order of waking up; who was given what."""
        given = []
        for name in order(list(self.line)):
            one = self.line[name]
            answer = take_turn(self.line.values(), one, self.snapshot(), self.now)
            if answer.head is not None and answer.head.waiter_id in self.line:
                self.line[answer.head.waiter_id] = answer.head
            for device_id in answer.decision.chosen:
                self.grant(one, device_id)
            if answer.decision.chosen:
                del self.line[name]
                given.append(name)
        self.served += given
        return given

    def grant(self, one, device_id):
        taken = replace(
            leases_of(self.snapshot(), (device_id,), one.request)[0],
            lease_id=one.waiter_id,
            granted_seconds=self.now,
        )
        self.cards = [
            replace(state, leases=(*state.leases, taken))
            if state.device.device_id == device_id
            else state
            for state in self.cards
        ]

    def check(self):
        for state in self.cards:
            assert sum(one.memory_bytes or 0 for one in state.leases) <= TOTAL
            assert sum(one.memory_bytes is None for one in state.leases) <= 2
            if any(one.exclusive for one in state.leases):
                assert len(state.leases) == 1


@settings(max_examples=60, deadline=None)
@given(events, st.randoms(use_true_random=False))
def test_never_over_committed_and_everybody_is_served_in_the_end(happenings, lots):
    """Rule: whatever comes, ends and wakes up in whatever order, no card is overfull; and once
    nobody new comes and all leases end one by one, nobody is left in the line."""
    machine = Machine()

    def shuffled(names):
        lots.shuffle(names)
        return names

    for happening in happenings:
        machine.now += 1.0
        if isinstance(happening, int):
            machine.end(happening)
        else:
            machine.arrive(happening)
        machine.serve(shuffled)
        machine.check()
    for _ in range(4 * machine.count + 4):
        machine.now += 1.0
        machine.serve(shuffled)
        machine.end(0)
        machine.check()
    assert machine.line == {}
    assert len(machine.served) == machine.count


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(2, 30), st.randoms(use_true_random=False))
def test_alike_ones_are_served_in_the_order_in_which_they_came(count, rounds, lots):
    """Rule: among equal requests nobody overtakes, in whatever order they wake up."""
    machine = Machine()
    for _ in range(count):
        machine.arrive({"exclusive": True})

    def shuffled(names):
        lots.shuffle(names)
        return names

    for number in range(rounds):
        machine.now += 1.0
        if number % 3 == 0:
            machine.arrive({"exclusive": True})
        machine.serve(shuffled)
        machine.end(lots.randrange(10))
    groups = [int(name[1:]) for name in machine.served]
    assert all(later - earlier > -3 for earlier, later in pairwise(groups))
    served = set(groups)
    assert served == set(range(1, len(served) + 1)), "nobody was passed over"


@settings(max_examples=40, deadline=None)
@given(st.lists(requests, max_size=12), st.integers(0, 5))
def test_a_big_one_is_served_although_small_ones_never_cease(smalls, which):
    """Rule (no starvation): with a stream of small ones, the big one waits for those that were
    there before its reservation, and for no others."""
    machine = Machine()
    for index in range(3):
        machine.cards[index] = card(index, [lease(index, 10, name=f"old{index}")])
    machine.arrive({"gib": 24})
    for number in range(40):
        machine.now += 1.0
        small = smalls[number % len(smalls)] if smalls else {"gib": 1}
        machine.arrive(small | {"count": 1, "priority": 0})
        machine.serve(list)
        if "w1" not in machine.line:
            return
        if number >= 5 + which:
            kept = machine.line["w1"].reserved
            assert kept
            old = f"old{kept[0][-1]}"
            machine.cards = [
                replace(one, leases=tuple(x for x in one.leases if x.lease_id != old))
                for one in machine.cards
            ]
    raise AssertionError("the big one was never served")


@given(st.lists(requests, max_size=6), requests)
@settings(max_examples=40, deadline=None)
def test_the_same_line_gives_the_same_answer(waiting, asked):
    """Rule: neither the order in which the line is given nor a second look changes anything."""
    line = [waiter(f"w{n}", at=float(n), number=n, **one) for n, one in enumerate(waiting)]
    asker = waiter("me", at=50.0, number=99, **asked)
    cards = (card(0, [lease(0, 10)]), card(1), card(2, [lease(2, exclusive=True)]))
    first = turn(line, asker, *cards)
    assert turn(line[::-1], asker, *cards) == first
    assert in_order(line[::-1]) == in_order(line)
