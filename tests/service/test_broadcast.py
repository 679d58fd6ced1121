"""The stream's memory: numbered events, a bounded past, and nobody who is waited for."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from exo.gpu.service.broadcast import (
    MOST_CLIENTS,
    MOST_KEPT,
    MOST_KEPT_BYTES,
    MOST_UNREAD,
    Broadcast,
)


def read(client) -> list[str]:
    """The bodies of what a client has not read."""
    told = asyncio.run(client.get(0.01)).decode()
    return [line.removeprefix("data: ") for line in told.splitlines() if line.startswith("data: ")]


def last_id(client) -> str:
    told = asyncio.run(client.get(0.01)).decode()
    return [line[4:] for line in told.splitlines() if line.startswith("id: ")][-1]


def test_a_newcomer_asks_for_everything_anew():
    """Rule: the first event tells a newcomer that it knows nothing yet, and where it stands."""
    broadcast = Broadcast()
    broadcast.publish([("samples", b"1")])
    client = broadcast.join(None)
    broadcast.publish([("samples", b"2")])
    assert read(client) == ["{}", "2"]


@given(before=st.integers(0, 40), away=st.integers(0, 40))
def test_who_comes_back_misses_nothing(before, away):
    """Rule: what was told while one was away comes in order, or reset says that it is too much."""
    broadcast = Broadcast()
    for number in range(before):
        broadcast.publish([("samples", str(number).encode())])
    client = broadcast.join(None)
    broadcast.publish([("samples", b"seen")])
    seen = last_id(client)
    broadcast.leave(client)
    for number in range(away):
        broadcast.publish([("samples", str(number).encode())])
    back = read(broadcast.join(seen))
    if away < MOST_UNREAD:
        assert back == [str(number) for number in range(away)]
    else:
        assert back == ["{}"]


@given(st.one_of(st.text(max_size=40), st.from_regex(r"[0-9a-f]{8}-[0-9]{1,30}", fullmatch=True)))
def test_an_id_of_somebody_else_is_no_id(name):
    """Rule: an id of another run, or none at all, begins anew."""
    broadcast = Broadcast()
    broadcast.publish([("samples", b"1")])
    assert read(broadcast.join(name)) == ["{}"]


def test_an_id_from_the_future_begins_anew():
    """Rule: a number that was never told is not waited for."""
    broadcast = Broadcast()
    run = last_id(broadcast.join(None)).partition("-")[0]
    broadcast.publish([("samples", b"1")])
    assert read(broadcast.join(f"{run}-1")) == []
    assert read(broadcast.join(f"{run}-2")) == ["{}"]


def test_who_does_not_read_is_dropped_and_keeps_nothing():
    """Rule: a client may leave so many events unread; one more ends it and frees them."""
    broadcast = Broadcast()
    slow, quick = broadcast.join(None), broadcast.join(None)
    for number in range(2 * MOST_UNREAD):
        broadcast.publish([("samples", str(number).encode())])
        assert read(quick)
    assert slow.dropped
    assert asyncio.run(slow.get(0.01)) == b""
    assert not quick.dropped


@given(st.integers(1, 2 * MOST_KEPT))
def test_nobody_is_slow_because_much_happens_at_once(count):
    """Rule: when all devices of a lab turn ill in one second, who listens hears of each."""
    broadcast = Broadcast()
    client = broadcast.join(None)
    assert read(client) == ["{}"]
    broadcast.publish(("health", str(number).encode()) for number in range(count))
    assert not client.dropped
    assert read(client) == [str(number) for number in range(count)]


@given(st.lists(st.integers(1, 2**21), max_size=30))
def test_the_past_has_a_bound(sizes):
    """Rule: neither many events nor large ones fill the memory."""
    broadcast = Broadcast()
    for size in sizes:
        broadcast.publish([("samples", b"x" * size)])
    kept = broadcast._kept
    assert len(kept) <= MOST_KEPT
    assert sum(len(event) for _, event in kept) == broadcast._kept_bytes
    assert broadcast._kept_bytes <= MOST_KEPT_BYTES


def test_there_is_room_for_so_many():
    """Rule: beyond the bound nobody is taken in; a place that is left is free."""
    broadcast = Broadcast()
    clients = [broadcast.join(None) for _ in range(MOST_CLIENTS)]
    assert broadcast.join(None) is None
    broadcast.leave(clients[0])
    broadcast.leave(clients[0])
    assert broadcast.client_count == MOST_CLIENTS - 1
    assert broadcast.join(None) is not None


def test_the_end_ends_everybody():
    """Rule: a client that waits is sent away, without being called slow."""
    broadcast = Broadcast()
    client = broadcast.join(None)
    read(client)
    broadcast.close()
    assert client.ended
    assert not client.dropped
    client.put(b"late")
    assert asyncio.run(client.get(10)) == b""
