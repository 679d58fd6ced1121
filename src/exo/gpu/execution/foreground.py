"""One command with the caller's terminal, for as long as it runs."""

from __future__ import annotations

import signal
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import FrameType

# What a supervisor, a terminal or a batch system may send to the wrapper and means the command.
# Ctrl-C reaches both, since they share the terminal's process group: the wrapper lets it pass.
FORWARDED = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def run_attached(
    argv: Sequence[str],
    environ: Mapping[str, str],
    keep_open: tuple[int, ...],
    on_start: Callable[[int], None] | None = None,
) -> int:
    """Run the command to its end and return its status as ``subprocess`` counts it.

    ``on_start`` is told its process id. Call it from the main thread, which is where Python
    handles signals.

    Raises:
        FileNotFoundError: when there is no such command.
        PermissionError: when it may not be executed.

    """
    received: list[int] = []
    process: subprocess.Popen[bytes] | None = None

    def forward(number: int, _: FrameType | None) -> None:
        if process is None:
            received.append(number)
        else:
            process.send_signal(number)

    def let_pass(_: int, __: FrameType | None) -> None:
        return

    answers = {**dict.fromkeys(FORWARDED, forward), signal.SIGINT: let_pass}
    # What the caller ignores (nohup, a shell's "&") the command goes on ignoring.
    previous = {
        number: signal.signal(number, answer)
        for number, answer in answers.items()
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        process = subprocess.Popen(list(argv), env=dict(environ), pass_fds=keep_open)
        for number in received:
            process.send_signal(number)
        if on_start is not None:
            on_start(process.pid)
        return process.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
