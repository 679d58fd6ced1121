"""Who may ask: loopback, or whoever has the token; and what every answer tells a browser."""

from __future__ import annotations

import hmac
import ipaddress
import secrets
from typing import TYPE_CHECKING

from exo.gpu.service.problems import Problem, problem_response

if TYPE_CHECKING:
    from litestar.types import ASGIApp, HTTPScope, Message, Receive, Scope, Send

MOST_BODY_BYTES = 64 * 1024
"""The largest request that is read; a question of a few hundred devices has a tenth of it."""

TOKEN_BYTES = 24

STREAM_PATH = "/api/v1/stream"
"""The one answer that does not end, and so knows itself what its head is."""

# These tell nothing of the machine: a supervisor asks whether we live, a browser loads the page
# that then asks for the token.
_OPEN_PATHS = ("/", "/-/healthy", "/-/ready")
_OPEN_FOLDERS = ("/assets/",)

_LOCAL_NAMES = ("localhost", "localhost.localdomain", "ip6-localhost")

HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
)
"""On every answer: a page of ours loads nothing from elsewhere, and is in nobody's frame."""


def new_token() -> str:
    """A token that nobody guesses: 192 bits, safe in an address."""
    return secrets.token_urlsafe(TOKEN_BYTES)


def is_loopback(host: str) -> bool:
    """Whether an address or name reaches this machine alone."""
    name = host.strip("[]").rstrip(".").lower()
    if name in _LOCAL_NAMES or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name.partition("%")[0]).is_loopback
    except ValueError:
        return False


class Access:
    """Stands before the application: lets in who may, and marks every answer.

    Without a token only names of this machine are answered to, so that a page of another site,
    whose name was pointed at loopback, gets nothing.
    """

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app = app
        self._token = None if token is None else token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or refuse it."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *HEADERS]
                if scope["path"].startswith(("/api/", "/metrics", "/-/")):
                    message["headers"].append((b"cache-control", b"no-store"))
            await send(message)

        refused = self._refusal(scope)
        if refused is not None:
            await problem_response(refused)(scope, receive, marked)
            return
        if scope["method"] == "HEAD" and scope["path"] != STREAM_PATH:
            await self._app(_as_get(scope), receive, _bodiless(marked))
            return
        await self._app(scope, receive, marked)

    def _refusal(self, scope: Scope) -> Problem | None:
        headers: dict[bytes, bytes] = dict(scope["headers"])
        path: str = scope["path"]
        if self._token is None:
            host = headers.get(b"host", b"localhost").decode("latin-1")
            name = host if host.count(":") > 1 and "]" not in host else _without_port(host)
            if not is_loopback(name):
                detail = (
                    "without a token this service answers to names of this machine only, such as "
                    "localhost; start it with --token for any other"
                )
                return Problem("misdirected", 421, "Not a name of this machine", detail)
        elif path not in _OPEN_PATHS and not path.startswith(_OPEN_FOLDERS):
            scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
            right = hmac.compare_digest(given.strip(), self._token)
            if scheme.lower() != b"bearer" or not right:
                detail = "send the header 'Authorization: Bearer TOKEN' with the service's token"
                return Problem("token", 401, "A token is needed", detail)
        return None


def _as_get(scope: HTTPScope) -> HTTPScope:
    """The same request with the method whose answer's head is asked for."""
    as_get = scope.copy()
    as_get["method"] = "GET"
    return as_get


def _bodiless(send: Send) -> Send:
    """Send an answer without what is in it."""

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.body":
            message["body"] = b""
        await send(message)

    return sent


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]
