"""Rules about what never changes: each says what it found, and a request at fault says so itself."""

from __future__ import annotations

import pytest

from exo.gpu.scheduling.constraints import contradictions
from exo.gpu.scheduling.filters import first_refusal
from exo.gpu.scheduling.selector import refusal_message, select
from exo.gpu.vocabulary.request import Request
from exo.gpu.vocabulary.settings import DeviceSettings
from tests.scheduling.states import GIB, lease, snapshot, state

CARD = state("cuda:0", compute_capability="8.6", settings=DeviceSettings(labels=("big", "quiet")))
HOST = state("cpu:0", 64, 4, slots=8)


def refused(one, *others, **asked):
    return first_refusal(one, snapshot(one, *others), Request(**asked))


def message(*states, **asked):
    return refusal_message(select(snapshot(*states), Request(**asked)))


@pytest.mark.parametrize(
    "asked",
    [
        {"vendors": ("VENDOR",)},
        {"vendors": ("other", "vendor")},
        {"backends": ("cuda",)},
        {"min_compute_capability": "8.6"},
        {"min_compute_capability": "8"},
        {"labels": ("big",)},
        {"labels": ("big", "quiet")},
        {"without_labels": ("loud",)},
        {"without_devices": ("cuda:1",)},
        {"node": ""},
        {"share": 1.0},
        {"host_cpus": 8, "host_memory_bytes": 60 * GIB},
    ],
)
def test_what_is_asked_for_and_there_is_no_objection(asked):
    assert refused(CARD, HOST, **asked) is None


@pytest.mark.parametrize(
    ("asked", "rule", "words"),
    [
        ({"vendors": ("AMD", "Intel")}, "vendor", "is made by vendor, not AMD or Intel"),
        ({"backends": ("rocm",)}, "backend", "was found by backend cuda, not rocm"),
        ({"min_compute_capability": "8.9"}, "capability", "has compute capability 8.6, 8.9 is"),
        ({"min_compute_capability": "10.0"}, "capability", "has compute capability 8.6, 10.0 is"),
        ({"labels": ("big", "new")}, "label", "lacks the label 'new'"),
        ({"without_labels": ("quiet",)}, "label", "has the label 'quiet', which is ruled out"),
        ({"without_devices": ("cuda:0",)}, "device", "is ruled out by the request"),
        ({"node": "rig"}, "node", "is on node here, not rig"),
        ({"host_cpus": 9}, "host", "is on a machine of 8 cores, 9 are asked for"),
        ({"host_memory_bytes": 65 * GIB}, "host", "with 64.0 GiB of memory, 65.0 GiB are asked"),
    ],
)
def test_each_rule_refuses_for_ever_and_tells_both_sides(asked, rule, words):
    refusal = refused(CARD, HOST, **asked)
    assert (refusal.rule, refusal.permanent) == (rule, True)
    assert words in refusal.reason


@pytest.mark.parametrize("reported", [None, "gfx1100"])
def test_a_capability_that_is_no_number_meets_no_limit(reported):
    refusal = refused(state("x:0", compute_capability=reported), min_compute_capability="1")
    assert refusal.rule == "capability"
    assert ("'gfx1100'" if reported else "no compute capability") in refusal.reason


def test_a_machine_without_a_listed_processor_gives_none():
    assert "not listed here" in refused(CARD, host_cpus=1).reason


class TestShares:
    def capped(self, most, *leases):
        return state("cuda:0", 24, 0, settings=DeviceSettings(max_share=most), leases=leases)

    def test_more_than_a_person_allows_is_never(self):
        refusal = refused(self.capped(0.5), share=0.6)
        assert (refusal.rule, refusal.permanent) == ("share", True)
        assert refusal.reason == "may be leased up to a share of 0.5, a share of 0.6 is asked for"
        assert "all is asked for" in refused(self.capped(0.5), exclusive=True).reason
        assert refused(self.capped(0.5), share=0.5) is None

    def test_a_share_of_none_gives_nothing(self):
        assert refused(self.capped(0.0)).permanent
        assert refused(self.capped(0.0), memory_bytes=1).permanent

    def test_memory_is_bounded_by_it_too(self):
        assert refused(self.capped(0.5), memory_bytes=13 * GIB).permanent
        assert refused(self.capped(0.5), memory_bytes=12 * GIB) is None
        held = self.capped(0.5, lease(held=8, before=0))
        assert not refused(held, memory_bytes=5 * GIB).permanent
        assert refused(held, memory_bytes=4 * GIB) is None


class TestUnknownReadings:
    def test_what_was_read_and_does_not_tell_is_never(self):
        silent = state("cuda:0", percent=None, celsius=None)
        assert refused(silent, min_idle_percent=10).permanent
        assert refused(silent, max_temperature_celsius=80).permanent

    def test_what_was_not_read_is_not_now(self):
        for one in (state("cuda:0", sampled=False), state("cuda:0", sleeping=True)):
            assert not refused(one, min_idle_percent=10).permanent
            assert not refused(one, max_temperature_celsius=80).permanent


class TestContradictions:
    @pytest.mark.parametrize(
        ("asked", "words"),
        [
            (
                {"labels": ("big",), "without_labels": ("big",)},
                "label 'big' is asked for and ruled",
            ),
            ({"devices": ("cuda:0",), "without_devices": ("cuda:0",)}, "'cuda:0' is asked for and"),
            ({"prefer": ("cuda:0",), "without_devices": ("cuda:0",)}, "'cuda:0' is preferred and"),
            ({"exclusive": True, "share": 0.5}, "asked for alone, and a share of 0.5 of it"),
        ],
    )
    def test_a_request_against_itself_is_never_with_its_reason(self, asked, words):
        decision = select(snapshot(CARD), Request(**asked))
        assert decision.never
        assert words in refusal_message(decision)

    def test_all_reasons_are_told(self):
        said = message(
            CARD,
            labels=("big",),
            without_labels=("big",),
            exclusive=True,
            share=0.5,
        )
        assert "label 'big'" in said
        assert "a share of 0.5" in said

    def test_a_whole_share_alone_is_no_contradiction(self):
        assert contradictions(Request(exclusive=True, share=1.0)) == ()

    def test_wishes_that_no_device_joins_tell_every_device(self):
        amd = state("rocm:0", compute_capability="9.0")
        said = message(CARD, amd, runtime="cuda", min_compute_capability="9.0")
        assert "cuda:0 has compute capability 8.6" in said
        assert "rocm:0 belongs to runtime rocm, not cuda" in said


def test_a_label_that_no_device_has_is_told_with_the_near_spelling():
    said = message(CARD, labels=("quite",))
    assert said == "no device here has the label 'quite' (did you mean 'quiet'? here: big, quiet)"
    assert message(state("cuda:0"), labels=("big",)).endswith("(here: none)")
