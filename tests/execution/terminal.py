"""A shell on a terminal of its own, as a person has it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import signal
import struct
import termios
import time

ANSWER_SECONDS = 30.0


class Terminal:
    """Types into an interactive shell, and reads what it shows."""

    def __init__(self, *shell: str, **variables: str) -> None:
        environ = os.environ | {"PS1": "", "PS2": "", "TERM": "dumb", "HISTFILE": ""} | variables
        self.pid, self._line = os.forkpty()
        if self.pid == 0:
            os.execvpe(shell[0], list(shell), environ)
        self.shown = ""

    def type(self, keys: str) -> None:
        os.write(self._line, keys.encode())

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._line, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def wait_for(self, pattern: str) -> re.Match[str]:
        """What matches next; all up to its end counts as read.

        Raises:
            AssertionError: with what was shown, when it does not come.

        """
        return self._wait_for(pattern, ANSWER_SECONDS)

    def press(self, keys: str, pattern: str) -> re.Match[str]:
        """Type the same again every few seconds until what matches is shown.

        Raises:
            AssertionError: with what was shown, when it does not come.

        """
        for _ in range(5):
            self.type(keys)
            with contextlib.suppress(AssertionError):
                return self._wait_for(pattern, ANSWER_SECONDS / 6)
        return self.wait_for(pattern)

    def _wait_for(self, pattern: str, patience_seconds: float) -> re.Match[str]:
        ends = time.monotonic() + patience_seconds
        while (match := re.search(pattern, self.shown)) is None:
            ready, _, _ = select.select([self._line], [], [], max(0.0, ends - time.monotonic()))
            assert ready, f"{pattern!r} is not in {self.shown!r}"
            try:
                read = os.read(self._line, 65536)
            except OSError:  # what Linux says when the last process has closed it
                read = b""
            assert read, f"the terminal ended without {pattern!r}: {self.shown!r}"
            self.shown += read.decode(errors="replace")
        self.shown = self.shown[match.end() :]
        return match

    def close(self) -> None:
        """Hang up, which ends all that runs on it."""
        os.close(self._line)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
