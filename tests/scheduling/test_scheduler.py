"""Pull-based dispatch: nothing lost, nothing twice, a fast slot takes more."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from exo.gpu.scheduling.scheduler import UNKNOWN, PullScheduler

MAX_ATTEMPTS = 3


class Dispatch(RuleBasedStateMachine):
    """Slots come and go, finish and die at random; every item ends exactly once."""

    @initialize(items=st.integers(0, 60))
    def start(self, items):
        self.scheduler = PullScheduler(max_attempts=MAX_ATTEMPTS)
        self.total = items
        self.fresh = list(range(items))
        self.ended: list[int] = []
        self.given_up: list[int] = []
        self.waiting: list[int] = []
        self.working: dict[int, list[int]] = {}
        self.next_slot = 0

    @rule()
    def open_slot(self):
        if len(self.working) < 4:
            self.scheduler.open_slot(self.next_slot)
            self.working[self.next_slot] = []
            self.next_slot += 1

    @rule(data=st.data())
    @precondition(lambda self: any(not items for items in self.working.values()))
    def take(self, data):
        slot = data.draw(st.sampled_from([s for s, items in self.working.items() if not items]))
        take = self.scheduler.take(slot, len(self.fresh))
        assert not (take.items and take.fresh)
        assert take.fresh <= len(self.fresh)
        assert take.items or take.fresh or not (self.fresh or self.waiting)
        for item in take.items:
            assert len(take.items) == 1
            self.waiting.remove(item)
        self.working[slot] = [*take.items, *self.fresh[: take.fresh]]
        del self.fresh[: take.fresh]

    @rule(data=st.data(), seconds=st.floats(0, 10))
    @precondition(lambda self: any(self.working.values()))
    def finish(self, data, seconds):
        slot = data.draw(st.sampled_from([s for s, items in self.working.items() if items]))
        items, self.working[slot] = self.working[slot], []
        self.scheduler.finished(slot, len(items), seconds)
        self.ended += items

    @rule(data=st.data())
    @precondition(lambda self: any(self.working.values()))
    def die(self, data):
        """Of what was not reported, somebody judges which go again, each alone."""
        slot = data.draw(st.sampled_from([s for s, items in self.working.items() if items]))
        reported = data.draw(st.integers(0, len(self.working[slot]) - 1))
        items, self.working[slot] = self.working[slot], []
        self.ended += items[:reported]
        again = [item for item in items[reported:] if data.draw(st.booleans())]
        self.given_up += [item for item in items[reported:] if item not in again]
        self.scheduler.give_back(tuple(again))
        self.waiting += again

    @rule()
    def take_over(self):
        """What waits behind the first item of the slot with the most to do is fresh again."""
        left = {slot: len(items) for slot, items in self.working.items()}
        victim = self.scheduler.victim(left)
        if victim is None:
            assert all(count < 2 for count in left.values())
            return
        assert left[victim] == max(left.values())
        items = self.working[victim]
        self.fresh = items[1:] + self.fresh
        self.working[victim] = items[:1]

    @rule(data=st.data(), left=st.integers(1, 100))
    @precondition(lambda self: self.working)
    def look_ahead(self, data, left):
        slot = data.draw(st.sampled_from(list(self.working)))
        ahead = self.scheduler.is_nearly_done(slot, left)
        assert not (ahead and self.waiting)

    @rule(data=st.data())
    @precondition(lambda self: len(self.working) > 1)
    def give_up_slot(self, data):
        slot = data.draw(st.sampled_from(list(self.working)))
        items = self.working.pop(slot)
        self.scheduler.close_slot(slot)
        self.scheduler.give_back(tuple(items))
        self.waiting += items

    @invariant()
    def nothing_lost_nothing_twice(self):
        if hasattr(self, "total"):
            busy = [item for items in self.working.values() for item in items]
            everything = self.fresh + self.ended + self.given_up + self.waiting + busy
            assert sorted(everything) == list(range(self.total))


TestDispatch = Dispatch.TestCase


def simulate(seconds_per_item: list[float], items: int) -> tuple[float, Counter[int]]:
    """The makespan of a pull over slots of these speeds, in virtual time."""
    scheduler = PullScheduler()
    free_at = dict.fromkeys(range(len(seconds_per_item)), 0.0)
    for slot in free_at:
        scheduler.open_slot(slot)
    done: Counter[int] = Counter()
    while items:
        slot = min(free_at, key=free_at.__getitem__)
        chunk = scheduler.take(slot, items).fresh
        seconds = chunk * seconds_per_item[slot]
        scheduler.finished(slot, chunk, seconds)
        items -= chunk
        done[slot] += chunk
        free_at[slot] += seconds
    return max(free_at.values()), done


@given(speeds=st.lists(st.floats(0.001, 0.2), min_size=1, max_size=5), items=st.integers(1, 2000))
def test_the_last_chunk_never_costs_much(speeds, items):
    """The makespan stays within a chunk, and one item of the slowest, of the perfect one."""
    makespan, done = simulate(speeds, items)
    assert sum(done.values()) == items
    perfect = items / sum(1 / seconds for seconds in speeds)
    assert makespan <= perfect + 0.1 + 2 * max(speeds)


def test_a_fast_slot_does_more():
    _, done = simulate([0.001, 0.004], 10_000)
    assert 3.5 < done[0] / done[1] < 4.5


def test_an_unknown_slot_starts_with_one_item():
    scheduler = PullScheduler()
    scheduler.open_slot(1)
    assert scheduler.take(1, 1000).fresh == 1


def test_instant_items_are_taken_in_growing_chunks():
    scheduler = PullScheduler()
    scheduler.open_slot(1)
    sizes = []
    for _ in range(8):
        sizes.append(scheduler.take(1, 10**9).fresh)
        scheduler.finished(1, sizes[-1], 0.0)
    assert sizes == [1, 2, 4, 8, 16, 32, 64, 128]


def test_what_a_closed_slot_reports_late_is_ignored():
    scheduler = PullScheduler()
    scheduler.open_slot(1)
    scheduler.close_slot(1)
    scheduler.finished(1, 3, 1.0)
    scheduler.open_slot(2)
    scheduler.finished(2, 0, 1.0)
    assert scheduler.take(2, 5).fresh == 1


def test_each_kind_of_work_has_a_speed_of_its_own():
    """A slot that did a thousand instant items takes one of the next function's, not a thousand."""
    scheduler = PullScheduler()
    scheduler.open_slot(1)
    for _ in range(10):
        scheduler.finished(1, scheduler.take(1, 10**6, "fast").fresh, 0.0001, "fast")
    assert scheduler.take(1, 10**6, "fast").fresh > 500
    assert scheduler.take(1, 10**6, "slow").fresh == 1
    scheduler.finished(1, 1, 5.0, "slow")
    assert scheduler.take(1, 10**6, "slow").fresh == 1
    assert scheduler.take(1, 10**6, "fast").fresh > 500


def test_the_next_chunk_comes_only_shortly_before_the_end_of_this_one():
    scheduler = PullScheduler()
    scheduler.open_slot(1)
    assert not scheduler.is_nearly_done(1, 1)
    scheduler.finished(1, 10, 0.1)
    assert scheduler.is_nearly_done(1, 2)
    assert not scheduler.is_nearly_done(1, 10)
    scheduler.give_back((7,))
    assert not scheduler.is_nearly_done(1, 2)
    assert not scheduler.is_nearly_done(2, 0)


def test_items_without_end_are_taken_by_time_alone():
    scheduler = PullScheduler()
    scheduler.open_slot(1)
    for _ in range(20):
        count = scheduler.take(1, UNKNOWN).fresh
        scheduler.finished(1, count, count * 0.001)
    assert count == 100
