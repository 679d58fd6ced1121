"""What the devices are and do: the answers that come from readings."""

from __future__ import annotations

import time
from typing import Annotated, Any, get_args

from litestar import Request, get
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import Parameter
from litestar.response import Response

from exo.gpu.coordination.overview import Overseer
from exo.gpu.service.answers import (
    Aggregates,
    DeviceList,
    DeviceView,
    EventList,
    EventView,
    HistoryView,
    LinkList,
    NodeList,
    ProcessesView,
    RecentLoads,
    device_json,
)
from exo.gpu.service.history import past
from exo.gpu.service.naming import missing_called, state_called
from exo.gpu.service.pictures import GZIP, Pictures, takes_gzip
from exo.gpu.telemetry.table.roster import Grouping
from exo.gpu.vocabulary.errors import InvalidValue, NoSuchDevice, UnknownName
from exo.gpu.vocabulary.metrics import SERIES
from exo.gpu.vocabulary.snapshot import DeviceState

_JSON = "application/json"
_LAST_SECOND = 253_402_300_799.0  # the end of the year 9999
_MOST_METRICS = 12

# Litestar forgets the bounds of what may be left out.
_SPAN = {"minimum": 0, "maximum": _LAST_SECOND}

Since = Annotated[
    float | None,
    Parameter(
        ge=0,
        le=_LAST_SECOND,
        schema_extra=_SPAN,
        description="Unix seconds; an hour ago by default, of events the beginning.",
    ),
]
Until = Annotated[
    float | None,
    Parameter(
        ge=0, le=_LAST_SECOND, schema_extra=_SPAN, description="Unix seconds; now by default."
    ),
]


def named(request: Request[Any, Any, Any], folder: str) -> str:
    """The id behind ``folder`` in the path, slashes and all."""
    return request.scope["path"].removeprefix(folder)


def find_state(overseer: Overseer, name: str) -> DeviceState:
    """The device of that device id or hardware id.

    Raises:
        NoSuchDevice: where there is none; of one that was here before, with why it is not.

    """
    state = state_called(overseer.overview, name)
    if state is not None:
        return state
    missing = missing_called(overseer.overview, name)
    if missing is not None:
        raise NoSuchDevice(f"{name} ({missing.device.name}) is missing: {missing.reason}")
    raise NoSuchDevice(f"there is no device {name!r} here; /api/v1/devices lists them")


@get(
    "/devices",
    responses={200: ResponseSpec(DeviceList, generate_examples=False, description="Every device.")},
    sync_to_thread=False,
)
def devices(request: Request[Any, Any, Any], pictures: Pictures) -> Response[bytes]:
    """Every device: what it is, its newest sample, health, leases and cordon."""
    if takes_gzip(request.headers.get("accept-encoding", "")):
        body = pictures.devices(compressed=True)
        return Response(body, media_type=_JSON, headers=GZIP)
    return Response(pictures.devices(), media_type=_JSON, headers={"vary": "accept-encoding"})


@get(
    "/devices/{device_id:path}",
    responses={200: ResponseSpec(DeviceView, generate_examples=False, description="The device.")},
    sync_to_thread=False,
)
def device_named(
    request: Request[Any, Any, Any], overseer: Overseer, device_id: str
) -> Response[bytes]:
    """One device, by its device id or hardware id."""
    del device_id  # Litestar makes slashes of it that were not there
    state = find_state(overseer, named(request, "/api/v1/devices/"))
    failure = overseer.overview.failures.get(state.device.device_id, "")
    return Response(device_json(state, failure), media_type=_JSON)


@get("/recent", sync_to_thread=False)
def recent(overseer: Overseer) -> RecentLoads:
    """The load of every device over the last minutes: what sparklines are drawn of."""
    return RecentLoads(cadence_seconds=overseer.cadence_seconds, values=overseer.recent())


@get("/history/{device_id:path}", sync_to_thread=True)
def history(  # noqa: PLR0917 - Litestar hands them over by name
    request: Request[Any, Any, Any],
    overseer: Overseer,
    device_id: str,
    metric: Annotated[
        list[str] | None,
        Parameter(
            schema_extra={"items": {"enum": SERIES}, "maxItems": _MOST_METRICS},
            description="Readings, each by its field in a sample; some by default.",
        ),
    ] = None,
    since: Since = None,
    until: Until = None,
    points: Annotated[int, Parameter(ge=1, le=5000, description="Points at most.")] = 300,
) -> HistoryView:
    """Readings of a device over time, in points of equal length."""
    del device_id
    metrics = tuple(dict.fromkeys(metric or ())) or SERIES[:6]
    for one in metrics:
        if one not in SERIES:
            raise UnknownName("metric", one, SERIES)
    if len(metrics) > _MOST_METRICS:
        raise InvalidValue("metric", len(metrics), f"a list of {_MOST_METRICS} readings at most")
    ends = time.time() if until is None else until
    begins = max(0.0, ends - 3600.0) if since is None else since
    if begins >= ends:
        raise InvalidValue("since", begins, f"before until ({ends})")
    name = named(request, "/api/v1/history/")
    return past(overseer, name, metrics, (begins, ends), points)


@get("/events", sync_to_thread=True)
def events(
    overseer: Overseer,
    since: Since = None,
    until: Until = None,
    device: Annotated[str | None, Parameter(description="Of this device id only.")] = None,
    limit: Annotated[int, Parameter(ge=1, le=10_000, description="Events at most.")] = 200,
) -> EventList:
    """Changes of health, faults, and devices that came or went: the newest first."""
    from exo.gpu.service.history import past_events

    span = (0.0 if since is None else since, _LAST_SECOND if until is None else until)
    found, note = past_events(overseer, span, device)
    newest = sorted(found, key=lambda one: one.at, reverse=True)[:limit]
    views = (
        EventView(kind=one.kind, device_id=one.device_id, at=one.at, fields=one.fields)
        for one in newest
    )
    return EventList(events=tuple(views), note=note)


@get("/processes", sync_to_thread=False)
def processes(overseer: Overseer) -> ProcessesView:
    """Everybody on every device: processes with the leases that cover them, and leases alone."""
    occupancy = overseer.overview.occupancy
    return ProcessesView(users=occupancy.users, untold=occupancy.untold)


@get("/aggregates", sync_to_thread=True)
def aggregates(
    overseer: Overseer,
    by: Annotated[
        str, Parameter(schema_extra={"enum": get_args(Grouping)}, description="What makes a group.")
    ] = "node",
    label: Annotated[str, Parameter(description="Which label, where by is label.")] = "",
) -> Aggregates:
    """The newest samples added up, over all devices and over each group of them."""
    if by not in get_args(Grouping):
        raise UnknownName("by", by, get_args(Grouping))
    collector = overseer.watch.collector
    groups = collector.aggregate_by(by, label=label)  # pyright: ignore[reportArgumentType] - checked
    return Aggregates(total=collector.aggregate(), groups=groups)


@get("/nodes", sync_to_thread=False)
def nodes(overseer: Overseer) -> NodeList:
    """The nodes of the cluster, and why one does not count; none where one machine is shown."""
    overview = overseer.overview
    return NodeList(nodes=overview.nodes, notes=overview.notes)


@get("/links", sync_to_thread=False)
def links(overseer: Overseer) -> LinkList:
    """How the devices are joined, for each ordered pair of which something is known."""
    return LinkList(links=overseer.overview.snapshot.links)


ROUTES = [nodes, links, devices, device_named, recent, history, events, processes, aggregates]
