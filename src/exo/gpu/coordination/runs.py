"""One command on the device that suits it: lease, pin, run, let go."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

import msgspec

from exo.gpu.coordination.slots import refusal, tell_remarks
from exo.gpu.nodes.leasing import place_words
from exo.gpu.nodes.local import LocalNode
from exo.gpu.nodes.overrun import OVERRUN_WAYS
from exo.gpu.scheduling.retry import try_again
from exo.gpu.vocabulary.errors import InvalidValue, NoDevice, UnknownName
from exo.gpu.vocabulary.units import check_number, check_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from exo.gpu.nodes.transport import RunNode
    from exo.gpu.scheduling.job_queue import Turn
    from exo.gpu.vocabulary.command_end import CommandEnd
    from exo.gpu.vocabulary.decision import Decision
    from exo.gpu.vocabulary.lease import Waiter
    from exo.gpu.vocabulary.request import Request

logger = logging.getLogger(__name__)


class RunPlan(msgspec.Struct, frozen=True, kw_only=True):
    """How a command is run.

    Raises:
        InvalidValue: for a number that cannot be.
        UnknownName: for an unknown way with overruns.

    """

    wait_seconds: float | None = None
    """How long it stands in the line for its devices, at each try; None: as little as is usual."""
    timeout_seconds: float | None = None
    """After so long a try is ended, and none follows."""
    retries: int = 0
    """How often it is started again when it fails, on the devices that suit it best then."""
    overrun: str = "warn"
    """What becomes of it when it takes more memory than declared: warn, kill or off."""

    def __post_init__(self) -> None:
        """Check every field."""
        check_number("wait_seconds", self.wait_seconds, low=0, optional=True)
        check_number("timeout_seconds", self.timeout_seconds, low=0, optional=True)
        check_whole("retries", self.retries)
        if self.timeout_seconds == 0:
            raise InvalidValue("timeout_seconds", self.timeout_seconds, "above 0")
        if self.overrun not in OVERRUN_WAYS:
            raise UnknownName("overrun", self.overrun, OVERRUN_WAYS)


class Listeners(msgspec.Struct, frozen=True, kw_only=True):
    """Who hears what of a run; each is called in the thread that runs it."""

    on_wait: Callable[[str], None] | None = None
    """Hears in words where in the line it stands."""
    on_start: Callable[[Decision], None] | None = None
    """Is told the decision once the leases are held, at each try."""
    on_retry: Callable[[CommandEnd], None] | None = None
    """Is told how a try ended that is followed by another one."""


def run_command(
    argv: Sequence[str],
    request: Request,
    *,
    plan: RunPlan | None = None,
    listeners: Listeners | None = None,
    node: RunNode | None = None,
) -> CommandEnd:
    """Run a command with this process's terminal on the devices chosen for it; how it ended.

    It is tried again only where the plan says so, and never after its time limit or a signal
    that told it to end. Call it from the main thread.

    Raises:
        NeverAvailable: when no device here can ever satisfy the request.
        NotNow: when one could, but not at the moment.
        FileNotFoundError: when there is no such command.
        PermissionError: when it may not be executed.

    """
    plan, listeners = plan or RunPlan(), listeners or Listeners()
    if node is None:
        with LocalNode() as opened:
            return run_command(argv, request, plan=plan, listeners=listeners, node=opened)
    end = _run_once(argv, request, plan, listeners, node)
    while (
        end.returncode
        and not end.timed_out
        and not end.interrupted
        and try_again(end.attempts, plan.retries + 1)
    ):
        if listeners.on_retry is not None:
            listeners.on_retry(end)
        try:
            following = _run_once(argv, request, plan, listeners, node)
        except NoDevice as error:
            logger.warning("it is not tried again: %s", error)
            return end
        end = msgspec.structs.replace(following, attempts=end.attempts + 1)
    return end


def _run_once(
    argv: Sequence[str], request: Request, plan: RunPlan, listeners: Listeners, node: RunNode
) -> CommandEnd:
    def tell(waiter: Waiter, turn: Turn) -> None:
        if listeners.on_wait is not None:
            listeners.on_wait(place_words(waiter, turn))

    grant = node.acquire(request, wait_seconds=plan.wait_seconds, on_wait=tell)
    tell_remarks(grant.decision)
    if not grant.lease_ids:
        raise refusal(grant.decision)
    try:
        if listeners.on_start is not None:
            listeners.on_start(grant.decision)
        end = node.run_attached(
            argv,
            grant.lease_ids,
            overrun=plan.overrun,
            timeout_seconds=plan.timeout_seconds,
        )
        _learn(request, end, node)
        return end
    finally:
        for lease_id in grant.lease_ids:
            node.release(lease_id)


def _learn(request: Request, end: CommandEnd, node: RunNode) -> None:
    """Keep what a command took; one that failed or ran on several devices says nothing of speed."""
    if not request.kind or not end.device_ids:
        return
    from exo.gpu.nodes.experience import Ended, Experience, experience_path

    hardware = {one.device_id: one.hardware_id for one in node.inventory().devices}
    tells_speed = not end.returncode and len(end.device_ids) == 1
    peaks = end.peak_device_bytes.values()
    ended = Ended(
        kind=request.kind,
        hardware_id=hardware.get(end.device_ids[0], end.device_ids[0]),
        seconds=end.seconds if tells_speed else None,
        peak_bytes=max(peaks, default=None),
    )
    Experience(experience_path(os.environ)).learn([ended])
