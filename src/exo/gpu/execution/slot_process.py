"""What the watchdog can do to the process of a slot: a worker's, or a shell command's."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from exo.gpu.execution.runner import Runner, kill_group

if TYPE_CHECKING:
    import subprocess


class RunnerProcess:
    """A worker at one piece of work; None: at its start."""

    def __init__(self, runner: Runner, work_id: int | None) -> None:
        self._runner = runner
        self._work_id = work_id

    def cancel(self, place: int) -> bool:
        """Ask it to stop an item."""
        return self._work_id is not None and self._runner.cancel(self._work_id, place)

    def terminate(self) -> None:
        """SIGTERM to its group."""
        self._runner.terminate()

    def kill(self) -> None:
        """SIGKILL to its group."""
        self._runner.kill()

    def answers(self) -> tuple[bool, bool]:
        """Whether it answered since the last question, and with this task; asks again."""
        numbers = self._runner.pongs()
        self._runner.ping()
        return bool(numbers), self._work_id in numbers

    def cpu_seconds(self) -> float | None:
        """What it has computed so far, on all its threads."""
        import psutil

        try:
            times = psutil.Process(self._runner.pid).cpu_times()
        except psutil.Error:
            return None
        return times.user + times.system


class CommandProcess:
    """The shell command of a slot, while there is one."""

    def __init__(self, running: list[subprocess.Popen[bytes]]) -> None:
        self._running = running

    def cancel(self, place: int) -> bool:  # noqa: ARG002 - a command is one item
        """A shell command cannot be asked."""
        return False

    def terminate(self) -> None:
        """SIGTERM to its group."""
        for process in tuple(self._running):
            kill_group(process, signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to its group."""
        for process in tuple(self._running):
            kill_group(process)

    def answers(self) -> tuple[bool, bool]:
        """It is not asked."""
        return True, True

    def cpu_seconds(self) -> float | None:
        """It is not asked."""
        return None
