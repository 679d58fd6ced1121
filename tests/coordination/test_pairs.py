"""Probing pairs: two leases, one process that sees exactly two devices, a reason for the rest."""

from __future__ import annotations

import json

import pytest
from boxes import device, host

from exo.gpu.coordination import pairs
from exo.gpu.coordination.leases import lease
from exo.gpu.coordination.pairs import probe_with_pairs
from exo.gpu.coordination.probes import Unanswered
from exo.gpu.nodes.local import LocalNode
from exo.gpu.vocabulary.errors import BackendError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of this test's own."""
    monkeypatch.setenv("EXO_GPU_PROBES", str(tmp_path / "probes.json"))
    return tmp_path / "probes-pairs.json"


@pytest.fixture
def pairing(monkeypatch):
    """Scripted devices count as able to copy, so that a process is asked."""
    monkeypatch.setattr(pairs, "PAIRING_BACKENDS", ("fake",))
    monkeypatch.setattr(pairs, "pair_here", watch)


def watch(source_json, target_json, seconds, changes):
    """In the worker: what it was told to see, as an error that is told."""
    raise ValueError(f"sees {changes['EXO_GPU_FAKE_VISIBLE']}")


def between(*names, **more):
    with LocalNode() as node:
        chosen = [
            state
            for state in node.snapshot().devices
            if not names or state.device.device_id in names
        ]
        return pairs.probe_pairs(node, chosen, seconds=0.3, **more)


def cards(*places, **more):
    return [device(f"cuda:{place}", "NVIDIA", "cuda", **more) for place in places]


def test_every_ordered_pair_has_a_figure_or_a_reason(use_box, cache):
    """Rule: what no backend copies between says so, and is not kept."""
    use_box(*cards(0, 1), host())
    found = between()
    ways = {(one.source, one.target) for one in found}
    assert len(found) == len(ways) == 6
    assert all(one.gbps is None and one.reason for one in found)
    assert not cache.exists()


def test_kinds_do_not_mix():
    """Rule: no backend copies into another's memory."""
    with LocalNode() as node:
        (one, *_) = node.snapshot().devices
    import msgspec

    other = msgspec.structs.replace(one.device, backend="other")
    assert "no copy leads from" in pairs._never(one.device, other)


def test_the_process_sees_exactly_the_two(use_box, pairing):
    """Rule: both are named to the process, and the third is not."""
    use_box(*cards(0, 1, 2))
    there, here = between("cuda:0", "cuda:2")
    assert there.reason == here.reason == "sees FAKE-cuda:0,FAKE-cuda:2"


def test_both_are_held_meanwhile(use_box, pairing, monkeypatch):
    """Rule: nobody else gets either while it is measured; afterwards anybody may."""
    use_box(*cards(0, 1))
    seen = []

    def look(*_):
        with LocalNode() as other:
            seen.extend(state.leases for state in other.snapshot().devices)
        return Unanswered("watched")

    monkeypatch.setattr(pairs, "call_in_slot", look)
    assert {one.reason for one in between()} == {"watched"}
    assert all(held[0].exclusive and held[0].holder == "exo-gpu probe" for held in seen)
    assert len(seen) == 2
    with LocalNode() as node:
        assert all(state.leases == () for state in node.snapshot().devices)


def test_what_is_leased_or_busy_is_left_alone(use_box, pairing):
    """Rule: the reason names the device that is in use; force measures beside a part's lease."""
    use_box(*cards(0), *cards(1, sample={"compute_utilization_percent": 90}))
    assert all("cuda:1: not now: it is 90 % busy" in one.reason for one in between())
    with lease("1GiB", devices="cuda:0", holder="training"):
        assert "cuda:0: not now: it is leased by training" in between()[0].reason
        assert "sees" in between(force=True)[0].reason
    with lease(devices="cuda:1", exclusive=True, holder="training"):
        assert "leased" in between(force=True)[0].reason


def test_devices_that_cannot_be_pinned_are_a_reason(use_box, pairing, monkeypatch):
    """Rule: without variables that name both nothing is measured, and both are let go."""
    use_box(*cards(0, 1))

    def refuse(*_):
        raise BackendError("cannot be pinned")

    monkeypatch.setattr(LocalNode, "environment", refuse)
    assert {one.reason for one in between()} == {"cannot be pinned"}
    with LocalNode() as node:
        assert all(state.leases == () for state in node.snapshot().devices)


def test_names_choose_the_devices_and_their_pairs(use_box):
    """Rule: only the pairs of what was named."""
    use_box(*cards(0, 1, 2))
    probes, found = probe_with_pairs(("cuda:0", "FAKE-cuda:1"), seconds=0.3)
    assert [one.device_id for one in probes.results] == ["cuda:0", "cuda:1"]
    assert [(one.source, one.target) for one in found] == [
        ("cuda:0", "cuda:1"),
        ("cuda:1", "cuda:0"),
    ]


def test_both_real_drivers_are_measured_and_kept(vulkan_environment, cache):
    """Rule: two drivers in one process that sees no other, and the way leads through the host."""
    found = between("vulkan:0", "vulkan:1", force=True)
    assert len(found) == 2
    for result in found:
        assert result.reason is None
        assert result.gbps.median > 0
        assert result.through_host is True
    assert len(json.loads(cache.read_text())) == 2
