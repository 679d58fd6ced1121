"""A small process beside ours that ends what we started, whatever becomes of us.

A worker hears by itself that we are gone; a shell command, and what it started, does not. Each
bears a mark in its environment. The guardian waits at the end of a pipe that the kernel closes
with us, looks the mark up among the processes of our session, and ends their groups.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

_VARIABLE = "EXO_GPU_GUARDED"  # as in pinning.py, which this file, run by its path, cannot import

# What the kernel does not end within this is stuck in a driver, and is not waited for.
_ROUNDS, _ROUND_SECONDS = 50, 0.02

# A shell waits, of a megabyte or so, and becomes Python only where there is something to do.
_WAIT = 'read -r word; [ "$word" = done ] || exec "$@"'


class Guardian:
    """Guards the processes that bear :attr:`mark`, from its making to :meth:`close`.

    Raises:
        OSError: when it cannot be started.

    """

    def __init__(self) -> None:
        self.mark = secrets.token_hex(8)
        reading, self._writing = os.pipe()
        argv = [sys.executable, "-I", "-S", str(Path(__file__)), self.mark, str(os.getsid(0))]
        try:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", _WAIT, "sh", *argv],
                stdin=reading,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                # Whoever ends our group or our terminal does not end the guardian.
                start_new_session=True,
            )
        except OSError:
            os.close(self._writing)
            raise
        finally:
            os.close(reading)

    def close(self) -> None:
        """Nothing is left to guard; harmless twice."""
        if self._writing >= 0:
            # One that was killed does not read any more, which Python reports as an error.
            try:
                os.write(self._writing, b"done\n")
            except BrokenPipeError:
                pass
            finally:
                os.close(self._writing)
                self._writing = -1
            self._process.wait()


def end_all(mark: str, session: int, root: Path = Path("/proc")) -> int:
    """SIGKILL every group of the session in which a process bears the mark; how many there were.

    One that left the session on purpose, as a daemon does, lives on.
    """
    wanted = f"{_VARIABLE}={mark}".encode()
    groups: set[int] = set()
    for entry in root.iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        try:
            bears = wanted in (entry / "environ").read_bytes().split(b"\0")
            if bears and os.getsid(int(entry.name)) == session:
                groups.add(os.getpgid(int(entry.name)))
        except OSError:  # it is gone, or somebody else's
            continue
    for group in groups:
        try:
            os.killpg(group, signal.SIGKILL)
        except OSError:
            continue
    return len(groups)


if __name__ == "__main__":
    # More than once: what was just being started while we looked has its mark by now.
    for _ in range(_ROUNDS):
        if not end_all(sys.argv[1], int(sys.argv[2])):
            break
        time.sleep(_ROUND_SECONDS)
