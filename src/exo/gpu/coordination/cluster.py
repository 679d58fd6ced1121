"""A cluster in the hands of a caller: joined by its address, or by what has joined it already."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from exo.gpu.vocabulary.errors import InvalidValue

if TYPE_CHECKING:
    from collections.abc import Callable

    from exo.gpu.nodes.cluster.cluster_node import ClusterNode
    from exo.gpu.nodes.transport import Node


def connect_node(
    address: str | None = None,
    *,
    runtime_env: Mapping[str, Any] | None = None,
    on_change: Callable[[], None] = lambda: None,
) -> ClusterNode:
    """Join a cluster; all its machines are one node then, to be closed by the caller.

    ``address`` is ``HOST:6379``, ``ray://HOST:10001`` or ``auto``; by default what ``RAY_ADDRESS``
    says, else the cluster of this machine. ``runtime_env`` is Ray's, for the workers of this
    program. ``on_change`` hears, from other threads, that a node told anything.

    Raises:
        ClusterError: where there is none, or none of its nodes answers, with what to do.

    """
    if runtime_env is not None and not isinstance(runtime_env, Mapping):
        raise InvalidValue("runtime_env", runtime_env, "a dictionary, as Ray takes it, or None")
    from exo.gpu.nodes.connecting import connect

    return connect(address, runtime_env=runtime_env, on_change=on_change)


def home_of(cluster: Any) -> tuple[Node, bool]:
    """The cluster as a node, and whether it was joined just now and is to be left afterwards.

    ``cluster`` is an address, a manager that is connected, or such a node itself.

    Raises:
        ClusterError: for an address at which none can be joined.
        InvalidValue: for a manager of this machine alone.

    """
    if isinstance(cluster, str):
        return connect_node(cluster), True
    node = getattr(cluster, "node", cluster)
    if not hasattr(node, "acquire"):
        raise InvalidValue("cluster", cluster, "what GPUClusteringManager.connect() gives")
    return node, False
