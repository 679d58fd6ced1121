"""The policy ``soonest``: when work would be done on each device, from what is known of it."""

from __future__ import annotations

import msgspec
import pytest

from exo.gpu.scheduling.explanation import explain
from exo.gpu.scheduling.finishing import with_finishes
from exo.gpu.scheduling.selector import select
from exo.gpu.vocabulary.forecast import Forecast
from exo.gpu.vocabulary.lease import Lease
from exo.gpu.vocabulary.request import Request
from exo.gpu.vocabulary.snapshot import Snapshot
from tests.scheduling.states import snapshot, state

NOW = 1000.0
RUNS = {"fast": 10.0, "slow": 40.0}


def tell(kind, hardware_id):
    seconds = RUNS.get(hardware_id)
    if kind not in {"train", "other"} or seconds is None:
        return None
    return Forecast(
        seconds=seconds, low_seconds=seconds * 0.8, high_seconds=seconds * 1.3, samples=7
    )


def card(name, **more):
    one = state(f"cuda:{list(RUNS).index(name) if name in RUNS else 2}", 24, 0)
    return msgspec.structs.replace(
        one, device=msgspec.structs.replace(one.device, hardware_id=name), **more
    )


def lease(name, kind, *, since):
    return Lease(
        lease_id="x1",
        device_id="cuda:0",
        hardware_id=name,
        memory_pool=name,
        memory_bytes=2**30,
        kind=kind,
        granted_seconds=since,
        pid=1,
    )


def asked(**more):
    return Request(kind="train", policy="soonest", memory_bytes=2**30, **more)


def foretold(request, *states, loads=None):
    return with_finishes(snapshot(*states), request, tell, now_seconds=NOW, load_gbps=loads or {})


def test_the_device_where_it_is_done_first_is_chosen():
    """Rule: wait and run together decide, and explain says both with their range."""
    free = foretold(asked(), card("fast"), card("slow"))
    assert select(free, asked()).chosen == ("cuda:0",)
    busy = card("fast", leases=(lease("fast", "train", since=NOW - 2.0),))
    waiting = foretold(asked(), busy, card("slow"))
    assert waiting.devices[0].finish is not None
    assert waiting.devices[0].finish.wait_seconds == pytest.approx(8.0)
    assert select(waiting, asked()).chosen == ("cuda:0",)
    text = " ".join(explain(select(waiting, asked()), waiting).split())
    assert "done in 18 s, nine times of ten within 16..21" in text
    assert "wait 8 s + load 0 s + run 10 s" in text


def test_long_work_before_it_makes_the_slow_device_the_sooner_one():
    queue = tuple(
        msgspec.structs.replace(lease("fast", "train", since=NOW), lease_id=f"x{n}")
        for n in range(4)
    )
    found = foretold(asked(), card("fast", leases=queue), card("slow"))
    assert select(found, asked()).chosen == ("cuda:1",)


def test_work_that_is_late_goes_on_for_a_while():
    """Rule: what takes longer than foretold is not taken to end now for ever."""
    found = foretold(asked(), card("fast", leases=(lease("fast", "train", since=NOW - 100.0),)))
    assert found.devices[0].finish.wait_seconds == pytest.approx(10.0)


def test_what_is_not_known_counts_nothing_and_is_said():
    """Rule: an unknown wait or load is 0 with a note; a device of which nothing is known drops out."""
    busy = card("fast", leases=(lease("fast", "never seen", since=NOW),))
    found = foretold(asked(affinity_key="llama"), busy, card("new"))
    finish = found.devices[0].finish
    assert (finish.wait_seconds, finish.load_seconds) == (0.0, 0.0)
    assert any("how long x1 lasts is not known" in note for note in finish.notes)
    assert any("time to load 'llama' not known" in note for note in finish.notes)
    assert found.devices[1].finish is None
    decision = select(found, asked(affinity_key="llama"))
    assert {one.device_id for one in decision.ranking} == {"cuda:0", "cuda:2"}
    assert "nothing like it was seen" in explain(decision, found)


def test_a_model_is_loaded_at_the_measured_rate_unless_it_is_there():
    cold = foretold(asked(affinity_key="llama"), card("fast"), loads={"fast": 2.0})
    assert cold.devices[0].finish.load_seconds == pytest.approx(2**30 / 2e9)
    warm = foretold(
        asked(affinity_key="llama"), card("fast", warm_keys=("llama",)), loads={"fast": 2.0}
    )
    assert warm.devices[0].finish.load_seconds == 0.0


def test_without_a_kind_nothing_is_foretold():
    plain = snapshot(card("fast"))
    assert isinstance(plain, Snapshot)
    assert with_finishes(plain, Request(), tell, now_seconds=NOW, load_gbps={}) is plain
