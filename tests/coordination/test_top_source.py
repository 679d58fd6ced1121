"""Frames of a machine: new ones come by themselves, and nobody waits for a driver."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest

from exo.gpu.backends.fake import FakeBackend
from exo.gpu.coordination.top_source import LocalTopSource, TopFrame, series
from exo.gpu.discovery import GPUDiscoveryService
from exo.gpu.nodes.local import LocalNode
from exo.gpu.vocabulary.metrics import GPUMetrics
from exo.gpu.vocabulary.request import Request
from tests.coordination.boxes import GIB, device, host, write_box

WAIT_SECONDS = 60


def until(source: LocalTopSource, fits) -> TopFrame:
    """The first frame that fits."""
    ends = time.monotonic() + WAIT_SECONDS
    while not fits(frame := source.frame()):
        assert time.monotonic() < ends, frame
        time.sleep(0.01)
    return frame


@pytest.fixture
def node(tmp_path):
    """Opens a node on a script; the script may be written anew at any time."""
    environ = dict(os.environ)

    def open_node(*devices):
        environ["EXO_GPU_FAKE"] = str(write_box(tmp_path, *devices))
        return lambda: LocalNode(environ)

    return open_node


class Wedge(FakeBackend):
    """Answers until the gate is closed, and then never."""

    def __init__(self, *devices) -> None:
        super().__init__({"devices": list(devices)})
        self.gate = threading.Event()
        self.gate.set()

    def read(self, device_id):
        if device_id == "cuda:1":
            self.gate.wait()
        return super().read(device_id)


def test_a_frame_is_there_at_once_and_the_next_comes_by_itself(node):
    """Rule: asking for a frame does not wait; later ones have devices, users and history."""
    listed = [{"pid": os.getpid(), "memory_bytes": GIB}]
    card = device("cuda:0", "NVIDIA", "cuda", processes=listed, sample={"power_watts": 5.0})
    with LocalTopSource(node(card, host()), cadence_seconds=0.1) as source:
        first = source.frame()
        assert first.taken_at is None or first.snapshot.devices
        frame = until(source, lambda one: one.snapshot.devices and one.snapshot.devices[0].sample)
        assert [state.device.device_id for state in frame.snapshot.devices] == ["cuda:0", "cpu:0"]
        assert [(user.pid, user.foreign) for user in frame.users] == [(os.getpid(), True)]
        assert set(frame.untold) == {"cpu:0"}
        assert list(frame.histories) == ["cuda:0", "cpu:0"]
        assert len(frame.histories) == 2
        assert {5.0} <= set(frame.histories["cuda:0"]["power_watts"]) <= {5.0, None}
        assert "cuda:7" not in frame.histories
        until(source, lambda one: one is not frame)


def test_leases_come_and_go(node):
    """Rule: a frame has the leases of its moment."""
    opened = node(device("cuda:0", "NVIDIA", "cuda", processes=[]))
    with LocalTopSource(opened, cadence_seconds=0.05) as source, opened() as other:
        grant = other.acquire(Request(memory_bytes=GIB))
        frame = until(source, lambda one: one.users)
        assert frame.users[0].declared_bytes == GIB
        assert not frame.users[0].listed
        other.release(grant.lease_ids[0])
        until(source, lambda one: one.taken_at and not one.users)


def test_a_script_that_is_gone_is_a_reason_and_no_end(node, tmp_path):
    """Rule: a device that cannot be read any more stays, failed, and comes back."""
    card = device("cuda:0", "NVIDIA", "cuda")
    opened = node(card)
    with LocalTopSource(opened, cadence_seconds=0.05) as source:
        until(source, lambda one: one.snapshot.devices)
        write_box(tmp_path, card | {"fail": "it fell off the bus"})
        frame = until(source, lambda one: one.snapshot.devices[0].health == "failed")
        assert frame.snapshot.devices[0].health_since is not None
        until(source, lambda one: one.untold.get("cuda:0") == "it fell off the bus")
        write_box(tmp_path, card)
        until(source, lambda one: one.snapshot.devices[0].health == "ok")


def test_where_there_is_no_device_the_backends_say_why(tmp_path):
    """Rule: an empty frame has a note for each backend."""
    environ = dict(os.environ) | {"EXO_GPU_FAKE": str(tmp_path / "missing.json")}
    with LocalTopSource(lambda: LocalNode(environ), cadence_seconds=0.05) as source:
        frame = until(source, lambda one: one.taken_at)
        assert frame.snapshot.devices == ()
        assert frame.notes[0].startswith("fake: ")


def test_without_a_lease_store_the_devices_are_shown(node, tmp_path, monkeypatch):
    """Rule: that leases are not shown is said, and all else is."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("EXO_GPU_STATE", str(tmp_path / "file"))
    environ = dict(os.environ)
    environ["EXO_GPU_FAKE"] = str(write_box(tmp_path, device("cuda:0", "NVIDIA", "cuda")))
    with LocalTopSource(lambda: LocalNode(environ), cadence_seconds=0.05) as source:
        frame = until(source, lambda one: one.snapshot.devices)
        assert frame.notes[0].startswith("leases and cordons are not shown: ")


