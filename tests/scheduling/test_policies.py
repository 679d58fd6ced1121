"""Policies: presets of named terms, what a person set, and what other packages bring."""

from __future__ import annotations

import msgspec
import pytest

from exo.gpu.scheduling.policies import POLICIES, Policy, policy_named
from exo.gpu.scheduling.scorer import Facts, MemoryFree
from exo.gpu.scheduling.selector import explain, rank, select
from exo.gpu.vocabulary.decision import Refusal
from exo.gpu.vocabulary.errors import UnknownName
from exo.gpu.vocabulary.request import Request
from exo.gpu.vocabulary.settings import DeviceSettings
from tests.scheduling.states import GIB, lease, snapshot, state


def measured(one, gflops, **readings):
    sample = msgspec.structs.replace(one.sample, **readings)
    return msgspec.structs.replace(one, measured_gflops=gflops, sample=sample)


def order(*states, **asked):
    return [score.device_id for score in rank(snapshot(*states), Request(**asked))]


class TestPresets:
    def test_fastest_goes_by_measured_speed_and_the_unmeasured_come_last(self):
        cards = [state("cuda:0"), measured(state("cuda:1", 24, 20), 100.0)]
        cards.append(measured(state("cuda:2", 24, 23), 9000.0))
        assert order(*cards, policy="fastest") == ["cuda:2", "cuda:1", "cuda:0"]
        text = explain(select(snapshot(*cards), Request(policy="fastest")), snapshot(*cards))
        assert "measured at 9,000 GFLOP/s" in text
        assert "speed not measured, see 'exo-gpu probe'" in text

    def test_coolest_goes_by_temperature(self):
        cards = [state("cuda:0", celsius=70), state("cuda:1", celsius=None)]
        cards.append(state("cuda:2", 24, 20, celsius=40))
        assert order(*cards, policy="coolest") == ["cuda:2", "cuda:0", "cuda:1"]

    def test_pack_fits_tightest_and_keeps_big_devices_free(self):
        cards = [state("cuda:0", 80, 0), state("cuda:1", 24, 0), state("cuda:2", 24, 20)]
        assert order(*cards, policy="pack") == ["cuda:2", "cuda:1", "cuda:0"]
        assert order(*cards, policy="pack", memory_bytes=8 * GIB) == ["cuda:1", "cuda:0"]

    def test_spread_goes_where_the_fewest_leases_are(self):
        busy = state("cuda:0", 80, 0, leases=(lease(held=1),))
        assert order(busy, state("cuda:1", 24, 12), policy="spread", memory_bytes=1) == [
            "cuda:1",
            "cuda:0",
        ]

    def test_efficient_goes_by_work_per_watt_of_the_limit_or_else_the_draw(self):
        cards = [
            measured(state("cuda:0"), 40_000.0, power_limit_watts=450.0),
            measured(state("cuda:1"), 9000.0, power_watts=70.0),
            measured(state("cuda:2"), 90_000.0, power_watts=None),
            state("cuda:3"),
        ]
        assert order(*cards, policy="efficient")[:2] == ["cuda:1", "cuda:0"]
        table = snapshot(*cards)
        text = explain(select(table, Request(policy="efficient")), table)
        assert "88.9 GFLOP/s a watt of its power limit" in text
        assert "work per watt not known, power not reported" in text
        assert "work per watt not known, speed not measured" in text

    @pytest.mark.parametrize("name", list(POLICIES))
    def test_every_preset_answers_for_devices_of_which_nothing_is_known(self, name):
        silent = state("cuda:0", None, None, percent=None, celsius=None)
        asleep, unsampled = state("cuda:1", sleeping=True), state("cuda:2", sampled=False)
        assert sorted(order(silent, asleep, unsampled, policy=name)) == [
            "cuda:0",
            "cuda:1",
            "cuda:2",
        ]

    def test_an_unknown_name_stops_with_the_near_spelling(self):
        with pytest.raises(UnknownName, match=r"'fastes' .*did you mean 'fastest'\?"):
            select(snapshot(state("cuda:0")), Request(policy="fastes"))


