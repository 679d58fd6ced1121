"""``exo-gpu drain``: let what runs on a device finish, and begin nothing new there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from exo.gpu.cli.context import duration, print_json
from exo.gpu.cli.main import complain

if TYPE_CHECKING:
    from exo.gpu.coordination.cordons import Drained
    from exo.gpu.vocabulary.lease import Lease


@click.command(
    epilog="Exit status: 0; 1 when it cannot be kept; 69 no device here is called that; 75 leases "
    "were left when the time was up, or somebody lifted the cordon; 2 usage."
)
@click.argument("name", metavar="ID")
@click.option("--why", default="draining", metavar="TEXT", help="The reason, for people to read.")
@click.option(
    "--for",
    "for_seconds",
    callback=duration,
    metavar="TIME",
    help="How long it stays cordoned, from now on; without it, until 'exo-gpu uncordon'.",
)
@click.option(
    "--wait",
    "wait_seconds",
    callback=duration,
    metavar="TIME",
    help="Wait no longer than this, such as 30m; without it, as long as it takes.",
)
@click.option("--no-wait", is_flag=True, help="Return at once; what runs there may go on.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object at the end, for programs.")
def command(
    name: str,
    *,
    why: str,
    for_seconds: float | None,
    wait_seconds: float | None,
    no_wait: bool,
    as_json: bool,
) -> int:
    """Let what runs on a device finish, and begin nothing new there.

    The device is cordoned at once, for all users of this machine, and stays so. Then this waits
    until the last lease on it has ended; interrupting it, or the end of --wait, leaves the cordon.
    """
    from exo.gpu.cli.main import NOT_NOW, SUCCESS
    from exo.gpu.coordination.cordons import drain

    if no_wait and wait_seconds is not None:
        raise click.UsageError("--wait and --no-wait exclude each other")
    drained = drain(
        name,
        why=why,
        for_seconds=for_seconds,
        wait_seconds=0.0 if no_wait else wait_seconds,
        on_wait=lambda leases: complain(f"{name}: waiting for {_named(leases)}"),
    )
    if as_json:
        _print_json(drained)
    elif drained.cordon is None:
        complain(f"{name} is not drained: somebody lifted the cordon")
    else:
        _say(name, drained)
    done = drained.cordon is not None and (no_wait or not drained.leases)
    return SUCCESS if done else NOT_NOW


def _say(name: str, drained: Drained) -> None:
    from exo.gpu.cli.render import cordon_words

    assert drained.cordon is not None
    click.echo(f"{drained.cordon.device_id} is {cordon_words(drained.cordon)}")
    if drained.leases:
        complain(f"{name} still has {_named(drained.leases)}; it stays cordoned")


def _print_json(drained: Drained) -> None:
    print_json(
        {
            "drained": drained.cordon is not None and not drained.leases,
            "cordon": None if drained.cordon is None else drained.cordon.to_dict(),
            "leases": [lease.to_dict() for lease in drained.leases],
        }
    )


def _named(leases: tuple[Lease, ...]) -> str:
    """How many leases, and whose: ``"2 leases: train.py (process 12, alice), ..."``."""
    names = ", ".join(
        f"{lease.holder or lease.command or 'somebody'} (process {lease.pid}, {lease.user})"
        for lease in leases
    )
    return f"{len(leases)} lease{'s' if len(leases) > 1 else ''}: {names}"
