"""Folders of this machine that a runtime environment names: sent to where all nodes find them."""

from __future__ import annotations

import logging
import tempfile
from typing import TYPE_CHECKING, Any

from exo.gpu.nodes.ray_joining import first_line
from exo.gpu.vocabulary.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Mapping

logger = logging.getLogger("exo.gpu.nodes.ray_cluster")


def uploaded(ray: Any, runtime_env: Mapping[str, Any]) -> dict[str, Any]:
    """The environment with what it names here put into the cluster's store.

    Ray does so for a whole program; for an actor, as we have one on each node, it is left to us.

    Raises:
        ClusterError: where a folder is not there, or too large for Ray.

    """
    parts = ray._private.runtime_env  # noqa: SLF001 - nothing public sends a folder
    found = dict(runtime_env)
    with tempfile.TemporaryDirectory() as scratch:
        for send in (
            parts.working_dir.upload_working_dir_if_needed,
            parts.py_modules.upload_py_modules_if_needed,
        ):
            try:
                found = send(found, include_gitignore=True, scratch_dir=scratch, logger=logger)
            except Exception as error:
                logger.debug("a folder cannot be sent", exc_info=True)
                raise ClusterError(
                    f"runtime_env: a folder cannot be sent: {first_line(error)}"
                ) from None
    return found
