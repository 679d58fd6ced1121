"""What ``exo-gpu top --cluster`` shows: frames of all machines, by what their agents tell."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from exo.gpu.coordination.cluster_watch import ClusterWatch
from exo.gpu.coordination.top_source import LocalTopSource, Watched

if TYPE_CHECKING:
    from collections.abc import Generator


class ClusterTopSource(LocalTopSource):
    """The same frames of a cluster, which is joined for as long as the block lasts."""

    @contextmanager
    def _watched(self) -> Generator[Watched]:
        with ClusterWatch(max_history=self._history_samples) as watch:
            yield watch
