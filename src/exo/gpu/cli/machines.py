"""The option ``--cluster``: this machine alone, or all of a cluster, as one node."""

from __future__ import annotations

from typing import Any

import click

from exo.gpu.cli.request_options import Command


def cluster_option(command: Command) -> Command:
    """Give a command the option that means all machines of the cluster."""
    return click.option(
        "--cluster",
        "cluster",
        is_flag=True,
        help="All machines of the cluster: of RAY_ADDRESS, or that this one has joined.",
    )(command)


def open_node(*, cluster: bool) -> Any:
    """This machine, or with ``cluster`` all of them; to be used in a ``with`` block.

    Raises:
        ClusterError: where there is no cluster, or it cannot be joined.

    """
    if cluster:
        from exo.gpu.coordination.cluster import connect_node

        return connect_node()
    from exo.gpu.nodes.local import LocalNode

    return LocalNode()
