"""Policies of other packages: found by entry point, loaded when named, and used to decide."""

from __future__ import annotations

import json

import pytest

from exo.gpu.nodes.local import LocalNode
from exo.gpu.nodes.policies import policies_for
from exo.gpu.vocabulary.errors import InvalidValue, UnknownName
from exo.gpu.vocabulary.request import Request

MODULE = """
from exo.gpu.scheduling.policies import Policy


class LastFirst:
    name = "last"

    def value(self, facts):
        return int(facts.state.device.device_id[-1]) / 10

    def note(self, facts, value):
        return ""


last_first = Policy(name="last-first", terms=((LastFirst(), 1.0),))
no_policy = 7
"""
ENTRY_POINTS = """
[exo_gpu.policies]
last-first = shop_policies:last_first
broken = shop_policies:no_policy
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package as pip leaves it: a module, and metadata that name its policies."""
    (tmp_path / "shop_policies.py").write_text(MODULE)
    metadata = tmp_path / "shop-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: shop\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(tmp_path)


def test_a_preset_needs_no_package():
    assert policies_for(Request(policy="pack")) == {}


def test_a_policy_of_a_package_is_loaded_by_its_name(package):
    assert list(policies_for(Request(policy="last-first"))) == ["last-first"]


def test_an_unknown_name_is_told_with_those_that_are_installed(package):
    with pytest.raises(UnknownName, match="did you mean 'last-first'"):
        policies_for(Request(policy="last-frist"))


def test_what_is_no_policy_is_said(package):
    with pytest.raises(InvalidValue, match="shop_policies:no_policy is none"):
        policies_for(Request(policy="broken"))


def test_leases_are_decided_by_it(package, tmp_path, monkeypatch):
    """Rule: what a package brings decides about leases as the presets do."""
    cards = [
        {
            "device_id": f"cuda:{one}",
            "name": "card",
            "vendor": "NVIDIA",
            "backend": "fake",
            "runtime": "cuda",
            "memory_bytes": 2**30,
            "sample": {"memory_used_bytes": 0, "memory_total_bytes": 2**30},
        }
        for one in range(3)
    ]
    script = tmp_path / "devices.json"
    script.write_text(json.dumps({"devices": cards}))
    monkeypatch.setenv("EXO_GPU_FAKE", str(script))
    with LocalNode() as node:
        assert node.acquire(Request(policy="last-first")).decision.chosen == ("cuda:2",)
        assert node.acquire(Request()).decision.chosen == ("cuda:0",)
