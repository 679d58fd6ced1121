"""One model over unlike devices: as good as every split tried, and never more than fits."""

from __future__ import annotations

import sys
from pathlib import Path
from random import Random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from split_cases import best_by_trying, named_model, random_box, random_case

from exo.gpu.scheduling.split import split_layers
from exo.gpu.vocabulary.errors import DuplicateDevice, InvalidValue, UnknownName
from exo.gpu.vocabulary.model import ModelLayer, ModelNeeds
from exo.gpu.vocabulary.split import (
    DeviceShare,
    SplitDevice,
    SplitGoal,
    SplitLink,
    SplitPlan,
)

GB = 10**9


def model(count=10, weight=GB, **fields):
    layer = ModelLayer(weight_bytes=weight, parameters=weight // 2)
    return ModelNeeds(name="a model", layers=(layer,) * count, **fields)


def card(name, free=20 * GB, gbps=500.0, **fields):
    return SplitDevice(device_id=name, free_bytes=free, bandwidth_gbps=gbps, **fields)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(SplitGoal))
def test_no_split_is_better(seed, goal):
    """Rule: for unlike layers, speeds and links in tight memory it is as good as every split tried."""
    needs, devices, links, context, batch = random_case(Random(seed))
    best = best_by_trying(
        needs, devices, links, context, batch, longest=goal is SplitGoal.THROUGHPUT
    )
    plan = split_layers(needs, devices, goal=goal, context_tokens=context, batch=batch, links=links)
    assert plan.fits == (best < float("inf"))
    if plan.fits:
        assert plan.optimal
        assert batch / plan.decode_tokens_per_second == pytest.approx(best, rel=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(SplitGoal))
def test_every_layer_is_somewhere_and_nothing_is_over_committed(seed, goal):
    """Rule: ranges follow each other from the first layer to the last, and each fits."""
    needs, devices, links, context, batch = random_case(Random(seed))
    plan = split_layers(needs, devices, goal=goal, context_tokens=context, batch=batch, links=links)
    at = 0
    for share in plan.shares:
        assert share.first_layer == at < share.end_layer
        assert share.needed_bytes <= share.usable_bytes
        at = share.end_layer
    assert at == (len(needs.layers) if plan.fits else 0)
    assert len(plan.layer_counts) == len(plan.shares)
    used = {share.device_id for share in plan.shares} | {one.device_id for one in plan.left_out}
    assert not plan.fits or used == {device.device_id for device in devices}


def test_the_goals_want_different_splits():
    """Rule: one user wants the fastest card alone, many users want all cards at work."""
    devices = [card("fast", gbps=1000), card("slow", gbps=250)]
    latency = split_layers(model(), devices)
    assert latency.layer_counts == {"fast": 10}
    assert "slower" in latency.left_out[0].reason
    throughput = split_layers(model(), devices, goal="throughput")
    assert throughput.layer_counts == {"fast": 8, "slow": 2}
    assert throughput.decode_tokens_per_second == pytest.approx(125)
    assert throughput.sequence_tokens_per_second < latency.sequence_tokens_per_second


def test_the_fastest_card_is_filled_first():
    """Rule: what the fast card has no room for goes to the next, whatever the order given."""
    devices = [card("slow", gbps=250), card("fast", free=7 * GB, gbps=1000)]
    plan = split_layers(model(), devices)
    assert plan.layer_counts == {"slow": 3, "fast": 7}
    assert plan.bottleneck == "slow"


def test_slow_links_cost():
    """Rule: a way that takes longer than it saves is not taken."""
    devices = [card("a", gbps=100), card("b", gbps=100)]
    needs = model(activation_bytes_per_token=GB)
    slow = [SplitLink(bandwidth_gbps=1.0)]
    plan = split_layers(needs, devices, goal="throughput", links=slow)
    assert len(plan.shares) == 1
    fast = [SplitLink(bandwidth_gbps=1000.0)]
    assert len(split_layers(needs, devices, goal="throughput", links=fast).shares) == 2
    assert not any("links" in one for one in plan.assumptions)
    assert any("links" in one for one in split_layers(needs, devices).assumptions)


def test_the_slowest_link_is_named_as_the_bottleneck():
    """Rule: where moving what was made takes longest, the link is what sets the pace."""
    devices = [card("a", free=6 * GB), card("b", free=6 * GB)]
    needs = model(activation_bytes_per_token=GB)
    plan = split_layers(needs, devices, links=[SplitLink(bandwidth_gbps=1.0)])
    assert plan.bottleneck in {"a -> b", "b -> a"}


def test_reserve_and_buffers_are_left_alone():
    """Rule: usable is free less the reserve less the buffers, and never below nothing."""
    plan = split_layers(model(), [card("a", free=13 * GB, reserve_bytes=2 * GB, buffer_bytes=GB)])
    assert plan.shares[0].usable_bytes == 10 * GB
    assert not split_layers(
        model(), [card("a", free=13 * GB, reserve_bytes=2 * GB, buffer_bytes=GB + 1)]
    ).fits
    assert card("a", free=1, buffer_bytes=2).usable_bytes == 0


