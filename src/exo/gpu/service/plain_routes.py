"""Whether the service lives, its metrics, its description, and the page itself."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import Any

import msgspec
from litestar import Request, get
from litestar.exceptions import NotFoundException
from litestar.response import Response

from exo.gpu.coordination.overview import Overseer
from exo.gpu.service.answers import ServiceView
from exo.gpu.service.broadcast import Broadcast
from exo.gpu.service.pictures import GZIP, Pictures, pressed, takes_gzip
from exo.gpu.service.problems import Problem, problem_body

_PROMETHEUS = "text/plain; version=0.0.4"

# An overview that is older says that a driver or a store does not answer.
_READY_CADENCES = 10

_KINDS = {
    "css": "text/css",
    "js": "text/javascript",
    "svg": "image/svg+xml",
}


@get("/-/healthy", include_in_schema=False, sync_to_thread=False, media_type="text/plain")
def healthy() -> str:
    """The process lives."""
    return "healthy\n"


@get("/-/ready", include_in_schema=False, sync_to_thread=False)
def ready(overseer: Overseer) -> Response[bytes]:
    """It has looked at the machine, and lately; of a cluster, some node answers."""
    nodes = overseer.overview.nodes
    quiet_seconds = overseer.quiet_seconds
    if overseer.overview.taken_at is None:
        why = "the devices are being looked for"
    elif quiet_seconds > _READY_CADENCES * overseer.cadence_seconds:
        why = f"no news for {quiet_seconds:.0f} s: a driver or the lease store does not answer"
    elif nodes and not any(one.alive for one in nodes):
        why = "no node of the cluster answers; /api/v1/nodes says why"
    else:
        return Response(b"ready\n", media_type="text/plain")
    problem = Problem("not-ready", 503, "Not ready", why)
    return Response(problem_body(problem), status_code=503, media_type="application/problem+json")


@get("/metrics", include_in_schema=False, sync_to_thread=True)
def metrics(pictures: Pictures) -> Response[bytes]:
    """Everything that is known, for Prometheus."""
    return Response(pictures.metrics(), media_type=_PROMETHEUS)


@get("/api/v1/service", sync_to_thread=False)
def service(overseer: Overseer, broadcast: Broadcast, version: str) -> ServiceView:
    """What answers here, and how well it is informed."""
    overview, recording = overseer.overview, overseer.watch.recording
    return ServiceView(
        version=version,
        at=overview.taken_at,
        quiet_seconds=overseer.quiet_seconds,
        cadence_seconds=overseer.cadence_seconds,
        device_count=len(overview.snapshot.devices),
        stream_clients=broadcast.client_count,
        history_recorded=recording.active,
        history_reason=recording.reason,
        notes=overview.notes,
    )


@get("/", include_in_schema=False, sync_to_thread=False)
def page(request: Request[Any, Any, Any]) -> Response[bytes]:
    """The dashboard."""
    return _answer(request, "index.html", "text/html")


@get("/assets/{name:str}", include_in_schema=False, sync_to_thread=False)
def asset(request: Request[Any, Any, Any], name: str) -> Response[bytes]:
    """A script, the style or the mark of the dashboard."""
    kind = _KINDS.get(name.rpartition(".")[2])
    if kind is None or name not in _names():
        raise NotFoundException
    return _answer(request, name, kind)


def _answer(request: Request[Any, Any, Any], name: str, kind: str) -> Response[bytes]:
    compressed = takes_gzip(request.headers.get("accept-encoding", ""))
    headers = {"cache-control": "no-cache", **(GZIP if compressed else {"vary": "accept-encoding"})}
    return Response(_file(name, compressed=compressed), media_type=kind, headers=headers)


@cache
def _names() -> frozenset[str]:
    return frozenset(one.name for one in files("exo.gpu.service").joinpath("dashboard").iterdir())


@cache
def _file(name: str, *, compressed: bool) -> bytes:
    if compressed:
        return pressed(_file(name, compressed=False))
    return files("exo.gpu.service").joinpath("dashboard", name).read_bytes()


def description_route(describe: Callable[[], dict[str, Any]]) -> Any:
    """``/api/v1/openapi.json``, made when it is first asked for."""

    @cache
    def written() -> bytes:
        return msgspec.json.encode(describe())

    @get("/api/v1/openapi.json", include_in_schema=False, sync_to_thread=True)
    def openapi() -> Response[bytes]:
        return Response(written(), media_type="application/vnd.oai.openapi+json")

    return openapi


ROUTES = [healthy, ready, metrics, service, page, asset]
