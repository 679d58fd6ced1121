"""Leases for Python code and commands: ask, hold, let go."""

from __future__ import annotations

import itertools
import os
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Unpack

import msgspec

from exo.gpu.coordination.slots import refusal, tell_remarks
from exo.gpu.coordination.wishes import GangWishes, request_of
from exo.gpu.execution.pinning import apply_changes
from exo.gpu.nodes.foresight import SOONEST, foresight
from exo.gpu.nodes.local import LocalNode
from exo.gpu.nodes.policies import policies_for
from exo.gpu.scheduling.selector import select
from exo.gpu.vocabulary.device import GPUDevice
from exo.gpu.vocabulary.units import parse_duration

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from exo.gpu.nodes.transport import LeaseNode, Node
    from exo.gpu.vocabulary.decision import Decision
    from exo.gpu.vocabulary.request import Request
    from exo.gpu.vocabulary.snapshot import Snapshot


class LeasedDevice(GPUDevice, frozen=True, kw_only=True):
    """A device while a lease on it is held; where several were asked for, the best of them."""

    variables: dict[str, str | None]
    """What pins a process to it: variables to set, or with None to remove."""
    gang: tuple[GPUDevice, ...] = ()
    """All the devices that are held, this one first."""

    def environment(self) -> dict[str, str]:
        """This process's environment, changed so that a child sees what is held and no more."""
        return apply_changes(os.environ, self.variables)


def decide(request: Request, *, node: Node | None = None) -> tuple[Decision, Snapshot]:
    """Answer a request as things stand, and take nothing."""
    if node is None:
        with LocalNode() as opened:
            return decide(request, node=opened)
    snapshot = node.snapshot(others=request.exclusive)
    if request.policy == SOONEST:
        devices = [state.device for state in snapshot.devices]
        snapshot = foresight(request, devices, os.environ)(snapshot)
    decision = select(snapshot, request, policies=policies_for(request))
    tell_remarks(decision)
    return decision, snapshot


@contextmanager
def lease(
    memory: str | int | None = None,
    *,
    wait: str | float | None = None,
    expires: str | float | None = None,
    node: LeaseNode | None = None,
    **wishes: Unpack[GangWishes],
) -> Generator[LeasedDevice]:
    """Hold the best device for the length of a ``with`` block.

    ``memory`` is what the work needs in total, as ``"8GiB"`` or bytes; without it one of the
    device's slots is taken. ``wishes`` are further fields of a request: ``devices``, ``runtime``,
    ``exclusive``, ``share``, ``labels``, ``policy``, ``priority``, ``holder`` and so on; with
    ``count`` several devices are held, all or none. With ``wait`` (``"30m"`` or seconds) the
    request stands in the line so long where nothing is free now. The lease ends with the block,
    or with this process, and with ``expires`` after so long whatever still runs. It pins nothing
    here: start a child with ``env=device.environment()``, or set the variables before a GPU
    library is first used.

    Raises:
        NeverAvailable: when no device here can ever satisfy the request, however long the wait.
        NotNow: when one could, but not at the moment, or not before the wait was over.
        TypeError: for a wish that nobody knows, with the near spelling.
        InvalidValue: naming what cannot be.

    """
    request = request_of(memory, **wishes)
    with ExitStack() as stack:
        home = node if node is not None else stack.enter_context(LocalNode())
        held = take(request, home, wait, expires)
        stack.callback(held.release)
        yield held.device


class HeldDevice(msgspec.Struct):
    """A leased device, and how to let go of it."""

    device: LeasedDevice
    release: Callable[[], None]


def take(
    request: Request,
    node: LeaseNode,
    wait: str | float | None,
    expires: str | float | None,
    cancelled: Callable[[], bool] = lambda: False,
) -> HeldDevice:
    """Take the leases that a request is granted; they are the caller's to release.

    Raises:
        NeverAvailable: when no device here can ever satisfy the request.
        NotNow: when one could, but not at the moment, or not before the wait was over.
        InvalidValue: for a duration that is none.

    """
    grant = node.acquire(
        request,
        wait_seconds=None if wait is None else parse_duration(wait, "wait"),
        lasts_seconds=None if expires is None else parse_duration(expires, "expires"),
        cancelled=cancelled,
    )
    tell_remarks(grant.decision)
    if not grant.lease_ids:
        raise refusal(grant.decision)

    def release() -> None:
        for lease_id in grant.lease_ids:
            node.release(lease_id)

    try:
        here = {device.device_id: device for device in node.inventory().devices}
        gang = tuple(here[name] for name in grant.decision.chosen)
        # One process can be pinned to devices of one machine: those that stand first.
        near = tuple(
            one.device_id for one in itertools.takewhile(lambda one: one.node == gang[0].node, gang)
        )
        leased = LeasedDevice(
            **msgspec.structs.asdict(gang[0]),
            variables=node.environment(near, grant.lease_ids[: len(near)]),
            gang=gang,
        )
    except BaseException:
        release()
        raise
    node.look_after()
    return HeldDevice(leased, release)
