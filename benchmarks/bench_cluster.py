"""Many machines: dispatch, decisions, telemetry, unlike nodes, and a node that is killed.

Everything but the simulated agents runs on a real Ray cluster of a head and three nodes here.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from cluster_machines import SPEEDS, Machines, machines, rest, timed
from dispatch_machine import peer_version
from results import Result, report

if TYPE_CHECKING:
    from collections.abc import Callable

EMPTY_ITEMS, PEER_ITEMS = 100_000, 2_000
NODES, DEVICES = 1_000, 8
ITEM_SECONDS = 0.2
GIB = 2**30


def batches(round_number: int, makers: list[Any], nodes: int) -> list[bytes]:
    """What so many agents would send in one second; every reading moves at random."""
    import random

    import msgspec

    from exo.gpu.vocabulary.device import GPUDevice
    from exo.gpu.vocabulary.metrics import GPUMetrics
    from exo.gpu.vocabulary.snapshot import DeviceState, Snapshot

    draw = random.Random(round_number)
    found: list[bytes] = []
    for number in range(nodes):
        states = [
            DeviceState(
                device=GPUDevice(
                    device_id=f"cuda:{index}",
                    name="Fake card",
                    vendor="NVIDIA",
                    backend="cuda",
                    hardware_id=f"FAKE-{number}-{index}",
                    memory_bytes=24 * GIB,
                ),
                sample=GPUMetrics(
                    device_id=f"cuda:{index}",
                    timestamp=1e9 + round_number,
                    memory_total_bytes=24 * GIB,
                    # Work comes and goes on a tenth of the cards in a second; the rest hums along.
                    memory_used_bytes=(number * 8 + index) * 2**21
                    + (draw.randrange(8 * GIB) if draw.random() < 0.1 else 0),
                    compute_utilization_percent=float((number + index) % 90 + draw.randrange(10)),
                    temperature_celsius=50.0 + (index + draw.randrange(3)),
                    power_watts=100.0 + draw.randrange(200),
                    clock_rate_mhz=1500.0 + draw.randrange(400),
                ),
                sample_age_seconds=0.1,
            )
            for index in range(DEVICES)
        ]
        batch = makers[number].make(Snapshot(tuple(states)))
        if round_number and batch.changed_number != batch.number:
            batch = msgspec.structs.replace(batch, states=None, remarks=())
        found.append(msgspec.msgpack.encode(batch))
    return found


def at_scale(nodes: int, rounds: int) -> list[Result]:
    from exo.gpu.nodes.cluster.batches import BatchMaker
    from exo.gpu.nodes.cluster.table import ClusterTable
    from exo.gpu.vocabulary.request import Request

    table = ClusterTable()
    makers = [BatchMaker(f"node{number:04}") for number in range(nodes)]
    for encoded in batches(0, makers, nodes):
        table.take(encoded)
    table.choose(Request(memory_bytes=GIB), {})
    shares, decisions = [], []
    for number in range(1, rounds + 1):
        sent = batches(number, makers, nodes)
        begun = time.process_time()
        for encoded in sent:
            table.take(encoded)
        shares.append(time.process_time() - begun)
        for size in range(1, 21):
            request = Request(memory_bytes=size * GIB, holder=f"{number}-{size}")
            begun = time.perf_counter()
            chosen = table.choose(request, {})
            decisions.append(time.perf_counter() - begun)
            assert chosen
    slowest = sorted(decisions)[int(len(decisions) * 0.99)] * 1e3
    typical = statistics.median(decisions) * 1e3
    share = statistics.median(shares) * 100
    count = nodes * DEVICES
    return [
        Result(
            f"decision over {count} devices, p99 ms",
            slowest,
            typical,
            "our median",
            "",
            slowest,
            1.0,
            "lower",
            len(decisions),
        ),
        Result(
            f"telemetry of {count}, % of a core",
            share,
            max(shares) * 100,
            "our worst second",
            "",
            share,
            10.0,
            "lower",
            rounds,
        ),
    ]


def empty_tasks(executor: Any, items: int, peer_items: int, version: str) -> Result:
    import ray

    @ray.remote(num_cpus=1)
    def nothing(number: int) -> int:
        return number

    ray.get([nothing.remote(number) for number in range(8)])
    peer = peer_items / timed(lambda: ray.get([nothing.remote(n) for n in range(peer_items)]))
    list(executor.map(abs, range(1000)))

    def ours() -> None:
        assert list(executor.map(abs, range(items))) == list(range(items))

    rate = items / statistics.median(timed(ours) for _ in range(3))
    return Result(
        "empty tasks a second", rate, peer, "Ray tasks", version, rate / peer, 20.0, "higher", 3
    )


def actor_pool_seconds(items: int) -> float:
    """Ray's own pool, with an actor on each node."""
    import ray
    from ray.util import ActorPool

    class Worker:
        def rest(self, seconds: float) -> float:
            return rest(seconds)

    kind = ray.remote(Worker)
    actors = [kind.options(label_selector={"exo.node": name}).remote() for name in SPEEDS]
    ray.get([actor.rest.remote(0.0) for actor in actors])
    pool = ActorPool(actors)
    work = [ITEM_SECONDS] * items
    seconds = timed(
        lambda: list(pool.map_unordered(lambda actor, one: actor.rest.remote(one), work))
    )
    for actor in actors:
        ray.kill(actor)
    return seconds


