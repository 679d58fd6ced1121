"""One command with the caller's terminal, for as long as it runs.

It stays in the caller's process group, as under ``time`` or ``nice``: to the shell, the wrapper and
the command are one job, which the terminal stops, continues and interrupts as a whole.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

from exo.gpu.execution.process_tree import GRACE_SECONDS, end_tree
from exo.gpu.vocabulary.command_end import CommandEnd

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import FrameType

# What a supervisor or a batch system may send to the wrapper and means the command.
FORWARDED = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT)

# What a terminal sends to all of its foreground group: the command has it already then.
FROM_TERMINAL = (signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP, signal.SIGWINCH)

# By these, somebody wants an end: nothing is tried again.
INTERRUPTING = frozenset({signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP})

# What a terminal stops a command with. A plain SIGSTOP is somebody's who knows both processes.
_STOPPED_BY_TERMINAL = (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)

# getrusage(2): kilobytes on Linux, bytes on macOS.
_RSS_UNIT_BYTES = 1 if sys.platform == "darwin" else 1024


def run_attached(
    argv: Sequence[str],
    environ: Mapping[str, str],
    keep_open: tuple[int, ...],
    on_start: Callable[[int], None] | None = None,
    *,
    timeout_seconds: float | None = None,
    grace_seconds: float = GRACE_SECONDS,
) -> CommandEnd:
    """Run the command to its end; how it ended.

    ``on_start`` is told its process id. After ``timeout_seconds`` it and all that it started get
    SIGTERM, and SIGKILL after the grace. Call it from the main thread, which is where Python
    handles signals.

    Raises:
        FileNotFoundError: when there is no such command.
        PermissionError: when it may not be executed.

    """
    with _Signals() as signals:
        begun = time.monotonic()
        process = subprocess.Popen(list(argv), env=dict(environ), pass_fds=keep_open)
        signals.belong_to(process.pid)
        if on_start is not None:
            on_start(process.pid)
        with _TimeLimit(process.pid, timeout_seconds, grace_seconds) as limit:
            returncode, peak_host_bytes = _wait(process.pid, signals)
        process.returncode = returncode  # it is reaped: nobody needs to ask the kernel again
        return CommandEnd(
            returncode=returncode,
            seconds=time.monotonic() - begun,
            timed_out=limit.passed,
            interrupted=not INTERRUPTING.isdisjoint(signals.heard),
            peak_host_bytes=peak_host_bytes,
        )


def _wait(pid: int, signals: _Signals) -> tuple[int, int | None]:
    """The command's return code and the memory of its largest process; stops as it stops."""
    while True:
        _, status, usage = os.wait4(pid, os.WUNTRACED)
        if os.WIFSTOPPED(status):
            if os.WSTOPSIG(status) in _STOPPED_BY_TERMINAL and terminal_group():
                os.kill(os.getpid(), signal.SIGSTOP)  # the shell sees its whole job stopped
                signals.pass_on(signal.SIGCONT)
            continue
        signals.belong_to(None)
        # A new process counts what its parent had when it was split off, so that less than this
        # process's own peak is not the command's.
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        peak = usage.ru_maxrss * _RSS_UNIT_BYTES if usage.ru_maxrss > own else None
        return os.waitstatus_to_exitcode(status), peak


def terminal_group() -> int | None:
    """The process group in the foreground of our terminal; None without a terminal."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.tcgetpgrp(terminal)
    except OSError:
        return None
    finally:
        os.close(terminal)


class _Signals:
    """Passes on what is meant for the command while the block lasts."""

    def __init__(self) -> None:
        self.heard: set[int] = set()
        self._pid: int | None = None
        self._early: list[int] = []
        self._previous: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}

    def __enter__(self) -> _Signals:
        """Itself; what the caller ignores (nohup, a shell's "&") the command goes on ignoring."""
        for number in (*FORWARDED, *FROM_TERMINAL, signal.SIGTTIN):
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._answer)
        return self

    def __exit__(self, *_: object) -> None:
        """Everything as before."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def belong_to(self, pid: int | None) -> None:
        """From now on signals are that process's; None: it has ended and nobody's."""
        self._pid = pid
        while self._early and pid is not None:
            self.pass_on(self._early.pop(0))

    def pass_on(self, number: int) -> None:
        """Send it to the command, if that still runs."""
        if self._pid is not None:
            os.kill(self._pid, number)

    def _answer(self, number: int, _: FrameType | None) -> None:
        self.heard.add(number)
        if self._pid is None:
            self._early.append(number)
        elif number != signal.SIGTTIN and not self._was_sent_to_both(number):
            self.pass_on(number)

    def _was_sent_to_both(self, number: int) -> bool:
        """Whether the terminal sent it, to a foreground group that holds the command too."""
        if number not in FROM_TERMINAL or self._pid is None:
            return False
        group = os.getpgrp()
        try:
            return terminal_group() == group == os.getpgid(self._pid)
        except ProcessLookupError:
            return False


class _TimeLimit:
    """Ends a process and all that it started when its time is over and the block still lasts."""

    def __init__(self, pid: int, timeout_seconds: float | None, grace_seconds: float) -> None:
        self.passed = False
        self._pid = pid
        self._grace_seconds = grace_seconds
        self._timeout_seconds = timeout_seconds
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="exo-gpu-time", daemon=True)

    def __enter__(self) -> _TimeLimit:
        """Itself; the time counts from now."""
        if self._timeout_seconds is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """The time is no longer counted; one that is ending a tree does so to the end."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        if not self._over.wait(self._timeout_seconds):
            self.passed = True
            end_tree(self._pid, grace_seconds=self._grace_seconds)
