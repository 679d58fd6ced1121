"""The fast selector: the plain definition's answers, whatever changed before and whatever is asked."""

from __future__ import annotations

from random import Random
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from exo.gpu.scheduling.columns import Sizes
from exo.gpu.scheduling.fast import FastSelector
from exo.gpu.scheduling.policies import POLICIES
from exo.gpu.scheduling.selector import select
from exo.gpu.vocabulary.device import HOST_POOL, DeviceClass
from exo.gpu.vocabulary.health import Cordon
from exo.gpu.vocabulary.lease import Lease
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
