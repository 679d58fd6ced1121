"""Errors as RFC 9457 problem details: what was asked, what is wrong with which field."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any, TypeVar, cast

import msgspec
from litestar.exceptions import HTTPException, ValidationException
from litestar.response import Response
from litestar.response.base import ASGIResponse

from exo.gpu.vocabulary.errors import (
    ExoGpuError,
    InvalidValue,
    JournalError,
    NoSuchDevice,
    NoSuchJob,
    StoreError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from litestar.connection import Request

logger = logging.getLogger("exo.gpu.service")

MEDIA_TYPE = "application/problem+json"
KINDS = "urn:exo-gpu:problem:"
"""What the ``type`` of every problem of ours begins with."""

_Kind = TypeVar("_Kind", bound=Exception)

_UNKNOWN_FIELD = re.compile(r"Object contains unknown field `(.*)`")


class FieldError(msgspec.Struct, frozen=True):
    """One field that cannot be as it was sent, and why."""

    field: str
    detail: str


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """The body of every error (RFC 9457); ``errors`` name the fields of the request."""

    kind: str = msgspec.field(name="type")
    status: int
    title: str
    detail: str = ""
    errors: tuple[FieldError, ...] = ()


def problem_body(problem: Problem) -> bytes:
    """The problem as JSON, its kind as a URN."""
    return msgspec.json.encode(msgspec.structs.replace(problem, kind=KINDS + problem.kind))


def _headers(problem: Problem) -> dict[str, str]:
    return {"www-authenticate": "Bearer"} if problem.status == 401 else {}


def problem_response(problem: Problem) -> ASGIResponse:
    """The problem as an answer that needs no application."""
    return ASGIResponse(
        body=problem_body(problem),
        status_code=problem.status,
        media_type=MEDIA_TYPE,
        headers=_headers(problem),
    )


def on_error(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """The answer to any exception of a route: the named border of HTTP."""
    problem = problem_of(error)
    if problem.status >= 500:
        logger.log(
            logging.WARNING if isinstance(error, ExoGpuError) else logging.ERROR,
            "%s %s: %s",
            request.method,
            request.url.path,
            error,
            exc_info=None if isinstance(error, ExoGpuError) else error,
        )
    headers = _headers(problem)
    if isinstance(error, HTTPException) and error.headers:
        allowed = {name: value for name, value in error.headers.items() if name == "allow"}
        headers |= {name: value.replace("GET", "GET, HEAD") for name, value in allowed.items()}
    return Response(
        problem_body(problem),
        status_code=problem.status,
        media_type=MEDIA_TYPE,
        headers=headers,
    )


def problem_of(error: Exception) -> Problem:
    """What an exception means to who asked."""
    match error:
        case ValidationException():
            return _of_validation(error)
        case InvalidValue():
            fault = FieldError(error.field, _without_field(error))
            return Problem("value", 400, "A value cannot be", str(error), (fault,))
        case msgspec.ValidationError():
            return _of_decoding(error)
        case RecursionError():
            return Problem("json", 400, "The body is no JSON", "it is nested too deep")
        case NoSuchDevice() | NoSuchJob():
            return Problem("absent", 404, "There is no such thing here", str(error))
        case StoreError() | JournalError():
            return Problem("store", 503, "A store cannot be read now", str(error))
        case HTTPException():
            return _of_http(error)
        case ExoGpuError():
            return Problem("unable", 503, "That cannot be told now", str(error))
        case _:
            detail = "this is an error of the service; its log has more"
            return Problem("internal", 500, "The service failed", detail)


def _of_http(error: HTTPException) -> Problem:
    malformed = _cause(error, msgspec.DecodeError)
    if malformed is not None:
        return Problem("json", 400, "The body is no JSON", str(malformed))
    titles = {
        404: ("absent", "There is no such thing here", "see /api/v1/openapi.json"),
        405: ("method", "Not with this method", "this service reads; it changes nothing"),
        413: ("size", "The request is too large", "a body has 64 KiB at most"),
        415: ("media-type", "Not of this kind", "send 'Content-Type: application/json'"),
    }
    fallback = ("request", "The request cannot be answered", str(error.detail))
    kind, title, detail = titles.get(error.status_code, fallback)
    own = error.extra if isinstance(error.extra, str) else ""
    return Problem(kind, error.status_code, title, own or detail)


def _of_validation(error: ValidationException) -> Problem:
    """Our own checks say which field; msgspec's and Litestar's name it in their path."""
    own = _cause(error, InvalidValue)
    if own is not None:
        return problem_of(own)
    faults = tuple(_faults(error.extra))
    detail = "; ".join(f"{one.field}: {one.detail}" for one in faults) or str(error.detail)
    return Problem("value", 400, "A value cannot be", detail, faults)


def _of_decoding(error: msgspec.ValidationError) -> Problem:
    own = _cause(error, InvalidValue)
    if own is not None:
        return problem_of(own)
    message, _, path = str(error).partition(" - at `$.")
    faults = tuple(_faults([{"message": message, "key": path.rstrip("`") or "body"}]))
    return Problem("value", 400, "A value cannot be", str(error), faults)


def _faults(extra: Any) -> Iterator[FieldError]:
    listed = cast("list[dict[str, Any]]", extra) if isinstance(extra, list) else []
    for one in listed:
        message, key = str(one.get("message", "")), str(one.get("key", "body"))
        unknown = _UNKNOWN_FIELD.match(message)
        if unknown is not None:
            yield FieldError(unknown[1], "nobody knows this field; see /api/v1/openapi.json")
        else:
            yield FieldError("body" if key == "data" else key, message)


def _without_field(error: InvalidValue) -> str:
    return str(error).removeprefix(f"{error.field}: ")


def _cause(error: BaseException, kind: type[_Kind]) -> _Kind | None:
    seen: set[int] = set()
    here: BaseException | None = error
    while here is not None and id(here) not in seen:
        if isinstance(here, kind):
            return here
        seen.add(id(here))
        here = here.__cause__ or here.__context__
    return None