def test_every_batch_under_way_has_its_cache():
    """Rule: for throughput a batch is in each device at once, and each device keeps all caches."""
    layer = ModelLayer(weight_bytes=100, cache_bytes_per_token=1)
    needs = ModelNeeds(name="m", layers=(layer, layer))
    roomy = [card(name, free=10_000, gbps=1) for name in "ab"]
    plan = split_layers(needs, roomy, goal="throughput", context_tokens=10, batch=3)
    assert [share.cache_bytes for share in plan.shares] == [2 * 30, 2 * 30]
    tight = [card(name, free=159, gbps=1) for name in "ab"]
    assert not split_layers(needs, tight, goal="throughput", context_tokens=10, batch=3).fits
    assert split_layers(needs, tight, goal="latency", context_tokens=10, batch=3).fits


def test_experts_are_read_as_they_are_used():
    """Rule: a token reads its part of the experts; more tokens read more of them, never all twice."""
    layer = ModelLayer(weight_bytes=1000, expert_bytes=800)
    needs = ModelNeeds(name="m", layers=(layer,), experts=8, experts_used=2)
    devices = [card("a", gbps=1)]
    one = split_layers(needs, devices).shares[0].decode_seconds
    assert one == pytest.approx((200 + 800 / 4) / 1e9)
    two = split_layers(needs, devices, batch=2).shares[0].decode_seconds
    assert two == pytest.approx((200 + 800 * (1 - 0.75**2)) / 1e9)
    assert split_layers(needs, devices, batch=1000).shares[0].decode_seconds <= 1000 / 1e9


def test_compute_counts_where_it_is_known():
    """Rule: a large batch is bound by compute; prefill is foretold with it and unknown without."""
    fast = card("a", gbps=1e6, compute_gflops=10.0)
    plan = split_layers(model(), [fast], batch=2)
    assert plan.shares[0].decode_seconds == pytest.approx(2 * 2 * 10 * GB / 2 / 1e10)
    assert plan.prefill_tokens_per_second == pytest.approx(1e10 / (2 * 10 * GB / 2))
    assert split_layers(model(), [card("a")]).prefill_tokens_per_second is None


def test_the_host_takes_the_first_layers_only():
    """Rule: what the machine's memory takes stands at the front, where engines can put it."""
    host = card("cpu:0", gbps=20, host=True, free=100 * GB)
    plan = split_layers(model(), [card("a", free=7 * GB), host])
    assert plan.layer_counts == {"cpu:0": 3, "a": 7}
    assert list(plan.layer_counts) == ["cpu:0", "a"]


class TestDoesNotFit:
    def test_what_would_fit_is_said(self):
        """Rule: how much is missing, the longest context, and the layers for the host."""
        layer = ModelLayer(weight_bytes=1000, cache_bytes_per_token=1)
        needs = ModelNeeds(name="m", layers=(layer,) * 10)
        devices = [card("a", free=8_000), card("b", free=6_000, total_bytes=10**6)]
        host = card("cpu:0", free=10**6, host=True)
        plan = split_layers(needs, devices, context_tokens=1024, host=host)
        assert not plan.fits
        assert plan.shares == ()
        shortage = plan.shortage
        assert shortage.largest_context_tokens == 256
        assert shortage.layers_on_host == 5
        assert shortage.missing_bytes == 5 * 2024
        assert shortage.fits_when_empty

    def test_what_would_fit_does(self):
        """Rule: with the context that is named it fits, and with a step more it does not."""
        layer = ModelLayer(weight_bytes=1000, cache_bytes_per_token=1)
        needs = ModelNeeds(name="m", layers=(layer,) * 7)
        devices = [card("a", free=5_000), card("b", free=6_100)]
        shortage = split_layers(needs, devices, context_tokens=4096).shortage
        longest = shortage.largest_context_tokens
        assert split_layers(needs, devices, context_tokens=longest).fits
        assert not split_layers(needs, devices, context_tokens=longest + 256).fits

    def test_throughput_may_ask_for_more_than_latency(self):
        """Rule: with a batch in each device there are more caches, and the advice is about those."""
        layer = ModelLayer(weight_bytes=100, cache_bytes_per_token=1)
        needs = ModelNeeds(name="m", layers=(layer, layer))
        tight = [card(name, free=700, gbps=1) for name in "ab"]
        asked = {"goal": "throughput", "batch": 1}
        shortage = split_layers(needs, tight, context_tokens=512, **asked).shortage
        assert shortage.fits_for_latency
        assert shortage.largest_context_tokens == 256
        assert split_layers(needs, tight, context_tokens=256, **asked).fits
        assert split_layers(needs, tight, context_tokens=512, batch=1).fits

    def test_weights_alone_may_be_too_much(self):
        """Rule: where no context helps and nobody knows a host, neither is claimed."""
        shortage = split_layers(model(), [card("a", free=5 * GB)]).shortage
        assert shortage.largest_context_tokens is None
        assert shortage.layers_on_host is None
        assert shortage.missing_bytes == 5 * GB
        assert not shortage.fits_when_empty

    def test_a_host_that_is_too_small_is_no_advice(self):
        """Rule: layers are not sent where they do not fit either."""
        host = card("cpu:0", free=GB, host=True)
        assert (
            split_layers(model(), [card("a", free=5 * GB)], host=host).shortage.host_bytes is None
        )


