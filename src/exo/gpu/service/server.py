"""The process that answers: one address, one event loop, a clean end on a signal."""

from __future__ import annotations

import signal
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from exo.gpu.service.memory import return_large_buffers
from exo.gpu.service.stream import ABORT

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from types import FrameType

    from exo.gpu.service.app import Service

# More at once get 503: browsers have six, and streams have a bound of their own.
MOST_CONNECTIONS = 512

# What is being answered when the end comes is finished within this.
_GRACE_SECONDS = 2

# What waits in the kernel for one client, so that one which reads nothing holds no more.
_SEND_BUFFER_BYTES = 256 * 1024

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 takes any that is free.

    Raises:
        OSError: when the address is not this machine's, or the port is taken.

    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, address = found[0]
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        if family is socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.bind(address)
        listening.listen()
    except BaseException:
        listening.close()
        raise
    return listening


def run(service: Service, listening: socket.socket, on_start: Callable[[], None]) -> None:
    """Answer until SIGINT, SIGTERM or SIGHUP comes; ``on_start`` is called when it begins."""
    return_large_buffers()
    config = uvicorn.Config(
        service.application,  # pyright: ignore[reportArgumentType] - an ASGI 3 application
        http=_Protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    _Server(config, on_start, service.end_streams).run(sockets=[listening])


class _Server(uvicorn.Server):
    """Says when it has begun, ends the streams first, and leaves signals to who called it."""

    def __init__(
        self, config: uvicorn.Config, on_start: Callable[[], None], on_end: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._on_start = on_start
        self._on_end = on_end

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin, and say so."""
        await super().startup(sockets)
        if self.started:
            self._on_start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End: streams never would by themselves."""
        self._on_end()
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """End in good order on a signal, once, and do not raise it again afterwards."""
        before = {number: signal.signal(number, self._end) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _end(self, number: int, frame: FrameType | None) -> None:
        self.handle_exit(number, frame)


class _Protocol(H11Protocol):
    """HTTP as uvicorn has it, with a way to cut off a client that reads nothing."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        application: Any = self.app

        async def with_abort(scope: Any, receive: Any, send: Any) -> None:
            scope["extensions"] = {**scope.get("extensions", {}), ABORT: self.transport.abort}
            await application(scope, receive, send)

        self.app = with_abort
