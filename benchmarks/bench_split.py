"""How well one model is split: beside every split there is, other rules, and Helix' clusters."""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from pathlib import Path
from statistics import median, quantiles

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # one core; read when NumPy is loaded

from results import Result, parsed_with_data, report  # noqa: E402
from split_baselines import BASELINES, petals_network, seconds_of  # noqa: E402
from split_cases import (  # noqa: E402
    MODELS,
    best_by_trying,
    named_model,
    random_box,
    random_case,
)
from split_clusters import PUBLIC, Case, read_cases  # noqa: E402

from exo.gpu.scheduling.split import split_layers  # noqa: E402
from exo.gpu.scheduling.split_costs import Costs  # noqa: E402
from exo.gpu.scheduling.split_flow import FlowGraph  # noqa: E402
from exo.gpu.scheduling.split_placement import place_layers  # noqa: E402
from exo.gpu.vocabulary.model import ModelNeeds  # noqa: E402
from exo.gpu.vocabulary.split import ASSUMED_LINKS, SplitDevice  # noqa: E402

SEED = 20250
CONTEXT_TOKENS = 8192
SAME = 1e-9
SEARCH_SECONDS, TRIES = 5.0, 100_000
# Flow, least part of it that counts as met, most seconds; the optimum is proven for the first.
PUBLISHED = {"cluster10.ini": (286.59, 0.99, 10.0), "cluster24.ini": (1289.56, 1.0, 30.0)}
PUBLISHED_OTHERS = {"cluster24.ini": {"Petals": 952.11, "Swarm": 757.85}}


def main() -> int:
    options = arguments()
    cases = [case for case in read_cases(options.data) if options.case in {None, case.name}]
    if not cases:
        sys.exit(f"there is no case {options.case!r} in {options.data}")
    results, solutions = [], {}
    for case in cases:
        found, placement = of_network(case)
        results += found
        solutions[case.name] = placement
    if options.solution:
        written = solutions if options.case is None else solutions[options.case]
        options.solution.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    results += of_all_splits(options.cases)
    results += of_boxes(options.boxes)
    results += of_large()
    return report("split", results, as_json=options.json)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", help="only this one of the table of layers")
    parser.add_argument("--cases", type=int, default=2000, help="for every split (%(default)s)")
    parser.add_argument("--boxes", type=int, default=300, help="of real cards (%(default)s)")
    parser.add_argument(
        "--solution",
        type=Path,
        help="write {case: {node: [first layer, last layer + 1]}} here; with --case its part alone",
    )
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    return parsed_with_data(parser, "helix", PUBLIC)


def of_network(case: Case) -> tuple[list[Result], dict[str, tuple[int, int]]]:
    """The flow through a cluster beside what was published, and beside Petals' rule."""
    began = time.perf_counter()
    plan = place_layers(case.network, tries=TRIES, seconds=SEARCH_SECONDS, clock=time.perf_counter)
    seconds = time.perf_counter() - began
    graph = FlowGraph(case.network)
    # Counted anew from the placement alone, as anyone can.
    places = [plan.placement.get(node.name, (0, 0)) for node in case.network.nodes]
    passage = graph.passage(places, timed=True)
    petals = graph.passage(petals_network(case.network), timed=True)
    for name, one in (("ours", passage), ("Petals' rule", petals)):
        sequence = 1 / one.token_seconds if one.token_seconds else 0.0
        print(
            f"  {case.name:<20} {name:<13} flow {one.tokens_per_second:8.2f}  "
            f"{one.nodes_on_way or 0:5.1f} nodes on the way  {sequence:6.1f} tokens/s a sequence"
        )
    print(f"  {case.name:<20} bound {plan.bound:.2f}, found by {plan.method}")
    flow = passage.tokens_per_second
    results = [
        Result(
            f"{case.name}: flow / Petals' rule",
            flow,
            petals.tokens_per_second,
            "Petals' rule",
            "",
            flow / petals.tokens_per_second if petals.tokens_per_second else float("inf"),
            1.0,
            "higher",
            1,
        )
    ]
    if case.file in PUBLISHED:
        best, part, most = PUBLISHED[case.file]
        peers = {"Helix' MILP": best, **PUBLISHED_OTHERS.get(case.file, {})}
        for name, peer in peers.items():
            target = part if name == "Helix' MILP" else 1.0
            value = flow / peer
            metric = f"{case.name}: flow / {name}"
            results.append(
                Result(metric, flow, peer, name, "published", value, target, "higher", 1)
            )
        results.append(limit(f"{case.name}: s", seconds, most, 1))
    return results, plan.placement


