"""The process that has joined a cluster for somebody who only looks: it tells, and asks nobody."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from exo.gpu.coordination.cluster import connect_node
from exo.gpu.coordination.cluster_reader import Lists, Look
from exo.gpu.vocabulary.errors import ClusterError, ExoGpuError

if TYPE_CHECKING:
    from exo.gpu.nodes.cluster.cluster_node import ClusterNode

# Agents tell once a second, each in its own moment: however many there are, it is told this often.
TELL_SECONDS = 0.5
IDLE_SECONDS = 1.0

# Who holds what is dearer to learn than samples: it takes a tenth of the time at most.
ASK_SECONDS = 1.0
_DEAR_SHARE = 10.0

# To join a cluster takes a while, in which there is nothing to tell but that it goes on.
_BEAT_SECONDS = 5.0
_MOST_BEATS = 20

_LEAVE_SECONDS = 3.0


class Teller:
    """Tells of a cluster until nobody reads any more, or it is told to end."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._turn = threading.Lock()
        self._news = threading.Event()
        self._joined = threading.Event()
        self._node: ClusterNode | None = None

    def run(self) -> None:
        """Join the cluster and tell of it, or why it cannot be joined."""
        for task in (self._beat, self._leave_at_the_end):
            threading.Thread(target=task, daemon=True).start()
        try:
            node = self._node = connect_node(on_change=self._news.set)
        except ClusterError as error:
            self._joined.set()
            self._tell(str(error))
            return
        self._joined.set()
        threading.Thread(target=self._list, args=(node,), daemon=True).start()
        while True:
            self._tell(Look(node.snapshot(), node.nodes(), node.problem))
            time.sleep(TELL_SECONDS)
            self._news.wait(IDLE_SECONDS)
            self._news.clear()

    def _tell(self, what: Look | Lists | str | None) -> None:
        with self._turn:
            self._pipe.send(what)

    def _beat(self) -> None:
        for _ in range(_MOST_BEATS):
            if self._joined.wait(_BEAT_SECONDS):
                return
            self._tell(None)

    def _list(self, node: ClusterNode) -> None:
        while True:
            began = time.monotonic()
            with contextlib.suppress(ExoGpuError):  # what was told last is all that is known
                self._tell(Lists(node.leases(), node.line(), node.processes()))
            took = time.monotonic() - began
            time.sleep(max(ASK_SECONDS, (_DEAR_SHARE - 1) * took))

    def _leave_at_the_end(self) -> None:
        """Once whoever reads ends, or says so, leave the cluster as far as it lets one, and go."""
        # Not by a buffer: whoever ends meanwhile would have to wait for its lock.
        while os.read(0, 4096):
            pass
        if self._node is not None:
            leaving = threading.Thread(target=self._node.close, daemon=True)
            leaving.start()
            leaving.join(_LEAVE_SECONDS)
        os._exit(0)


def main() -> None:
    """Tell through the pipe that is named on the command line."""
    with contextlib.suppress(OSError), Connection(int(sys.argv[1]), readable=False) as pipe:
        Teller(pipe).run()


if __name__ == "__main__":
    main()
