"""A cluster that is only looked at, from a process of its own.

Ray ends a process whose cluster has had no head for a minute, and cannot leave such a cluster
without waiting for it. What is to outlive the head reads what such a process tells, and starts
another one where it ended.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import threading
import time
from multiprocessing.connection import Connection, Pipe
from typing import TYPE_CHECKING, Any

import msgspec

from exo.gpu.vocabulary.errors import ClusterError
from exo.gpu.vocabulary.inventory import DiscoveryReport
from exo.gpu.vocabulary.snapshot import DeviceState, Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping

    from exo.gpu.scheduling.job_queue import Turn
    from exo.gpu.vocabulary.cluster import NodeStanding
    from exo.gpu.vocabulary.lease import Lease, Waiter
    from exo.gpu.vocabulary.process import ProcessList

logger = logging.getLogger("exo.gpu.coordination.cluster_reader")

_TELLER = "exo.gpu.coordination.cluster_teller"

# A process that tells nothing for so long, or of no node that answers, is replaced.
SILENT_SECONDS = 15.0
GONE_SECONDS = 10.0

# Where there is no cluster, it is looked for as often.
AGAIN_SECONDS = 5.0

# To join waits for the agents of all nodes; what was not told by then is told later.
_JOIN_SECONDS = 120.0
_LISTS_SECONDS = 5.0
_LEAVE_SECONDS = 5.0


class Look(msgspec.Struct, frozen=True):
    """What is known of a cluster at one moment; ``problem`` is what its head has."""

    snapshot: Snapshot = Snapshot(())
    nodes: tuple[NodeStanding, ...] = ()
    problem: str = ""


class Lists(msgspec.Struct, frozen=True):
    """Who holds what, who waits, and who works where, on all nodes that answer."""

    leases: tuple[Lease, ...] = ()
    line: tuple[tuple[Waiter, Turn], ...] = ()
    processes: tuple[ProcessList, ...] = ()


class ClusterReader:
    """What a :class:`~exo.gpu.nodes.cluster.cluster_node.ClusterNode` knows, and nothing it does.

    ``on_change`` is called from another thread when there is news.
    """

    def __init__(self, on_change: Callable[[], None]) -> None:
        """Join the cluster of ``RAY_ADDRESS``, or of this machine; later ones at the same address.

        Raises:
            ClusterError: where there is none, or none of its nodes answers, with what to do.

        """
        from exo.gpu.nodes.ray_node import known_address

        self._on_change = on_change
        address = known_address(os.environ)
        self._environ = os.environ | ({"RAY_ADDRESS": address} if address else {})
        self._look = Look()
        self._lists = Lists()
        self._looked_at = time.monotonic()
        self._joined, self._listed = threading.Event(), threading.Event()
        self._closed = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._run, name="exo-gpu-reader", daemon=True)
        self._thread.start()
        if not self._joined.wait(_JOIN_SECONDS):
            self._look = Look(problem="the cluster does not answer")
        if not self._look.nodes:
            self.close()
            raise ClusterError(self._look.problem)
        self._listed.wait(_LISTS_SECONDS)

    @property
    def problem(self) -> str:
        """Why the cluster, or its head, does not answer; empty while it does."""
        return self._look.problem

    def nodes(self) -> tuple[NodeStanding, ...]:
        """Every node that is or was in the cluster, and why one does not count."""
        return self._look.nodes

    def inventory(self) -> DiscoveryReport:
        """Every device of every node that answers."""
        snapshot = self._look.snapshot
        return DiscoveryReport(
            devices=tuple(state.device for state in snapshot.devices), links=snapshot.links
        )

    def snapshot(self, *, leases: bool = True, others: bool = False) -> Snapshot:
        """All devices as their agents last told, within a second or two."""
        del others  # an agent looks for them before it grants a whole device
        look, since = self._look, time.monotonic() - self._looked_at
        devices = tuple(_aged(one, since, leases=leases) for one in look.snapshot.devices)
        return msgspec.structs.replace(look.snapshot, devices=devices)

    def processes(self) -> tuple[ProcessList, ...]:
        """Who works on each device, as far as the nodes told in time."""
        return self._lists.processes

    def leases(self) -> tuple[Lease, ...]:
        """All live leases of all nodes."""
        return self._lists.leases

    def line(self) -> tuple[tuple[Waiter, Turn], ...]:
        """Everybody who waits at a node, node by node."""
        return self._lists.line

    def close(self) -> None:
        """Leave the cluster; harmless twice."""
        self._closed.set()
        process = self._process
        if process is not None:
            _end(process)
        self._thread.join(_LEAVE_SECONDS)

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                joined, problem = self._read()
            except OSError as error:
                joined, problem = False, f"no process can be started that joins it: {error}"
            if self._closed.is_set():
                return
            if problem != self._look.problem and self._look.nodes:
                logger.warning("the cluster is lost, and looked for: %s", problem)
            gone = tuple(
                msgspec.structs.replace(one, alive=False, reason=problem, devices=())
                for one in self._look.nodes
            )
            self._lists = Lists()
            self._look = Look(nodes=gone, problem=problem)
            self._joined.set()
            self._on_change()
            if not joined:
                self._closed.wait(AGAIN_SECONDS)

    def _read(self) -> tuple[bool, str]:
        """Take in what a process tells; whether it had joined, and why it tells no more."""
        joined, problem = False, "the cluster does not answer any more, and is joined anew"
        alive_at = time.monotonic()
        with _joined(self._environ) as (process, news):
            self._process = process
            for told in _told(news):
                if self._closed.is_set():
                    break
                if isinstance(told, str):
                    problem = told
                elif isinstance(told, Lists):
                    self._lists = told
                    self._listed.set()
                elif isinstance(told, Look):
                    self._look, self._looked_at = told, time.monotonic()
                    joined = True
                    self._joined.set()
                    self._on_change()
                    if any(one.alive for one in told.nodes):
                        alive_at = time.monotonic()
                    elif time.monotonic() - alive_at > GONE_SECONDS:
                        problem = told.problem or "no node of the cluster answers"
                        break
        return joined, problem


def _aged(state: DeviceState, seconds: float, *, leases: bool) -> DeviceState:
    """A state as it is so long after it was told."""
    age = state.sample_age_seconds
    aged = msgspec.structs.replace(state, sample_age_seconds=None if age is None else age + seconds)
    return aged if leases else msgspec.structs.replace(aged, leases=(), cordon=None)


@contextlib.contextmanager
def _joined(environ: Mapping[str, str]) -> Generator[tuple[subprocess.Popen[bytes], Connection]]:
    """A process that joins the cluster, and what it tells; it is ended with the block."""
    news, telling = Pipe(duplex=False)
    with news, telling:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", _TELLER, str(telling.fileno())],
            env=environ,
            stdin=subprocess.PIPE,
            pass_fds=(telling.fileno(),),
            start_new_session=True,  # Ctrl-C is for who reads
        )
        telling.close()
        try:
            yield process, news
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Have it leave the cluster, and see to it that it is gone; harmless twice."""
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        process.stdin.close()
    try:
        process.wait(_LEAVE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _told(news: Connection) -> Iterator[Any]:
    """What comes, until nothing does for long."""
    with contextlib.suppress(EOFError, OSError):
        while news.poll(SILENT_SECONDS):
            yield news.recv()
