"""The OpenAPI document: what Litestar derives from the routes, and what it cannot know."""

from __future__ import annotations

from typing import Any

_PROBLEM: dict[str, Any] = {
    "title": "Problem",
    "description": "RFC 9457 problem details.",
    "type": "object",
    "required": ["type", "status", "title"],
    "properties": {
        "type": {"type": "string"},
        "status": {"type": "integer"},
        "title": {"type": "string"},
        "detail": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["field", "detail"],
                "properties": {"field": {"type": "string"}, "detail": {"type": "string"}},
            },
        },
    },
}

_STREAM: dict[str, Any] = {
    "summary": "Stream",
    "operationId": "stream",
    "description": (
        "Server-sent events: samples, states, health, fault, change, leases, queue, processes and "
        "jobs. After reset everything has to be asked for anew."
    ),
    "parameters": [
        {
            "name": "Last-Event-ID",
            "in": "header",
            "required": False,
            "schema": {"type": "string"},
            "description": "The id of the last event that was received: what followed it is told.",
        }
    ],
    "responses": {
        "200": {
            "description": "Events without end.",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        }
    },
}


def described(document: dict[str, Any]) -> dict[str, Any]:
    """The document with our errors in the place of Litestar's, and with the stream."""
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas["Problem"] = _PROBLEM
    if "Question" in schemas:
        schemas["Question"]["additionalProperties"] = False
        schemas["Question"]["properties"]["policy"].pop("default", None)  # it may be set otherwise
    document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    document["security"] = [{}, {"token": []}]
    problem = {
        "description": "What is wrong.",
        "content": {
            "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}
        },
    }
    document["paths"]["/api/v1/stream"] = {"get": dict(_STREAM)}
    for methods in document["paths"].values():
        for operation in methods.values():
            kept = {code: one for code, one in operation["responses"].items() if code < "400"}
            operation["responses"] = {**kept, "default": problem}
    return document