def of_all_splits(count: int) -> list[Result]:
    """Random cases in which every split is tried: how many of ours are as good."""
    lots, results = random.Random(SEED), []
    optimal = {"latency": 0, "throughput": 0}
    fitting = dict.fromkeys(optimal, 0)
    for _ in range(count):
        model, devices, links, context, batch = random_case(lots)
        for goal in optimal:
            best = best_by_trying(
                model, devices, links, context, batch, longest=goal == "throughput"
            )
            plan = split_layers(
                model, devices, goal=goal, context_tokens=context, batch=batch, links=links
            )
            if best == float("inf"):
                optimal[goal] += not plan.fits
                continue
            fitting[goal] += 1
            fits = all(one.needed_bytes <= one.usable_bytes for one in plan.shares)
            rate = plan.decode_tokens_per_second or 0.0
            optimal[goal] += plan.fits and fits and rate >= batch / best * (1 - SAME)
    for goal, good in optimal.items():
        print(f"  {goal}: {good} of {count} as every split tried says; {fitting[goal]} fit")
        metric = f"{goal}: optimal, of all cases"
        part = good / max(count, 1)
        results.append(Result(metric, good, count, "every split", "", part, 1, "higher", count))
    return results


def of_boxes(count: int) -> list[Result]:
    """Machines of real cards with a model that fits: the time of others / ours."""
    lots, results = random.Random(SEED), []
    ratios: dict[tuple[str, str], list[float]] = {}
    misfits: dict[tuple[str, str], int] = {}
    done = 0
    while done < count:
        devices = random_box(lots, lots.randint(2, 6))
        model = named_model(lots.choice(list(MODELS)))
        plans = {
            goal: split_layers(model, devices, goal=goal, context_tokens=CONTEXT_TOKENS)
            for goal in ("latency", "throughput")
        }
        if not all(plan.fits for plan in plans.values()):
            continue
        done += 1
        for goal, plan in plans.items():
            longest = goal == "throughput"
            ours = 1.0 / (plan.decode_tokens_per_second or 0.0)
            for name, baseline in BASELINES.items():
                counts = baseline(costs_of(model, devices, 1))
                batches = sum(map(bool, counts)) if longest else 1
                theirs = seconds_of(costs_of(model, devices, batches), counts, longest=longest)
                if theirs == float("inf"):
                    misfits[goal, name] = misfits.get((goal, name), 0) + 1
                else:
                    ratios.setdefault((goal, name), []).append(theirs / ours)
    for goal in ("latency", "throughput"):
        for name in BASELINES:
            found = ratios.get((goal, name), [])
            if len(found) < 2:
                continue
            high = quantiles(found, n=10)[8]
            print(
                f"  {goal:<10} {name:<19} x {median(found):.2f} median, x {high:.2f} p90, "
                f"x {min(found):.2f} least; of {done} it does not fit in "
                f"{misfits.get((goal, name), 0)}"
            )
            metric = f"{goal}: {name} / ours, least"
            middle = median(found)
            results.append(
                Result(metric, 1.0, middle, name, "median", min(found), 1 - SAME, "higher", done)
            )
    return results


def costs_of(model: ModelNeeds, devices: list[SplitDevice], batches: int) -> Costs:
    return Costs(
        model, devices, ASSUMED_LINKS, context_tokens=CONTEXT_TOKENS, batch=1, batches=batches
    )


def of_large() -> list[Result]:
    """80 layers on 8 devices that all differ."""
    model = named_model("70B")
    devices = [
        SplitDevice(
            device_id=f"card:{place}",
            free_bytes=int(6e9 * (1 + 0.1 * place)),
            bandwidth_gbps=300.0 + 100 * place,
            compute_gflops=1e5,
        )
        for place in range(8)
    ]
    results = []
    for goal in ("latency", "throughput"):
        runs = []
        for _ in range(5):
            began = time.perf_counter()
            plan = split_layers(model, devices, goal=goal, context_tokens=CONTEXT_TOKENS)
            runs.append(time.perf_counter() - began)
        assert plan.fits
        assert plan.optimal
        results.append(limit(f"80 layers, 8 devices, {goal}: s", median(runs), 1.0, len(runs)))
    return results


def limit(metric: str, value: float, most: float, count: int) -> Result:
    return Result(metric, value, most, "the limit", "", value, most, "lower", count)


if __name__ == "__main__":
    sys.exit(main())
