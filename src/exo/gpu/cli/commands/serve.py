"""``exo-gpu serve``: the machine for the browser, for Prometheus and for programs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from exo.gpu.cli.context import duration_from
from exo.gpu.cli.machines import cluster_option
from exo.gpu.cli.main import FAILURE, SUCCESS, complain
from exo.gpu.telemetry.sampling.schedule import SHORTEST_CADENCE_SECONDS

if TYPE_CHECKING:
    from exo.gpu.coordination.cluster_watch import ClusterWatch
    from exo.gpu.coordination.monitor import Monitor

TOKEN_VARIABLE = "EXO_GPU_TOKEN"  # noqa: S105 - the name of a variable
DEFAULT_PORT = 52416


@click.command(
    epilog="Exit status: 0; 1 when it cannot listen there, or join the cluster; 2 usage."
)
@click.option("--host", default="127.0.0.1", metavar="ADDRESS", help="Where to listen.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=DEFAULT_PORT,
    help="On which port; 0 takes any that is free.",
)
@click.option(
    "--token",
    envvar=TOKEN_VARIABLE,
    metavar="TEXT",
    help="What a client must know. Every address but loopback needs one: without it a token is "
    f"made and shown once. {TOKEN_VARIABLE} keeps it out of the list of processes.",
)
@click.option(
    "--every",
    "cadence",
    callback=duration_from(SHORTEST_CADENCE_SECONDS),
    metavar="TIME",
    help="How often each device is sampled, such as 1s (the default) or 500ms; not of a cluster, "
    "whose machines do so once a second.",
)
@click.option("--no-history", is_flag=True, help="Keep nothing on disk.")
@cluster_option
def command(  # noqa: PLR0917 - click hands them over by name
    host: str, port: int, token: str | None, cadence: float | None, no_history: bool, cluster: bool
) -> int:
    """Show this machine, or a cluster, to browsers and programs.

    The dashboard is at http://ADDRESS:PORT/, metrics at /metrics, the interface for programs at
    /api/v1, described by /api/v1/openapi.json. It reads and changes nothing. It ends on Ctrl-C.
    Unless another process does so already, it keeps the history that 'exo-gpu history' shows.
    """
    try:
        from exo.gpu.service.access import is_loopback, new_token
        from exo.gpu.service.server import listen
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"litestar", "uvicorn"}:
            raise
        complain("the service needs Litestar and uvicorn: pip install 'exo-gpu[serve]'")
        return FAILURE
    if token is not None and not (token.isascii() and token.isprintable() and token.strip()):
        raise click.UsageError("--token must be printable ASCII and not empty")
    if cluster and cadence is not None:
        raise click.UsageError("--every is not for --cluster: its machines sample once a second")
    made = token is None and not is_loopback(host)
    token = new_token() if made else token
    try:
        listening = listen(host, port)
    except OSError as error:
        complain(f"cannot listen on {host}, port {port}: {error.strerror or error}")
        return FAILURE
    with listening:
        bound = listening.getsockname()[1]
        address = f"http://{f'[{host}]' if ':' in host else host}:{bound}/"
        note = f"{address}#token={token}" if made else address
        watch = _watch(cluster=cluster, cadence_seconds=cadence, history=not no_history)
        _serve(listening, watch, max(1.0, cadence or 1.0), token, note)
    return SUCCESS


def _watch(
    *, cluster: bool, cadence_seconds: float | None, history: bool
) -> Monitor | ClusterWatch:
    if cluster:
        from exo.gpu.coordination.cluster_watch import ClusterWatch

        return ClusterWatch(history=history)
    from exo.gpu.coordination.monitor import Monitor

    return Monitor(cadence_seconds=cadence_seconds or 1.0, history=history)


def _serve(
    listening: Any,
    watch: Monitor | ClusterWatch,
    cadence_seconds: float,
    token: str | None,
    note: str,
) -> None:
    from exo.gpu import __version__
    from exo.gpu.coordination.overview import Overseer
    from exo.gpu.service.app import Service
    from exo.gpu.service.server import run

    with watch, Overseer(watch, os.environ, cadence_seconds=cadence_seconds) as overseer:
        service = Service(overseer, token=token, version=__version__)
        run(service, listening, lambda: _greet(watch, note))


def _greet(watch: Monitor | ClusterWatch, note: str) -> None:
    from exo.gpu.coordination.recording import NOT_WANTED

    complain(f"serving {note}")
    nodes = watch.nodes
    if nodes:
        names = ", ".join(one.node for one in nodes if one.alive)
        count = sum(one.alive for one in nodes)
        complain(f"of a cluster of {count} node{'s' * (count != 1)}: {names}")
    for one in nodes:
        if not one.alive:
            complain(f"node {one.node} is lost: {one.reason}")
    recording = watch.recording
    if recording.active:
        complain(f"keeping the history in {recording.path}")
    elif recording != NOT_WANTED:
        complain(f"no history is kept here: {recording.reason}")
