"""Starts and stops this machine's part of a Ray cluster, as a process that outlives us."""

from __future__ import annotations

import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from exo.gpu.nodes.ray_cluster import INSTALL, MATCH_VARIABLE, NODE_LABEL
from exo.gpu.nodes.ray_joining import LOOPBACK
from exo.gpu.vocabulary.errors import ClusterError, InvalidValue
from exo.gpu.vocabulary.messages import WireValue

if TYPE_CHECKING:
    from collections.abc import Mapping

FOLDER_VARIABLE = "EXO_GPU_CLUSTER"
DEFAULT_PORT = 6379

# By Ray's own defaults a frozen node is dead after a minute; so it is after some seven seconds.
HEALTH = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1500",
    "RAY_health_check_failure_threshold": "3",
}

# What Ray takes as a label's value, as Kubernetes does.
_NAME = re.compile("[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")

START_SECONDS = 90.0
STOP_SECONDS = 20.0
_POLL_SECONDS = 0.2
_STARTED = "Ray runtime started"


class RunningNode(WireValue, frozen=True, kw_only=True):
    """A node that was started here: its process and where the cluster is."""

    name: str
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

    It listens at ``host`` only, by default on loopback. The token that all nodes share is made by
    the head where there is none.

    Raises:
        ClusterError: where it cannot be started, with the reason and what to do.
        InvalidValue: for a name that Ray would not take.

    """
    if find_spec("ray") is None:
        raise ClusterError(INSTALL)
    name = name or socket.gethostname()
    if not _NAME.fullmatch(name):
        expected = "letters, digits, '.', '-' and '_', 63 at most, a letter or digit at both ends"
        raise InvalidValue("name", name, expected)
    if any(node.name == name for node in running_nodes(environ)):
        raise ClusterError(f"node {name!r} runs here already ('exo-gpu cluster stop' ends it)")
    _ensure_token(environ, make=address is None)
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
    _await_start(process, log, name)
    node = RunningNode(
        name=name,
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
        below = process.children(recursive=True)
        process.send_signal(signal.SIGTERM)
        _, alive = psutil.wait_procs([process, *below], timeout=STOP_SECONDS)
        for one in alive:
            one.kill()
    (folder_of(environ) / f"{node.name}.json").unlink(missing_ok=True)


def _process_of(node: RunningNode) -> psutil.Process | None:
    try:
        process = psutil.Process(node.pid)
        same = abs(process.create_time() - node.process_started_at) < 1.0
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.Error:
        return None


def _environment(environ: Mapping[str, str], host: str) -> dict[str, str]:
    chosen = {**HEALTH, MATCH_VARIABLE: "minor", "RAY_AUTH_MODE": "token"}
    if host in LOOPBACK:
        # Else Ray replaces the loopback address by one that others can reach.
        chosen["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    elif sys.platform != "linux":
        chosen["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "1"
    return {**chosen, **environ}


def _ensure_token(environ: Mapping[str, str], *, make: bool) -> None:
    """See to it that there is a token: an open Ray port runs whatever anybody sends."""
    if environ.get("RAY_AUTH_MODE") == "disabled" or environ.get("RAY_AUTH_TOKEN"):
        return
    named = environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else Path(environ.get("HOME", "~")).expanduser() / ".ray/auth_token"
    if path.exists():
        return
    if not make:
        raise ClusterError(
            f"there is no token at {path}: copy it from the head's ~/.ray/auth_token, or set "
            "RAY_AUTH_TOKEN"
        )
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32))


def _await_start(process: subprocess.Popen[bytes], log: Path, name: str) -> None:
    ends = time.monotonic() + START_SECONDS
    while time.monotonic() < ends:
        if _STARTED in log.read_text(errors="replace"):
            return
        if process.poll() is not None:
            break
        time.sleep(_POLL_SECONDS)
    process.terminate()
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    telling = [line for line in lines if "Error" in line or "rror:" in line] or lines
    raise ClusterError(
        f"node {name!r} does not start: {telling[-1] if telling else 'it says nothing'} ({log})"
    )