class TestManyDevices:
    def test_alike_cards_are_exact_however_many(self):
        """Rule: devices of one kind are interchangeable, so that 16 of two kinds are looked at whole."""
        devices = [card(f"a{n}", free=2 * GB, gbps=500) for n in range(8)]
        devices += [card(f"b{n}", free=2 * GB, gbps=300) for n in range(8)]
        plan = split_layers(model(20), devices)
        assert plan.optimal
        assert sum(one.startswith("a") for one in plan.layer_counts) == 8

    @pytest.mark.parametrize("goal", SplitGoal)
    def test_many_unlike_cards_come_with_their_gap(self, goal):
        """Rule: beyond what can be looked at whole, the distance to a bound is said."""
        devices = [card(f"a{n}", free=(2 + n % 5) * GB, gbps=300.0 + 31 * n) for n in range(14)]
        plan = split_layers(model(30), devices, goal=goal)
        assert plan.fits
        assert not plan.optimal
        assert 0 < plan.gap < 0.5

    def test_a_search_is_as_good_as_looking_at_all(self):
        """Rule: where both are possible, exchanges come near the optimum and never beyond the bound."""
        from exo.gpu.scheduling.split_bounds import least_longest_seconds, least_total_seconds
        from exo.gpu.scheduling.split_costs import Costs
        from exo.gpu.scheduling.split_orders import best_by_exchange
        from exo.gpu.scheduling.split_search import Problem, best_of_all, total_seconds
        from exo.gpu.vocabulary.split import ASSUMED_LINKS

        lots = Random(7)
        for _ in range(20):
            devices = random_box(lots, 5)
            costs = Costs(named_model("14B"), devices, ASSUMED_LINKS, context_tokens=4096, batch=1)
            for longest, bound in ((False, least_total_seconds), (True, least_longest_seconds)):
                problem = Problem(costs, longest=longest)
                best, found = best_of_all(problem, 5), best_by_exchange(problem, 5)
                assert (best is None) == (found is None)
                if best is not None:
                    assert total_seconds(problem, found.ranges) == pytest.approx(found.seconds)
                    assert best.seconds * (1 - 1e-9) <= found.seconds <= best.seconds * 1.05
                    assert bound(costs) <= best.seconds * (1 + 1e-9)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"devices": []}, "at least one device"),
        ({"devices": [card("a"), card("a")]}, "once only"),
        ({"devices": [card(f"a{n}") for n in range(513)]}, "at most 512"),
        ({"goal": "latenc"}, "did you mean 'latency'"),
        ({"context_tokens": 0}, "context_tokens"),
        ({"context_tokens": 2**50}, "context_tokens"),
        ({"batch": 0}, "batch"),
    ],
)
def test_questions_that_cannot_be_are_refused(options, said):
    """Rule: no devices, one twice, an unknown goal, no context: each names itself."""
    asked = {"devices": [card("a")], **options}
    with pytest.raises((InvalidValue, UnknownName, DuplicateDevice), match=said):
        split_layers(model(), asked.pop("devices"), **asked)


@pytest.mark.parametrize(
    "fields",
    [
        {"bandwidth_gbps": 0.0},
        {"bandwidth_gbps": float("nan")},
        {"bandwidth_gbps": None},
        {"free_bytes": -1},
        {"compute_gflops": 0.0},
        {"device_id": ""},
    ],
)
def test_a_device_without_a_bandwidth_is_refused(fields):
    """Rule: a device that cannot be is refused when it is made, by the name of the field."""
    known = {"device_id": "a", "free_bytes": 1, "bandwidth_gbps": 1.0}
    with pytest.raises(InvalidValue, match=next(iter(fields))):
        SplitDevice(**{**known, **fields})


def test_zero_layers_are_refused():
    """Rule: a model has layers."""
    with pytest.raises(InvalidValue, match="at least one layer"):
        ModelNeeds(name="m", layers=())


def test_a_plan_travels():
    """Rule: a plan comes back from JSON as it was."""
    plan = split_layers(model(), [card("a"), card("b", free=GB)])
    assert SplitPlan.from_json(plan.to_json()) == plan
    assert DeviceShare.from_json(plan.shares[0].to_json()) == plan.shares[0]
    assert msgspec.json.decode(plan.to_json())["shares"][0]["first_layer"] == 0
