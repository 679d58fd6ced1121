"""Drivers asked who works on their devices: one that hangs or fails costs its own device."""

from __future__ import annotations

import os
import threading

import pytest

from exo.gpu.backend import DeviceProcess, GPUBackend
from exo.gpu.backends.fake import FakeBackend
from exo.gpu.discovery import GPUDiscoveryService
from exo.gpu.nodes.local import LocalNode
from exo.gpu.nodes.process_lists import ProcessLists
from exo.gpu.vocabulary.device import GPUDevice


class Driver(GPUBackend):
    """Lists this process on every device, once ``gate`` is open."""

    name = "driver"

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()
        self.calls = 0

    def find(self) -> list[GPUDevice]:
        return [GPUDevice("driver:0", "Card", "Nobody", "driver")]

    def processes(self, device_id: str) -> list[DeviceProcess]:
        self.calls += 1
        self.gate.wait()
        return [DeviceProcess(pid=os.getpid(), memory_bytes=5)]


class Broken(Driver):
    """Fails in a way that no driver should."""

    def processes(self, device_id: str) -> list[DeviceProcess]:
        raise ZeroDivisionError


@pytest.fixture
def stuck():
    """A driver whose calls do not return before the test is over."""
    driver = Driver()
    driver.gate.clear()
    yield driver
    driver.gate.set()


def test_a_driver_that_hangs_costs_its_device_alone(stuck):
    """Rule: the others answer, and the hanging one has its reason."""
    lists = ProcessLists()
    hung, well = lists.ask({"driver:0": stuck, "driver:1": Driver()}, deadline_seconds=0.2)
    assert hung.processes == ()
    assert "no answer within" in hung.reason
    assert [one.pid for one in well.processes] == [os.getpid()]
    assert well.reason == ""


def test_a_hanging_driver_is_not_asked_again_until_it_answers(stuck):
    """Rule: at most one thread of a device is lost, and an answer that came late is not used."""
    lists = ProcessLists()
    for _ in range(3):
        (hung,) = lists.ask({"driver:0": stuck}, deadline_seconds=0.05)
        assert hung.reason
    assert stuck.calls == 1
    (thread,) = [one for one in threading.enumerate() if one.name == "exo-gpu-processes-driver:0"]
    assert thread.daemon
    stuck.gate.set()
    thread.join()
    (answered,) = lists.ask({"driver:0": stuck}, deadline_seconds=30)
    assert stuck.calls == 2
    assert answered.processes
    assert answered.reason == ""


def test_a_driver_that_breaks_is_a_reason():
    """Rule: whatever a driver raises costs the list of its device, with what it said."""
    broken, well = ProcessLists().ask({"driver:0": Broken(), "driver:1": Driver()})
    assert broken.reason == "ZeroDivisionError"
    assert well.processes


def test_a_backend_without_the_ability_says_so():
    """Rule: that nobody can tell is a reason too, and no empty list."""
    lists = ProcessLists().ask({"cpu:0": FakeBackend({"devices": []}), "x:0": None})
    assert all(one.reason for one in lists)


def test_a_node_asks_every_backend():
    """Rule: the answer has every device of the inventory, in its order."""
    service = GPUDiscoveryService(backends={"driver": Driver()})
    with LocalNode(service=service) as node:
        (told,) = node.processes()
    assert told.device_id == "driver:0"
    assert told.processes[0].memory_bytes == 5
    assert told.processes[0].since is not None
