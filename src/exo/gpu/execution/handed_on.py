"""A command in a worker's place: it prints where the worker prints, and so is heard at once."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from exo.gpu.execution.pinning import apply_changes

if TYPE_CHECKING:
    from collections.abc import Sequence

# From the word that it shall end to SIGKILL, as for a command of this machine.
GRACE_SECONDS = 5.0


def run_handed_on(
    argv: Sequence[str],
    folder: str,
    changes: dict[str, str | None],
    timeout_seconds: float | None = None,
) -> int | None:
    """Run a command to its end; its status, negative for a signal, or None where its time was over.

    It starts in ``folder`` where that is one here, with ``changes`` to this environment, and has
    no standard input. When its time is over, or the worker is told to stop, it gets SIGTERM, and
    SIGKILL five seconds later.

    Raises:
        FileNotFoundError: when there is no such command.
        PermissionError: when it may not be executed.

    """
    with subprocess.Popen(
        argv,
        cwd=folder if Path(folder).is_dir() else None,
        env=apply_changes(os.environ, changes),
        stdin=subprocess.DEVNULL,
    ) as process:
        try:
            return process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            _end(process)
            return None
        except BaseException:
            _end(process)
            raise


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
