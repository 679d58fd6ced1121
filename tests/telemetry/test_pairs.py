"""Copies between two devices: both ways, with the way they take, and a reason for the rest."""

from __future__ import annotations

import os

import pytest

from exo.gpu.backend import GPUBackend
from exo.gpu.backends.fake import FakeBackend
from exo.gpu.backends.vulkan import VulkanGPUBackend
from exo.gpu.telemetry.pairs import both_unmeasured, pair_here, pair_through
from exo.gpu.telemetry.probe_cache import PairCache, pairs_path
from exo.gpu.vocabulary.device import GPUDevice
from exo.gpu.vocabulary.errors import InvalidValue
from exo.gpu.vocabulary.probe import Measure, PairResult

SECONDS = 0.2


def card(place: int, **more: object) -> dict[str, object]:
    """A scripted device with memory."""
    return {
        "device_id": f"fake:{place}",
        "name": "Card",
        "vendor": "x",
        "backend": "fake",
        "hardware_id": f"FAKE-{place}",
        "memory_bytes": 2**30,
        **more,
    }


def between(backend: GPUBackend) -> list[PairResult]:
    """What is measured between the first two devices."""
    first, second, *_ = backend.find()
    return pair_through(backend, first, second, seconds=SECONDS)


class TestMeasuring:
    def test_both_ways_are_measured(self) -> None:
        """Rule: each way has its own figure, and a copy by way of the host says so."""
        there, here = between(FakeBackend({"devices": [card(0), card(1)]}))
        assert (there.source, there.target) == (here.target, here.source) == ("fake:0", "fake:1")
        for result in (there, here):
            assert result.reason is None
            assert result.through_host is True
            assert result.gbps is not None
            assert 0 < result.gbps.lowest <= result.gbps.median <= result.gbps.highest

    def test_less_memory_is_enough(self) -> None:
        """Rule: what does not fit is halved; the piece that was taken already is given back."""
        small = [card(0), card(1, memory_bytes=40 * 2**20)]
        assert all(result.gbps for result in between(FakeBackend({"devices": small})))

    def test_without_room_the_driver_says_why(self) -> None:
        """Rule: no figure without memory, and never 0."""
        full = [card(0), card(1, memory_bytes=1)]
        for result in between(FakeBackend({"devices": full})):
            assert result.gbps is None
            assert result.through_host is None
            assert result.reason

    def test_a_device_that_the_process_does_not_see_is_a_reason(self) -> None:
        """Rule: nothing is measured on another device than the one meant."""
        backend = FakeBackend({"devices": [card(0), card(1)]})
        first, _ = backend.find()
        other = GPUDevice("fake:9", "Card", "x", "fake", hardware_id="FAKE-9")
        there, _ = pair_through(backend, first, other, seconds=SECONDS)
        assert there.reason == "the measuring process does not see fake:9"


class TestInTheWorker:
    def test_the_variables_count_and_both_real_drivers_are_measured(
        self, vulkan_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Rule: what the process was told to see is what it sees, before any driver is opened."""
        first, second = VulkanGPUBackend().find()
        both = vulkan_environment["VK_DRIVER_FILES"]
        monkeypatch.setenv("EXO_GPU_VULKAN_INDEX", "7")
        monkeypatch.setenv("VK_DRIVER_FILES", "/nothing.json")
        changes = {"VK_DRIVER_FILES": both, "EXO_GPU_VULKAN_INDEX": None}
        answers = pair_here(first.to_json(), second.to_json(), SECONDS, changes)
        assert os.environ["VK_DRIVER_FILES"] == both
        for result in map(PairResult.from_json, answers):
            assert result.reason is None
            assert result.gbps is not None
            assert result.through_host is True


class TestKept:
    def test_results_hold_for_both_drivers(self, tmp_path, monkeypatch) -> None:
        """Rule: kept beside the probes by both identities; another driver on either end ends it."""
        monkeypatch.setenv("EXO_GPU_PROBES", str(tmp_path / "probes.json"))
        path = pairs_path(os.environ)
        assert path == tmp_path / "probes-pairs.json"
        one = GPUDevice("a:0", "A", "x", "cuda", hardware_id="A", driver_version="1")
        two = GPUDevice("a:1", "B", "x", "cuda", hardware_id="B", driver_version="1")
        newer = GPUDevice("a:1", "B", "x", "cuda", hardware_id="B", driver_version="2")
        there, _ = both_unmeasured(one, two, "not asked")
        cache = PairCache(path)
        cache.keep([there])
        cache.refresh()
        assert cache.find(one, two) == there
        assert cache.find(two, one) is None
        assert cache.find(one, newer) is None


def test_a_pair_is_two_devices() -> None:
    """Rule: there is no way from a device to itself."""
    figure = Measure(median=1.0, lowest=1.0, highest=1.0, runs=1)
    with pytest.raises(InvalidValue, match="another device"):
        PairResult(
            source="a",
            target="a",
            source_hardware_id="A",
            target_hardware_id="A",
            measured_at=1.0,
            gbps=figure,
        )