class TestSettings:
    def test_a_weight_is_a_named_factor_of_the_score(self):
        heavy = state("cuda:0", 24, 12, settings=DeviceSettings(weight=2.0))
        decision = select(snapshot(heavy, state("cuda:1", 24, 2)), Request())
        assert decision.chosen == ("cuda:0",)
        (term,) = [one for one in decision.ranking[0].terms if one.name == "weight"]
        assert (term.value, term.multiplies) == (2.0, True)
        base = select(snapshot(state("cuda:0", 24, 12)), Request()).ranking[0]
        assert decision.ranking[0].total == 2 * base.total
        table = snapshot(heavy)
        assert "weight   times 2.000  set by a person" in explain(select(table, Request()), table)

    def test_an_avoided_device_comes_behind_everything_of_its_class(self):
        avoided = state("cuda:0", 24, 0, settings=DeviceSettings(avoid=True))
        never_sampled = state("cuda:1", sampled=False)
        assert order(avoided, never_sampled, state("cpu:0")) == ["cuda:1", "cuda:0", "cpu:0"]
        assert select(snapshot(avoided), Request()).chosen == ("cuda:0",)
        (score,) = rank(snapshot(avoided), Request())
        assert any("set to be avoided" in note for note in score.notes)

    def test_a_preferred_device_comes_first_but_never_before_a_sounder_one(self):
        slow, asleep = state("cuda:1", 24, 23), state("cuda:2", sleeping=True)
        table = (state("cuda:0", 24, 0), slow, asleep)
        assert order(*table, prefer=("cuda:1",)) == ["cuda:1", "cuda:0", "cuda:2"]
        assert order(*table, prefer=("cuda:2",)) == ["cuda:0", "cuda:1", "cuda:2"]
        assert order(*table, prefer=("cuda:9",)) == ["cuda:0", "cuda:1", "cuda:2"]

    def test_a_request_that_prefers_a_device_overrules_that_it_is_avoided(self):
        avoided = state("cuda:0", 24, 20, settings=DeviceSettings(avoid=True))
        assert order(avoided, state("cuda:1"), prefer=("cuda:0",)) == ["cuda:0", "cuda:1"]


class TestAffinity:
    warm = msgspec.structs.replace(state("cuda:0", 24, 8), warm_keys=("llama",))

    def test_a_warm_worker_is_a_named_term(self):
        cold = state("cuda:1", 24, 6)
        assert order(self.warm, cold) == ["cuda:1", "cuda:0"]
        decision = select(snapshot(self.warm, cold), Request(affinity_key="llama"))
        assert decision.chosen == ("cuda:0",)
        terms = [one.terms[-1] for one in decision.ranking]
        assert [(one.name, one.value) for one in terms] == [("affinity", 1.0), ("affinity", 0.0)]
        assert terms[0].note == "a warm worker holds 'llama'"
        assert terms[1].note == "no warm worker holds 'llama'"

    def test_it_counts_for_its_own_key_only(self):
        assert order(self.warm, state("cuda:1", 24, 6), affinity_key="qwen") == ["cuda:1", "cuda:0"]

    def test_it_stands_neither_above_health_nor_above_memory(self):
        asked = {"affinity_key": "llama", "memory_bytes": 17 * GIB}
        assert order(self.warm, state("cuda:1", 24, 6), **asked) == ["cuda:1"]
        asleep = msgspec.structs.replace(state("cuda:0", sleeping=True), warm_keys=("llama",))
        cold = state("cuda:1", 24, 24, percent=100)
        assert order(asleep, cold, affinity_key="llama") == ["cuda:1", "cuda:0"]
        full = msgspec.structs.replace(state("cuda:0", 24, 23), warm_keys=("llama",))
        assert order(full, state("cuda:1", 24, 0), affinity_key="llama") == ["cuda:1", "cuda:0"]


class NightShift:
    """A scorer as a user writes one: the later the device's number, the better."""

    name = "night"

    def value(self, facts: Facts) -> float | None:
        return int(facts.state.device.device_id[-1]) / 10

    def note(self, facts: Facts, value: float | None) -> str:
        return "the last first"


def nothing_of_the_first(one, table, request):
    if one.device.device_id != "cuda:0":
        return None
    return Refusal(device_id="cuda:0", rule="first", reason="is the first", permanent=True)


class TestOfYourOwn:
    mine = Policy(
        name="night",
        terms=((NightShift(), 0.75), (MemoryFree(), 0.25)),
        filters=(nothing_of_the_first,),
    )

    def test_a_policy_of_ones_own_scores_and_filters(self):
        table = snapshot(state("cuda:0"), state("cuda:1", 24, 0), state("cuda:2", 24, 6))
        decision = select(table, Request(policy="night"), policies={"night": self.mine})
        assert [one.device_id for one in decision.ranking] == ["cuda:2", "cuda:1"]
        assert [one.rule for one in decision.refusals] == ["first"]
        assert "night    0.200 x 0.75 = 0.150  the last first" in explain(decision, table)

    def test_its_name_is_among_those_suggested(self):
        with pytest.raises(UnknownName, match="did you mean 'night'"):
            policy_named("nigh", {"night": self.mine})
