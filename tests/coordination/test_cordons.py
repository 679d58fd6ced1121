"""Cordons joined with what they are for: choosing, draining, health and probes."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
from boxes import device, host

from exo.gpu.backends.cpu import CPUBackend
from exo.gpu.coordination import cordons
from exo.gpu.coordination.cordons import cordon, cordon_by_health, drain, uncordon
from exo.gpu.coordination.leases import decide, lease
from exo.gpu.coordination.probes import probe_devices
from exo.gpu.discovery import GPUDiscoveryService
from exo.gpu.nodes.local import LocalNode
from exo.gpu.telemetry.health.book import HealthBook
from exo.gpu.vocabulary.errors import InvalidValue, NeverAvailable, NotNow, StoreError
from exo.gpu.vocabulary.health import BY_HEALTH, Cordon, DeviceFault, FaultAction, HealthVerdict
from exo.gpu.vocabulary.request import Request

HOLDER = """
import sys
from exo.gpu.coordination.leases import lease
with lease(devices="cuda:0", holder="training"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def node(two_fakes):
    with LocalNode() as node:
        yield node


@pytest.fixture
def holder(two_fakes):
    """A process that holds a lease on cuda:0 until its standard input ends."""
    command = [sys.executable, "-c", HOLDER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        yield child
        child.kill()


def chosen(node) -> tuple[str, ...]:
    decision, _ = decide(Request(), node=node)
    return decision.chosen


def state(node, name="cuda:0"):
    return next(one for one in node.snapshot().devices if one.device.device_id == name)


class TestByAPerson:
    def test_a_cordoned_device_is_not_chosen_and_says_why(self, node):
        """Rule: the next best is chosen, and a request for it alone is refused for now."""
        kept = cordon("FAKE-cuda:0", why="its  fan\nis loud", node=node)
        assert (kept.device_id, kept.why, kept.until) == ("cuda:0", "its fan is loud", None)
        assert chosen(node) == ("cuda:1",)
        refused = pytest.raises(NotNow, match=f"cordoned by {kept.by}: its fan is loud")
        with refused, lease(devices="cuda:0", node=node):
            pass
        assert uncordon("cuda:0", node=node) == kept
        assert chosen(node) == ("cuda:0",)
        assert uncordon("cuda:0") is None

    def test_it_ends_with_its_time(self, two_fakes):
        """Rule: an end is kept in Unix seconds, and holds for all."""
        kept = cordon("cuda:0", why="warm", for_seconds=3600)
        assert kept.until == pytest.approx(kept.since + 3600)

    def test_a_name_that_nobody_has_is_refused_with_the_near_one(self, node):
        """Rule: never, and the spelling that was perhaps meant."""
        for call in (lambda: cordon("cuda:2", why="x"), lambda: uncordon("cuda:2", node=node)):
            with pytest.raises(NeverAvailable, match="did you mean"):
                call()

    @pytest.mark.parametrize("why", ["", "  ", "a\x1b[31mb", "x" * 301])
    def test_a_reason_must_be_one_line_that_can_be_printed(self, node, why):
        """Rule: others read it in their terminals."""
        with pytest.raises(InvalidValue, match="why"):
            cordon("cuda:0", why=why, node=node)

    def test_nobody_passes_for_health(self, node, monkeypatch):
        """Rule: a user of that name signs otherwise."""
        monkeypatch.setenv("LOGNAME", BY_HEALTH)
        assert cordon("cuda:0", why="x", node=node).by == "user health"

    def test_a_user_without_a_name_signs_with_a_number(self, node, monkeypatch):
        """Rule: in a container a user may have none."""

        def nameless() -> str:
            raise KeyError

        monkeypatch.setattr(cordons.getpass, "getuser", nameless)
        assert cordon("cuda:0", why="x", node=node).by.isdigit()

    def test_a_device_that_is_gone_can_be_uncordoned(self, use_box, node):
        """Rule: its cordon's own names will do."""
        cordon("cuda:1", why="x", node=node)
        use_box(device("cuda:0", "NVIDIA", "cuda"), host())
        with LocalNode() as later:
            assert uncordon("cuda:1", node=later) is not None
            with pytest.raises(NeverAvailable):
                uncordon("cuda:1", node=later)

    def test_a_damaged_store_stops_decisions_and_no_listing(self, node, state_folder):
        """Rule: nobody is given a device that may be cordoned; who only looks gets an answer."""
        (state_folder / "cordons").mkdir()
        (state_folder / "cordons" / "cordons.sqlite").write_bytes(b"garbage" * 1000)
        with pytest.raises(StoreError, match="cordons cannot be used"):
            node.acquire(Request())
        with pytest.raises(StoreError, match="cordons cannot be used"):
            node.snapshot()
        assert len(node.snapshot(leases=False).devices) == 3
        (state_folder / "cordons" / "cordons.sqlite").unlink()
        assert node.acquire(Request()).lease_ids


class TestDraining:
    def test_a_free_device_is_drained_at_once(self, node):
        """Rule: without a lease there is nothing to wait for."""
        drained = drain("cuda:0", node=node)
        assert (drained.leases, drained.cordon.draining) == ((), False)
        assert state(node).cordon == drained.cordon

    def test_it_waits_for_the_last_lease_and_begins_nothing_new(self, node, holder):
        """Rule: cordoned from the first moment, drained when the process under the lease ended."""
        told = []

        def finish(leases):
            told.extend(one.holder for one in leases)
            refused = pytest.raises(NotNow, match="being drained")
            with refused, lease(devices="cuda:0", memory="1GiB", node=node):
                pass
            holder.stdin.close()

        drained = drain("cuda:0", why="upgrade", node=node, on_wait=finish)
        assert told == ["training"]
        assert (drained.leases, drained.cordon.draining) == ((), False)
        assert state(node).cordon.why == "upgrade"

    def test_its_time_ends_and_the_cordon_stays(self, node, holder):
        """Rule: what had not ended is named; when it has, the device counts as cordoned."""
        drained = drain("cuda:0", wait_seconds=0.1)
        assert [one.holder for one in drained.leases] == ["training"]
        assert state(node).cordon.draining
        holder.stdin.close()
        holder.wait()
        assert not state(node).cordon.draining

    def test_without_waiting_it_only_cordons(self, node, holder):
        """Rule: nothing is said of leases that are not waited for."""
        drained = drain("cuda:0", wait_seconds=0.0, node=node, on_wait=pytest.fail)
        assert len(drained.leases) == 1

    def test_somebody_may_change_the_plan(self, node, holder):
        """Rule: a cordon that is lifted meanwhile ends the waiting, and is not set again."""
        done = []
        waiting = threading.Event()

        def wait() -> None:
            with LocalNode() as other:
                done.append(drain("cuda:0", node=other, on_wait=lambda leases: waiting.set()))

        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        assert waiting.wait(30)
        assert uncordon("cuda:0", node=node) is not None
        thread.join(30)
        assert done[0].cordon is None
        assert state(node).cordon is None

    def test_its_own_lease_is_not_waited_for(self, two_fakes):
        """Rule: a program that drains the device it works on would wait for itself."""
        code = "from exo.gpu.coordination.cordons import drain; print(len(drain('cuda:0').leases))"
        command = ["-m", "exo.gpu", "run", "--device", "cuda:0", "--", sys.executable, "-c", code]
        done = subprocess.run([sys.executable, *command], capture_output=True, timeout=60)
        assert done.stdout == b"0\n", done.stderr


def fault(action: FaultAction) -> DeviceFault:
    return DeviceFault(device_id="cuda:0", code=79, what="XID 79: off", action=action, at=1.0)


def verdict_after(action: FaultAction) -> HealthVerdict:
    book = HealthBook()
    book.fault(fault(action))
    return book.verdict("cuda:0")


class TestByHealth:
    @pytest.mark.parametrize("action", [FaultAction.RESET_DEVICE, FaultAction.RESTART_MACHINE])
    def test_a_fault_that_needs_a_reset_cordons(self, node, action):
        """Rule: with its cause, and an end; and health can tell by whom it is."""
        kept = cordon_by_health(state(node).device, verdict_after(action), node=node)
        assert kept.by_health
        assert kept.why.startswith("XID 79: off: ")
        assert kept.until > kept.since
        assert state(node).cordon == kept
        assert chosen(node) == ("cuda:1",)

    def test_a_probe_that_passes_lifts_it(self, monkeypatch, tmp_path):
        """Rule: left alone unless forced; when it could be measured, it is back, and that is said."""
        monkeypatch.setenv("EXO_GPU_PROBES", str(tmp_path / "probes.json"))
        service = GPUDiscoveryService(backends={"cpu": CPUBackend()})
        with LocalNode(service=service) as node:
            failed = verdict_after(FaultAction.RESET_DEVICE)
            kept = cordon_by_health(state(node, "cpu:0").device, failed, node=node)
            assert "--force" in probe_devices(["cpu:0"], node=node).refusals["cpu:0"]
            found = probe_devices(["cpu:0"], force=True, seconds=0.6, node=node)
            assert found.lifted == (kept,)
            assert state(node, "cpu:0").cordon is None

    def test_a_probe_that_measures_nothing_lifts_nothing(self, node):
        """Rule: a scripted device computes nothing, so it has not passed."""
        failed = verdict_after(FaultAction.RESET_DEVICE)
        kept = cordon_by_health(state(node).device, failed, node=node)
        found = probe_devices(["cuda:0"], force=True, seconds=0.6, node=node)
        assert (len(found.results), found.lifted) == (1, ())
        assert state(node).cordon == kept

    @pytest.mark.parametrize("action", [FaultAction.CHECK, FaultAction.RESTART_APPLICATION])
    def test_other_faults_cordon_nothing(self, node, action):
        """Rule: a degraded device is behind all others, and still there."""
        assert cordon_by_health(state(node).device, verdict_after(action), node=node) is None
        assert node.cordons() == ()

    def test_a_persons_cordon_stays_whatever_is_measured(self, monkeypatch, tmp_path):
        """Rule: health does not take its place, and a probe that passes does not lift it."""
        monkeypatch.setenv("EXO_GPU_PROBES", str(tmp_path / "probes.json"))
        service = GPUDiscoveryService(backends={"cpu": CPUBackend()})
        with LocalNode(service=service) as node:
            kept = cordon("cpu:0", why="mine", node=node)
            failed = verdict_after(FaultAction.RESET_DEVICE)
            assert cordon_by_health(state(node, "cpu:0").device, failed, node=node) == kept
            assert "cordoned by" in probe_devices(["cpu:0"], node=node).refusals["cpu:0"]
            found = probe_devices(["cpu:0"], force=True, seconds=0.6, node=node)
            assert (len(found.results), found.lifted) == (1, ())
            assert state(node, "cpu:0").cordon == kept


def test_a_cordon_must_say_why_and_by_whom():
    """Rule: nobody is kept out without a reason."""
    with pytest.raises(InvalidValue, match="why"):
        Cordon(hardware_id="GPU-0", device_id="cuda:0", why="", by="alice", since=1.0)
