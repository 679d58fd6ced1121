"""``GET /api/v1/stream``: server-sent events to any number of browsers, none of them waited for."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import msgspec
from litestar import asgi
from litestar.types import Receive, Scope, Send

from exo.gpu.service.access import STREAM_PATH
from exo.gpu.service.answers import lease_views, waiter_views
from exo.gpu.service.problems import Problem, problem_response

if TYPE_CHECKING:
    from litestar.handlers import ASGIRouteHandler

    from exo.gpu.coordination.overview import News, Overview
    from exo.gpu.service.broadcast import Broadcast, Client

logger = logging.getLogger("exo.gpu.service.stream")

# So that proxies keep the connection, and that one which is gone is noticed.
KEEPALIVE_SECONDS = 15.0

# Who takes nothing for so long is cut off, wherever it is stuck.
SEND_SECONDS = 10.0

ABORT = "exo.gpu.abort"
"""Extension of the ASGI scope: a function that cuts the connection without waiting for it."""

_JSON = msgspec.json.Encoder()


class Publisher:
    """Turns news into events on the event loop; what has not changed is not told again."""

    def __init__(self, broadcast: Broadcast, loop: asyncio.AbstractEventLoop) -> None:
        self._broadcast = broadcast
        self._loop = loop
        self._told: dict[str, bytes] = {}

    def take(self, news: News) -> None:
        """Any thread: encode here, hand over to the loop, wait for nothing."""
        events = [*self._samples(news), *self._changes(news)]
        if events:
            try:
                self._loop.call_soon_threadsafe(self._broadcast.publish, events)
            except RuntimeError:  # the loop was closed while the last overview was taken
                logger.debug("news after the end")

    def _samples(self, news: News) -> list[tuple[str, bytes]]:
        events: list[tuple[str, bytes]] = []
        at = news.overview.taken_at
        if news.samples:
            events.append(("samples", _JSON.encode({"at": at, "samples": news.samples})))
        events += [(one.kind, _JSON.encode(one)) for one in news.events]
        return events

    def _changes(self, news: News) -> list[tuple[str, bytes]]:
        """Tables that are small and seldom change: whole, when they did."""
        overview = news.overview
        tables: dict[str, Any] = {
            "states": _states(overview),
            "leases": {"leases": lease_views(overview), "notes": overview.notes},
            "queue": {"waiting": waiter_views(overview), "notes": overview.notes},
            "processes": overview.occupancy,
            "jobs": {"jobs": overview.jobs, "problems": overview.job_problems},
        }
        events: list[tuple[str, bytes]] = []
        for kind, table in tables.items():
            body = _JSON.encode(table)
            if self._told.get(kind) != body:
                self._told[kind] = body
                events.append((kind, body))
        return events


def _states(overview: Overview) -> dict[str, Any]:
    """How each device is, without its sample."""
    return {
        "states": [
            {
                "device_id": state.device.device_id,
                "health": state.health,
                "health_reason": state.health_reason,
                "health_since": state.health_since,
                "sample_failure": overview.failures.get(state.device.device_id, ""),
                "cordon": state.cordon,
                "leases": state.leases,
                "measured_gflops": state.measured_gflops,
            }
            for state in overview.snapshot.devices
        ],
        "missing": overview.missing,
        "notes": overview.notes,
    }


def stream_route(broadcast: Broadcast) -> ASGIRouteHandler:
    """The route of the stream, which every client has to itself until it goes."""

    @asgi(STREAM_PATH, copy_scope=False)
    async def stream(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in {"GET", "HEAD"}:
            refused = Problem("method", 405, "Not with this method", "use GET")
            await problem_response(refused)(scope, receive, send)
            return
        if scope["method"] == "HEAD":
            await send(_start())
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        headers: dict[bytes, bytes] = dict(scope["headers"])
        last = headers.get(b"last-event-id")
        client = broadcast.join(None if last is None else last.decode("latin-1"))
        if client is None:
            refused = Problem("full", 503, "Too many listen already", "come back later")
            await problem_response(refused)(scope, receive, send)
            return
        feeding = asyncio.ensure_future(_feed(client, send))
        try:
            await _until_gone(feeding, receive)
        finally:
            feeding.cancel()
            broadcast.leave(client)
            if client.dropped:
                abort = (scope.get("extensions") or {}).get(ABORT)
                if abort is not None:
                    abort()

    return stream


def _start() -> Any:
    return {
        "type": "http.response.start",
        "status": 200,
        "headers": [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"x-accel-buffering", b"no"),
        ],
    }


async def _until_gone(feeding: asyncio.Future[None], receive: Receive) -> None:
    """Until the client has gone, or was dropped."""
    leaving = asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait((feeding, leaving), return_when=asyncio.FIRST_COMPLETED)
    finally:
        leaving.cancel()


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _feed(client: Client, send: Send) -> None:
    await send(_start())
    body = b"retry: 2000\n\n"
    while not client.ended:
        message: Any = {"type": "http.response.body", "body": body, "more_body": True}
        try:
            async with asyncio.timeout(SEND_SECONDS):
                await send(message)
        except TimeoutError:
            logger.info("a client of the stream took nothing for %g s", SEND_SECONDS)
            client.drop()
            return
        body = await client.get(KEEPALIVE_SECONDS) or b": \n\n"
    if not client.dropped:
        await send({"type": "http.response.body", "body": b"", "more_body": False})
