"""The OpenAPI document says what is true: a generator of requests finds no answer outside it."""

from __future__ import annotations

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

EXAMPLES = 15


@pytest.fixture(scope="module")
def schema(served):
    """The document of a service that runs, less the route that never ends."""
    document = httpx.get(f"{served.url}/api/v1/openapi.json", trust_env=False).json()
    loaded = schemathesis.openapi.from_dict(document)
    loaded.config.update(base_url=served.url)
    return loaded.exclude(path="/api/v1/stream")


OPERATIONS = (
    "aggregates", "devices", "devices/{device_id}", "events", "explain", "history/{device_id}",
    "jobs", "jobs/{job_id}", "jobs/{job_id}/items", "leases", "links", "nodes", "policies", "processes", "queue",
    "recent", "service",
)  # fmt: skip


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_answer_is_as_described(schema, name):
    """Rule: no request that can be made of the document, right or wrong, gets what it does not say."""
    method = "POST" if name == "explain" else "GET"
    # That since is before until, or a policy known, no schema says.
    unsaid = [positive_data_acceptance] if name in {"explain", "history/{device_id}"} else []
    cases = schema[f"/api/v1/{name}"][method].as_strategy()

    @given(case=cases)
    @settings(
        max_examples=EXAMPLES,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    def ask(case):
        with requests.Session() as session:
            session.trust_env = False
            case.call_and_validate(session=session, excluded_checks=unsaid)

    ask()


def test_the_document_has_every_route(client):
    """Rule: all that programs may ask is described, and nothing that writes."""
    document = client.get("/api/v1/openapi.json").json()
    paths = set(document["paths"])
    assert paths == {f"/api/v1/{name}" for name in (*OPERATIONS, "stream")}
    methods = {(path, method) for path, one in document["paths"].items() for method in one}
    assert {one for one in methods if one[1] != "get"} == {("/api/v1/explain", "post")}
