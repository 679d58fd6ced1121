"""One shell command in a fresh process group, and what it printed."""

from __future__ import annotations

import subprocess
import tempfile
import time
from typing import TYPE_CHECKING

from exo.gpu.execution.outcome import describe_exit
from exo.gpu.vocabulary.job import Ending, Outcome, Work

if TYPE_CHECKING:
    from collections.abc import Mapping


def run_command(
    work: Work,
    environ: Mapping[str, str],
    keep_open: tuple[int, ...],
    running: list[subprocess.Popen[bytes]],
) -> Outcome:
    """Run one shell command in a fresh process group and capture what it prints.

    The process is in ``running`` while it lives, so that another thread can end it.
    """
    started = time.time()
    # Files, not pipes: what the command leaves running in the background holds up nobody.
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        try:
            process = subprocess.Popen(
                ["/bin/sh", "-c", work.command or ""],
                env=dict(environ),
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                pass_fds=keep_open,
                process_group=0,
            )
        except (OSError, ValueError) as error:
            reason = f"the shell cannot be started: {error}"
            return Outcome(
                item=work.items[0],
                ending=Ending.FAILED,
                started_at=started,
                ended_at=time.time(),
                reason=reason,
                stderr=f"{reason}\n".encode(),
            )
        running.append(process)
        try:
            status = process.wait()
        finally:
            running.remove(process)
        for file in (stdout, stderr):
            file.seek(0)
        return Outcome(
            item=work.items[0],
            ending=Ending.FAILED if status else Ending.SUCCEEDED,
            started_at=started,
            ended_at=time.time(),
            reason=f"the command {describe_exit(status)}" if status else "",
            exit_status=status,
            stdout=stdout.read(),
            stderr=stderr.read(),
        )
