"""Whatever is sent, the answer is a problem that names the field, and nothing is given away."""

from __future__ import annotations

import socket
import sqlite3
from urllib.parse import urlsplit

import pytest


def problem(answer) -> dict:
    assert answer.headers["content-type"] == "application/problem+json"
    told = answer.json()
    assert told["type"].startswith("urn:exo-gpu:problem:")
    assert told["status"] == answer.status_code
    return told


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/api/v1/history/cuda:0?since=yesterday", "since"),
        ("/api/v1/history/cuda:0?since=-1", "since"),
        ("/api/v1/history/cuda:0?since=nan", "since"),
        ("/api/v1/history/cuda:0?since=9e99", "since"),
        ("/api/v1/history/cuda:0?since=20&until=10", "since"),
        ("/api/v1/history/cuda:0?points=0", "points"),
        ("/api/v1/history/cuda:0?points=1000000", "points"),
        ("/api/v1/history/cuda:0?metric=temprature_celsius", "metric"),
        ("/api/v1/events?limit=x", "limit"),
        ("/api/v1/aggregates?by=vendr", "by"),
        ("/api/v1/jobs/x/items?limit=0", "limit"),
        ("/api/v1/jobs/x/items?failed=perhaps", "failed"),
    ],
)
def test_a_wrong_parameter_is_named(client, path, field):
    """Rule: a value that cannot be is refused with the name of its field."""
    answer = client.get(path)
    assert answer.status_code == 400
    assert field in [one["field"] for one in problem(answer)["errors"]]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ('{"memory_bytes": "8"}', "memory_bytes"),
        ('{"memory_bytes": 1.5}', "memory_bytes"),
        ('{"memory": "8 parsecs"}', "memory"),
        ('{"memory": "1GiB", "memory_bytes": 1}', "memory"),
        ('{"count": 0}', "count"),
        ('{"share": 2}', "share"),
        ('{"devices": "cuda:0"}', "devices"),
        ('{"memry": 1}', "memry"),
        ('{"policy": "fastst"}', "policy"),
        ('{"device_class": "soft"}', "device_class"),
        ("[]", "body"),
        ("null", "body"),
        ("3", "body"),
    ],
)
def test_a_wrong_question_is_named(client, body, field):
    """Rule: each field of a request is checked, and one that nobody knows is no typing error."""
    answer = client.post(
        "/api/v1/explain", content=body, headers={"content-type": "application/json"}
    )
    assert answer.status_code == 400
    assert field in [one["field"] for one in problem(answer)["errors"]]


@pytest.mark.parametrize("body", ["", "{", "\x00", '{"count": 1', "{'count': 1}", "\xff"])
def test_a_body_that_is_no_json_is_refused(client, body):
    """Rule: it is said that it is no JSON, and where."""
    headers = {"content-type": "application/json"}
    answer = client.post("/api/v1/explain", content=body.encode("latin-1"), headers=headers)
    assert answer.status_code == 400
    problem(answer)


def test_a_huge_body_is_not_read(client):
    """Rule: a body beyond 64 KiB is refused, told by its length or not."""
    headers = {"content-type": "application/json"}
    whole = client.post("/api/v1/explain", content=b" " * 2**20, headers=headers)
    pieces = (b" " * 2**16 for _ in range(4))
    piecewise = client.post("/api/v1/explain", content=pieces, headers=headers)
    for answer in (whole, piecewise):
        assert answer.status_code == 413
        problem(answer)


def test_deep_nesting_ends_no_process(client):
    """Rule: JSON as deep as a body can be is refused like any other."""
    body = b'{"memory":' + b"[" * 30_000 + b"]" * 30_000 + b"}"
    headers = {"content-type": "application/json"}
    assert client.post("/api/v1/explain", content=body, headers=headers).status_code == 400
    assert client.get("/-/healthy").status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/devices/nobody",
        "/api/v1/devices/",
        "/api/v1/history/nobody",
        "/api/v1/jobs/nobody",
        "/api/v1/jobs/last",
        "/api/v1/nothing",
        "/assets/nothing.js",
        "/nothing",
    ],
)
def test_what_is_not_here_is_absent(client, path):
    """Rule: an unknown name is 404, with where to look."""
    answer = client.get(path)
    if path == "/api/v1/devices/":  # the list by another name
        assert answer.status_code in {200, 404}
        return
    assert answer.status_code == 404
    assert problem(answer)["detail"]