def test_a_wedged_device_costs_itself_alone():
    """Rule: the other device goes on, the wedged one has its reason, and the end is quick."""
    cards = [device(f"cuda:{place}", "NVIDIA", "cuda", processes=[]) for place in range(2)]
    backend = Wedge(*cards)
    service = GPUDiscoveryService(backends={"fake": backend})
    with LocalTopSource(lambda: LocalNode(service=service), cadence_seconds=0.05) as source:
        until(source, lambda one: one.snapshot.devices)
        backend.gate.clear()
        frame = until(source, lambda one: one.snapshot.devices[1].health == "degraded")
        well, wedged = frame.snapshot.devices
        assert well.health == "ok"
        assert "hangs" in wedged.health_reason
        until(source, lambda one: one.taken_at > frame.taken_at)
    backend.gate.set()


def test_when_everything_hangs_that_is_said():
    """Rule: where no frame comes for a while, the old one is shown with a word of its age."""
    stuck = threading.Event()

    def open_node():
        stuck.wait()
        raise OSError("too late")

    source = LocalTopSource(open_node, cadence_seconds=0.01)
    source._thread.start()
    frame = until(source, lambda one: len(one.notes) > 1)
    assert frame.notes[0] == "looking for devices"
    assert frame.notes[1].startswith("no news for ")


STUCK = """
import threading
from exo.gpu.coordination.top_source import LocalTopSource
with LocalTopSource(threading.Event().wait, cadence_seconds=0.01) as source:
    source.frame()
print("left")
"""


def test_a_program_can_end_while_everything_hangs():
    """Rule: no driver keeps anybody from quitting."""
    done = subprocess.run([sys.executable, "-c", STUCK], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "left\n", "")


def sample(at, watts):
    return GPUMetrics("cuda:0", at, power_watts=watts)


def test_a_gap_stays_a_gap():
    """Rule: each cadence without a sample is a None, at the end too; the rest is in order."""
    samples = [sample(0.0, 1.0), sample(2.1, 2.0), sample(7.9, 3.0)]
    found = series(samples, until=12.0, cadence_seconds=2.0)
    assert found["power_watts"] == [1.0, 2.0, None, None, 3.0, None]
    assert found["temperature_celsius"] == [None] * 6
    assert series([], until=5.0, cadence_seconds=1.0)["power_watts"] == []


def test_a_history_is_bounded_however_long_the_gap():
    """Rule: a week without a sample does not fill the memory, and a clock set back is no gap."""
    found = series([sample(0.0, 1.0), sample(1e9, 2.0)], until=1e9, cadence_seconds=1.0)
    assert len(found["power_watts"]) == 300
    assert found["power_watts"][-1] == 2.0
    back = series([sample(9.0, 1.0), sample(10.0, 2.0)], until=3.0, cadence_seconds=1.0)
    assert back["power_watts"] == [1.0, 2.0]
