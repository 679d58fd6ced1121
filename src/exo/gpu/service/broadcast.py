"""What is told to whoever listens: numbered events, a bounded past, and a bounded queue each."""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

MOST_CLIENTS = 64

# A client that leaves so much unread for so long is dropped: at one batch a second it is a
# quarter of a minute behind.
MOST_UNREAD = 32

# What is kept for those who come back: a minute at ordinary times, 8 MiB at most.
MOST_KEPT = 240
MOST_KEPT_BYTES = 8 * 2**20


class Client:
    """One who listens: what it has not been sent yet."""

    def __init__(self, first: Iterable[bytes]) -> None:
        self._unread: deque[bytes] = deque(first)
        self._news = asyncio.Event()
        self._news.set()
        self.ended = False
        """True once there will be nothing more."""
        self.dropped = False
        """True where it ended because it was too slow."""

    def put(self, batch: bytes) -> None:
        """What is new at one more moment; too many that are unread end it."""
        if self.ended:
            return
        if len(self._unread) >= MOST_UNREAD:
            self.drop()
            return
        self._unread.append(batch)
        self._news.set()

    def drop(self) -> None:
        """Give it up: it is too slow."""
        self.dropped = True
        self._unread.clear()
        self.end()

    def end(self) -> None:
        """Send it nothing more."""
        self.ended = True
        self._news.set()

    async def get(self, timeout_seconds: float) -> bytes:
        """All that is unread, once there is any; empty when the time is over, or at its end."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._news.wait()
        except TimeoutError:
            return b""
        self._news.clear()
        unread = b"".join(self._unread)
        self._unread.clear()
        return unread


class Broadcast:
    """Numbers events and hands each to everybody; of one event loop only.

    An id is ``run-number``: that of another run of the service names nothing here.
    """

    def __init__(self) -> None:
        self._run = secrets.token_hex(4)
        self._number = 0
        self._kept: deque[tuple[int, bytes]] = deque()
        self._kept_bytes = 0
        self._clients: set[Client] = set()

    @property
    def client_count(self) -> int:
        """How many listen now."""
        return len(self._clients)

    def publish(self, events: Iterable[tuple[str, bytes]]) -> None:
        """Tell everybody of what is new at one moment: kinds, and bodies in JSON of one line.

        However many they are, nobody is slow because they come together.
        """
        batch: list[bytes] = []
        for kind, body in events:
            self._number += 1
            head = f"id: {self._run}-{self._number}\nevent: {kind}\ndata: ".encode()
            batch.append(head + body + b"\n\n")
            self._kept.append((self._number, batch[-1]))
            self._kept_bytes += len(batch[-1])
        while len(self._kept) > MOST_KEPT or self._kept_bytes > MOST_KEPT_BYTES:
            self._kept_bytes -= len(self._kept.popleft()[1])
        for client in self._clients:
            client.put(b"".join(batch))

    def join(self, last_event_id: str | None) -> Client | None:
        """A new client, which is told what it missed; None where there are too many.

        Where what it missed is not kept any more, or it never was here, it is told ``reset``: it
        has to ask for everything anew.
        """
        if len(self._clients) >= MOST_CLIENTS:
            return None
        client = Client(self._missed(last_event_id))
        self._clients.add(client)
        return client

    def leave(self, client: Client) -> None:
        """Tell it nothing more; harmless twice."""
        self._clients.discard(client)

    def close(self) -> None:
        """Send everybody away."""
        for client in self._clients:
            client.end()

    def _missed(self, last_event_id: str | None) -> list[bytes]:
        run, _, number = (last_event_id or "").rpartition("-")
        if run == self._run and number.isascii() and number.isdecimal() and len(number) <= 20:
            last = int(number)
            oldest = self._kept[0][0] if self._kept else self._number + 1
            if oldest - 1 <= last <= self._number:
                missed = [event for place, event in self._kept if place > last]
                if len(missed) < MOST_UNREAD:
                    return [b"".join(missed)]
        reset = f"id: {self._run}-{self._number}\nevent: reset\ndata: {{}}\n\n"
        return [reset.encode()]
