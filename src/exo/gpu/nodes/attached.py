"""A command with the caller's terminal, under leases that were taken at the desk."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from exo.gpu.execution.foreground import run_attached

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from exo.gpu.nodes.leasing import LeaseDesk
    from exo.gpu.vocabulary.command_end import CommandEnd


def run_under_leases(
    argv: Sequence[str],
    environ: Mapping[str, str],
    desk: LeaseDesk,
    lease_ids: tuple[str, ...],
    *,
    overrun: str = "warn",
    timeout_seconds: float | None = None,
) -> CommandEnd:
    """Run it to its end, look after its memory meanwhile, and say what it took.

    ``environ`` pins it already; the leases last for as long as it and its children live.
    """
    held = [desk.held[lease_id] for lease_id in lease_ids]
    keep_open = tuple(one.lock_fd for one in held)
    with desk.watch(lease_ids, overrun) as watch:
        end = run_attached(argv, environ, keep_open, watch.start, timeout_seconds=timeout_seconds)
    return msgspec.structs.replace(
        end,
        device_ids=tuple(one.lease.device_id for one in held),
        declared_bytes=held[0].lease.memory_bytes,
        peak_device_bytes=dict(watch.peak_bytes),
    )
