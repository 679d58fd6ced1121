"""The fast selector: the plain definition's answers, whatever changed before and whatever is asked."""

from __future__ import annotations

from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exo.gpu.scheduling.columns import Sizes
from exo.gpu.scheduling.fast import FastSelector
from exo.gpu.scheduling.policies import POLICIES, Policy
from exo.gpu.scheduling.scorer import MemoryFree
from exo.gpu.scheduling.selector import select, select_many
from exo.gpu.vocabulary.decision import Refusal
from exo.gpu.vocabulary.device import HOST_POOL, DeviceClass
from exo.gpu.vocabulary.errors import UnknownName
from exo.gpu.vocabulary.health import Cordon
from exo.gpu.vocabulary.lease import Lease
from exo.gpu.vocabulary.links import Link, LinkKind
from exo.gpu.vocabulary.request import Request
from exo.gpu.vocabulary.settings import DeviceSettings
from exo.gpu.vocabulary.snapshot import DeviceState, Health
from tests.scheduling.states import GIB, bytes_of, lease, state

KINDS = {
    "cuda": DeviceClass.HARDWARE,
    "rocm": DeviceClass.HARDWARE,
    "vulkan": DeviceClass.SOFTWARE,
    "cpu": DeviceClass.HOST,
}
NODES = ("", "rig")
CORDON = Cordon(hardware_id="x", device_id="x", why="a fan", by="ann", since=1.0)


class Dice:
    """Random devices and requests of few distinct values, so that ties are the rule.

    Ties are where two definitions drift apart; and most devices are sound, and most wishes few,
    so that most requests find a device.
    """

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)
        # How many of the fields of a device or a request are out of the ordinary.
        self._oddity = self._random.choice([0.02, 0.1, 0.3])

    def one_of(self, *values: Any) -> Any:
        return self._random.choice(values)

    def rarely(self, *values: Any, usually: Any = None) -> Any:
        odd = self._random.random() < self._oddity
        return self._random.choice(values) if odd else usually

    def name(self) -> str:
        node = self.one_of(*NODES)
        # Hardware stands first in a box; a table of equal devices is common too.
        label = f"{self.one_of('cuda', 'cuda', 'rocm', *KINDS)}:{self._random.randrange(6)}"
        return f"{node}/{label}" if node else label

    def names(self) -> tuple[str, ...]:
        return tuple(self.name() for _ in range(self.one_of(1, 2, 3)))

    def lease(self, device_id: str, pool: str) -> Lease:
        held = self.one_of(None, 1, 4, 8)
        share = self.one_of(None, 0.2, 0.5) if held is None else None
        found = lease(
            device_id,
            held,
            before=self.one_of(None, 0, 2, 6),
            exclusive=self.rarely(True, usually=False),
            pool=pool,
        )
        return msgspec.structs.replace(found, share=share, host_memory_bytes=self.rarely(GIB))

    def device(self) -> DeviceState:
        device_id = self.name()
        node, _, label = device_id.rpartition("/")
        kind = label.partition(":")[0]
        total = self.rarely(None, 12, usually=24)
        pooled = kind in {"vulkan", "cpu"} or self.rarely(True)
        pool = HOST_POOL if pooled else device_id
        found = self.rarely(1, 2, usually=self.one_of(0, 0, 1))
        one = state(
            device_id,
            total,
            self.rarely(None, usually=self.one_of(0, 2, 6, 12)),
            percent=self.rarely(None, usually=self.one_of(0.0, 10.0, 50.0)),
            celsius=self.rarely(None, 91.5, usually=self.one_of(30.0, 79.0)),
            sampled=self.rarely(False, usually=True),
            sleeping=self.rarely(True, usually=False),
            age=self.one_of(0.0, 1.0, 20.0),
            health=self.rarely(*Health, usually=Health.OK),
            leases=tuple(self.lease(device_id, pool) for _ in range(found)),
            cordon=self.rarely(CORDON),
            device_class=KINDS[kind],
            node=node,
            memory_pool=pool,
            drives_display=self.one_of(None, None, True),
            compute_capability=self.one_of("8.6", "9.0", None),
            slots=self.one_of(1, 1, 2),
            settings=DeviceSettings(
                avoid=self.rarely(True, usually=False),
                weight=self.rarely(0.5, 2.0, usually=1.0),
                labels=self.one_of((), ("big",), ("quiet", "big")),
                reserve_bytes=self.rarely(GIB),
                max_share=self.rarely(0.5, 0.0, usually=1.0),
                slots=self.rarely(3),
            ),
        )
        return msgspec.structs.replace(
            one,
            measured_gflops=self.one_of(None, 0.0, 100.0, 5000.0),
            warm_keys=self.one_of((), (), ("llama",), ("llama", "qwen")),
        )

    def request(self) -> Request:
        fields = {
            "memory_bytes": bytes_of(self.one_of(None, 1, 4, 8, 16, 20)),
            "share": self.rarely(0.1, 0.5, 1.0),
            "exclusive": self.rarely(True, usually=False),
            "slots": self.rarely(1, 2, 3),
            "runtime": self.rarely(*KINDS),
            "device_class": self.rarely(*DeviceClass),
            "min_compute_capability": self.rarely("8.6", "8.9"),
            "min_idle_percent": self.rarely(0.0, 40.0, 90.0),
            "max_temperature_celsius": self.rarely(50.0, 80.0),
            "node": self.rarely(*NODES, "other"),
            "vendors": self.rarely(("VENDOR",), ("other", "vendor"), usually=()),
            "backends": self.rarely(("cuda", "cpu"), usually=()),
            "labels": self.rarely(("big",), ("big", "quiet"), ("none",), usually=()),
            "without_labels": self.rarely(("quiet",), ("none",), usually=()),
            "prefer": self.rarely(self.names(), usually=()),
            "without_devices": self.rarely(self.names(), usually=()),
            "affinity_key": self.rarely("llama", "qwen", "none", usually=""),
            "policy": self.one_of("balanced", "balanced", *POLICIES),
            "host_memory_bytes": self.rarely(GIB),
            "host_cpus": self.rarely(1),
            "count": self.rarely(2, usually=1),
        }
        if self.one_of(True, False, False, False):
            fields |= {"all_devices": True, "runtime": None, "device_class": None}
        elif self.one_of(True, False, False, False):
            fields["devices"] = self.names()
        return Request(**fields)


