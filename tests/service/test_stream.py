"""``/api/v1/stream`` over real sockets: what is told, what is resumed, and who is dropped."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx

CARD = {
    "device_id": "cuda:0",
    "name": "A card",
    "vendor": "x",
    "backend": "fake",
    "hardware_id": "GPU-1",
}


def events(answer: httpx.Response) -> Iterator[tuple[str, str, dict]]:
    """(id, event, data) as they come."""
    fields: dict[str, str] = {}
    for line in answer.iter_lines():
        if line.startswith(":"):
            continue
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif "data" in fields:
            yield fields["id"], fields["event"], json.loads(fields["data"])
            fields = {}


def test_the_stream_tells_of_samples_and_of_changes(serve, write_machine):
    """Rule: samples come each second; health, states and leases when they change."""
    machine = write_machine({**CARD, "sample": {"temperature_celsius": 40}})
    service = serve(machine=machine)
    with service.client() as client, client.stream("GET", "/api/v1/stream") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        told = events(answer)
        assert next(told)[1] == "reset"
        assert "samples" in {kind for _, kind, _ in (next(told), next(told), next(told))} | {
            next(told)[1]
        }
        write_machine({**CARD, "sample": {"temperature_celsius": 99}})
        heard: dict[str, dict] = {}
        while not {"samples", "health", "states"} <= heard.keys() or (
            heard["states"]["states"][0]["health"] == "ok"
        ):
            _, kind, data = next(told)
            heard[kind] = data
        assert heard["samples"]["samples"][0]["temperature_celsius"] == 99
        assert heard["health"]["device_id"] == "cuda:0"
        assert heard["health"]["fields"]["after"] == "degraded"
        run = [sys.executable, "-m", "exo.gpu", "run", "--device", "cuda:0", "--", "sleep", "60"]
        holder = subprocess.Popen(run, env=service.environ)
        try:
            kind, data = "", {}
            while not (kind == "leases" and data["leases"]):
                _, kind, data = next(told)
            assert data["leases"][0]["device_id"] == "cuda:0"
        finally:
            holder.kill()
            holder.wait()


def test_a_lost_connection_goes_on_where_it_was(client):
    """Rule: with Last-Event-ID the next event is the next number; without, it begins anew."""
    with client.stream("GET", "/api/v1/stream") as answer:
        told = events(answer)
        next(told)
        last, _, _ = next(told)
    with client.stream("GET", "/api/v1/stream", headers={"last-event-id": last}) as answer:
        found, kind, _ = next(events(answer))
    assert kind != "reset"
    assert int(found.rpartition("-")[2]) == int(last.rpartition("-")[2]) + 1
    with client.stream("GET", "/api/v1/stream", headers={"last-event-id": "other-3"}) as answer:
        assert next(events(answer))[1] == "reset"


def test_a_client_that_never_reads_is_dropped(serve, write_machine):
    """Rule: who opens the stream and reads nothing is cut off; the others never notice."""
    padding = {"throttle_reasons": ["x" * 200] * 100}
    many = [
        {**CARD, "device_id": f"cuda:{number}", "hardware_id": f"GPU-{number}", "sample": padding}
        for number in range(8)
    ]
    service = serve(machine=write_machine(*many))
    address = urlsplit(service.url)
    with socket.socket() as silent:
        silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        silent.settimeout(60)
        silent.connect((address.hostname, address.port))
        silent.sendall(b"GET /api/v1/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
        with (
            service.client() as asker,
            service.client() as client,
            client.stream("GET", "/api/v1/stream") as answer,
        ):
            for _, kind, _ in events(answer):
                if kind == "samples":
                    count = asker.get("/api/v1/service").json()["stream_clients"]
                    if count == 1:
                        break
        try:
            while silent.recv(65536):
                pass
        except ConnectionResetError:
            pass


def test_too_many_are_sent_away(served, client):
    """Rule: beyond the bound a client gets 503, and the service goes on."""
    address = urlsplit(served.url)
    opened = []
    try:
        for _ in range(80):
            one = socket.create_connection((address.hostname, address.port), timeout=30)
            one.sendall(b"GET /api/v1/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
            opened.append(one)
        heads = [one.recv(16) for one in opened]
        assert sum(b" 503" in head for head in heads) >= 80 - 64
        assert sum(b" 200" in head for head in heads) >= 60
        assert client.get("/-/healthy").status_code == 200
    finally:
        for one in opened:
            one.close()
