"""What this room asks of whatever carries calls to agents: membership, calls, shared values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence


class Place(msgspec.Struct, frozen=True):
    """A node as the carrier knows it; ``key`` is new each time it joins."""

    name: str
    key: str
    address: str = ""


class Road(Protocol):
    """The way to one agent. Every failure to get an answer is a NodeLost."""

    def ask(self, call: str, *arguments: Any, timeout_seconds: float) -> Any:
        """Call a method of the agent's service and wait for what it returns.

        Raises:
            NodeLost: when no answer came, whether or not the call was executed.

        """
        ...

    def tell(self, call: str, *arguments: Any) -> None:
        """The same in the order of these calls, without waiting for anything.

        Raises:
            NodeLost: when it certainly does not arrive.

        """
        ...


class Carrier(Protocol):
    """What joins the machines; Ray, or in tests plain calls."""

    def places(self) -> Sequence[Place]:
        """The nodes that are alive now.

        Raises:
            ClusterError: when the head of the cluster is gone.

        """
        ...

    @property
    def here(self) -> str:
        """The key of the node that this process's values are sent from; empty if not known."""
        ...

    def road(self, place: Place) -> Road:
        """The way to the agent of a node, which is started where none runs.

        Raises:
            NodeLost: when none can be started.

        """
        ...

    def share(self, value: Any) -> Any:
        """A handle by which every agent can fetch a large value; it lasts as long as it is held."""
        ...

    def fetch(self, handle: Any) -> Any:
        """A large value that an agent put there.

        Raises:
            NodeLost: when it is gone with its node, or does not arrive.

        """
        ...

    def close(self) -> None:
        """Leave the cluster; harmless twice."""
        ...
