"""Splitting by cost: feasible, bounded, never worse than min-min, and every refusal says why."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from exo.gpu.scheduling import exact
from exo.gpu.scheduling.assignment import assign
from exo.gpu.scheduling.constructive import HEURISTICS, loads_of, make_room, min_min
from exo.gpu.scheduling.costs import Road, memory_shares, uniform_costs, with_transfers
from exo.gpu.scheduling.distributor import WorkloadDistributor
from exo.gpu.scheduling.lots import fixed_lots
from exo.gpu.scheduling.relaxation import bound_by, relax
from exo.gpu.vocabulary.errors import DuplicateDevice, InvalidValue, NoSuchDevice

GIB = 2**30
INFINITY = math.inf
distributor = WorkloadDistributor()
with_and_without = pytest.mark.parametrize("solver", [True, False])

CELL = st.one_of(
    st.integers(0, 20).map(float),
    st.floats(1e-3, 1e6),
    st.just(INFINITY),
)


@st.composite
def matrices(draw, most_items=8, most_devices=4):
    """Small matrices in which at least one item fits somewhere."""
    devices = draw(st.integers(1, most_devices))
    row = st.lists(CELL, min_size=devices, max_size=devices)
    costs = draw(st.lists(row, min_size=1, max_size=most_items))
    if not any(math.isfinite(cost) for row in costs for cost in row):
        costs[0][0] = 1.0
    return costs


def generated(kind, items=96, devices=8, seed=3):
    """An instance by the range-based method of Braun et al. (2001), high heterogeneity."""
    lots = np.random.default_rng(seed)
    costs = lots.uniform(1, 3000, items)[:, None] * lots.uniform(1, 1000, (items, devices))
    if kind == "consistent":
        costs.sort(axis=1)
    if kind == "semi-consistent":
        costs[:, ::2] = np.sort(costs[:, ::2], axis=1)
    return costs


def optimum(costs, most=INFINITY):
    """The least makespan of the items that fit, by trying everything."""
    placeable = [row for row in costs if any(map(math.isfinite, row))]
    best = INFINITY
    for places in itertools.product(range(len(costs[0])), repeat=len(placeable)):
        loads = [0.0] * len(costs[0])
        for row, place in zip(placeable, places, strict=True):
            loads[place] += row[place]
        if max(map(places.count, places), default=0) <= most:
            best = min(best, max(loads))
    return best


class TestEveryResult:
    @given(matrices(), st.booleans())
    @settings(deadline=None)
    @example([[0.0, 0.0]], True)
    @example([[INFINITY, 1.0], [INFINITY, INFINITY]], True)
    def test_is_feasible_complete_and_bounded(self, costs, solver):
        """Each item is at one place where it fits, or has none to go; makespan >= bound."""
        split = distributor.distribute_by_cost(costs, rounds=5, solver=solver)
        assert sorted([*itertools.chain(*split.values()), *split.unassigned]) == list(
            range(len(costs))
        )
        for device, items in split.items():
            assert split.loads[device] == pytest.approx(sum(costs[i][int(device)] for i in items))
            assert all(split.places[item] == device for item in items)
        assert split.makespan == max(split.loads.values())
        assert math.isfinite(split.makespan)
        assert split.bound <= split.makespan
        assert all(math.isinf(cost) for item in split.unassigned for cost in costs[item])
        assert bool(split.reasons) == bool(split.unassigned)

    @given(matrices(most_items=6, most_devices=3), st.booleans())
    @settings(deadline=None)
    def test_has_a_bound_that_the_optimum_keeps(self, costs, solver):
        """No assignment at all ends before the bound."""
        split = distributor.distribute_by_cost(costs, rounds=5, solver=solver)
        assert split.bound <= optimum(costs) * (1 + 1e-9)

    @given(matrices(), st.integers(0, 3), st.booleans())
    @settings(deadline=None)
    def test_is_never_worse_than_min_min(self, costs, seed, solver):
        matrix = np.array(costs)
        room = np.full(matrix.shape[1], len(matrix))
        ready = np.zeros(matrix.shape[1])
        found = assign(matrix, rounds=3, lots=fixed_lots(seed), solver=solver)
        peer = loads_of(matrix, min_min(matrix, room, ready), ready).max()
        assert found.makespan <= peer * (1 + 1e-12)

    @given(matrices(), st.integers(0, 3))
    @settings(deadline=None)
    def test_keeps_every_maximum_and_places_as_many_as_any_could(self, costs, most):
        """Nothing that could be placed by moving others is left over."""
        split = distributor.distribute_by_cost(costs, max_per_device=most, rounds=5)
        assert all(len(items) <= most for items in split.values())
        assert len(split.unassigned) == len(costs) - most_matched(costs, most)

    @given(matrices(), st.integers(0, 2**70))
    @settings(deadline=None)
    def test_is_the_same_for_the_same_lots(self, costs, seed):
        first, second = (
            distributor.distribute_by_cost(costs, rounds=5, lots=fixed_lots(seed)) for _ in range(2)
        )
        assert first == second
        assert first.to_dict() == second.to_dict()

    @given(st.lists(st.integers(0, 5), max_size=12), st.integers(1, 4))
    @settings(deadline=None)
    def test_on_equal_costs_is_within_one_item_of_the_exact_share(self, items, devices):
        """Apportionment: no device is a whole item away from items / devices."""
        split = distributor.distribute_by_cost(
            [[2.0] * devices] * len(items), [f"d{i}" for i in range(devices)], items
        )
        assert all(abs(len(one) - len(items) / devices) < 1 for one in split.values())


def most_matched(costs, most):
    """How many items can have a place, by augmenting paths over single places."""
    taken = {}

    def place(item, seen):
        for device, cost in enumerate(costs[item]):
            for slot in range(most if math.isfinite(cost) else 0):
                if (device, slot) not in seen:
                    seen.add((device, slot))
                    holder = taken.get((device, slot))
                    if holder is None or place(holder, seen):
                        taken[device, slot] = item
                        return True
        return False

    return sum(place(item, set()) for item in range(len(costs)))


class TestQuality:
    @with_and_without
    @pytest.mark.parametrize("kind", ["consistent", "inconsistent", "semi-consistent"])
    def test_it_comes_near_the_bound(self, kind, solver):
        """At 12 items a device, rounding alone is 10 % away and more."""
        split = distributor.distribute_by_cost(generated(kind), rounds=200, solver=solver)
        assert split.gap < 0.05
        assert split.makespan < min(
            loads_of(
                generated(kind),
                heuristic(generated(kind), np.full(8, 96), np.zeros(8)),
                np.zeros(8),
            ).max()
            for heuristic in HEURISTICS.values()
        )

    def test_the_solver_proves_small_optima(self):
        """Where all places that matter are asked, the bound meets the makespan."""
        pytest.importorskip("highspy")
        costs = generated("inconsistent", items=9, devices=3)
        split = distributor.distribute_by_cost(costs, rounds=20)
        assert split.gap == pytest.approx(0, abs=1e-5)
        assert split.makespan == pytest.approx(optimum(costs.tolist()))

    def test_the_solver_keeps_the_maxima(self):
        """Its program has a row for each device that could overflow."""
        pytest.importorskip("highspy")
        costs = generated("consistent", items=9, devices=3)
        split = distributor.distribute_by_cost(costs, rounds=2, max_per_device=3)
        assert [len(items) for items in split.values()] == [3, 3, 3]
        assert split.makespan == pytest.approx(optimum(costs.tolist(), most=3))

    def test_the_solver_says_nothing(self, capfd):
        """A library prints nothing, and HiGHS says hello when it is made."""
        pytest.importorskip("highspy")
        distributor.distribute_by_cost(generated("inconsistent"), rounds=2)
        assert capfd.readouterr() == ("", "")

    def test_a_clock_ends_it(self):
        """It asks the clock it was given, and stops when the seconds are gone."""
        ticks = itertools.count()
        split = distributor.distribute_by_cost(
            generated("inconsistent"), seconds=40, clock=lambda: next(ticks), solver=False
        )
        assert 40 < next(ticks) < 60
        assert split.bound <= split.makespan

    def test_what_is_ready_late_gets_less(self):
        split = distributor.distribute_by_cost([[1.0, 1.0]] * 6, ready_seconds=[4.0, 0.0])
        assert [len(items) for items in split.values()] == [1, 5]
        assert split.makespan == 5.0
        assert split.gap == pytest.approx(0, abs=1e-8)


class TestRelaxation:
    @pytest.mark.parametrize("kind", ["consistent", "inconsistent", "semi-consistent"])
    def test_bound_and_relaxed_makespan_meet(self, kind):
        """Duality: the bound is the optimum of the linear program, and both sides prove it."""
        costs = generated(kind)
        relaxed = relax(costs, np.zeros(8), float(costs.sum()))
        makespan = (costs * relaxed.parts).sum(axis=0).max()
        assert relaxed.bound == pytest.approx(makespan, rel=1e-5)
        assert relaxed.bound == pytest.approx(
            bound_by(relaxed.weights, costs, np.zeros(8)), rel=1e-6
        )

    @given(st.lists(st.floats(0.01, 1), min_size=3, max_size=3), matrices(6, 3))
    @settings(deadline=None)
    def test_any_weights_prove_a_bound(self, weights, costs):
        """However bad they are."""
        costs = [row for row in costs if any(map(math.isfinite, row))]
        weights = np.array(weights[: len(costs[0])])
        proven = bound_by(weights, np.array(costs), np.zeros(len(weights)))
        assert proven <= optimum(costs) * (1 + 1e-9)

    def test_one_device_is_its_sum(self):
        relaxed = relax(np.array([[1.0], [2.0]]), np.zeros(1), 3.0)
        assert relaxed.bound == pytest.approx(3.0)

    def test_it_stops_where_the_time_is_over(self):
        """What it has by then is a bound, too."""
        costs = generated("inconsistent")
        early = relax(costs, np.zeros(8), float(costs.sum()), lambda: True)
        assert 0 <= early.bound < relax(costs, np.zeros(8), float(costs.sum())).bound


class TestHeuristics:
    def test_mct_and_lpt_by_hand(self):
        """Two equal machines, work 1, 1, 2: in order 1 + 2 and 1, the longest first 2 and 1 + 1."""
        costs = uniform_costs([1, 1, 2], [1, 1])
        room, ready = np.full(2, 5), np.zeros(2)
        loads = {
            name: loads_of(costs, one(costs, room, ready), ready)
            for name, one in HEURISTICS.items()
        }
        assert sorted(loads["MCT"]) == [1, 3]
        assert sorted(loads["LPT"]) == [2, 2]

    def test_min_min_takes_the_shortest_first_and_sufferage_the_one_that_loses_most(self):
        costs = np.array([[1.0, 2.0], [1.5, 9.0]])
        room, ready = np.full(2, 2), np.zeros(2)
        assert min_min(costs, room, ready).tolist() == [0, 0]
        assert HEURISTICS["sufferage"](costs, room, ready).tolist() == [1, 0]

    @given(matrices(), st.integers(0, 3))
    @settings(deadline=None)
    @pytest.mark.parametrize("name", HEURISTICS)
    def test_each_keeps_the_maxima_and_what_fits(self, name, costs, most):
        matrix = np.array(costs)
        room = np.full(matrix.shape[1], most)
        places = HEURISTICS[name](matrix, room, np.zeros(matrix.shape[1]))
        placed = np.flatnonzero(places >= 0)
        assert np.isfinite(matrix[placed, places[placed]]).all()
        assert (np.bincount(places[placed], minlength=len(room)) <= most).all()

    @given(st.lists(st.floats(0.1, 100), min_size=1, max_size=10), st.integers(1, 4))
    @settings(deadline=None)
    def test_lpt_on_identical_machines_keeps_grahams_bound(self, work, devices):
        """4/3 - 1/(3m) of the optimum, which is at least the mean load and the longest item."""
        costs = uniform_costs(work, [1.0] * devices)
        places = HEURISTICS["LPT"](costs, np.full(devices, len(work)), np.zeros(devices))
        made = loads_of(costs, places, np.zeros(devices)).max()
        split = distributor.distribute_by_cost(costs, rounds=5)
        assert made <= (4 / 3 - 1 / (3 * devices)) * split.makespan * (1 + 1e-9)

    def test_make_room_moves_a_whole_chain(self):
        """0 fits only a, which 1 holds, which may go to b, which 2 holds, which may go to c."""
        costs = np.array([[1, INFINITY, INFINITY], [1, 1, INFINITY], [INFINITY, 1, 1]])
        places = np.array([-1, 0, 1])
        make_room(costs, places, np.ones(3, dtype=np.int64))
        assert places.tolist() == [0, 1, 2]


class TestReasons:
    def test_too_large_says_how_much_is_short_on_which_device(self):
        split = distributor.distribute_by_cost(
            [[1.0, 2.0]] * 2,
            ["cuda:0", "rocm:0"],
            ["small", "large"],
            memory_bytes=[GIB, 9 * GIB],
            device_memory_bytes=[4 * GIB, 8 * GIB],
        )
        assert split.unassigned == ["large"]
        assert split.reasons == (
            "1 unassigned (item 1): it needs 9.0 GiB, and the nearest device, rocm:0, is 1.0 GiB short",
        )

    def test_infinite_everywhere_and_all_full(self):
        costs = [[INFINITY, INFINITY], [1, INFINITY], [1, INFINITY], *[[INFINITY, 1]] * 8]
        split = distributor.distribute_by_cost(costs, ["a", "b"], max_per_device=1)
        assert split.reasons == (
            "1 unassigned (item 0): it fits on no device: its cost is infinite on each",
            "1 unassigned (item 2): every device on which it fits is at its maximum (a 1)",
            "7 unassigned (item 4, 5, 6, 7, 8 and 2 more):"
            " every device on which it fits is at its maximum (b 1)",
        )

    def test_no_items_and_no_devices(self):
        assert distributor.distribute_by_cost([], ["a"], []) == {"a": []}
        split = distributor.distribute_by_cost([[], []], [])
        assert (split, split.unassigned, split.gap) == ({}, [0, 1], 0.0)
        assert split.reasons == ("2 unassigned (item 0, 1): no device takes part",)


class TestMemory:
    def test_several_at_once_share_a_device(self):
        """Four items of a quarter each take as long as one."""
        split = distributor.distribute_by_cost(
            [[8.0]] * 4,
            memory_bytes=[GIB] * 4,
            device_memory_bytes=[4 * GIB],
            slots=[4],
        )
        assert (split.makespan, split.gap) == (8.0, 0.0)

    def test_slots_bound_how_many(self):
        split = distributor.distribute_by_cost(
            [[8.0]] * 4, memory_bytes=[0] * 4, device_memory_bytes=[4 * GIB], slots=[2]
        )
        assert split.makespan == 16.0

    def test_a_makespan_is_never_below_the_longest_item(self):
        """A tenth of a device for 10 s is 1 s of load, yet ends after 10 s."""
        split = distributor.distribute_by_cost(
            [[10.0, 12.0]], memory_bytes=[GIB], device_memory_bytes=[10 * GIB] * 2, slots=[10, 10]
        )
        assert (split.makespan, split.bound) == (10.0, 10.0)

    def test_a_place_that_takes_longer_than_all_else_is_left(self):
        """The share of the slow device is smaller, but it would end last."""
        costs = [[10.0, 40.0]]
        split = distributor.distribute_by_cost(
            costs, memory_bytes=[GIB], device_memory_bytes=[GIB, 100 * GIB], slots=[1, 100]
        )
        assert split.places == ("0",)
        assert split.makespan == 10.0

    def test_shares(self):
        shares = memory_shares([0, 2, 5], [4, 4], [1, 4])
        assert shares.tolist() == [[1, 0.25], [1, 0.5], [INFINITY, INFINITY]]


class TestBuilders:
    def test_uniform_machines(self):
        assert uniform_costs([2, 4], [1, 2, 0]).tolist() == [[2, 1, INFINITY], [4, 2, INFINITY]]

    def test_data_take_every_road_to_the_device(self):
        """1 GB: 0.5 s of link everywhere, and 2.25 s of network where they are not yet."""
        costs = with_transfers(
            [[1.0, 1.0], [1.0, INFINITY], [1.0, 1.0]],
            [10**9, 10**9, 0],
            [[Road(2.0)], [Road(2.0)]],
            item_nodes=["near", None, "near"],
            device_nodes=["near", "far"],
            node_roads={"far": Road(0.5, 0.25), "near": Road(0.5, 0.25)},
        )
        assert costs.tolist() == [[1.5, 3.75], [3.75, INFINITY], [1.0, 1.0]]

    def test_a_node_without_a_road_is_refused(self):
        with pytest.raises(InvalidValue, match="node_roads: 'far'"):
            with_transfers([[1.0]], [1], [[]], device_nodes=["far"])

    def test_roads_must_lead_somewhere(self):
        with pytest.raises(InvalidValue, match="bandwidth_gbps"):
            Road(0.0)

    @given(st.integers(0, 2**70), st.integers(0, 50))
    def test_fixed_lots_are_within_0_and_1_and_go_on(self, seed, count):
        draw, again = fixed_lots(seed), fixed_lots(seed)
        lots = np.concatenate([draw(count), draw(7)])
        assert ((lots >= 0) & (lots < 1)).all()
        assert np.array_equal(lots, again(count + 7))


class TestBadInput:
    @pytest.mark.parametrize(
        ("costs", "message"),
        [
            ([[1, 2], [3]], r"costs\[1\]: \[3\] is not 2 costs long"),
            ([[1, math.nan]], r"costs\[0\]\[1\]: nan"),
            ([[1, 2], [-1, 2]], r"costs\[1\]\[0\]: -1.0"),
            ([[1, 1e301]], r"costs\[0\]\[1\]: 1e\+301"),
            ([[INFINITY], [INFINITY]], "costs: 'infinity everywhere'"),
            ([1, 2], r"costs: \(2,\) is not the shape of a matrix"),
            (np.ones((2, 2, 2)), "the shape of a matrix"),
            ([["a"]], "costs: .* is not a matrix of numbers"),
            ("text", "costs"),
            (None, "costs"),
            ({"a": [1], "b": [1, 2]}, r"costs\['b'\]"),
            ({"a": [math.nan]}, r"costs\[0\]\[0\]"),
        ],
    )
    def test_impossible_costs_are_refused_by_cell(self, costs, message):
        with pytest.raises(InvalidValue, match=message):
            distributor.distribute_by_cost(costs)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"devices": ["a"]}, "devices: '1 devices' is not 2 devices"),
            ({"devices": "ab"}, "devices"),
            ({"devices": ["a", ""]}, "devices"),
            ({"workload_items": [1, 2]}, "workload_items: '2 items' is not 1"),
            ({"memory_bytes": [1]}, "given together"),
            ({"device_memory_bytes": [1, 1]}, "given together"),
            ({"memory_bytes": [1, 2], "device_memory_bytes": [1, 1]}, "memory_bytes: '2 values'"),
            (
                {"memory_bytes": [math.nan], "device_memory_bytes": [1, 1]},
                r"memory_bytes\[0\]: nan",
            ),
            ({"ready_seconds": [1]}, "ready_seconds"),
            ({"ready_seconds": [1, -1]}, r"ready_seconds\[1\]"),
            ({"slots": [0, 1]}, "slots"),
            ({"rounds": -1}, "rounds"),
            ({"seconds": 1.0}, "clock: None"),
            ({"max_per_device": -1}, "max_per_device"),
        ],
    )
    def test_what_does_not_go_with_the_costs_is_refused(self, arguments, message):
        with pytest.raises(InvalidValue, match=message):
            distributor.distribute_by_cost([[1.0, 2.0]], **arguments)

    def test_strangers_and_twins_are_refused_by_name(self):
        with pytest.raises(DuplicateDevice, match="'a'"):
            distributor.distribute_by_cost([[1.0, 2.0]], ["a", "a"])
        with pytest.raises(NoSuchDevice, match="'ghost'"):
            distributor.distribute_by_cost([[1.0]], ["a"], max_per_device={"ghost": 1})
        with pytest.raises(InvalidValue, match="a column for each of"):
            distributor.distribute_by_cost({"a": [1.0]}, ["b"])


def test_without_the_solver_it_says_so_and_goes_on(monkeypatch):
    """The extra is optional: without it the search has all the time."""
    import sys

    monkeypatch.setitem(sys.modules, "highspy", None)
    assert not exact.is_here()
    split = distributor.distribute_by_cost(generated("inconsistent"), rounds=20)
    assert split.method == "local search"
