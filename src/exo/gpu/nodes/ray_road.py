"""Calls to one agent, over Ray."""

from __future__ import annotations

import logging
from typing import Any

from exo.gpu.nodes.ray_joining import first_line
from exo.gpu.vocabulary.errors import ExoGpuError, NodeLost

logger = logging.getLogger("exo.gpu.nodes.ray_cluster")


class RayRoad:
    """Calls to one agent."""

    def __init__(self, ray: Any, actor: Any, node: str) -> None:
        self._ray = ray
        self._node = node
        self._actor = actor

    def ask(self, call: str, *arguments: Any, timeout_seconds: float) -> Any:
        """Call and wait; what the service raises is raised here.

        Raises:
            NodeLost: when no answer came in time, or its process or node is gone.

        """
        method = self._actor.listen if call == "poll" else self._actor.answer
        try:
            return self._ray.get(method.remote(call, arguments), timeout=timeout_seconds)
        except SystemExit:  # what Ray raises where this process leaves it
            raise NodeLost(f"node {self._node} was left") from None
        except self._ray.exceptions.GetTimeoutError:
            raise NodeLost(
                f"node {self._node} has not answered for {timeout_seconds:g} s"
            ) from None
        except self._ray.exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, (ExoGpuError, OSError, LookupError)):
                raise cause from None
            raise NodeLost(f"node {self._node} broke: {first_line(error)}") from error
        except Exception as error:
            # The node-connection border: Ray has a class for each way to be gone.
            logger.debug("node %s does not answer", self._node, exc_info=True)
            gone = isinstance(error, self._ray.exceptions.RayActorError)
            why = "its agent has died or cannot be reached" if gone else first_line(error)
            raise NodeLost(f"node {self._node} is gone: {why}") from None

    def tell(self, call: str, *arguments: Any) -> None:
        """Call without waiting; where it did not arrive, that is mostly seen by who asks next.

        Raises:
            NodeLost: when it cannot even be sent.

        """
        try:
            self._actor.order.remote(call, arguments)
        except Exception as error:  # noqa: BLE001 - the node-connection border
            raise NodeLost(f"node {self._node} does not hear: {first_line(error)}") from None
