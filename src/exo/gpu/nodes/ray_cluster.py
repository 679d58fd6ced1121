"""The one door to Ray: which nodes there are, an agent on each, and calls to it."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from exo.gpu.nodes.cluster.roads import Place
from exo.gpu.nodes.ray_files import uploaded
from exo.gpu.nodes.ray_grants import environment_of_parent, left_by_ray
from exo.gpu.nodes.ray_joining import (
    address_of,
    first_line,
    keep_reports_off_stdout,
    loopback,
    own_signals,
    quiet_stderr,
    reach,
    why_not,
)
from exo.gpu.nodes.ray_road import RayRoad
from exo.gpu.nodes.ray_token import use_token
from exo.gpu.vocabulary.errors import ClusterError, NodeLost

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

logger = logging.getLogger("exo.gpu.nodes.ray_cluster")

NAMESPACE = "exo-gpu"
NODE_LABEL = "exo.node"

# Agents answer questions of many drivers at once; each driver's poll holds one thread for a second.
_GROUPS = {"listen": 32, "answer": 8, "order": 1}

# GPUs that Ray manages are held for so long after the last driver has left.
IDLE_SECONDS = 30.0
LOOK_SECONDS = 1.0

_START_SECONDS = 30.0
_NAME_POLL_SECONDS = 0.1

# Packages of an environment are downloaded first.
_MAKE_SECONDS = 600.0

# Ray compares Python down to the patch unless told otherwise; what we send needs the minor only.
MATCH_VARIABLE = "RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL"

# What an environment of its own may change besides the variables that are asked for.
_ENVIRONMENT = ("PATH", "VIRTUAL_ENV", "PYTHONPATH", "LD_LIBRARY_PATH")

INSTALL = "a cluster needs Ray: pip install 'exo-gpu[ray]'"


def ray_module() -> Any:
    """Ray itself.

    Raises:
        ClusterError: where it is not installed, with what to install.

    """
    os.environ.setdefault(MATCH_VARIABLE, "minor")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError:
        raise ClusterError(INSTALL) from None
    return ray


class RayCarrier:
    """A :class:`~exo.gpu.nodes.cluster.roads.Carrier` over a Ray cluster that is joined by it.

    Where this process has joined Ray already, that connection is used, and left as it is.
    """

    def __init__(self, address: str | None) -> None:
        """Join the cluster at an address, or the one that ``RAY_ADDRESS`` or Ray itself knows.

        Raises:
            ClusterError: where that cannot be done, with the reason and what to do.

        """
        self._ray = ray_module()
        self._version = version("exo-gpu")
        self._own = not self._ray.is_initialized()
        self._closed = False
        if self._own:
            self._join(address)

    def _join(self, address: str | None) -> None:
        asked = address_of(self._ray, address or os.environ.get("RAY_ADDRESS") or "auto")
        reach(asked)
        use_token(self._ray)
        keep_reports_off_stdout(self._ray)
        try:
            with quiet_stderr(), own_signals(), loopback(self._ray, asked):
                self._ray.init(
                    address=asked,
                    namespace=NAMESPACE,
                    log_to_driver=False,
                    configure_logging=False,
                    logging_level=logging.ERROR,
                )
        except Exception as error:
            # The node-connection border: Ray raises whatever its parts do.
            logger.debug("joining failed", exc_info=True)
            raise ClusterError(why_not(asked, error)) from None

    def places(self) -> Sequence[Place]:
        """The nodes that are alive, each under its label, else under Ray's own id of it.

        Raises:
            ClusterError: when the head of the cluster does not answer.

        """
        try:
            found = self._ray.nodes()
        except Exception as error:  # noqa: BLE001 - the node-connection border
            raise ClusterError(
                f"the head of the cluster does not answer: {first_line(error)}"
            ) from None
        places: dict[str, Place] = {}
        for node in found:
            if node.get("Alive"):
                labels: Mapping[str, str] = node.get("Labels") or {}
                name = labels.get(NODE_LABEL) or node["NodeID"][:8]
                places[name] = Place(name, node["NodeID"], node.get("NodeManagerAddress", ""))
        return tuple(places.values())

    @property
    def here(self) -> str:
        """The key of the node that this process's values are sent from; empty if not known."""
        try:
            return str(self._ray.get_runtime_context().get_node_id())
        except Exception:  # noqa: BLE001 - the node-connection border
            return ""

    def road(self, place: Place) -> RayRoad:
        """The way to the node's agent; one from before an upgrade there is replaced first.

        Raises:
            NodeLost: when none can be started, or the node has another version installed.

        """
        road = RayRoad(self._ray, self._agent(place), place.name)
        running, installed = road.ask("version", timeout_seconds=_START_SECONDS)
        if running != self._version and installed == self._version:
            logger.warning("the agent of %s is of %s: it is replaced", place.name, running)
            self._dismiss(place)
            road = RayRoad(self._ray, self._agent(place), place.name)
            running, installed = road.ask("version", timeout_seconds=_START_SECONDS)
        if running != self._version:
            raise NodeLost(
                f"it has exo-gpu {installed}, and this is {self._version}: install the same there"
            )
        return road

    def share(self, value: Any) -> Any:
        """Put a value into the object store; the reference keeps it there."""
        return [self._ray.put(value)]

    def fetch(self, handle: Any) -> Any:
        """A large value that an agent put there.

        Raises:
            NodeLost: when it is gone with its node, or does not arrive.

        """
        try:
            return self._ray.get(handle[0], timeout=_MAKE_SECONDS)
        except Exception as error:  # noqa: BLE001 - the node-connection border
            raise NodeLost(f"a result is lost with its node: {first_line(error)}") from None

    def uploaded(self, runtime_env: Mapping[str, Any]) -> dict[str, Any]:
        """A runtime environment whose folders of this machine are sent, for :meth:`gather`.

        Raises:
            ClusterError: where a folder is not there, or too large for Ray.

        """
        return uploaded(self._ray, runtime_env)

    def gather(
        self, places: Sequence[Place], runtime_env: Mapping[str, Any]
    ) -> dict[str, tuple[Any, Any]]:
        """What a runtime environment became on nodes, and what keeps it there, by their key.

        A node that is lost meanwhile is left out.

        Raises:
            ClusterError: when one of them cannot make it.

        """
        kind = self._ray.remote(_Surroundings)
        names = (*runtime_env.get("env_vars", {}), *_ENVIRONMENT)
        keepers = {
            place: kind.options(
                num_cpus=0,
                runtime_env=dict(runtime_env),
                label_selector={"ray.io/node-id": place.key},
            ).remote()
            for place in places
        }
        found: dict[str, tuple[Any, Any]] = {}
        for place, keeper in keepers.items():
            try:
                facts = self._ray.get(keeper.facts.remote(names), timeout=_MAKE_SECONDS)
            except Exception as error:  # noqa: BLE001 - the node-connection border
                if place not in self.places():
                    logger.info("node %s makes no environment: it is lost", place.name)
                    continue
                raise ClusterError(
                    f"node {place.name} cannot make the runtime_env: {first_line(error)}"
                ) from None
            found[place.key] = facts, keeper
        return found

    def close(self) -> None:
        """Leave the cluster, where it was joined here; harmless twice."""
        if self._own and not self._closed:
            self._closed = True
            with quiet_stderr():
                self._ray.shutdown()

    def _agent(self, place: Place) -> Any:
        try:
            with contextlib.suppress(ValueError):
                return self._ray.get_actor(_name_of(place), namespace=NAMESPACE)
            nodes = {one["NodeID"]: one for one in self._ray.nodes()}
            node = nodes.get(place.key, {})
            managed = int(node.get("Resources", {}).get("GPU", 0))
            granted = min(managed, self._free_gpus(place)) if managed else 0
            for name in _GROUPS:
                self._ray.method(concurrency_group=name)(getattr(_Agent, name))
            kind = self._ray.remote(concurrency_groups=_GROUPS)(_Agent)
            return kind.options(
                name=_name_of(place),
                namespace=NAMESPACE,
                lifetime="detached",
                get_if_exists=True,
                num_cpus=0,
                num_gpus=granted,
                max_restarts=-1,
                max_task_retries=0,
                **self._pin(place, node.get("Labels") or {}),
            ).remote(place.name, managed=managed, granted=granted)
        except Exception as error:  # noqa: BLE001 - the node-connection border
            raise NodeLost(f"no agent starts there: {first_line(error)}") from None

    def _pin(self, place: Place, labels: Mapping[str, str]) -> dict[str, Any]:
        """A label outlives the node's id, which is new each time it joins."""
        if labels.get(NODE_LABEL) == place.name:
            return {"label_selector": {NODE_LABEL: place.name}}
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        return {"scheduling_strategy": NodeAffinitySchedulingStrategy(place.key, soft=False)}

    def _dismiss(self, place: Place) -> None:
        """End an agent, and wait until its name is free."""
        with contextlib.suppress(ValueError):
            self._ray.kill(self._ray.get_actor(_name_of(place), namespace=NAMESPACE))
        ends = time.monotonic() + _START_SECONDS
        while time.monotonic() < ends:
            try:
                self._ray.get_actor(_name_of(place), namespace=NAMESPACE)
            except ValueError:
                return
            time.sleep(_NAME_POLL_SECONDS)

    def _free_gpus(self, place: Place) -> int:
        """GPUs of a node that Ray has given to nobody: those are all that we may take."""
        state = self._ray._private.state  # noqa: SLF001 - nothing public tells it by node
        free = state.available_resources_per_node()
        return int(free.get(place.key, {}).get("GPU", 0))


