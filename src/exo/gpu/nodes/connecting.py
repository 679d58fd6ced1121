"""Joins a cluster: Ray as the carrier, an agent on each node, all of them as one node."""

from __future__ import annotations

import os
import secrets
import socket
from typing import TYPE_CHECKING, Any

from exo.gpu.nodes.cluster.cluster_node import ClusterNode
from exo.gpu.nodes.cluster.membership import Membership
from exo.gpu.nodes.cluster.table import ClusterTable
from exo.gpu.nodes.cluster.wire import Shelf
from exo.gpu.nodes.far_environments import FarEnvironments
from exo.gpu.nodes.ray_cluster import RayCarrier
from exo.gpu.nodes.ray_node import known_address

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def connect(
    address: str | None = None,
    *,
    runtime_env: Mapping[str, Any] | None = None,
    on_change: Callable[[], None] = lambda: None,
) -> ClusterNode:
    """All nodes of a cluster as one node.

    ``address`` is ``HOST:6379``, ``ray://HOST:10001`` or ``auto``; by default what ``RAY_ADDRESS``
    says, else the cluster of this machine. ``runtime_env`` is Ray's, for the workers of this
    program.

    Raises:
        ClusterError: where there is none, or none of its nodes answers, with what to do.

    """
    carrier = RayCarrier(address or known_address(os.environ))
    table = ClusterTable()
    driver = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    membership = Membership(carrier, table, Shelf(carrier.share), driver)
    membership.listen(on_change)
    environments = FarEnvironments(carrier, runtime_env or {})
    node = ClusterNode(carrier, membership, table, environments.of)
    try:
        membership.start()
        environments.make([member.place for member in membership.members.values()])
        membership.prepare = environments.of
    except BaseException:
        node.close()
        raise
    return node
