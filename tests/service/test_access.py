"""Who may ask: loopback by its own names, everybody else with the token."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo.gpu.service.access import is_loopback, new_token

TOKEN = "a token of a test"


@pytest.mark.parametrize(
    "name",
    ["localhost", "LOCALHOST.", "127.0.0.1", "127.9.8.7", "::1", "[::1]", "gpu.localhost"],
)
def test_names_of_this_machine(name):
    """Rule: every name of loopback is one."""
    assert is_loopback(name)


@pytest.mark.parametrize(
    "name",
    ["", "0.0.0.0", "::", "10.0.0.1", "localhost.example", "127.0.0.1.example", "evil", "1270.0.1"],
)
def test_names_of_others(name):
    """Rule: what only looks like loopback is not."""
    assert not is_loopback(name)


@given(st.ip_addresses())
def test_addresses_are_loopback_where_the_standard_says_so(address):
    """Rule: no address outside 127.0.0.0/8 and ::1 is loopback."""
    assert is_loopback(str(address)) == address.is_loopback


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "10.0.0.1", "[fe80::1]:80", "x"]
)
def test_another_name_is_refused_without_a_token(client, host):
    """Rule: a page whose name was pointed at loopback gets nothing, not even the dashboard."""
    for path in ("/", "/api/v1/devices", "/metrics", "/api/v1/stream"):
        answer = client.get(path, headers={"host": host})
        assert answer.status_code == 421
        assert "cuda:0" not in answer.text


@pytest.mark.parametrize("host", ["localhost", "localhost:1", "[::1]:52416", "127.0.0.1"])
def test_names_of_loopback_are_answered(client, host):
    """Rule: with or without a port."""
    assert client.get("/api/v1/service", headers={"host": host}).status_code == 200


def test_another_address_makes_a_token_and_asks_for_it(serve):
    """Rule: beyond loopback nothing is told without the token that was shown once."""
    service = serve("--host", "0.0.0.0")
    assert len(service.token) >= 32
    with service.client() as client:
        for path in ("/api/v1/devices", "/metrics", "/api/v1/openapi.json", "/api/v1/nothing"):
            refused = client.get(path)
            assert refused.status_code == 401
            assert refused.headers["www-authenticate"] == "Bearer"
            assert refused.headers["content-type"] == "application/problem+json"
        for open_path in ("/", "/-/healthy", "/assets/style.css"):
            assert client.get(open_path).status_code == 200
        right = {"authorization": f"Bearer {service.token}"}
        assert client.get("/api/v1/service", headers=right).status_code == 200
    service.stop()
    assert sum(service.token in line for line in service.lines) == 1


def test_a_token_of_ones_own_is_asked_for_on_loopback_too(serve):
    """Rule: a given token holds everywhere, from the variable as well, and is never shown."""
    service = serve(EXO_GPU_TOKEN=TOKEN)
    assert service.token is None
    with service.client() as client:
        for wrong in (
            "",
            "Bearer",
            "Bearer x",
            f"Basic {TOKEN}",
            f"Bearer {TOKEN}x",
            "Bearer \xff",
        ):
            headers = {"authorization": wrong.encode("latin-1")}
            assert client.get("/api/v1/service", headers=headers).status_code == 401
        for right in (f"Bearer {TOKEN}", f"bearer  {TOKEN}"):
            answer = client.get("/api/v1/service", headers={"authorization": right})
            assert answer.status_code == 200
    service.stop()
    assert TOKEN not in "\n".join(service.lines)


def test_tokens_differ():
    """Rule: no two tokens that are made are alike."""
    assert len({new_token() for _ in range(100)}) == 100


def test_every_answer_carries_the_policy(client):
    """Rule: pages, answers and errors forbid whatever is not ours; no other site may read them."""
    for path in ("/", "/api/v1/devices", "/nothing", "/assets/app.js"):
        headers = client.get(path, headers={"origin": "http://evil.example"}).headers
        assert headers["content-security-policy"].startswith("default-src 'none'")
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert not [name for name in headers if name.startswith("access-control-")]


def test_a_form_of_another_site_asks_nothing(client):
    """Rule: what a browser sends across sites without asking is refused."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        answer = client.post("/api/v1/explain", content="{}", headers={"content-type": kind})
        assert answer.status_code == 415
    preflight = client.options("/api/v1/explain", headers={"origin": "http://evil.example"})
    assert not [name for name in preflight.headers if name.startswith("access-control-")]


def test_an_empty_token_is_wrong_use(command_line_of):
    """Rule: an empty token would let everybody in, so it is refused."""
    for token in ("", " ", "\u00e4"):
        done = command_line_of("--token", token)
        assert done.returncode == 2
        assert "--token" in done.stderr


def test_a_port_that_is_taken_is_said(command_line_of):
    """Rule: who cannot listen says where, and ends with 1."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = command_line_of("--port", port)
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1, port {port}" in done.stderr
    assert command_line_of("--host", "no.such.host.invalid").returncode == 1


@pytest.fixture
def command_line_of():
    """Runs ``exo-gpu serve`` to its end."""

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "exo.gpu", "serve", *options]
        return subprocess.run(command, env=os.environ, capture_output=True, text=True, check=False)

    return run


def test_ipv6_loopback_is_served(serve):
    """Rule: an address of IPv6 is written in brackets, and answers."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    service = serve("--host", "::1")
    assert service.url.startswith("http://[::1]:")
    assert httpx.get(f"{service.url}/-/healthy", trust_env=False).status_code == 200
