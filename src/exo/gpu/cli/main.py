"""The command ``exo-gpu``: a written table of commands, the exit status, and nothing else.

``--help`` reads the table and imports nothing but click; a command's module is loaded when the
command is called.
"""

from __future__ import annotations

import gc
import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

    from click.shell_completion import CompletionItem

# Name -> what --help says of it. The module of the same name holds it as ``command``.
COMMANDS = {
    "devices": "List every device and what it is doing now.",
    "top": "Watch every device, its users and its health live.",
    "ps": "Say who holds what on every device.",
    "doctor": "Say per backend what was found, or why not and what to install.",
    "probe": "Measure how fast each device really is.",
    "select": "Choose devices for a piece of work, and say why.",
    "run": "Run a command pinned to the device that suits it best.",
    "map": "Run a command for every item, spread over the devices.",
    "split": "Split one model over unlike devices, and say why so.",
    "cordon": "Keep a device out of scheduling.",
    "uncordon": "Take a device back into scheduling.",
    "drain": "Let what runs on a device finish, and begin nothing new there.",
    "jobs": "List the jobs of map, the newest first.",
    "history": "Show what a device did: its readings over time.",
    "leases": "Say who holds which device, and who waits.",
    "why": "Say what a waiting command waits for.",
    "config": "Show every setting, and where its value comes from.",
    "watch": "Sample every device over and over.",
    "simulate": "Run a recorded workload on paper, under one policy or another.",
    "serve": "Show this machine, or a cluster, to browsers and programs.",
    "cluster": "Make many machines one, and see them.",
    "completion": "Print the completion script for bash, zsh or fish.",
}

SUCCESS = 0
FAILURE = 1
USAGE = 2
NEVER_AVAILABLE = 69  # EX_UNAVAILABLE of sysexits.h
NOT_NOW = 75  # EX_TEMPFAIL of sysexits.h
INTERRUPTED = 128 + 2  # a shell's status for a death by SIGINT
PIPE_CLOSED = 128 + 13  # a shell's status for a death by SIGPIPE

# GNU parallel's status for its own failure: the small ones count the failed items.
OWN_FAILURE = {"map": 255}


class CommandTable(click.Group):
    """The group of all commands; knows their names without loading them."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the options in front of the command; without a command, the help is the answer."""
        if not args and not ctx.resilient_parsing:
            click.echo(ctx.get_help(), err=True)
            ctx.exit(USAGE)
        return super().parse_args(ctx, args)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load one command."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        return import_module(f"exo.gpu.cli.commands.{cmd_name}").command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table into the help text."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete command names from the table, and options as click does."""
        from click.shell_completion import CompletionItem

        names = [
            CompletionItem(name, help=text)
            for name, text in COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return names + click.Command.shell_complete(self, ctx, incomplete)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that was meant; suggest the near spelling of one that is not."""
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            import difflib

            near = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(COMMANDS)}"
            ctx.fail(f"no such command {name!r} ({hint})")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> int:
        """Run the command and turn whatever stops it into one line and an exit status."""
        from exo.gpu.vocabulary.errors import ExoGpuError

        try:
            status = super().invoke(ctx)
            if sys.stdout is not None:
                sys.stdout.flush()
        except BrokenPipeError:
            _forget_stdout()
            return PIPE_CLOSED
        except (click.ClickException, ExoGpuError, OSError) as error:
            _tell(error)
            if isinstance(error, OSError):  # such as a full disk below standard output
                _forget_stdout()
            return _status_of(error, ctx.invoked_subcommand)
        return status or SUCCESS


def complain(text: str) -> None:
    """One line on standard error, whatever is in ``text``."""
    click.echo(f"exo-gpu: {' '.join(text.split())}", err=True)


def _tell(error: Exception) -> None:
    """The error in one line; with ``-vv`` also where it came from."""
    import logging

    logging.getLogger("exo.gpu.cli").debug("where it came from", exc_info=error)
    text = error.format_message() if isinstance(error, click.ClickException) else str(error)
    complain(text or type(error).__name__)


def _status_of(error: Exception, command: str | None) -> int:
    from exo.gpu.vocabulary.errors import (
        ConfigurationError,
        InvalidValue,
        NeverAvailable,
        NotNow,
    )

    if isinstance(error, NeverAvailable):
        return NEVER_AVAILABLE
    if isinstance(error, NotNow):
        return NOT_NOW
    wrong_use = (click.ClickException, ConfigurationError, InvalidValue)
    usual = USAGE if isinstance(error, wrong_use) else FAILURE
    return OWN_FAILURE.get(command or "", usual)


def _forget_stdout() -> None:
    """Nobody reads our output any more: what the interpreter still flushes goes nowhere."""
    if sys.stdout is None:
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _print_version(ctx: click.Context, _option: click.Parameter, asked: bool) -> None:
    if asked and not ctx.resilient_parsing:
        from exo.gpu import __version__

        click.echo(f"exo-gpu {__version__}")
        ctx.exit()


@click.group(
    "exo-gpu",
    cls=CommandTable,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit status: 0; 1 failure; 2 usage; 69 no device here can ever satisfy this; "
    "75 not now; 'run' and 'map' have their own (see their --help).",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version and exit.",
)
@click.option("-v", "--verbose", count=True, help="Log to standard error; twice: in detail.")
def root(verbose: int) -> None:
    """Find every device you have, decide which should do what, and run it there."""
    import logging

    levels = (logging.WARNING, logging.INFO, logging.DEBUG)
    logging.basicConfig(
        level=levels[min(verbose, len(levels) - 1)],
        format="exo-gpu: %(message)s" if not verbose else "%(asctime)s %(name)s: %(message)s",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``exo-gpu`` with ``arguments`` (those of the process by default); the exit status."""
    status = _run(arguments)
    if arguments is None:
        # The process ends now: what it loaded need not be searched for garbage three times first.
        gc.freeze()
    return status


def _run(arguments: Sequence[str] | None) -> int:
    try:
        result: Any = root.main(arguments, prog_name="exo-gpu", standalone_mode=False)
    except click.Abort:
        return INTERRUPTED
    except click.ClickException as error:
        complain(error.format_message())
        return USAGE
    return int(result or SUCCESS)