# Blocks so short that every table has several, with columns; and as they are.
block_sizes = st.sampled_from([Sizes(plain=0, block=2), Sizes(plain=2, block=4), Sizes()])


def same(table: FastSelector, request: Request, now: float) -> bool:
    """Whether anything was chosen; that it is the same is asserted."""
    expected = select(table.snapshot(now=now), request).chosen
    assert table.choose(request, now=now).chosen == expected
    return bool(expected)


@settings(max_examples=150)
@given(st.integers(0, 2**32), st.integers(0, 40), block_sizes)
def test_it_answers_as_the_plain_definition_after_any_events(seed, size, sizes):
    """Rule: the same device or none, for random tables, constraints and sequences of updates."""
    dice, now = Dice(seed), 100.0
    table = FastSelector((dice.device() for _ in range(size)), now=now, sizes=sizes)
    for _ in range(25):
        what = dice.one_of("update", "update", "remove", "wait", "lease")
        if what == "update":
            table.update(dice.device(), now=now)
        elif what == "remove":
            table.remove(dice.name())
        elif what == "wait":
            now += dice.one_of(0.5, 8.0)
        else:
            table.choose_many([dice.request()], now=now)
        same(table, dice.request(), now)


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.integers(1, 30), block_sizes)
def test_a_batch_is_what_the_plain_definition_says_of_each_in_turn(seed, size, sizes):
    """Rule: each request sees what the earlier ones took, and what each took is told."""
    dice = Dice(seed)
    table = FastSelector((dice.device() for _ in range(size)), sizes=sizes)
    asked = [dice.request() for _ in range(8)]
    expected = select_many(table.snapshot(), asked)
    choices = table.choose_many(asked)
    assert [one.chosen for one in choices] == [one.decision.chosen for one in expected]
    assert [one.taken for one in choices] == [one.taken for one in expected]


def test_a_batch_of_many_over_a_few_devices_fills_them_and_no_more():
    """Rule: three of 8 GiB fit each of two cards of 24 GiB, and the seventh gets nothing."""
    table = FastSelector(state(f"cuda:{one}", 24, 0) for one in range(2))
    choices = table.choose_many([Request(memory_bytes=8 * GIB)] * 7)
    names = [name for choice in choices for name in choice.chosen]
    assert sorted(names) == ["cuda:0"] * 3 + ["cuda:1"] * 3
    assert choices[-1].chosen == choices[-1].taken == ()
    assert {taken.memory_bytes for choice in choices for taken in choice.taken} == {8 * GIB}


