"""Measuring: runs that are long enough, a median with its range, and a reason for the rest."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import subprocess
import sys
import threading

import msgspec
import platformdirs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo.gpu import file_lock
from exo.gpu.telemetry.probe import (
    FIGURES,
    Run,
    joined,
    measure,
    probe_device,
    probe_here,
    time_runs,
    unmeasured,
)
from exo.gpu.telemetry.probe_cache import PATH_VARIABLE, ProbeCache, cache_path
from exo.gpu.vocabulary.device import GPUDevice
from exo.gpu.vocabulary.errors import BackendError
from exo.gpu.vocabulary.probe import Measure, ProbeResult

CARD = GPUDevice("cuda:0", "Card", "NVIDIA", "cuda", hardware_id="GPU-1", driver_version="550")


class Machine:
    """A device in virtual time: each unit of work takes ``unit_seconds``, each call a little."""

    def __init__(self, unit_seconds: float, call_seconds: float = 1e-6) -> None:
        self.now = 0.0
        self.unit_seconds = unit_seconds
        self.call_seconds = call_seconds
        self.amounts: list[int] = []

    def clock(self) -> float:
        return self.now

    def operation(self, amount: int) -> float:
        self.now += self.call_seconds + amount * self.unit_seconds
        self.amounts.append(amount)
        return 1e9 * amount


class Speed:
    """What a backend offers, of one machine."""

    def __init__(self, machine, names=FIGURES, reasons=None):
        self.reasons = reasons or {}
        self._operations = dict.fromkeys(names, machine.operation)

    def operations(self):
        return self._operations

    def close(self):
        pass


class TestRuns:
    def test_runs_grow_until_the_clock_can_tell(self):
        """Rule: short operations are repeated within a run, and all counted runs are as long."""
        machine = Machine(1e-6)
        runs = time_runs(machine.operation, seconds=0.4, clock=machine.clock)
        assert len(runs) > 10
        assert min(run.seconds for run in runs) >= 0.005
        assert len({run.work for run in runs}) == 1

    def test_the_first_run_warms_up(self):
        """Rule: what a driver compiles or allocates at first is not counted."""
        machine = Machine(0.02)
        runs = time_runs(machine.operation, seconds=0.4, clock=machine.clock)
        assert len(runs) == len(machine.amounts) - 1

    def test_a_slow_operation_gives_the_one_run_it_had_time_for(self):
        """Rule: at least one run is there, however slow."""
        machine = Machine(3.0)
        (run,) = time_runs(machine.operation, seconds=0.4, clock=machine.clock)
        assert run.seconds == pytest.approx(3.0, rel=1e-3)

    @given(st.floats(1e-9, 1.0), st.floats(1e-9, 1e-3), st.floats(0.01, 2.0))
    def test_measuring_ends_in_time(self, unit, call, seconds):
        """Rule: no run starts that would, by the one before it, end after the time."""
        machine = Machine(unit, call)
        runs = time_runs(machine.operation, seconds=seconds, clock=machine.clock)
        longest = max(run.seconds for run in runs)
        assert 1 <= len(runs) <= 30
        assert machine.now <= seconds + 4 * max(longest, unit + call) + 1e-6

    def test_a_clock_that_stands_still_does_not_hang(self):
        """Rule: work that takes no time ends, and is no figure."""
        runs = time_runs(lambda amount: 1.0, seconds=1.0, clock=lambda: 0.0)
        assert measure(runs) is None


def test_a_measure_is_median_and_range():
    """Rule: the median of the rates, what they spread over, and how many there were."""
    runs = [Run(2e9, 1.0), Run(8e9, 1.0), Run(9e9, 3.0)]
    assert measure(runs) == Measure(median=3.0, lowest=2.0, highest=8.0, runs=3)
    launches = [Run(10, 0.001), Run(10, 0.003)]
    assert measure(launches, seconds_each=True).median == pytest.approx(0.0002)


class TestProbe:
    def probe(self, machine, **more):
        speed = Speed(machine, **more)
        return probe_device(CARD, speed, clock=machine.clock, now=lambda: 5.0)

    def test_every_figure_is_measured_within_the_time(self):
        """Rule: two seconds for all figures together; each carries its runs."""
        machine = Machine(0.01)
        result = self.probe(machine)
        assert machine.now <= 2.0
        assert result.memory_gbps.median == pytest.approx(100.0, rel=0.01)
        assert result.launch_seconds.median == pytest.approx(1e-11, rel=0.01)
        assert all(getattr(result, name).runs > 10 for name in FIGURES)
        assert (result.hardware_id, result.driver_version) == ("GPU-1", "550")
        assert (result.measured_at, result.reasons) == (5.0, {})

    def test_what_is_not_offered_has_a_reason(self):
        """Rule: a figure is a measure, or None with a reason; the backend's own where it has one."""
        result = self.probe(
            Machine(0.01), names=("fp32_gflops",), reasons={"memory_gbps": "it is the host's"}
        )
        assert result.fp32_gflops is not None
        assert result.memory_gbps is None
        assert set(result.reasons) == set(FIGURES) - {"fp32_gflops"}
        assert result.reasons["memory_gbps"] == "it is the host's"

    def test_what_the_driver_refuses_costs_no_other_figure(self):
        """Rule: an error of the driver is the reason of that figure alone."""
        machine = Machine(0.01)
        speed = Speed(machine)

        def refuse(amount):
            raise BackendError("out of memory")

        speed._operations["memory_gbps"] = refuse
        result = probe_device(CARD, speed, clock=machine.clock)
        assert result.reasons == {"memory_gbps": "out of memory"}

    def test_a_device_that_is_too_slow_is_told(self):
        """Rule: when the time is over, what was not begun says so."""
        result = self.probe(Machine(1.5))
        assert result.memory_gbps is not None
        assert "over" in result.reasons["launch_seconds"]

    def test_work_without_time_is_no_figure(self):
        """Rule: no figure is infinite."""
        result = probe_device(CARD, Speed(Machine(0.0, 0.0)), clock=lambda: 0.0)
        assert "no time" in result.reasons["fp32_gflops"]


