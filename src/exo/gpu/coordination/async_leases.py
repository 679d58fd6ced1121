"""A lease for coroutines: the wait is on a thread of its own, and cancelling gives it up."""

from __future__ import annotations

import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import msgspec

from exo.gpu.backend import on_daemon_thread
from exo.gpu.coordination.leases import HeldDevice, LeasedDevice, take
from exo.gpu.coordination.wishes import request_of
from exo.gpu.nodes.local import LocalNode
from exo.gpu.vocabulary.errors import NoSuchDevice

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable

    from exo.gpu.nodes.transport import LeaseNode
    from exo.gpu.vocabulary.device import GPUDevice


class _Letter(msgspec.Struct):
    """A leased device, and the node that was opened for it, if one was."""

    held: HeldDevice
    own_node: LeaseNode | None

    def give_back(self) -> None:
        """Let go of both."""
        self.held.release()
        if self.own_node is not None:
            self.own_node.close()


class _Mailbox:
    """Where a thread leaves what it took, unless whoever asked has gone away meanwhile."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._closed = False
        self._letter: _Letter | None = None

    def put(self, letter: _Letter) -> bool:
        """Leave it; False where nobody will fetch it."""
        with self._lock:
            if not self._closed:
                self._letter = letter
            return not self._closed

    def take(self) -> _Letter:
        """What was left here."""
        assert self._letter is not None, "the thread ended without a letter or an error"
        return self._letter

    def is_closed(self) -> bool:
        """Whether whoever asked has gone away."""
        return self._closed

    def close(self) -> _Letter | None:
        """Fetch no more; what was left and is to be given back."""
        with self._lock:
            self._closed = True
            return self._letter


@asynccontextmanager
async def lease_among(
    registered: Iterable[GPUDevice],
    *,
    wait: str | float | None = None,
    expires: str | float | None = None,
    node: LeaseNode | None = None,
    **request: Any,
) -> AsyncGenerator[LeasedDevice]:
    """Hold the best of these devices for the length of an ``async with`` block.

    ``request`` is as for :func:`lease`, less the devices. The event loop (asyncio or trio) goes
    on meanwhile; cancelling the wait gives the place in the line up.

    Raises:
        NoSuchDevice: where none of them is a device of this machine.
        NeverAvailable: when none of them can ever satisfy the request.
        NotNow: when one could, but not at the moment, or not before the wait was over.
        InvalidValue: naming what cannot be.

    """
    mailbox = _Mailbox()
    asked = request_of(devices=("to be named",), **request)

    def take_one() -> None:
        home = node if node is not None else LocalNode()
        own = None if node is not None else home
        try:
            named = msgspec.structs.replace(asked, devices=_local_ids(registered, home))
            held = take(named, home, wait, expires, cancelled=mailbox.is_closed)
        except BaseException:
            if own is not None:
                own.close()
            raise
        letter = _Letter(held, own)
        if not mailbox.put(letter):
            letter.give_back()

    try:
        await on_daemon_thread(take_one, name="exo-gpu-lease")
        yield mailbox.take().held.device
    finally:
        left = mailbox.close()
        if left is not None:
            with anyio.CancelScope(shield=True):
                await on_daemon_thread(left.give_back, name="exo-gpu-release")


def _local_ids(registered: Iterable[GPUDevice], node: LeaseNode) -> tuple[str, ...]:
    """Ids that the node, or the cluster, has for those of the devices that are its own."""
    here = {
        (device.node, device.hardware_id): device.device_id for device in node.inventory().devices
    }
    devices = tuple(registered)
    names = tuple(
        here[device.node, device.hardware_id]
        for device in devices
        if (device.node, device.hardware_id) in here
    )
    if not names:
        far = ", ".join(device.device_id for device in devices) or "none is registered"
        raise NoSuchDevice(
            f"only devices of this machine can be leased here, and none of these is one: {far}"
        )
    return names