TRICKS = [
    "/assets/../../app.py",
    "/assets/..%2f..%2fapp.py",
    "/assets/%2e%2e/%2e%2e/app.py",
    "/assets//etc/passwd",
    "/assets/%2fetc%2fpasswd",
    "/assets/..\\app.py",
    "/assets/style.css%00.js",
    "/api/v1/jobs/..%2f..%2f..%2fetc%2fpasswd",
    "/api/v1/jobs/%2fetc%2fpasswd/items",
    "/api/v1/devices/../../../etc/passwd",
    "/api/v1/history/%2fetc%2fpasswd",
    "//etc/passwd",
    "/%00",
]


@pytest.mark.parametrize("path", TRICKS)
def test_no_path_leads_out(served, path):
    """Rule: a path sent as it is reaches no file but the dashboard's own."""
    address = urlsplit(served.url)
    with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
        request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        connection.sendall(request.encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    head = answer.partition(b"\r\n")[0]
    assert b" 40" in head, head
    assert b"root:" not in answer
    assert b"import" not in answer


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "TRACE", "BREW"])
def test_no_route_writes(client, method):
    """Rule: every method but GET is refused everywhere, save the question to explain."""
    for path in ("/api/v1/devices", "/api/v1/leases", "/api/v1/jobs/x", "/api/v1/stream", "/"):
        answer = client.request(method, path, headers={"content-type": "application/json"})
        assert answer.status_code == 405
    if method != "POST":
        assert client.request(method, "/api/v1/explain").status_code == 405


def test_garbage_instead_of_http(served, client):
    """Rule: what is no HTTP costs its own connection alone."""
    address = urlsplit(served.url)
    for garbage in (b"\x16\x03\x01\x02\x00", b"GET / HTTP/9.9\r\n\r\n", b"A" * 200_000):
        with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
            try:
                connection.sendall(garbage)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65536):
                    pass
            except ConnectionError:
                pass  # it was cut off while it was still sending
    assert client.get("/-/healthy").status_code == 200


def test_a_locked_store_is_said_and_waited_for_by_nobody(serve):
    """Rule: with the lease store locked the devices are still told, and that leases are not."""
    service = serve()
    with service.client() as client:
        service.until_ready(client)
        (path,) = (service.folder / "state").rglob("ledger.sqlite")
        lock = sqlite3.connect(path, isolation_level=None)
        lock.execute("BEGIN EXCLUSIVE")
        try:
            while not (notes := client.get("/api/v1/devices").json()["notes"]):
                assert service.process.poll() is None
            assert "leases and cordons are not shown" in notes[0]
            assert len(client.get("/api/v1/devices").json()["devices"]) == 4
            answer = client.post("/api/v1/explain", json={})
            assert answer.status_code == 503
            assert problem(answer)["type"].endswith(":store")
        finally:
            lock.close()
        while client.get("/api/v1/devices").json()["notes"]:
            assert service.process.poll() is None


def test_two_services_share_the_stores(serve):
    """Rule: of two services on one machine one writes the history, the other says who does."""
    first = serve()
    second = serve(folder=first.folder)
    with first.client() as one, second.client() as other:
        for service, client in ((first, one), (second, other)):
            service.until_ready(client)
        told = [client.get("/api/v1/service").json() for client in (one, other)]
        assert [service["history_recorded"] for service in told] == [True, False]
        assert told[1]["history_reason"]
        assert other.get("/api/v1/history/cuda:0").status_code == 200


def test_a_driver_that_fails_is_said(serve, write_machine):
    """Rule: a device that cannot be read is told with the driver's reason; the others go on."""
    card = {"device_id": "cuda:0", "name": "A card", "vendor": "x", "backend": "fake"}
    well = {**card, "device_id": "cuda:1", "sample": {"memory_used_bytes": 1}}
    service = serve(machine=write_machine({**card, "fail": "the driver is on strike"}, well))
    with service.client() as client:
        service.until_ready(client)
        while not (told := client.get("/api/v1/devices/cuda:0").json())["sample_failure"]:
            assert service.process.poll() is None
        assert "on strike" in told["sample_failure"]
        assert told["sample"] is None
        while client.get("/api/v1/devices/cuda:1").json()["sample"] is None:
            assert service.process.poll() is None


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_ends_it_in_good_order(serve, number):
    """Rule: streams and connections that are open do not keep it; it ends with 0."""
    import signal

    service = serve()
    with service.client() as client, client.stream("GET", "/api/v1/stream") as stream:
        assert next(stream.iter_lines()) == "retry: 2000"
        assert service.stop(getattr(signal, number)) == 0
