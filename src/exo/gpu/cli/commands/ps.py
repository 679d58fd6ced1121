"""``exo-gpu ps``: who holds what on every card, foreign processes and leases side by side."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TYPE_CHECKING

import click
import msgspec

from exo.gpu.cli.context import print_json, snapshot_of
from exo.gpu.cli.machines import cluster_option, open_node

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exo.gpu.vocabulary.device import GPUDevice
    from exo.gpu.vocabulary.process import Occupancy


@click.command(epilog="Exit status: 0; 69 no device here is called that; 2 usage.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for programs.")
@cluster_option
@click.option(
    "--device",
    "devices",
    multiple=True,
    metavar="ID",
    help="Only this device (id, alias or hardware id); may be repeated.",
)
def command(as_json: bool, cluster: bool, devices: tuple[str, ...]) -> None:
    """Say who holds what on every device.

    Processes and leases stand side by side. USED is what a process holds of the device's memory,
    LEASE what was reserved for it: memory, a slot, the whole device, or nothing ("foreign"). What
    is not known is "-" here and null in JSON, with the reason below the table.
    """
    from exo.gpu.coordination.processes import occupancy

    with open_node(cluster=cluster) as node:
        wanted = _wanted(devices, node.inventory().devices)
        everybody = occupancy(node, snapshot_of(node))
    shown = _only(everybody, wanted)
    if as_json:
        print_json(shown)
        return
    from exo.gpu.cli.render import WIDTH
    from exo.gpu.cli.users import reason_lines, users_table

    on_terminal = sys.stdout is not None and sys.stdout.isatty()
    width = max(WIDTH, shutil.get_terminal_size().columns) if on_terminal else WIDTH
    if shown.users:
        click.echo("\n".join(users_table(shown.users, now=time.time(), width=width)))
    else:
        click.echo("No process is known on these devices, and no lease.")
    reasons = reason_lines(shown.users, shown.untold, width=width)
    if reasons:
        click.echo("\n".join(("", *reasons)))


def _wanted(names: Sequence[str], devices: Sequence[GPUDevice]) -> frozenset[str]:
    """The ids of the devices that are named; of all where none is.

    Raises:
        NeverAvailable: for a name that no device here has, with the near spelling.

    """
    from exo.gpu.vocabulary.errors import NeverAvailable, UnknownName

    called = {
        name: device.device_id
        for device in devices
        for name in (device.device_id, device.hardware_id, *device.aliases)
    }
    for name in names:
        if name not in called:
            raise NeverAvailable(str(UnknownName("--device", name, set(called.values()))))
    return frozenset(called[name] for name in names or called)


def _only(everybody: Occupancy, wanted: frozenset[str]) -> Occupancy:
    return msgspec.structs.replace(
        everybody,
        users=tuple(user for user in everybody.users if user.device_id in wanted),
        untold={name: why for name, why in everybody.untold.items() if name in wanted},
    )
