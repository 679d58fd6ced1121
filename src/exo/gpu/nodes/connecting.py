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
from exo.gpu.nodes.ray_cluster import RayCarrier
from exo.gpu.nodes.ray_node import known_address
from exo.gpu.vocabulary.cluster import Surroundings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# The parts of a runtime environment that come with an interpreter of their own.
_PYTHONS = frozenset({"pip", "uv", "conda", "py_executable", "image_uri"})

# Part of the path of whatever Ray makes for such an environment.
_MADE = "runtime_resources"


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
    try:
        table = ClusterTable()
        driver = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        membership = Membership(carrier, table, Shelf(carrier.share), driver)
        membership.listen(on_change)
        membership.start()
        kept: dict[str, Any] = {}
        if runtime_env:
            places = [member.place for member in membership.members.values()]
            kept = carrier.gather(places, runtime_env)
        surroundings = {
            name: _surroundings(facts, runtime_env or {}) for name, (facts, _) in kept.items()
        }
        return ClusterNode(carrier, membership, table, surroundings, keepsakes=kept)
    except BaseException:
        carrier.close()
        raise


def _surroundings(facts: Mapping[str, Any], asked: Mapping[str, Any]) -> Surroundings:
    """What of a runtime environment the workers of a node have to be given."""
    own_python = _PYTHONS.intersection(asked)
    return Surroundings(
        python=facts["python"] if own_python else "",
        import_path=tuple(one for one in facts["import_path"] if _MADE in one),
        directory=facts["directory"] if "working_dir" in asked else "",
        variables=facts["variables"],
    )