class TestHere:
    def test_the_cpu_is_measured(self):
        """Rule: the host's own speed is measured with NumPy, and what it has none of says so."""
        device = GPUDevice("cpu:0", "CPU", "x", "cpu", hardware_id="cpu")
        result = ProbeResult.from_json(probe_here(device.to_json(), 0.6))
        assert result.fp32_gflops.median > 0
        assert result.memory_gbps.median > 0
        assert (result.host_to_device_gbps, result.device_to_host_gbps) == (None, None)
        assert set(result.reasons) == {"host_to_device_gbps", "device_to_host_gbps"}

    def test_a_backend_that_does_not_compute_says_so(self):
        """Rule: None with a reason, for every figure."""
        device = GPUDevice("fake:0", "Fake", "x", "fake")
        result = ProbeResult.from_json(probe_here(device.to_json(), 0.6))
        assert set(result.reasons) == set(FIGURES)
        assert "does not compute" in result.reasons["fp32_gflops"]

    def test_a_driver_that_does_not_open_is_a_reason(self, vulkan_environment):
        """Rule: an adapter that is not there is a reason, not an exception."""
        device = GPUDevice("vulkan:9", "Nonesuch", "x", "vulkan", driver_index=9)
        result = ProbeResult.from_json(probe_here(device.to_json(), 0.6))
        assert "no Vulkan adapter 9" in result.reasons["memory_gbps"]

    def test_a_card_of_another_backend_is_measured_through_vulkan(self, llvmpipe_manifest):
        """Rule: where a Vulkan driver lists the same card, it measures what its own backend cannot."""
        manifest = str(llvmpipe_manifest)
        device = GPUDevice("fake:0", "Fake", "x", "fake", driver_manifest=manifest, driver_index=0)
        program = (
            "import sys\nfrom exo.gpu.telemetry.probe import probe_here\n"
            "print(probe_here(sys.argv[1], 1.0))"
        )
        pinned = dict.fromkeys(("VK_DRIVER_FILES", "VK_ICD_FILENAMES"), manifest)
        done = subprocess.run(
            [sys.executable, "-c", program, device.to_json()],
            env=os.environ | pinned,
            capture_output=True,
            check=True,
        )
        result = ProbeResult.from_json(done.stdout)
        assert (result.device_id, result.reasons) == ("fake:0", {})


def test_two_backends_of_one_card_complete_each_other():
    """Rule: each figure from the first that measured it, and a reason only where none did."""
    machine = Machine(0.01)
    first = probe_device(CARD, Speed(machine, ("memory_gbps",)), clock=machine.clock)
    second = probe_device(CARD, Speed(machine, ("memory_gbps", "fp32_gflops")), clock=machine.clock)
    both = joined([first, second])
    assert both.memory_gbps == first.memory_gbps
    assert both.fp32_gflops == second.fp32_gflops
    assert set(both.reasons) == {"host_to_device_gbps", "device_to_host_gbps", "launch_seconds"}


