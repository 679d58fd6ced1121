"""Starts and stops this machine's part of a Ray cluster, as a process that outlives us."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from exo.gpu.nodes.ray_cluster import INSTALL, MATCH_VARIABLE, NODE_LABEL
from exo.gpu.nodes.ray_joining import LOOPBACK, reach
from exo.gpu.nodes.ray_token import MODE_VARIABLE, ensure_token
from exo.gpu.vocabulary.errors import ClusterError, InvalidValue
from exo.gpu.vocabulary.messages import WireValue

if TYPE_CHECKING:
    from collections.abc import Mapping

    import psutil

FOLDER_VARIABLE = "EXO_GPU_CLUSTER"
DEFAULT_PORT = 6379

# By Ray's own defaults a frozen node is dead after a minute; so it is after some seven seconds.
HEALTH = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1500",
    "RAY_health_check_failure_threshold": "3",
}

# A node that is told to end would wait half a minute for its agent, which never leaves by itself.
DRAIN_VARIABLE = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"

# What Ray takes as a label's value, as Kubernetes does.
_NAME = re.compile("[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")

START_SECONDS = 90.0
# A node whose head is gone hears no word any more.
STOP_SECONDS = 8.0
_POLL_SECONDS = 0.2
_STARTED = "Ray runtime started"


class RunningNode(WireValue, frozen=True, kw_only=True):
    """A node that was started here: its process and where the cluster is."""

    name: str
    machine: str
    """Of a home that several machines share, which one runs it."""
    pid: int
    process_started_at: float
    """Unix seconds, to tell it from a later process of the same pid."""
    address: str
    head: bool = False


def folder_of(environ: Mapping[str, str]) -> Path:
    """Where is noted what was started here: a folder of this user."""
    if environ.get(FOLDER_VARIABLE):
        return Path(environ[FOLDER_VARIABLE])
    from platformdirs import user_state_path

    return user_state_path("exo-gpu") / "cluster"


def running_nodes(environ: Mapping[str, str]) -> tuple[RunningNode, ...]:
    """The nodes that were started here and still run; what is noted of others is forgotten."""
    found: list[RunningNode] = []
    for path in sorted(folder_of(environ).glob("*.json")):
        try:
            node = RunningNode.from_json(path.read_bytes())
        except (OSError, ValueError):
            continue
        if node.machine != socket.gethostname():
            continue
        if _process_of(node) is None:
            path.unlink(missing_ok=True)
        else:
            found.append(node)
    return tuple(found)


def known_address(environ: Mapping[str, str]) -> str | None:
    """Where the cluster is that this machine belongs to, as far as it was joined by us."""
    address = environ.get("RAY_ADDRESS")
    if address:
        return address
    return next((node.address for node in running_nodes(environ)), None)


def start_node(
    environ: Mapping[str, str],
    *,
    address: str | None,
    name: str | None = None,
    host: str = LOOPBACK[0],
    port: int = DEFAULT_PORT,
) -> RunningNode:
    """Start a head, or with ``address`` a node that joins it; returns once it runs.

    It is reached at ``host``, by default on loopback alone; with any other Ray listens at every
    address of the machine. The token that all nodes share is made by the head where there is none.

    Raises:
        ClusterError: where it cannot be started, with the reason and what to do.
        InvalidValue: for a name that Ray would not take.

    """
    import psutil

    if find_spec("ray") is None:
        raise ClusterError(INSTALL)
    name = name or socket.gethostname()
    if not _NAME.fullmatch(name):
        expected = "letters, digits, '.', '-' and '_', 63 at most, a letter or digit at both ends"
        raise InvalidValue("name", name, expected)
    if any(node.name == name for node in running_nodes(environ)):
        raise ClusterError(f"node {name!r} runs here already ('exo-gpu cluster stop' ends it)")
    ensure_token(environ, make=address is None)
    _see_that_it_is_free(host, port if address is None else 0)
    if address is not None:
        reach(address)
    folder = folder_of(environ)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    log = folder / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            _words(name, host, port, address),
            env=_environment(environ, host),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _await_start(process, log, name)
    except BaseException:
        _end(psutil.Process(process.pid))
        raise
    node = RunningNode(
        name=name,
        machine=socket.gethostname(),
        pid=process.pid,
        process_started_at=psutil.Process(process.pid).create_time(),
        address=address or f"{host}:{port}",
        head=address is None,
    )
    (folder / f"{name}.json").write_text(node.to_json())
    return node


def _words(name: str, host: str, port: int, address: str | None) -> list[str]:
    """The command that runs a node of Ray."""
    words = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-gpus=0"]
    words += [f"--node-ip-address={host}", f"--labels={NODE_LABEL}={name}", "--disable-usage-stats"]
    if address is None:
        return [*words, "--head", f"--port={port}", "--include-dashboard=false"]
    return [*words, f"--address={address}"]


def stop_node(environ: Mapping[str, str], node: RunningNode) -> None:
    """End a node that was started here, with all that works on it; harmless twice."""
    process = _process_of(node)
    if process is not None:
        _end(process)
    (folder_of(environ) / f"{node.name}.json").unlink(missing_ok=True)


def _end(process: psutil.Process) -> None:
    """End what runs a node, with all below it."""
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        below = process.children(recursive=True)
        process.send_signal(signal.SIGTERM)
        ends = time.monotonic() + STOP_SECONDS
        alive = [process, *below]
        while alive and time.monotonic() < ends:
            time.sleep(_POLL_SECONDS)
            alive = [one for one in alive if _runs(one)]
        for one in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()


def _see_that_it_is_free(host: str, port: int) -> None:
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        what = f"{host}:{port}" if port else host
        raise ClusterError(
            f"nothing can listen at {what} here: {error.strerror or error}"
        ) from None


def _process_of(node: RunningNode) -> psutil.Process | None:
    import psutil

    try:
        process = psutil.Process(node.pid)
        same = abs(process.create_time() - node.process_started_at) < 1.0
    except psutil.Error:
        return None
    return process if same and _runs(process) else None


def _runs(process: psutil.Process) -> bool:
    import psutil

    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _environment(environ: Mapping[str, str], host: str) -> dict[str, str]:
    chosen = {**HEALTH, MATCH_VARIABLE: "minor", MODE_VARIABLE: "token", DRAIN_VARIABLE: "0"}
    if host in LOOPBACK:
        # Else Ray replaces the loopback address by one that others can reach.
        chosen["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    elif sys.platform != "linux":
        chosen["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "1"
    return {**chosen, **environ}


def _await_start(process: subprocess.Popen[bytes], log: Path, name: str) -> None:
    ends = time.monotonic() + START_SECONDS
    while time.monotonic() < ends:
        if _STARTED in log.read_text(errors="replace"):
            return
        if process.poll() is not None:
            break
        time.sleep(_POLL_SECONDS)
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    if any("AuthenticationError" in line or "nauthenticated" in line for line in lines):
        raise ClusterError(
            "the head refuses this token: copy its ~/.ray/auth_token here, or set RAY_AUTH_TOKEN"
        )
    telling = [line for line in lines if "Error" in line or "rror:" in line] or lines
    raise ClusterError(
        f"node {name!r} does not start: {telling[-1] if telling else 'it says nothing'} ({log})"
    )
