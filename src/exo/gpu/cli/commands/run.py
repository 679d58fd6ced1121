"""``exo-gpu run``: one command, pinned to the device that suits it best."""

from __future__ import annotations

import errno
import shlex
from typing import TYPE_CHECKING, Any

import click

from exo.gpu.cli.context import files, gang_options, left_out_line, make_request, request_options
from exo.gpu.cli.main import complain
from exo.gpu.cli.waiting import wait_options, wait_seconds

if TYPE_CHECKING:
    from exo.gpu.vocabulary.decision import Decision

# POSIX.1-2024, shell command language 2.8.2.
NOT_EXECUTABLE = 126
NO_SUCH_COMMAND = 127


@click.command(
    context_settings={"allow_interspersed_args": False},
    epilog="Exit status: the command's own; 128 + n when signal n ended it; 126 when it cannot be "
    "executed, 127 when there is no such command; 69 no device here can ever satisfy this; "
    "75 not now; 2 usage.",
)
@request_options
@gang_options
@wait_options
@click.option(
    "--overrun",
    type=click.Choice(["warn", "kill", "off"]),
    default="warn",
    help="What becomes of a command that takes more memory than it declared, as far as the driver "
    "tells.",
)
@click.argument(
    "argv",
    metavar="[--] COMMAND [ARGUMENT]...",
    nargs=-1,
    type=click.UNPROCESSED,
    shell_complete=files,
)
def command(argv: tuple[str, ...], overrun: str, **options: Any) -> int:
    """Run a command pinned to the device that suits it best.

    No option is needed: one device of the best class and runtime is leased for as long as the
    command and its children live. The command sees that device and no other. Where none is free,
    the answer is "not now" (75), unless --wait says how long to stand in the line.
    """
    from exo.gpu.coordination.runs import run_command

    if not argv:
        raise click.UsageError("what shall run? exo-gpu run [OPTIONS] -- COMMAND [ARGUMENT]...")
    patience = wait_seconds(options)
    request = make_request(shlex.join(argv), options)
    try:
        return run_command(
            argv,
            request,
            on_start=_tell_runtimes_left_out,
            on_wait=complain,
            wait_seconds=patience,
            overrun=overrun,
        )
    except FileNotFoundError:
        complain(f"there is no command {argv[0]!r}")
        return NO_SUCH_COMMAND
    except OSError as error:
        if not isinstance(error, PermissionError) and error.errno != errno.ENOEXEC:
            raise
        complain(f"{argv[0]!r} cannot be executed")
        return NOT_EXECUTABLE


def _tell_runtimes_left_out(decision: Decision) -> None:
    """Software and host standing back is no news; a GPU that stays idle is."""
    text = left_out_line(one for one in decision.left_out if one.rule == "runtime")
    if text:
        complain(text)
