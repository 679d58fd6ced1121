"""Probing: an exclusive lease, a pinned process, and hands off what is leased, busy or asleep."""

from __future__ import annotations

import json
import subprocess
import sys

import msgspec
import pytest
from boxes import device, host

from exo.gpu.coordination import probes
from exo.gpu.coordination.leases import decide, lease
from exo.gpu.coordination.probes import probe_devices
from exo.gpu.nodes.local import LocalNode
from exo.gpu.telemetry.probe import FIGURES, unmeasured
from exo.gpu.telemetry.probe_cache import PATH_VARIABLE, ProbeCache
from exo.gpu.vocabulary.errors import BackendError, NeverAvailable
from exo.gpu.vocabulary.probe import Measure
from exo.gpu.vocabulary.request import Request

SECONDS = 0.6


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of this test's own."""
    path = tmp_path / "probes.json"
    monkeypatch.setenv(PATH_VARIABLE, str(path))
    return path


def calm(device_id="cuda:0", percent=0.0, **more):
    return device(
        device_id, "NVIDIA", "cuda", sample={"compute_utilization_percent": percent}, **more
    )


def probe(*names, **more):
    return probe_devices(names, seconds=SECONDS, **more)


class TestHandsOff:
    def test_what_is_leased_is_left_alone(self, use_box):
        """Rule: a leased device is refused with the holder's name, and the others are measured."""
        use_box(calm("cuda:0"), calm("cuda:1"))
        with lease(devices="cuda:0", holder="training"):
            found = probe()
        assert [result.device_id for result in found.results] == ["cuda:1"]
        assert "leased by training" in found.refusals["cuda:0"]

    def test_what_is_busy_is_left_alone(self, use_box):
        """Rule: above a tenth of its time a device is busy; below, it may be a desktop's."""
        use_box(calm("cuda:0", percent=11.0), calm("cuda:1", percent=9.0))
        found = probe()
        assert [result.device_id for result in found.results] == ["cuda:1"]
        assert "11 % busy" in found.refusals["cuda:0"]

    def test_the_host_is_granted_the_core_that_asks(self, use_box):
        """Rule: this command's own work does not make the host busy."""
        entry = host(slots=4)
        entry["sample"]["compute_utilization_percent"] = 34.0
        use_box(entry)
        assert probe().refusals == {}
        entry["sample"]["compute_utilization_percent"] = 36.0
        use_box(entry)
        assert "36 % busy" in probe().refusals["cpu:0"]

    def test_what_sleeps_is_not_woken(self, use_box):
        """Rule: measuring would wake it."""
        asleep = calm()
        asleep["sample"] = {"sleeping": True}
        use_box(asleep)
        assert "asleep" in probe().refusals["cuda:0"]

    def test_force_measures_what_is_busy_or_shared(self, use_box):
        """Rule: forced, load, sleep and leases of a part are no reason."""
        asleep = calm("cuda:2")
        asleep["sample"] = {"sleeping": True}
        use_box(calm("cuda:0", percent=90.0), calm("cuda:1"), asleep)
        with lease("1GiB", devices="cuda:1"):
            found = probe(force=True)
        assert {result.device_id for result in found.results} == {"cuda:0", "cuda:1", "cuda:2"}

    def test_force_does_not_break_a_lease_of_the_whole_device(self, use_box):
        """Rule: who leased a device alone has it alone, whatever is forced."""
        use_box(calm())
        with lease(devices="cuda:0", exclusive=True, holder="training"):
            assert "--force" not in probe().refusals["cuda:0"]
            found = probe(force=True)
        assert "wholly leased" in found.refusals["cuda:0"]

    def test_it_holds_the_device_alone_while_it_measures(self, use_box, monkeypatch):
        """Rule: meanwhile nobody else gets the device; afterwards anybody may."""
        use_box(calm())
        seen = []

        def watch(node, measured, lease_id, seconds):
            with LocalNode() as other:
                seen.extend(other.snapshot().devices[0].leases)
            return unmeasured(measured, "watched", at=1.0)

        monkeypatch.setattr(probes, "_measure", watch)
        probe()
        (held,) = seen
        assert held.exclusive
        assert held.holder == "exo-gpu probe"
        with LocalNode() as node:
            assert node.snapshot().devices[0].leases == ()


class TestNames:
    def test_only_what_is_named_is_measured(self, use_box):
        """Rule: by id or by hardware id, as everywhere."""
        use_box(calm("cuda:0"), calm("cuda:1"))
        assert [one.device_id for one in probe("FAKE-cuda:1").results] == ["cuda:1"]

    def test_an_unknown_name_is_never(self, use_box):
        """Rule: a name that no device has is told with the near spelling, before measuring."""
        use_box(calm())
        with pytest.raises(NeverAvailable, match="did you mean 'cuda:0'"):
            probe("cuda:00")