class _Agent:
    """The actor: an agent's service in a process that Ray keeps alive."""

    def __init__(self, node: str, *, managed: int, granted: int) -> None:
        """``granted`` are ours of the GPUs that Ray has given out on this node, if it manages any.

        Those are held for as long as anybody uses this agent, and then left to others.
        """
        from exo.gpu.nodes.cluster.service import AgentService

        environ = left_by_ray(os.environ, environment_of_parent(), managed, granted)
        self._version = version("exo-gpu")
        self._service = AgentService(
            node, self._version, _fetch, environ, reach=_reach_agent, put=_put
        )
        if granted:
            handle = ray_module().get_runtime_context().current_actor
            threading.Thread(target=self._let_go, args=(handle,), daemon=True).start()

    def listen(self, call: str, arguments: tuple[Any, ...]) -> Any:
        """Polls."""
        return self._call(call, arguments)

    def answer(self, call: str, arguments: tuple[Any, ...]) -> Any:
        """Questions."""
        if call == "version":  # that which runs, and that which is installed by now
            return self._version, version("exo-gpu")
        return self._call(call, arguments)

    def order(self, call: str, arguments: tuple[Any, ...]) -> None:
        """Orders, in the order in which a driver gave them."""
        self._call(call, arguments)

    def _let_go(self, handle: Any) -> None:
        """End once nobody has used this agent for a while: the next driver begins another one."""
        while self._service.idle_seconds < IDLE_SECONDS:
            time.sleep(LOOK_SECONDS)
        ray_module().kill(handle)

    def _call(self, call: str, arguments: tuple[Any, ...]) -> Any:
        return getattr(self._service, call)(*arguments)


def _name_of(place: Place) -> str:
    return f"agent-{place.name}"


def _reach_agent(node: str) -> RayRoad:
    """The way from one agent to another.

    Raises:
        NodeLost: where it has none.

    """
    ray = ray_module()
    try:
        return RayRoad(ray, ray.get_actor(f"agent-{node}", namespace=NAMESPACE), node)
    except ValueError as error:
        raise NodeLost(f"node {node} has no agent: {first_line(error)}") from None


def _fetch(handle: Any) -> Any:
    return ray_module().get(handle[0])


def _put(value: Any) -> Any:
    return [ray_module().put(value)]


class _Surroundings:
    """An actor in a driver's runtime environment, which lives there as long as the driver."""

    def facts(self, names: Sequence[str]) -> dict[str, Any]:
        """The interpreter, the path, the directory and the named variables as they are here."""
        return {
            "python": sys.executable,
            "import_path": list(sys.path),
            "directory": os.getcwd(),  # noqa: PTH109 - a text that travels
            "variables": {name: os.environ[name] for name in names if name in os.environ},
        }
