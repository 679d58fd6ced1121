"""A command in a worker's place: it prints where the worker prints, and so is heard at once."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from exo.gpu.execution.pinning import apply_changes

if TYPE_CHECKING:
    from collections.abc import Sequence


def run_handed_on(argv: Sequence[str], folder: str, changes: dict[str, str | None]) -> int:
    """Run a command to its end and return its status, negative for a signal.

    It starts in ``folder`` where that is one here, with ``changes`` to this environment, and has
    no standard input.

    Raises:
        FileNotFoundError: when there is no such command.
        PermissionError: when it may not be executed.

    """
    done = subprocess.run(
        argv,
        cwd=folder if Path(folder).is_dir() else None,
        env=apply_changes(os.environ, changes),
        stdin=subprocess.DEVNULL,
        check=False,
    )
    return done.returncode
