"""How a waiter is woken: a datagram socket each, rung by whoever gives something back."""

from __future__ import annotations

import os
import select
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket  # loaded by who waits and who is waited for, which most are not
    from collections.abc import Iterable

# struct sockaddr_un of Linux has 108 bytes for the path with its end, that of macOS 104.
_LONGEST_ADDRESS = 103


class BellFolder:
    """The sockets of all waiters, by id. That one cannot be rung is no error: waiters also poll."""

    def __init__(self, folder: Path) -> None:
        """Keep the folder open: through it a socket has a short name, however long the path.

        Raises:
            OSError: when it cannot be opened.

        """
        self._folder = folder
        self._descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._sender: socket.socket | None = None

    def close(self) -> None:
        """Close the folder; harmless twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        if self._sender is not None:
            self._sender.close()
            self._sender = None

    def hang(self, name: str) -> Bell:
        """A bell of that name, for its owner to wait by."""
        import socket

        listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        listener.setblocking(False)
        try:
            listener.bind(self._address(name))
            (self._folder / name).chmod(0o666)  # ringing is writing, and others ring it
        except OSError:
            return Bell(listener, self, name)  # deaf: its owner polls
        return Bell(listener, self, name)

    def ring(self, names: Iterable[str]) -> int:
        """Wake these waiters; how many heard it. Those who are gone or deaf are passed over."""
        heard = 0
        for name in names:
            if self._sender is None:
                import socket

                self._sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                self._sender.setblocking(False)
            try:
                self._sender.sendto(b".", self._address(name))
            except BlockingIOError:
                heard += 1  # it has been rung often, and has not listened yet
            except OSError:
                continue
            else:
                heard += 1
        return heard

    def names(self) -> list[str]:
        """All that hangs or is marked here."""
        return os.listdir(self._descriptor)  # noqa: PTH208 - by descriptor, ten times as fast

    def mark(self, name: str) -> None:
        """Leave a name here, without a bell; one system call."""
        with suppress(OSError):
            os.symlink("-", name, dir_fd=self._descriptor)

    def remove(self, name: str) -> None:
        """Delete a socket's file; another user's in a sticky folder stays until the boot."""
        with suppress(OSError):
            os.unlink(name, dir_fd=self._descriptor)

    def _address(self, name: str) -> str:
        path = str(self._folder / name)
        if len(os.fsencode(path)) <= _LONGEST_ADDRESS:
            return path
        return f"/proc/self/fd/{self._descriptor}/{name}"


class Bell:
    """One waiter's own socket."""

    def __init__(self, listener: socket.socket, folder: BellFolder, name: str) -> None:
        self._listener = listener
        self._folder = folder
        self._name = name

    def wait(self, seconds: float) -> bool:
        """Sleep until it rings, at most so long; whether it rang."""
        waiting = select.poll()
        waiting.register(self._listener, select.POLLIN)
        if not waiting.poll(max(0.0, seconds) * 1000):
            return False
        with suppress(BlockingIOError):
            while True:  # several rings before the waiter woke are one
                self._listener.recv(16)
        return True

    def close(self) -> None:
        """Take it down; harmless twice."""
        self._listener.close()
        self._folder.remove(self._name)
