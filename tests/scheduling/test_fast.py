"""The fast selector: the plain definition's answers, whatever changed before and whatever is asked."""

from __future__ import annotations

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
from exo.gpu.vocabulary.links import Interconnect, Link, LinkKind
from exo.gpu.vocabulary.request import Request
from exo.gpu.vocabulary.settings import DeviceSettings
from exo.gpu.vocabulary.snapshot import Health
from tests.scheduling.states import GIB, bytes_of, lease, state

KINDS = {"cuda": DeviceClass.HARDWARE, "rocm": DeviceClass.HARDWARE}
KINDS |= {"vulkan": DeviceClass.SOFTWARE, "cpu": DeviceClass.HOST}
NODES = ("", "rig")
CORDON = Cordon(hardware_id="x", device_id="x", why="a fan", by="ann", since=1.0)
ids = st.builds(
    lambda node, kind, number: f"{node}/{kind}:{number}" if node else f"{kind}:{number}",
    st.sampled_from(NODES),
    st.sampled_from(list(KINDS)),
    st.integers(0, 3),
)
# Few values, so that ties are the rule: they are where two definitions drift apart.
sizes = st.sampled_from([0, 2, 6, 12, 24])
loads = st.none() | st.sampled_from([0.0, 10.0, 50.0, 99.5])
heats = st.none() | st.sampled_from([30.0, 79.0, 91.5])
labels = st.lists(st.sampled_from(["big", "quiet"]), max_size=2, unique=True).map(tuple)
policies = st.sampled_from(list(POLICIES))
rarely = st.sampled_from([False, False, False, True])


@st.composite
def leases_on(draw, device_id):
    held, share = draw(st.none() | st.sampled_from([1, 4, 8])), None
    if held is None:
        share = draw(st.none() | st.sampled_from([0.2, 0.5]))
    found = lease(device_id, held, before=draw(st.none() | sizes), exclusive=draw(rarely))
    host = draw(st.sampled_from([None, None, GIB]))
    return msgspec.structs.replace(found, share=share, host_memory_bytes=host)


@st.composite
def states(draw, device_id=None):
    device_id = device_id or draw(ids)
    node, _, label = device_id.rpartition("/")
    kind = label.partition(":")[0]
    total = draw(st.sampled_from([None, 12, 24]))
    pool = HOST_POOL if kind in {"vulkan", "cpu"} or draw(rarely) else device_id
    found = draw(st.lists(leases_on(device_id), max_size=2))
    one = state(
        device_id,
        total,
        draw(st.none() | sizes.map(lambda used: min(used, total or 24))),
        percent=draw(loads),
        celsius=draw(heats),
        sampled=draw(st.sampled_from([True, True, True, False])),
        sleeping=draw(rarely),
        age=draw(st.sampled_from([0.0, 1.0, 29.0])),
        health=draw(st.sampled_from([*[Health.OK] * 4, *Health])),
        leases=tuple(msgspec.structs.replace(each, memory_pool=pool) for each in found),
        cordon=CORDON if draw(rarely) else None,
        device_class=KINDS[kind],
        node=node,
        memory_pool=pool,
        drives_display=draw(st.none() | st.booleans()),
        compute_capability=draw(st.sampled_from([None, "8.6", "9.0"])),
        slots=draw(st.sampled_from([1, 1, 2])),
        settings=DeviceSettings(
            avoid=draw(rarely),
            weight=draw(st.sampled_from([1.0, 1.0, 0.5, 2.0])),
            labels=draw(labels),
            reserve_bytes=draw(st.sampled_from([None, None, GIB])),
            max_share=draw(st.sampled_from([1.0, 1.0, 0.5, 0.0])),
            slots=draw(st.sampled_from([None, None, 3])),
        ),
    )
    return msgspec.structs.replace(
        one,
        measured_gflops=draw(st.sampled_from([None, 0.0, 100.0, 5000.0])),
        warm_keys=draw(st.sampled_from([(), ("llama",), ("llama", "qwen")])),
    )


def some(values):
    """Mostly nothing, so that requests with many wishes still find a device."""
    return st.none() | st.none() | st.none() | values


@st.composite
def requests(draw):
    fields = {
        "memory_bytes": draw(st.none() | st.sampled_from([1, 4, 8, 20]).map(bytes_of)),
        "share": draw(some(st.sampled_from([0.1, 0.5, 1.0]))),
        "exclusive": draw(rarely),
        "slots": draw(some(st.integers(1, 3))),
        "runtime": draw(some(st.sampled_from(list(KINDS)))),
        "device_class": draw(some(st.sampled_from(list(DeviceClass)))),
        "min_compute_capability": draw(some(st.sampled_from(["8.6", "8.9"]))),
        "min_idle_percent": draw(some(st.sampled_from([0.0, 40.0, 90.0]))),
        "max_temperature_celsius": draw(some(st.sampled_from([50.0, 80.0]))),
        "node": draw(some(st.sampled_from([*NODES, "other"]))),
        "vendors": draw(some(st.just(("VENDOR",)))) or (),
        "backends": draw(some(st.just(("cuda", "cpu")))) or (),
        "labels": draw(some(labels)) or (),
        "without_labels": draw(some(labels)) or (),
        "prefer": draw(some(st.lists(ids, max_size=2).map(tuple))) or (),
        "without_devices": draw(some(st.lists(ids, max_size=2).map(tuple))) or (),
        "affinity_key": draw(st.sampled_from(["", "", "llama", "none"])),
        "policy": draw(policies),
        "host_memory_bytes": draw(some(st.just(GIB))),
        "count": draw(st.sampled_from([1, 1, 1, 1, 2])),
    }
    whole = draw(st.sampled_from(["default", "all", "named"]))
    if whole == "all":
        fields |= {"all_devices": True, "runtime": None, "device_class": None}
    if whole == "named":
        fields["devices"] = tuple(draw(st.lists(ids, min_size=1, max_size=3)))
    return Request(**fields)


events = st.lists(
    st.one_of(
        states().map(lambda one: ("update", one)),
        ids.map(lambda one: ("remove", one)),
        st.sampled_from([0.5, 15.0]).map(lambda seconds: ("wait", seconds)),
        requests().map(lambda one: ("ask", one)),
        requests().map(lambda one: ("ask", one)),
    ),
    max_size=30,
)


# Blocks so short that every table has several, with columns; and as they are.
block_sizes = st.sampled_from([Sizes(plain=0, block=2), Sizes()])


def same(table: FastSelector, request: Request, now: float) -> None:
    expected = select(table.snapshot(now=now), request).chosen
    assert table.choose(request, now=now).chosen == expected


@settings(max_examples=300)
@given(
    st.lists(states(), max_size=12, unique_by=lambda one: one.device.device_id), events, block_sizes
)
def test_it_answers_as_the_plain_definition_after_any_events(first, happened, sizes):
    """Rule: the same device or none, for random tables, constraints and sequences of updates."""
    now = 100.0
    table = FastSelector(first, now=now, sizes=sizes)
    for what, value in happened:
        if what == "update":
            table.update(value, now=now)
        elif what == "remove":
            table.remove(value)
        elif what == "wait":
            now += value
        else:
            same(table, value, now)