def unlike_nodes(executor: Any, items: int, version: str) -> Result:
    list(executor.map(rest, [0.0] * len(SPEEDS), chunksize=1))
    ours = timed(lambda: list(executor.map(rest, [ITEM_SECONDS] * items)))
    peer = actor_pool_seconds(items)
    ideal = items * ITEM_SECONDS / sum(SPEEDS.values())
    return Result(
        "speeds 1:2:4, makespan / ideal",
        ours / ideal,
        peer / ideal,
        "Ray ActorPool",
        version,
        ours / ideal,
        1.08,
        "lower",
        1,
    )


def killed_node(executor: Any, kill: Callable[[], None], items: int, name: str) -> Result:
    """A node dies when half of the items are done; the others' speed from then on is the ideal."""
    import threading

    done: list[int] = []
    begun = time.perf_counter()
    killed_at = left = 0.0
    killer = threading.Thread(target=kill)
    for one in executor.stream(rest, [ITEM_SECONDS] * items):
        done.append(one.item_index)
        if len(done) == items // 2:
            killed_at, left = time.perf_counter() - begun, items - len(done)
            killer.start()
    ours = time.perf_counter() - begun
    killer.join()
    assert sorted(done) == list(range(items)), "an item was lost or came twice"
    ideal = killed_at + left * ITEM_SECONDS / (sum(SPEEDS.values()) - SPEEDS[name])
    return Result(
        "a node killed, makespan / ideal", ours, ideal, "ideal", "", ours / ideal, 1.25, "lower", 1
    )


def on_ray(found: Machines, *, quick: bool) -> list[Result]:
    from exo.gpu.coordination.cluster import connect_node
    from exo.gpu.coordination.executor import GPUExecutor

    version = peer_version("ray")
    items = 70 if quick else 420
    with connect_node(found.address) as node, GPUExecutor(cluster=node) as executor:
        executor.start(60)
        return [
            empty_tasks(
                executor,
                EMPTY_ITEMS // 50 if quick else EMPTY_ITEMS,
                PEER_ITEMS // 10 if quick else PEER_ITEMS,
                version,
            ),
            unlike_nodes(executor, items, version),
            killed_node(executor, lambda: found.kill("twice"), items, "twice"),
        ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument("--quick", action="store_true", help="smaller: to see that it runs")
    options = parser.parse_args()
    results = at_scale(50 if options.quick else NODES, 2 if options.quick else 10)
    with machines() as found:
        results += on_ray(found, quick=options.quick)
    return report("cluster", results, as_json=options.json)


if __name__ == "__main__":
    raise SystemExit(main())
