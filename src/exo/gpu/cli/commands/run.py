"""``exo-gpu run``: one command, pinned to the device that suits it best."""

from __future__ import annotations

import errno
import shlex
from typing import TYPE_CHECKING, Any

import click

from exo.gpu.cli.context import (
    duration,
    files,
    gang_options,
    left_out_line,
    make_request,
    request_options,
)
from exo.gpu.cli.machines import cluster_option, open_node
from exo.gpu.cli.main import complain
from exo.gpu.cli.waiting import wait_options, wait_seconds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exo.gpu.vocabulary.command_end import CommandEnd
    from exo.gpu.vocabulary.decision import Decision
    from exo.gpu.vocabulary.request import Request

# POSIX.1-2024, shell command language 2.8.2.
NOT_EXECUTABLE = 126
NO_SUCH_COMMAND = 127

_WITHOUT_LEASE = "no lease is held: nothing keeps others from the device, now or later"


@click.command(
    context_settings={"allow_interspersed_args": False},
    epilog="Exit status: the command's own; 128 + n when signal n ended it; 124 when its time was "
    "over; 126 when it cannot be executed, 127 when there is no such command; 69 no device here "
    "can ever satisfy this; 75 not now; 2 usage.",
)
@request_options
@gang_options
@wait_options
@click.option("--name", metavar="TEXT", help="What 'leases' and 'ps' call it; else its own words.")
@click.option(
    "--timeout",
    callback=duration,
    metavar="TIME",
    help="End it after so long, as 30m or 90s: SIGTERM, and SIGKILL five seconds later.",
)
@click.option(
    "--retries",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Start it again when it fails, so often; not after --timeout or Ctrl-C.",
)
@click.option("--report", is_flag=True, help="At the end say on standard error what it took.")
@click.option(
    "--overrun",
    type=click.Choice(["warn", "kill", "off"]),
    default="warn",
    help="What becomes of a command that takes more memory than it declared, as far as the driver "
    "tells.",
)
@cluster_option
@click.option("--dry-run", is_flag=True, help="Say what would run where and why; nothing is taken.")
@click.option(
    "--env-only",
    is_flag=True,
    help="Print shell lines for eval that pin a process, and run nothing; no lease is held.",
)
@click.argument(
    "argv",
    metavar="[--] COMMAND [ARGUMENT]...",
    nargs=-1,
    type=click.UNPROCESSED,
    shell_complete=files,
)
def command(argv: tuple[str, ...], dry_run: bool, env_only: bool, **options: Any) -> int:
    """Run a command pinned to the device that suits it best.

    No option is needed: one device of the best class and runtime is leased for as long as the
    command and its children live. The command sees that device and no other. Where none is free,
    the answer is "not now" (75), unless --wait says how long to stand in the line.
    """
    if env_only and (argv or dry_run):
        raise click.UsageError("--env-only prints variables: it takes no command and no --dry-run")
    if not argv and not env_only:
        raise click.UsageError("what shall run? exo-gpu run [OPTIONS] -- COMMAND [ARGUMENT]...")
    if options["timeout"] == 0:
        raise click.UsageError("--timeout: a time above 0")
    patience = wait_seconds(options)
    words = shlex.join(argv) or "exo-gpu run --env-only"
    request = make_request(
        options["name"] or words, options | {"kind": options["kind"] or shlex.join(argv)}
    )
    if env_only or dry_run:
        _print_choice(request, argv, cluster=options["cluster"])
        return 0
    return _run(argv, request, patience, options)


def _run(
    argv: Sequence[str], request: Request, patience: float | None, options: dict[str, Any]
) -> int:
    from exo.gpu.coordination.runs import Listeners, RunPlan, run_command

    plan = RunPlan(
        wait_seconds=patience,
        timeout_seconds=options["timeout"],
        retries=options["retries"],
        overrun=options["overrun"],
    )
    listeners = Listeners(
        on_wait=complain, on_start=_tell_runtimes_left_out, on_retry=_tell_of_retry
    )
    try:
        with open_node(cluster=options["cluster"]) as node:
            end = run_command(argv, request, plan=plan, listeners=listeners, node=node)
    except FileNotFoundError:
        complain(f"there is no command {argv[0]!r}")
        return NO_SUCH_COMMAND
    except OSError as error:
        if not isinstance(error, PermissionError) and error.errno != errno.ENOEXEC:
            raise
        complain(f"{argv[0]!r} cannot be executed")
        return NOT_EXECUTABLE
    _report(end, aloud=options["report"])
    return end.status


def _print_choice(request: Request, argv: Sequence[str], *, cluster: bool) -> None:
    """Lines for a shell: what pins a process, and of a command also why, and itself."""
    from exo.gpu.cli.render import shell_lines
    from exo.gpu.coordination.leases import decide
    from exo.gpu.coordination.slots import refusal
    from exo.gpu.scheduling.selector import explain

    with open_node(cluster=cluster) as node:
        decision, snapshot = decide(request, node=node)
        if not decision.chosen:
            raise refusal(decision)
        lines = shell_lines(node.environment(decision.chosen))
        if argv:
            why = explain(decision, snapshot).splitlines()
            lines = "\n".join([*(f"# {line}".rstrip() for line in why), lines, shlex.join(argv)])
    click.echo(lines)
    _tell_runtimes_left_out(decision)
    complain(_WITHOUT_LEASE)


def _report(end: CommandEnd, *, aloud: bool) -> None:
    import logging

    from exo.gpu.cli.run_report import report_line

    logger = logging.getLogger("exo.gpu.cli.run")
    if aloud:
        complain(report_line(end))
    else:
        logger.info("%s", report_line(end))


def _tell_of_retry(end: CommandEnd) -> None:
    from exo.gpu.execution.outcome import describe_exit

    where = ", ".join(end.device_ids)
    complain(f"on {where} the command {describe_exit(end.returncode)}; it is started again")


def _tell_runtimes_left_out(decision: Decision) -> None:
    """Software and host standing back is no news; a GPU that stays idle is."""
    text = left_out_line(one for one in decision.left_out if one.rule == "runtime")
    if text:
        complain(text)
