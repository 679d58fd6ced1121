"""Waiting for a lease in Python: with a time limit, in a coroutine, and for a whole map."""

from __future__ import annotations

import functools
import threading
import time

import anyio
import pytest
from boxes import device, host

import exo.gpu as gpu
from exo.gpu.coordination.leases import lease
from exo.gpu.coordination.manager import GPUClusteringManager
from exo.gpu.nodes.local import LocalNode
from exo.gpu.vocabulary.device import GPUDevice
from exo.gpu.vocabulary.errors import InvalidValue, NeverAvailable, NoSuchDevice, NotNow

WAIT_SECONDS = 30


@pytest.fixture
def one_card(use_box):
    return use_box(device("cuda:0", "NVIDIA", "cuda"), host())


@pytest.fixture
def node(one_card):
    with LocalNode() as opened:
        yield opened


def until(condition):
    ends = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.01)


def registered(*devices):
    manager = GPUClusteringManager()
    for one in devices:
        manager.register_device(one)
    return manager


def card(device_id="cuda:0", **more):
    facts = {"hardware_id": "FAKE-cuda:0"} | more
    return GPUDevice(device_id=device_id, name="Card", vendor="NVIDIA", backend="cuda", **facts)


@pytest.fixture(params=["asyncio", "trio"])
def run(request):
    """Runs a coroutine function on an event loop, with a limit."""

    def go(function):
        async def limited():
            with anyio.fail_after(WAIT_SECONDS):
                return await function()

        return anyio.run(limited, backend=request.param)

    return go


def test_a_lease_is_waited_for(node):
    with lease(devices="cuda:0"):
        released = threading.Timer(0.0, lambda: None)

        def wait():
            with lease(devices="cuda:0", wait="10m") as held:
                assert held.device_id == "cuda:0"
                released.start()

        thread = threading.Thread(target=wait)
        thread.start()
        until(node.line)
    thread.join(WAIT_SECONDS)
    assert released.finished.wait(WAIT_SECONDS)


def test_a_wait_ends(node):
    with (
        lease(devices="cuda:0"),
        pytest.raises(NotNow, match="slots"),
        lease(devices="cuda:0", wait=0.1),
    ):
        pass
    assert node.line() == ()


def test_never_is_not_waited_for(one_card):
    with pytest.raises(NeverAvailable), lease(memory="99GiB", wait="1h"):
        pass
    with pytest.raises(InvalidValue, match="wait"), lease(wait="soon"):
        pass


def test_a_lease_may_expire(node):
    """Rule: only where it was asked for; the block goes on, and the lease counts no more."""
    with lease(devices="cuda:0", expires=0.1):
        until(lambda: not node.leases())
        with lease(devices="cuda:0", wait=WAIT_SECONDS):
            pass


def test_a_map_waits_for_its_first_device(node):
    with lease(devices="cuda:0"):
        answers = []
        mapping = functools.partial(gpu.map, abs, [-1, -2], devices="cuda:0", wait="10m")
        thread = threading.Thread(target=lambda: answers.append(mapping()))
        thread.start()
        until(node.line)
    thread.join(WAIT_SECONDS)
    assert answers == [[1, 2]]


def test_a_coroutine_holds_a_registered_device(node, run):
    """Rule: in the same store as everybody, pinned for children as any lease."""

    async def hold():
        async with registered(card()).lease(memory="1GiB", holder="a service") as held:
            assert held.device_id == "cuda:0"
            assert held.environment()["EXO_GPU_FAKE_VISIBLE"] == "FAKE-cuda:0"
            return [one.holder for one in node.leases()]

    assert run(hold) == ["a service"]
    assert node.leases() == ()


def test_the_loop_goes_on_while_a_coroutine_waits_and_cancelling_leaves_the_line(node, run):
    async def give_up():
        with anyio.move_on_after(0.3) as scope:
            async with registered(card()).lease(exclusive=True, wait="1h"):
                raise AssertionError("it is held by somebody else")
        return scope.cancelled_caught

    with lease(devices="cuda:0"):
        assert run(give_up)
        until(lambda: not node.line())
    assert node.leases() == ()


def test_only_devices_of_this_machine_can_be_held(one_card, run):
    """Rule: a clear error, instead of a lease that keeps nobody away."""
    for manager in (
        registered(),
        registered(card("rig2/cuda:0", node="rig2")),
        registered(card(hardware_id="ELSEWHERE")),
    ):

        async def hold(manager=manager):
            async with manager.lease():
                raise AssertionError("nothing of this machine was registered")

        with pytest.raises(NoSuchDevice, match="of this machine"):
            run(hold)


def test_what_cannot_be_is_said_before_anything_is_waited_for(one_card, run):
    async def hold():
        async with registered(card()).lease(memory="banana"):
            raise AssertionError("no such memory")

    with pytest.raises(InvalidValue, match="banana"):
        run(hold)

    async def too_much():
        async with registered(card()).lease(memory="99GiB", wait="1h"):
            raise AssertionError("no such device")

    with pytest.raises(NeverAvailable):
        run(too_much)
