"""One command on the device that suits it: lease, pin, run, let go."""

from __future__ import annotations

from typing import TYPE_CHECKING

from exo.gpu.coordination.slots import refusal
from exo.gpu.nodes.local import LocalNode

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from exo.gpu.vocabulary.decision import Decision
    from exo.gpu.vocabulary.request import Request


def run_command(
    argv: Sequence[str],
    request: Request,
    *,
    node: LocalNode | None = None,
    on_start: Callable[[Decision], None] | None = None,
) -> int:
    """Run a command with this process's terminal on the devices chosen for it.

    Returns its status as a shell would: 0..255, and 128 + n when signal n ended it. ``on_start``
    is told the decision once the leases are held.

    Raises:
        NeverAvailable: when no device here can ever satisfy the request.
        NotNow: when one could, but not at the moment.
        FileNotFoundError: when there is no such command.
        PermissionError: when it may not be executed.

    """
    if node is None:
        with LocalNode() as opened:
            return run_command(argv, request, node=opened, on_start=on_start)
    grant = node.acquire(request)
    if not grant.lease_ids:
        raise refusal(grant.decision)
    try:
        if on_start is not None:
            on_start(grant.decision)
        return node.run_attached(argv, grant.lease_ids)
    finally:
        for lease_id in grant.lease_ids:
            node.release(lease_id)