def test_memory_beyond_what_a_column_can_tell_apart_is_told_apart_by_the_row():
    """Rule: a column may let too much pass, and never too little; the row has the last word."""
    table = FastSelector(
        (state(f"cuda:{one}", 2**24 + one * 2**-30, 0) for one in range(4)),
        sizes=Sizes(plain=0, block=2),
    )
    for one in range(4):
        request = Request(memory_bytes=2**54 + one)
        assert table.choose(request).chosen == select(table.snapshot(), request).chosen


def test_a_large_table_answers_as_the_plain_definition():
    """Rule: the same with the blocks that a table of this size really has."""
    dice = Dice(7)
    table = FastSelector(
        state(f"cuda:{one}", dice.one_of(12, 24, 80), dice.one_of(0, 4, 8, 11), percent=one % 100)
        for one in range(700)
    )
    for one in range(40):
        table.update(state(f"cuda:{one * 13}", 80, one))
        asked = Request(memory_bytes=one * 2 * GIB + 1, min_idle_percent=one)
        assert table.choose(asked).chosen == select(table.snapshot(), asked).chosen


class TestTable:
    def test_the_version_moves_with_every_event(self):
        table = FastSelector([state("cuda:0")])
        first = table.choose(Request()).table_version
        table.update(state("cuda:0", 24, 20))
        table.remove("cuda:9")
        assert table.choose(Request()).table_version == first + 1
        table.remove("cuda:0")
        assert len(table) == 0
        assert table.choose(Request()).chosen == ()

    def test_a_device_with_other_facts_replaces_the_one_of_the_same_name(self):
        table = FastSelector([state("cuda:0", 24, 0), state("cuda:1", 12, 0)])
        assert table.choose(Request()).chosen == ("cuda:0",)
        table.update(state("cuda:0", 24, 0, device_class=DeviceClass.SOFTWARE))
        assert table.choose(Request()).chosen == ("cuda:1",)
        assert table.decide(Request()).chosen == ("cuda:1",)

    def test_a_decision_says_what_the_choice_leaves_out(self):
        table = FastSelector([state("cuda:0"), state("cuda:1", health=Health.LOST)])
        decision = table.decide(Request())
        assert decision.chosen == table.choose(Request()).chosen
        assert [one.rule for one in decision.refusals] == ["health"]

    def test_gangs_are_those_of_the_plain_definition(self):
        links = (Link(source="cuda:1", target="cuda:2", kind=LinkKind.NVLINK),)
        table = FastSelector((state(f"cuda:{one}", 24, one) for one in range(3)), links=links)
        assert table.choose(Request(count=2)).chosen == ("cuda:1", "cuda:2")

    def test_a_lease_under_which_the_asker_works_does_not_stand_in_its_way(self):
        one = state("cuda:0", leases=(lease("cuda:0"),))
        assert FastSelector([one]).choose(Request()).chosen == ()
        mine = FastSelector([one], umbrella=(one.leases[0].lease_id,))
        assert mine.choose(Request()).chosen == ("cuda:0",)


class TestPolicies:
    def refuse_all(self, one, table, request):
        return Refusal(device_id=one.device.device_id, rule="no", reason="no", permanent=True)

    def test_a_policy_of_ones_own_orders_the_table_too(self):
        mine = Policy(name="mine", terms=((MemoryFree(), 1.0),))
        table = FastSelector(
            [state("cuda:0", 24, 6, percent=0), state("cuda:1", 24, 2, percent=99)],
            policies={"mine": mine},
        )
        assert table.choose(Request()).chosen == ("cuda:0",)
        assert table.choose(Request(policy="mine")).chosen == ("cuda:1",)

    def test_filters_of_its_own_are_asked(self):
        strict = Policy(name="no", terms=((MemoryFree(), 1.0),), filters=(self.refuse_all,))
        table = FastSelector([state("cuda:0")], policies={"no": strict})
        assert table.choose(Request(policy="no")).chosen == ()

    def test_an_unknown_one_stops_with_the_near_spelling(self):
        with pytest.raises(UnknownName, match="did you mean 'spread'"):
            FastSelector().choose(Request(policy="spred"))
