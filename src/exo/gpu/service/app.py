"""The application: every route over one overseer, with its description and its errors."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
from litestar import Litestar, Router
from litestar.di import Provide
from litestar.exceptions import HTTPException
from litestar.openapi.config import OpenAPIConfig

from exo.gpu.service import device_routes, plain_routes, work_routes
from exo.gpu.service.access import MOST_BODY_BYTES, Access
from exo.gpu.service.broadcast import Broadcast
from exo.gpu.service.description import described
from exo.gpu.service.pictures import Pictures
from exo.gpu.service.problems import on_error
from exo.gpu.service.stream import Publisher, stream_route
from exo.gpu.vocabulary.errors import ExoGpuError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from litestar.connection import Request

    from exo.gpu.coordination.overview import Overseer


class Service:
    """The service over an overseer that runs, and which is not ended with it.

    With a ``token`` everything but the page itself asks for it; without one only requests that
    name this machine as loopback are answered.
    """

    def __init__(self, overseer: Overseer, *, token: str | None = None, version: str = "") -> None:
        self._overseer = overseer
        self._broadcast = Broadcast()
        self._version = version or "0"
        self._pictures = Pictures(overseer, version)
        self.application = Access(self._litestar(), token)
        """What a server of ASGI runs."""

    def end_streams(self) -> None:
        """Send everybody who listens away; from the thread of the event loop."""
        self._broadcast.close()

    def describe(self) -> dict[str, Any]:
        """The OpenAPI document."""
        config = OpenAPIConfig("exo.gpu", self._version)
        app = Litestar(
            [_api(), plain_routes.service], dependencies=self._dependencies(), openapi_config=config
        )
        return described(msgspec.to_builtins(app.openapi_schema.to_schema()))

    def _litestar(self) -> Litestar:
        return Litestar(
            [
                _api(),
                *plain_routes.ROUTES,
                plain_routes.description_route(self.describe),
                stream_route(self._broadcast),
            ],
            before_request=_check,
            dependencies=self._dependencies(),
            exception_handlers={
                Exception: on_error,
                HTTPException: on_error,
                ExoGpuError: on_error,
            },
            lifespan=[self._publishing],
            logging_config=None,
            openapi_config=None,
            request_max_body_size=MOST_BODY_BYTES,
        )

    def _dependencies(self) -> dict[str, Provide]:
        return {
            "overseer": Provide(lambda: self._overseer, sync_to_thread=False),
            "pictures": Provide(lambda: self._pictures, sync_to_thread=False),
            "broadcast": Provide(lambda: self._broadcast, sync_to_thread=False),
            "version": Provide(lambda: self._version, sync_to_thread=False),
        }

    @asynccontextmanager
    async def _publishing(self, _: Litestar) -> AsyncGenerator[None]:
        publisher = Publisher(self._broadcast, asyncio.get_running_loop())
        self._overseer.tell(publisher.take)
        try:
            yield
        finally:
            self._overseer.tell_no_more(publisher.take)
            self._broadcast.close()


def _api() -> Router:
    return Router("/api/v1", route_handlers=[*device_routes.ROUTES, *work_routes.ROUTES])


def _check(request: Request[Any, Any, Any]) -> None:
    """A body is JSON and says so, which no form of another site's page can."""
    if request.method == "POST" and request.content_type[0] != "application/json":
        raise HTTPException(status_code=415)
