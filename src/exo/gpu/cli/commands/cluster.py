"""``exo-gpu cluster``: make many machines one, join it, see it, and leave it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from exo.gpu.cli.context import print_json
from exo.gpu.cli.main import FAILURE, SUCCESS, complain

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from exo.gpu.nodes.ray_node import RunningNode
    from exo.gpu.vocabulary.cluster import NodeStanding
    from exo.gpu.vocabulary.links import Route


_LOOPBACK = ("127.0.0.1", "localhost")


def _node_options(function: Callable[..., None]) -> Callable[..., None]:
    function = click.option(
        "--host",
        default="127.0.0.1",
        metavar="IP",
        help="By which address of this machine the others reach it; Ray then listens at all of "
        "them. By default at loopback alone.",
    )(function)
    return click.option(
        "--name", metavar="TEXT", help="What the node is called; by default as the machine."
    )(function)


@click.group()
def command() -> None:
    """Make many machines one, and see them.

    'exo-gpu devices --cluster' and others then mean all of them. Ray carries it
    (pip install 'exo-gpu[ray]'). Whoever reaches a Ray port and has the token runs whatever he
    likes there: keep both to yourself.
    """


@command.command("start")
@click.option("--head", is_flag=True, help="Begin a new cluster; without it RAY_ADDRESS is joined.")
@click.option("--port", type=click.IntRange(1, 65535), default=6379, help="Of the head; 6379.")
@_node_options
def start(head: bool, port: int, name: str | None, host: str) -> None:
    """Start this machine's part of a cluster; with --head it is the first."""
    from exo.gpu.nodes.ray_node import start_node

    address = None if head else os.environ.get("RAY_ADDRESS")
    if not head and not address:
        raise click.UsageError("--head begins a cluster; 'exo-gpu cluster join ADDRESS' joins one")
    _tell(start_node(os.environ, address=address, name=name, host=host, port=port))


@command.command("join")
@click.argument("address", metavar="HOST:PORT")
@_node_options
def join(address: str, name: str | None, host: str) -> None:
    """Have this machine join the cluster whose head is at ADDRESS."""
    from exo.gpu.nodes.ray_node import start_node

    there, _, port = address.rpartition(":")
    if not there or not port.isdecimal() or not 0 < int(port) < 65536:
        raise click.UsageError(f"{address!r} is no HOST:PORT, such as 192.168.1.10:6379")
    if there in _LOOPBACK:
        raise click.UsageError("a head on loopback is alone: start it with --host ITS-IP first")
    if host in _LOOPBACK:
        raise click.UsageError(
            "--host: by which address of this machine shall the others reach it?"
        )
    _tell(start_node(os.environ, address=address, name=name, host=host))


@command.command("status")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for programs.")
@click.option("--network", is_flag=True, help="Also how fast the nodes reach each other.")
def status(as_json: bool, network: bool) -> int:
    """Say which nodes there are, what each has, and why one does not count."""
    from exo.gpu.coordination.cluster import connect_node

    with connect_node() as node:
        standings = node.nodes()
        routes = node.routes() if network else ()
    if as_json:
        told = {"nodes": [one.to_dict() for one in standings]}
        print_json(told | ({"routes": [one.to_dict() for one in routes]} if network else {}))
    else:
        click.echo("\n".join((_table(standings), *map(_route, routes))))
    return SUCCESS if all(one.alive for one in standings) else FAILURE


@command.command("stop")
@click.option("--name", metavar="TEXT", help="Only the node of this name; by default all of here.")
def stop(name: str | None) -> None:
    """End what was started here of a cluster, with all that works on it."""
    from exo.gpu.nodes.ray_node import running_nodes, stop_node
    from exo.gpu.vocabulary.errors import ClusterError

    nodes = [node for node in running_nodes(os.environ) if name in (None, node.name)]
    if not nodes:
        raise ClusterError("no node of a cluster was started here" + (f" as {name!r}" * bool(name)))
    for node in sorted(nodes, key=lambda one: one.head):  # the head last
        stop_node(os.environ, node)
        complain(f"node {node.name} is stopped")


def _tell(node: RunningNode) -> None:
    if node.head:
        complain(f"node {node.name} heads a cluster at {node.address}")
        if node.address.rpartition(":")[0] in _LOOPBACK:
            complain("no other machine reaches it; with --host ITS-IP they could")
        else:
            complain(f"on the others: exo-gpu cluster join {node.address} --host THEIR-IP")
    else:
        complain(f"node {node.name} has joined the cluster at {node.address}")


def _route(route: Route) -> str:
    rate = route.bandwidth_bytes_per_second
    speed = "-" if rate is None else f"{rate / 1e6:.0f} MB/s"
    way = f"{route.source} -> {route.target}"
    return f"{way:<37} {route.latency_seconds * 1e3:.1f} ms there and back, {speed}"


def _table(standings: Sequence[NodeStanding]) -> str:
    lines = [f"{'NODE':<20} {'ADDRESS':<16} {'DEVICES':>7}  STATE"]
    for one in standings:
        state = (
            f"exo-gpu {one.version}, Python {one.python}" if one.alive else f"lost: {one.reason}"
        )
        lines.append(f"{one.node:<20} {one.address:<16} {len(one.devices):>7}  {state}")
    return "\n".join(lines)
