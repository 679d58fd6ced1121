"""The distributor: nothing lost, nobody a whole item from the exact share, maxima held."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo.gpu.scheduling.distributor import Distribution, WorkloadDistributor, weigh
from exo.gpu.vocabulary.device import GPUDevice
from exo.gpu.vocabulary.errors import DuplicateDevice, InvalidValue, NoSuchDevice, UnknownName

distributor = WorkloadDistributor()


def counts(distribution):
    return [len(items) for items in distribution.values()]


class TestUniform:
    def test_nine_over_three(self):
        assert counts(distributor.distribute_uniform(["a", "b", "c"], range(9))) == [3, 3, 3]

    def test_the_remainder_is_spread(self):
        """D3: 11 over 3 is 4, 4, 3, not 5, 3, 3."""
        assert counts(distributor.distribute_uniform(["a", "b", "c"], range(11))) == [4, 4, 3]

    def test_blocks_are_contiguous_and_in_order(self):
        split = distributor.distribute_uniform(devices=["b", "a"], workload_items=range(5))
        assert split == {"b": [0, 1, 2], "a": [3, 4]}
        assert list(split) == ["b", "a"]

    def test_what_a_maximum_keeps_out_is_unassigned(self):
        """D1: 15 items, 2 devices, at most 3 each: 9 are left, and none is lost."""
        split = distributor.distribute_uniform(["a", "b"], range(15), max_per_device=3)
        assert split == {"a": [0, 1, 2], "b": [3, 4, 5]}
        assert split.unassigned == list(range(6, 15))
        assert split.assigned_count == 6
        assert split.reasons == (
            "9 unassigned: every device with a capacity is at its maximum (a 3, b 3)",
        )

    def test_one_device_with_a_maximum_does_not_raise(self):
        split = distributor.distribute_uniform(["cuda:0"], range(15), 5)
        assert (len(split["cuda:0"]), len(split.unassigned)) == (5, 10)

    def test_a_maximum_for_one_gives_its_excess_to_the_others(self):
        split = distributor.distribute_uniform(["a", "b", "c"], range(12), {"b": 2})
        assert counts(split) == [5, 2, 5]
        assert split.unassigned == []

    def test_a_device_named_twice_is_refused_by_name(self):
        """D6: the second assignment would overwrite the first."""
        with pytest.raises(DuplicateDevice, match="'a'"):
            distributor.distribute_uniform(["a", "b", "a"], range(9))

    def test_no_devices_leaves_everything_unassigned(self):
        """D5."""
        split = distributor.distribute_uniform([], range(5))
        assert split == {}
        assert split.unassigned == [0, 1, 2, 3, 4]
        assert split.reasons == ("5 unassigned: no device takes part",)

    @pytest.mark.parametrize("devices", ["cuda:0", b"cuda:0", [1], [""]])
    def test_what_is_no_list_of_ids_is_refused(self, devices):
        with pytest.raises(InvalidValue, match="devices"):
            distributor.distribute_uniform(devices, range(3))


class TestByCapacity:
    def test_one_two_one(self):
        capacities = {"a": 1.0, "b": 2.0, "c": 1.0}
        assert counts(distributor.distribute_by_capacity(capacities, range(16))) == [4, 8, 4]

    def test_a_capacity_of_zero_gets_nothing(self):
        """D2."""
        split = distributor.distribute_by_capacity({"a": 0, "b": 1}, range(4))
        assert split == {"a": [], "b": [0, 1, 2, 3]}

    def test_few_items_go_to_the_largest_not_to_the_first_of_the_alphabet(self):
        """D2."""
        assert counts(distributor.distribute_by_capacity({"a": 1, "b": 1, "z": 100}, range(3))) == [
            0,
            0,
            3,
        ]

    def test_equal_remainders_go_to_the_order_given(self):
        capacities = dict.fromkeys(["d", "c", "b", "a"], 1)
        assert counts(distributor.distribute_by_capacity(capacities, range(2))) == [1, 1, 0, 0]

    def test_equal_remainders_go_to_the_larger_capacity_first(self):
        assert counts(distributor.distribute_by_capacity({"a": 1, "b": 3}, range(2))) == [0, 2]

    def test_only_zeros_leave_everything_unassigned(self):
        split = distributor.distribute_by_capacity({"a": 0}, ["x"])
        assert (split, split.unassigned) == ({"a": []}, ["x"])
        assert split.reasons == ("1 unassigned: no device has a capacity above 0",)

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1, -0.5, "2", None, True, 1j])
    def test_an_impossible_capacity_is_refused_by_the_device_it_was_given_for(self, bad):
        """D4."""
        with pytest.raises(InvalidValue, match=r"capacities\['b'\]"):
            distributor.distribute_by_capacity({"a": 1, "b": bad}, range(4))

    def test_numpys_numbers_are_numbers(self):
        capacities = {"a": np.float32(1), "b": np.int64(3)}
        assert counts(distributor.distribute_by_capacity(capacities, range(8))) == [2, 6]

    def test_capacities_of_any_size_are_exact(self):
        capacities = {"a": 1e308, "b": 1e308, "c": 5e-324}
        assert counts(distributor.distribute_by_capacity(capacities, range(5))) == [3, 2, 0]

    def test_a_list_is_no_mapping(self):
        with pytest.raises(InvalidValue, match="capacities"):
            distributor.distribute_by_capacity(["a"], range(3))

    def test_maxima_hold_here_too(self):
        split = distributor.distribute_by_capacity({"a": 1, "b": 9}, range(10), {"b": 4})
        assert counts(split) == [6, 4]


class TestMaxima:
    @pytest.mark.parametrize("bad", [-1, 1.5, True, "3"])
    def test_an_impossible_maximum_is_refused(self, bad):
        with pytest.raises(InvalidValue, match="max_per_device"):
            distributor.distribute_uniform(["a"], range(3), bad)
        with pytest.raises(InvalidValue, match=r"max_per_device\['a'\]"):
            distributor.distribute_uniform(["a"], range(3), {"a": bad})

    def test_a_maximum_for_a_stranger_is_refused_by_name(self):
        with pytest.raises(NoSuchDevice, match="'ghost'"):
            distributor.distribute_uniform(["a"], range(3), {"ghost": 1})

    def test_a_maximum_of_zero_is_nothing(self):
        assert counts(distributor.distribute_uniform(["a", "b"], range(3), {"a": 0})) == [0, 3]


class TestDistribution:
    def test_it_equals_a_dict_and_reads_like_one(self):
        split = distributor.distribute_uniform(["a", "b"], "xyz")
        assert split == {"a": ["x", "y"], "b": ["z"]}
        assert dict(split) == {"a": ["x", "y"], "b": ["z"]}
        assert (len(split), "a" in split, split.get("c")) == (2, True, None)
        with pytest.raises(KeyError):
            split["c"]

    def test_its_plain_form_holds_everything(self):
        split = distributor.distribute_uniform(["a"], range(3), 2)
        assert split.to_dict() == {
            "assigned": {"a": [0, 1]},
            "unassigned": [2],
            "reasons": list(split.reasons),
        }

    def test_its_text_shows_what_is_unassigned_only_where_something_is(self):
        assert repr(Distribution({"a": [1]})) == "Distribution({'a': [1]})"
        assert repr(Distribution({}, [1])) == "Distribution({}, unassigned=[1])"

    def test_items_may_be_anything(self):
        unhashable = [{"x": 1}, [2], None, None]
        split = distributor.distribute_uniform(["a", "b"], iter(unhashable))
        assert split == {"a": [{"x": 1}, [2]], "b": [None, None]}


class TestWeigh:
    def devices(self, *facts):
        return {
            f"d:{index}": GPUDevice(
                f"d:{index}", "card", "v", "cuda", memory_bytes=memory, bandwidth_gbps=bandwidth,
                compute_units=1,
            )
            for index, (memory, bandwidth) in enumerate(facts)
        }  # fmt: skip

    def test_uniform_weighs_all_the_same(self):
        assert weigh(self.devices((8, 1.0), (16, 2.0)), "uniform") == {"d:0": 1, "d:1": 1}

    def test_bandwidth_then_memory_then_equal(self):
        """D7: compute units are counted differently by each vendor, so they are never used."""
        assert weigh(self.devices((8, 1.0), (16, 3.0)), "capacity") == {"d:0": 1.0, "d:1": 3.0}
        assert weigh(self.devices((8, 1.0), (16, None)), "capacity") == {"d:0": 8, "d:1": 16}
        assert weigh(self.devices((8, 0.0), (16, 3.0)), "capacity") == {"d:0": 8, "d:1": 16}
        assert weigh(self.devices((None, None), (16, None)), "capacity") == {"d:0": 1, "d:1": 1}

    def test_given_capacities_are_checked_and_kept(self):
        devices = self.devices((8, 1.0), (16, 2.0))
        assert weigh(devices, "capacity", {"d:1": 5}) == {"d:1": 5}
        with pytest.raises(NoSuchDevice, match="'ghost'"):
            weigh(devices, "capacity", {"ghost": 1})
        with pytest.raises(NoSuchDevice, match="none"):
            weigh({}, "capacity", {"ghost": 1})
        with pytest.raises(InvalidValue, match=r"capacities\['d:0'\]"):
            weigh(devices, "capacity", {"d:0": float("nan")})
        with pytest.raises(InvalidValue, match="capacities"):
            weigh(devices, "uniform", {"d:0": 1})

    def test_an_unknown_strategy_is_refused_with_the_near_spelling(self):
        with pytest.raises(UnknownName, match="did you mean 'uniform'"):
            weigh({}, "unifrom")


capacity = st.integers(0, 10**6) | st.floats(0, 1e12)
capacity_maps = st.lists(capacity, max_size=8).map(
    lambda all_: {f"d{i}": c for i, c in enumerate(all_)}
)
item_counts = st.integers(0, 200)


@given(capacity_maps, item_counts)
def test_no_count_is_a_whole_item_from_its_exact_share(capacities, total):
    split = distributor.distribute_by_capacity(capacities, range(total))
    whole = sum(map(Fraction, capacities.values()))
    for device_id, items in split.items():
        share = total * Fraction(capacities[device_id]) / whole if whole else 0
        assert abs(len(items) - share) < 1
        assert items == [] or capacities[device_id] > 0


@given(
    capacity_maps,
    item_counts,
    st.none()
    | st.integers(0, 50)
    | st.dictionaries(st.sampled_from(["d0", "d1", "d2"]), st.integers(0, 50)),
)
def test_nothing_is_lost_maxima_hold_and_room_is_used(capacities, total, maxima):
    if isinstance(maxima, dict):
        maxima = {device_id: top for device_id, top in maxima.items() if device_id in capacities}
    items = [object() for _ in range(total)]
    split = distributor.distribute_by_capacity(capacities, items, maxima)
    together = [item for block in split.values() for item in block] + split.unassigned
    assert together == items
    assert list(split) == list(capacities)
    for device_id, block in split.items():
        top = maxima.get(device_id) if isinstance(maxima, dict) else maxima
        assert top is None or len(block) <= top
        if split.unassigned and capacities[device_id] > 0:
            assert len(block) == top
    assert bool(split.reasons) == bool(split.unassigned)
    again = distributor.distribute_by_capacity(capacities, items, maxima)
    assert (again, again.unassigned) == (split, split.unassigned)


@given(st.integers(1, 12), item_counts)
def test_uniform_counts_differ_by_one_at_most(devices, total):
    split = counts(distributor.distribute_uniform([f"d{i}" for i in range(devices)], range(total)))
    assert max(split) - min(split) <= 1
    assert split == sorted(split, reverse=True)