class TestReasons:
    def test_a_backend_that_does_not_compute_leaves_nothing_behind(self, use_box, cache):
        """Rule: every figure is None with the reason, and what was not measured is not kept."""
        use_box(calm())
        (result,) = probe().results
        assert set(result.reasons) == set(FIGURES)
        assert all(getattr(result, name) is None for name in FIGURES)
        assert not cache.exists()

    def test_a_process_that_dies_is_a_reason(self, use_box, monkeypatch):
        """Rule: a driver that crashes costs its own result only, and its death is told."""
        monkeypatch.setattr(probes, "probe_here", die)
        use_box(calm("cuda:0"), calm("cuda:1"))
        found = probe()
        assert len(found.results) == 2
        assert "killed by SIGKILL" in found.results[0].reasons["memory_gbps"]

    def test_a_process_that_hangs_is_killed(self, use_box, monkeypatch):
        """Rule: a driver that hangs is waited for so long and no longer, and its process ends."""
        monkeypatch.setattr(probes, "probe_here", hang)
        monkeypatch.setattr(probes, "START_SECONDS", 1.0)
        use_box(calm())
        (result,) = probe().results
        assert "no answer within 1.6 s" in result.reasons["fp32_gflops"]

    def test_an_error_in_the_process_is_a_reason(self, use_box, monkeypatch):
        """Rule: what the process raises is told, not raised here."""
        monkeypatch.setattr(probes, "probe_here", fail)
        use_box(calm())
        (result,) = probe().results
        assert result.reasons["launch_seconds"] == "broken"

    def test_a_device_that_cannot_be_pinned_is_a_reason(self, use_box, monkeypatch):
        """Rule: without a pinned process nothing is measured, and it is said why."""
        use_box(calm())

        def refuse(*_):
            raise BackendError("cannot be pinned")

        monkeypatch.setattr(LocalNode, "open_slot", refuse)
        (result,) = probe().results
        assert result.reasons["memory_gbps"] == "cannot be pinned"


def die(device_json, seconds):
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)


def hang(device_json, seconds):
    import signal

    signal.pause()


def fail(device_json, seconds):
    raise ValueError("broken")


def kept(cache, device_id, gflops):
    """As if a probe had measured the device."""
    with LocalNode() as node:
        found = next(one for one in node.inventory().devices if one.device_id == device_id)
    figure = Measure(median=gflops, lowest=gflops, highest=gflops, runs=1)
    result = unmeasured(found, "not asked", at=1.0)
    ProbeCache(cache).keep([msgspec.structs.replace(result, fp32_gflops=figure)])


class TestScheduling:
    def test_measured_speed_decides_between_equals(self, use_box, cache):
        """Rule: of two cards with one score the faster is taken, and the answer says why."""
        use_box(calm("cuda:0"), calm("cuda:1"))
        assert decide(Request())[0].chosen == ("cuda:0",)
        kept(cache, "cuda:1", 5000.0)
        decision, snapshot = decide(Request())
        assert decision.chosen == ("cuda:1",)
        assert snapshot.devices[1].measured_gflops == 5000.0
        assert "measured at 5,000 GFLOP/s: breaks ties" in decision.ranking[0].notes

    def test_a_new_result_counts_for_a_node_that_is_open(self, use_box, cache):
        """Rule: what another process measured is known at the next decision."""
        use_box(calm())
        with LocalNode() as node:
            assert node.snapshot().devices[0].measured_gflops is None
            kept(cache, "cuda:0", 7.0)
            assert node.snapshot().devices[0].measured_gflops == 7.0


def test_real_devices_are_measured_and_kept(vulkan_environment, cache):
    """Rule: both software drivers and the CPU are measured, each in a process pinned to it."""
    found = probe(force=True)
    by_kind = {result.device_id.partition(":")[0]: result for result in found.results}
    assert {"vulkan", "cpu"} <= set(by_kind)
    vulkan = [result for result in found.results if result.device_id.startswith("vulkan")]
    assert len(vulkan) == 2
    for result in vulkan:
        assert result.reasons == {}
        assert all(getattr(result, name).median > 0 for name in FIGURES)
    entries = json.loads(cache.read_text())
    assert {entry["hardware_id"] for entry in entries} >= {
        result.hardware_id for result in (*vulkan, by_kind["cpu"])
    }


def test_a_card_stays_visible_through_the_vulkan_driver_of_the_same_card(vulkan_environment):
    """Rule: a process pinned to a card may use it under both its names, and no other device."""
    program = (
        "import os, msgspec\n"
        "from exo.gpu.backends.fake import FakeBackend\n"
        "from exo.gpu.backends.vulkan import VulkanGPUBackend\n"
        "from exo.gpu.discovery import GPUDiscoveryService\n"
        "from exo.gpu.nodes.agent import NodeAgent\n"
        "class Twin(FakeBackend):\n"
        "    def find(self):\n"
        "        (card,) = super().find()\n"
        "        found = VulkanGPUBackend().find()\n"
        "        (same,) = [one for one in found if 'llvmpipe' in one.name]\n"
        "        return [msgspec.structs.replace(card, aliases=(same.device_id,),\n"
        "            driver_manifest=same.driver_manifest, driver_index=0)]\n"
        "script = {'devices': [{'device_id': 'cuda:0', 'name': 'Card', 'vendor': 'x',\n"
        "    'backend': 'fake', 'hardware_id': 'FAKE-1'}]}\n"
        "backends = {'fake': Twin(script), 'vulkan': VulkanGPUBackend()}\n"
        "agent = NodeAgent(service=GPUDiscoveryService(backends=backends))\n"
        "agent.sight.inventory()\n"
        "pinned = agent.environment(('cuda:0',))\n"
        "print(pinned['VK_DRIVER_FILES'])\n"
        "other = [one for one in agent.sight.inventory().devices if 'SwiftShader' in one.name][0]\n"
        "print(agent.environment((other.device_id,))['EXO_GPU_FAKE_VISIBLE'] == '')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    first, second = done.stdout.split() if done.returncode == 0 else (done.stderr, "")
    assert first == next(
        path for path in vulkan_environment["VK_DRIVER_FILES"].split(":") if "lvp" in path
    )
    assert second == "True"
