"""The table of machines, and what policies make of it."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exo.gpu.scheduling.machines import Demand, Machine
from exo.gpu.scheduling.node_table import NodeTable
from exo.gpu.simulation.placement import arrivals, gpu_milli_of, place_all
from exo.gpu.simulation.policies import CHOOSERS, chooser_named
from exo.gpu.simulation.traces.openb import Pod
from exo.gpu.vocabulary.errors import InvalidValue, UnknownName

GIB = 2**30


def machine(name, gpus=2, cpu=16_000, memory=64, model="A"):
    return Machine(name=name, cpu_milli=cpu, memory_bytes=memory * GIB, gpus=gpus, model=model)


def demand(gpu_milli=1000, gpus=1, cpu=4_000, memory=8, models=()):
    gpus = gpus if gpu_milli else 0
    return Demand(
        cpu_milli=cpu, memory_bytes=memory * GIB, gpus=gpus, gpu_milli=gpu_milli, models=models
    )


demands = st.builds(
    demand,
    gpu_milli=st.sampled_from([0, 200, 470, 810, 1000]),
    gpus=st.just(1),
    cpu=st.sampled_from([1_000, 4_000, 12_000]),
    memory=st.integers(1, 40),
    models=st.sampled_from([(), (), ("A",), ("A", "B")]),
) | st.builds(demand, gpus=st.integers(2, 4))
machines = st.lists(
    st.builds(
        machine,
        st.just("m"),
        st.integers(0, 4),
        st.sampled_from([8_000, 32_000]),
        st.integers(16, 128),
        st.sampled_from("AB"),
    ),
    min_size=1,
    max_size=5,
).map(lambda some: [machine(f"m{n}", m.gpus, m.cpu_milli, 64, m.model) for n, m in enumerate(some)])


def choose(policy, some, first, *, seed=0):
    """What a policy answers on an empty cluster."""
    kind = chooser_named(policy)
    table = NodeTable(some, keep_classes=kind.keeps_classes)
    chooser = kind.make(table, [demand(1000), first], random.Random(seed))
    return table, chooser


@settings(max_examples=60, deadline=None)
@given(machines, st.lists(demands, min_size=1, max_size=25), st.sampled_from(sorted(CHOOSERS)))
def test_nothing_is_over_committed_and_nothing_fitting_is_dropped(some, asked, policy):
    """Rule: no machine gives more than it has, whatever the policy, and drops are real."""
    pods = [Pod(f"p{number}", one) for number, one in enumerate(asked)]
    done = place_all(some, pods, policy, 1)
    free = {one.name: [one.cpu_milli, one.memory_bytes, [1000] * one.gpus] for one in some}
    models = {one.name: one.model for one in some}
    for pod, (name, node, gpus) in zip(pods, done.placements, strict=True):
        assert name == pod.name
        if node is None:
            assert not any(_fits(free[m], models[m], pod.demand) for m in free)
            continue
        assert _fits(free[node], models[node], pod.demand)
        assert len(set(gpus)) == pod.demand.gpus
        free[node][0] -= pod.demand.cpu_milli
        free[node][1] -= pod.demand.memory_bytes
        for index in gpus:
            free[node][2][index] -= pod.demand.gpu_milli
            assert free[node][2][index] >= 0
    placed = sum(
        pod.demand.total_gpu_milli
        for pod, (_, node, _) in zip(pods, done.placements, strict=True)
        if node is not None
    )
    assert done.allocated_milli[-1] == placed <= done.capacity_milli
    assert done.dropped == sum(node is None for _, node, _ in done.placements)


def _fits(free, model, asked):
    fitting = sum(left >= asked.gpu_milli for left in free[2]) if asked.gpus else 0
    return (
        free[0] >= asked.cpu_milli
        and free[1] >= asked.memory_bytes
        and fitting >= asked.gpus
        and (not asked.models or model in asked.models)
    )


@settings(max_examples=30, deadline=None)
@given(machines, st.lists(demands, min_size=1, max_size=15), st.sampled_from(sorted(CHOOSERS)))
def test_the_same_seed_gives_the_same_run(some, asked, policy):
    """Rule: nothing but the seed is drawn from."""
    pods = [Pod(f"p{number}", one) for number, one in enumerate(asked)]
    assert place_all(some, pods, policy, 7) == place_all(some, pods, policy, 7)


@settings(max_examples=50, deadline=None)
@given(machines, st.lists(demands, max_size=12), st.randoms(use_true_random=False))
def test_giving_back_undoes_taking(some, asked, chance):
    """Rule: when all has been given back, the table is as it was, in any order."""
    table = NodeTable(some, keep_classes=True)
    before = (table.state.copy(), table.memory_bytes.copy(), [list(row) for row in table.free])
    chooser = chooser_named("best-fit").make(table, asked, random.Random(0))
    taken = []
    for one in asked:
        choice = chooser.choose(one)
        if choice is not None:
            table.take(choice[0], one, choice[1])
            taken.append((choice[0], one, choice[1]))
    chance.shuffle(taken)
    for row, one, devices in taken:
        table.give_back(row, one, devices)
    assert np.array_equal(table.state, before[0])
    assert np.array_equal(table.memory_bytes, before[1])
    assert table.free == before[2]


def test_what_does_not_fit_is_not_taken():
    """Rule: the table refuses to over-commit, whoever asks."""
    table = NodeTable([machine("m", gpus=1)])
    table.take(0, demand(810), (0,))
    with pytest.raises(InvalidValue):
        table.take(0, demand(470), (0,))
    with pytest.raises(InvalidValue):
        table.take(0, demand(0, cpu=13_000), ())
    with pytest.raises(InvalidValue):
        table.give_back(0, demand(1000), (0,))


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("best-fit", 1), ("dot-product", 0), ("gpu-packing", 1), ("gpu-clustering", 0), ("fgd", 1)],
)
def test_the_published_policies_on_a_case_worked_out_by_hand(policy, expected):
    """Rule: a half goes beside a half; by clustering beside its own class, not beside a whole.

    By the dot product both score 99 once they are truncated, so that the first wins.
    """
    some = [machine("fresh", 1), machine("used", 2 if policy == "gpu-clustering" else 1)]
    table, chooser = choose(policy, some, demand(500))
    if policy == "gpu-clustering":
        table.take(0, demand(300), (0,))
        table.take(1, demand(1000), (0,))
    else:
        table.take(1, demand(500), (0,))
    row, devices = chooser.choose(demand(500))
    assert row == expected
    assert devices == (0,)


def test_best_fit_scores_as_published():
    """Rule: 100 less half of each part that is left, of 128 cores and 8 GPUs, truncated."""
    from exo.gpu.simulation.policies import BestFit

    table = NodeTable([machine("m", gpus=2, cpu=16_000)])
    scores, places = BestFit().score(table.states, table.state, demand(500, cpu=4_000).footprint)
    assert scores.tolist() == [float(int(100 * (1 - 0.5 * (12_000 / 128_000 + 1_500 / 8_000))))]
    assert places is None


def test_packing_prefers_a_used_gpu_to_a_free_one_to_an_idle_machine():
    """Rule: the three steps of GPU packing, in this order."""
    table, chooser = choose("gpu-packing", [machine("idle"), machine("used")], demand(400))
    table.take(1, demand(400), (0,))
    assert chooser.choose(demand(400)) == (1, (0,))
    assert chooser.choose(demand(1000)) == (1, (1,))
    assert chooser.choose(demand(1000, gpus=2)) == (0, (0, 1))


def test_random_draws_only_among_what_fits():
    """Rule: every machine and GPU that will do comes up, and no other."""
    table, chooser = choose(
        "random", [machine("small", 0), machine("a"), machine("b")], demand(400)
    )
    table.take(1, demand(1000), (0,))
    found = {chooser.choose(demand(400)) for _ in range(200)}
    assert found == {(1, (1,)), (2, (0,)), (2, (1,))}


def test_an_unknown_policy_is_answered_with_those_there_are():
    """Rule: the error lists the known names, and the near one."""
    with pytest.raises(UnknownName, match=r"best-fit.*did you mean 'fgd'"):
        chooser_named("fdg")


def test_arrivals_overfill_the_cluster_as_asked():
    """Rule: the whole list comes once, then draws until the next would exceed the inflation."""
    pods = [Pod(f"p{number}", demand(500)) for number in range(4)]
    some = [machine("m", gpus=4)]
    coming = arrivals(pods, gpu_milli_of(some), 3, 1.3)
    assert sorted(pod.name for pod in coming[:4]) == ["p0", "p1", "p2", "p3"]
    assert sum(pod.demand.total_gpu_milli for pod in coming) == 5_000
    assert len(arrivals(pods, 1_000, 3, 1.3)) == 2
    assert arrivals([Pod("p", demand(0))], 1_000, 3) == (Pod("p", demand(0)),)


@pytest.mark.parametrize("wrong", [{"gpu_milli": 1200}, {"gpu_milli": -1}, {"cpu": -1}])
def test_a_demand_that_cannot_be_is_refused(wrong):
    """Rule: amounts are checked where they come in."""
    with pytest.raises(InvalidValue):
        demand(**wrong)
    with pytest.raises(InvalidValue):
        Demand(cpu_milli=1, memory_bytes=1, gpus=1)
