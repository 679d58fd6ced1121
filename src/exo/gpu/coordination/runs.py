"""One command on the device that suits it: lease, pin, run, let go."""

from __future__ import annotations

from typing import TYPE_CHECKING

from exo.gpu.coordination.slots import refusal
from exo.gpu.nodes.leasing import place_words
from exo.gpu.nodes.local import LocalNode
from exo.gpu.nodes.overrun import OVERRUN_WAYS
from exo.gpu.vocabulary.errors import UnknownName

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from exo.gpu.scheduling.job_queue import Turn
    from exo.gpu.vocabulary.decision import Decision
    from exo.gpu.vocabulary.lease import Waiter
    from exo.gpu.vocabulary.request import Request


def run_command(
    argv: Sequence[str],
    request: Request,
    *,
    node: LocalNode | None = None,
    on_start: Callable[[Decision], None] | None = None,
    on_wait: Callable[[str], None] | None = None,
    wait_seconds: float | None = None,
    overrun: str = "warn",
) -> int:
    """Run a command with this process's terminal on the devices chosen for it.

    Returns its status as a shell would: 0..255, and 128 + n when signal n ended it. With
    ``wait_seconds`` it stands in the line so long; ``on_wait`` then hears in words where.
    ``on_start`` is told the decision once the leases are held. ``overrun`` says what becomes of
    a command that takes more memory than was declared: ``warn``, ``kill`` or ``off``.

    Raises:
        NeverAvailable: when no device here can ever satisfy the request.
        NotNow: when one could, but not at the moment.
        FileNotFoundError: when there is no such command.
        PermissionError: when it may not be executed.

    """
    if node is None:
        with LocalNode() as opened:
            return run_command(
                argv,
                request,
                node=opened,
                on_start=on_start,
                on_wait=on_wait,
                wait_seconds=wait_seconds,
                overrun=overrun,
            )
    if overrun not in OVERRUN_WAYS:
        raise UnknownName("overrun", overrun, OVERRUN_WAYS)

    def tell(waiter: Waiter, turn: Turn) -> None:
        if on_wait is not None:
            on_wait(place_words(waiter, turn))

    grant = node.acquire(request, wait_seconds=wait_seconds, on_wait=tell)
    if not grant.lease_ids:
        raise refusal(grant.decision)
    try:
        if on_start is not None:
            on_start(grant.decision)
        return node.run_attached(argv, grant.lease_ids, overrun=overrun)
    finally:
        for lease_id in grant.lease_ids:
            node.release(lease_id)
