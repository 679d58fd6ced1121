"""From the way a process ended to what it means; looks at values only."""

from __future__ import annotations

import signal

# Shells report a command that a signal ended as 128 + the signal's number.
SIGNAL_BASE = 128


def describe_exit(returncode: int | None) -> str:
    """In words: ``"was killed by SIGKILL"``, ``"exited with status 3"``.

    ``returncode`` counts as in ``subprocess``: negative for a signal, None while it runs.
    """
    if returncode is None:
        return "is still running"
    if returncode < 0:
        try:
            name = signal.Signals(-returncode).name
        except ValueError:
            name = f"signal {-returncode}"
        return f"was killed by {name}"
    return f"exited with status {returncode}"


def shell_status(returncode: int) -> int:
    """The status that a shell would report: 0..255, 128 + n for signal n."""
    return SIGNAL_BASE - returncode if returncode < 0 else returncode
