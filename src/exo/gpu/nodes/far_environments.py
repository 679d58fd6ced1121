"""What a runtime environment is on each node: made where work is first sent to, kept while used."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from exo.gpu.vocabulary.cluster import Surroundings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from exo.gpu.nodes.cluster.roads import Place
    from exo.gpu.nodes.ray_cluster import RayCarrier

# The parts of a runtime environment that come with an interpreter of their own.
_PYTHONS = frozenset({"pip", "uv", "conda", "py_executable", "image_uri"})

# Part of the path of whatever Ray makes for such an environment.
_MADE = "runtime_resources"


class FarEnvironments:
    """The surroundings of one program's workers, by node; ``asked`` is Ray's ``runtime_env``."""

    def __init__(self, carrier: RayCarrier, asked: Mapping[str, Any]) -> None:
        self._carrier = carrier
        self._asked = asked
        self._sent: dict[str, Any] | None = None
        self._made: dict[str, tuple[Surroundings, Any]] = {}
        self._turn = threading.Lock()

    def make(self, places: Sequence[Place]) -> None:
        """Have these nodes make it, all at once; it may take them minutes.

        Raises:
            ClusterError: when one of them cannot.

        """
        if not self._asked:
            return
        with self._turn:
            new = [place for place in places if place.key not in self._made]
            if self._sent is None:
                self._sent = self._carrier.uploaded(self._asked)
            for key, (facts, keeper) in self._carrier.gather(new, self._sent).items():
                self._made[key] = self._surroundings(facts), keeper

    def of(self, place: Place) -> Surroundings | None:
        """Those of a node, made now where it is new; None where nothing was asked for.

        Raises:
            ClusterError: when it cannot make them.

        """
        self.make([place])
        made = self._made.get(place.key)
        return None if made is None else made[0]

    def _surroundings(self, facts: Mapping[str, Any]) -> Surroundings:
        """What of it the workers of a node have to be given."""
        return Surroundings(
            python=facts["python"] if _PYTHONS.intersection(self._asked) else "",
            import_path=tuple(one for one in facts["import_path"] if _MADE in one),
            directory=facts["directory"] if "working_dir" in self._asked else "",
            variables=facts["variables"],
        )