def result_of(device=CARD, gflops=None, **more):
    figure = gflops and Measure(median=gflops, lowest=gflops, highest=gflops, runs=1)
    bare = unmeasured(device, "not asked", at=1.0)
    return msgspec.structs.replace(bare, fp32_gflops=figure, **more)


class TestCache:
    def test_what_is_kept_is_found(self, tmp_path):
        """Rule: by identity, whatever its label now, and in a folder that need not be there."""
        path = tmp_path / "deep" / "probes.json"
        ProbeCache(path).keep([result_of(gflops=7.0)])
        cache = ProbeCache(path)
        assert cache.find(CARD) is None
        cache.refresh()
        moved = msgspec.structs.replace(CARD, device_id="cuda:3")
        assert cache.find(moved).fp32_gflops.median == 7.0

    def test_another_driver_is_another_speed(self, tmp_path):
        """Rule: after a change of driver nothing is known."""
        cache = ProbeCache(tmp_path / "probes.json")
        cache.keep([result_of(gflops=7.0)])
        cache.refresh()
        assert cache.find(msgspec.structs.replace(CARD, driver_version="560")) is None

    def test_a_new_result_replaces_the_devices_old_one_alone(self, tmp_path):
        """Rule: one result a device; the others stay."""
        other = msgspec.structs.replace(CARD, hardware_id="GPU-2")
        cache = ProbeCache(tmp_path / "probes.json")
        cache.keep([result_of(gflops=7.0), result_of(other, gflops=1.0)])
        cache.refresh()
        ProbeCache(tmp_path / "probes.json").keep([result_of(gflops=8.0)])
        assert cache.find(CARD).fp32_gflops.median == 7.0
        cache.refresh()
        assert cache.find(CARD).fp32_gflops.median == 8.0
        assert cache.find(other).fp32_gflops.median == 1.0

    @pytest.mark.parametrize("garbage", [b"\x00\xff", b"{}", b'[{"device_id": 3}]', b""])
    def test_a_damaged_file_is_set_aside(self, tmp_path, caplog, garbage):
        """Rule: garbage counts as nothing, is told, and the next writer keeps it beside."""
        path = tmp_path / "probes.json"
        path.write_bytes(garbage)
        cache = ProbeCache(path)
        with caplog.at_level(logging.WARNING):
            cache.refresh()
        assert "damaged" in caplog.text
        assert cache.find(CARD) is None
        cache.keep([result_of(gflops=7.0)])
        cache.refresh()
        assert cache.find(CARD) is not None
        assert (tmp_path / "probes.json.damaged").read_bytes() == garbage

    def test_a_file_that_cannot_be_read_is_told(self, tmp_path, caplog):
        """Rule: a folder in the file's place is a warning, not an exception."""
        cache = ProbeCache(tmp_path)
        with caplog.at_level(logging.WARNING):
            cache.refresh()
        assert "not used" in caplog.text
        assert cache.find(CARD) is None

    def test_writers_take_turns(self, tmp_path):
        """Rule: what several keep at once is all there."""
        path = tmp_path / "probes.json"
        cards = [msgspec.structs.replace(CARD, hardware_id=f"GPU-{index}") for index in range(12)]
        threads = [
            threading.Thread(target=ProbeCache(path).keep, args=([result_of(card)],))
            for card in cards
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        kept = {entry["hardware_id"] for entry in json.loads(path.read_text())}
        assert kept == {card.hardware_id for card in cards}
        assert sorted(entry.name for entry in tmp_path.iterdir()) == [
            "probes.json",
            "probes.json.lock",
        ]

    def test_a_writer_that_stands_still_holds_nobody_up(self, tmp_path, monkeypatch):
        """Rule: a lock that is never given back costs a bounded time."""
        path = tmp_path / "probes.json"
        monkeypatch.setattr(file_lock, "LOCK_SECONDS", 0.02)
        with (tmp_path / "probes.json.lock").open("a") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            ProbeCache(path).keep([result_of(gflops=7.0)])
        assert json.loads(path.read_text())[0]["hardware_id"] == CARD.hardware_id

    def test_where_it_lies(self, monkeypatch, tmp_path):
        """Rule: where the variable says, else where platformdirs would have it."""
        assert cache_path({PATH_VARIABLE: "/a/b.json"}).as_posix() == "/a/b.json"
        for folder in (str(tmp_path), ""):
            monkeypatch.setenv("XDG_CACHE_HOME", folder)
            expected = platformdirs.user_cache_path("exo-gpu", appauthor=False) / "probes.json"
            assert cache_path({"XDG_CACHE_HOME": folder}) == expected
        monkeypatch.setattr("sys.platform", "darwin")
        assert cache_path({}) == expected
