"""How a Ray cluster is joined, or why it is not: quickly, quietly, and told in one line."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from exo.gpu.vocabulary.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Generator

logger = logging.getLogger("exo.gpu.nodes.ray_cluster")

LOOPBACK = ("127.0.0.1", "localhost")

_REACH_SECONDS = 5.0
_NONE_KNOWN = (
    "no cluster is known here: 'exo-gpu cluster start --head' begins one, "
    "RAY_ADDRESS=HOST:6379 names one"
)
_PATIENCE_VARIABLE = "RAY_gcs_server_port_wait_time_s"

_STDERR = threading.Lock()


def reach(address: str) -> None:
    """See that something answers there at all: Ray itself would try for minutes.

    Raises:
        ClusterError: where nothing does, or this process lacks what speaks to it.

    """
    if address.startswith("ray://") and find_spec("grpc") is None:
        raise ClusterError(f"{address} needs Ray's client: pip install 'ray[client]'")
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if "/" in host or not host or not port.isdecimal():
        return  # "auto", or a way that only Ray understands
    try:
        socket.create_connection((host, int(port)), timeout=_REACH_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(
            f"no cluster answers at {address}: is the head running there, and is the port right? "
            f"({error})"
        ) from None


def address_of(ray: Any, address: str) -> str:
    """What "auto" means here: the cluster that this machine was last part of, if it still runs.

    Raises:
        ClusterError: where there is none; Ray itself would try for a minute.

    """
    known = ray._private.utils.read_ray_address()  # noqa: SLF001 - nothing public says it
    if address != "auto" or not known:
        return address
    try:
        reach(known)
    except ClusterError:
        raise ClusterError(_NONE_KNOWN) from None
    return known


def why_not(address: str, error: Exception) -> str:
    """One line that says what to do about a cluster that cannot be joined."""
    text = str(error)
    if "invalid" in text.lower() and "address" in text.lower():
        return f"{address!r} is no address of a cluster, such as 192.168.1.10:6379"
    if "version mismatch" in text.lower():
        return (
            f"the cluster at {address} runs another version: {' '.join(text.split())}; install "
            "the same Ray and the same minor version of Python on all nodes"
        )
    if address == "auto":
        return _NONE_KNOWN
    return (
        f"what answers at {address} refuses this token, or is no Ray cluster: copy "
        f"~/.ray/auth_token from its head, or set RAY_AUTH_TOKEN ({first_line(error)})"
    )


def first_line(error: BaseException) -> str:
    """What an error says before it goes into detail; its class where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__


def keep_reports_off_stdout(ray: Any) -> None:
    """Have what raylets report logged: Ray prints it between the results of a program."""

    def log(report: Any, **_: Any) -> None:
        logger.info("%s", "\n".join(report["lines"]))

    ray._private.worker.print_to_stdstream = log  # noqa: SLF001 - log_to_driver leaves it out


@contextlib.contextmanager
def loopback(ray: Any, address: str) -> Generator[None]:
    """Keep Ray from replacing loopback by what others can reach, and from trying for minutes."""
    constants = ray._private.ray_constants  # noqa: SLF001 - there is no setting after its import
    before = constants.ENABLE_RAY_CLUSTER
    patience = os.environ.get(_PATIENCE_VARIABLE)
    os.environ.setdefault(_PATIENCE_VARIABLE, "5")  # tries, of which each takes a second or more
    if address.rpartition(":")[0] in LOOPBACK:
        constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = before
        if patience is None:
            os.environ.pop(_PATIENCE_VARIABLE, None)


@contextlib.contextmanager
def own_signals() -> Generator[None]:
    """Keep Ray from taking SIGTERM over, which ends programs with a dump of its stack then."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread() and before is not None:
            signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def quiet_stderr() -> Generator[None]:
    """Ray's C++ parts write there past every setting; what matters is told by an exception."""
    with _STDERR:
        try:
            kept = os.dup(2)
        except OSError:  # there is none
            yield
            return
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
