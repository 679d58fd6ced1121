"""``exo-gpu leases``: who holds what, who waits, and how a lease is ended by force."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from exo.gpu.cli.context import print_json
from exo.gpu.cli.machines import cluster_option, open_node
from exo.gpu.cli.main import complain

if TYPE_CHECKING:
    from exo.gpu.scheduling.job_queue import Turn
    from exo.gpu.vocabulary.lease import Lease, Waiter


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for programs.")
@cluster_option
@click.pass_context
def command(ctx: click.Context, as_json: bool, cluster: bool) -> None:
    """Say who holds which device, and who waits.

    A lease ends with the last process under it. SEEN is what its processes hold now as the driver
    tells, "-" where it does not.
    """
    if ctx.invoked_subcommand is not None:
        return
    with open_node(cluster=cluster) as node:
        leases, line = node.leases(), node.line()
    if as_json:
        print_json(
            {
                "leases": [_lease_fields(lease) for lease in leases],
                "waiting": [_waiter_fields(waiter, turn) for waiter, turn in line],
            }
        )
        return
    from exo.gpu.cli.lease_tables import leases_table, line_table

    click.echo(leases_table(leases) if leases else "Nobody holds a lease.")
    if line:
        click.echo(f"\n{line_table(line)}")


@command.command("release")
@click.argument("name", metavar="ID")
@click.option(
    "--force",
    is_flag=True,
    help="Also while processes work under it: the next holder then shares the device with them.",
)
@cluster_option
def release(name: str, force: bool, cluster: bool) -> None:
    """End a lease, or take who waits out of the line, by its ID.

    Only its owner and root may. A lease ends by itself with the last process under it, so this
    is for one whose processes cannot be ended.
    """
    from exo.gpu.vocabulary.lease import Waiter

    with open_node(cluster=cluster) as node:
        record = node.end_lease(name, force=force)
    if isinstance(record, Waiter):
        complain(f"{name} is out of the line")
    else:
        complain(f"{name} on {record.device_id} is ended and counts no more")


def _lease_fields(lease: Lease) -> dict[str, Any]:
    return {**lease.to_dict(), "overrun_bytes": lease.overrun_bytes, "settling": lease.settling}


def _waiter_fields(waiter: Waiter, turn: Turn) -> dict[str, Any]:
    from exo.gpu.scheduling.explanation import refusal_message

    return {
        **waiter.to_dict(),
        "place": len(turn.ahead) + 1,
        "reason": refusal_message(turn.decision),
    }
