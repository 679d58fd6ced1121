"""What a plan is worth when the costs turn out otherwise: lognormal noise after planning.

The clairvoyant bound knows the true costs from the start. A plan sees a true cost only once the
item is done. Noise comes in two kinds: of an item, the same on every device, as where its size was
guessed wrong; and of each item on each device anew. With the second the clairvoyant also picks for
each item a device on which it happens to be cheap, which nobody can who learns that afterwards; so
the best plan in expectation stands beside ours there.
"""

from __future__ import annotations

from statistics import fmean

import numpy as np
from results import Result

from exo.gpu.scheduling.assignment import assign
from exo.gpu.scheduling.constructive import HEURISTICS, loads_of
from exo.gpu.scheduling.relaxation import relax

SIGMA = 0.15
# How often a plan is made anew for what has not begun, as a share of the items that ended since.
REPLANS = 24
ROUNDS = 12


def noise_study(instances: dict[str, np.ndarray], runs: int) -> list[Result]:
    """The realised makespan over the clairvoyant bound; the mean over instances and lots."""
    results = []
    for kind in ("item", "cell"):
        ratios: dict[str, list[float]] = {}
        for number, costs in enumerate(instances.values()):
            for run in range(runs):
                lots = np.random.default_rng([number, run])
                shape = (len(costs), 1) if kind == "item" else costs.shape
                for name, ratio in one_run(costs, costs * lots.lognormal(0, SIGMA, shape)).items():
                    ratios.setdefault(name, []).append(ratio)
        means = {name: fmean(values) for name, values in ratios.items()}
        ours = means.pop("ours", 0.0)
        results += [
            Result(f"noise by {kind}: / bound", ours, peer, name, "", ours, 1.05, "lower", count)
            for count in [len(instances) * runs]
            for name, peer in means.items()
        ]
    return results


def one_run(costs: np.ndarray, true: np.ndarray) -> dict[str, float]:
    items, devices = costs.shape
    room, ready = np.full(devices, items), np.zeros(devices)
    plan = assign(costs, rounds=ROUNDS, solver=False)
    longest_first = HEURISTICS["LPT"](costs, room, ready)
    bound = relax(true, ready, float(loads_of(true, plan.places, ready).max())).bound
    mean_noise = float(np.exp(SIGMA**2 / 2))
    return {
        "ours": replanned(costs, true, plan.places) / bound,
        "LPT": float(loads_of(true, longest_first, ready).max()) / bound,
        "dynamic pulling": pulled(costs, true) / bound,
        "the plan kept as it was": float(loads_of(true, plan.places, ready).max()) / bound,
        "the best plan in expectation": plan.bound * mean_noise / bound,
    }


def replanned(costs: np.ndarray, true: np.ndarray, plan: np.ndarray) -> float:
    """Devices begin their longest items first; what has not begun is planned anew now and then."""
    items, devices = costs.shape
    places, waiting = plan.copy(), np.ones(items, dtype=bool)
    # Until when a device is busy or looks away, when its item should end, and the last end so far.
    busy, expected, end = np.zeros(devices), np.zeros(devices), 0.0
    since = 0
    while waiting.any():
        device = int(busy.argmin())
        now = float(busy[device])
        mine = np.flatnonzero(waiting & (places == device))
        if since and (since >= items // REPLANS or not mine.size):
            left = np.flatnonzero(waiting)
            # What runs on beyond its expected end may end at any moment.
            ready = np.maximum(np.where(busy > now, expected, now), now) - now
            places[left] = assign(costs[left], ready=ready, rounds=ROUNDS, solver=False).places
            mine, since = np.flatnonzero(waiting & (places == device)), 0
        if not mine.size:
            later = busy[busy > now]
            busy[device] = later.min() if later.size else np.nextafter(now, np.inf)
            expected[device] = now
            continue
        item = int(mine[costs[mine, device].argmax()])
        waiting[item] = False
        expected[device], busy[device] = now + costs[item, device], now + true[item, device]
        end = max(end, float(busy[device]))
        since += 1
    return end


def pulled(costs: np.ndarray, true: np.ndarray) -> float:
    """Whoever is free takes the waiting item that suits it best, compared with the others."""
    ends = np.zeros(costs.shape[1])
    waiting = np.ones(len(costs), dtype=bool)
    suits = costs / costs.min(axis=1, keepdims=True)
    while waiting.any():
        device = int(ends.argmin())
        left = np.flatnonzero(waiting)
        item = int(left[suits[left, device].argmin()])
        waiting[item] = False
        ends[device] += true[item, device]
    return float(ends.max())
