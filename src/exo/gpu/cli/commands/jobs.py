"""``exo-gpu jobs``: jobs of ``map``, what became of their items, and who did them when."""

from __future__ import annotations

import os
from pathlib import Path

import click

from exo.gpu.cli.context import drawing, plot_option, print_json
from exo.gpu.cli.main import SUCCESS, complain

# Failed items that are told of: to people, and to programs.
MOST_FAILURES = 20
MOST_FAILURES_JSON = 10_000


@click.group(
    invoke_without_command=True,
    epilog="Exit status: 0; 1 there is no such job, or its journal cannot be read; 2 usage.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for programs.")
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> int:
    """List the jobs of map, the newest first.

    A job is running, done, or interrupted: then 'exo-gpu map --resume' goes on with it. DONE,
    FAILED and LEFT count its items.
    """
    from exo.gpu.coordination.jobs import list_jobs

    if ctx.invoked_subcommand is not None:
        return SUCCESS
    jobs, problems = list_jobs(os.environ)
    for problem in problems:
        complain(problem)
    if as_json:
        print_json({"jobs": [job.to_dict() for job in jobs]})
    elif jobs:
        from exo.gpu.cli.jobs_view import jobs_table

        click.echo(jobs_table(jobs))
    else:
        complain("there are no jobs yet: 'exo-gpu map' makes one")
    return SUCCESS


def _complete_id(_ctx: click.Context, _option: click.Parameter, incomplete: str) -> list[str]:
    from exo.gpu.execution.job_folder import SUFFIX, jobs_folder, journals

    ids = (path.name.removesuffix(SUFFIX) for path in journals(jobs_folder(os.environ)))
    return [job_id for job_id in ids if job_id.startswith(incomplete)]


@command.command("show")
@click.argument("name", metavar="ID", shell_complete=_complete_id)
@plot_option("who did what when")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for programs.")
def show(name: str, plot: Path | None, as_json: bool) -> int:
    """Say all of one job: its items, its devices, and what may have been done twice.

    ID is the job's id or a part of it, its name, the file of --joblog, a journal, or 'last'.
    """
    import msgspec

    from exo.gpu.cli.jobs_view import job_page
    from exo.gpu.coordination.jobs import failures_of, find_journal, story_of

    path = find_journal(os.environ, name)
    story = story_of(path)
    if plot is not None:
        _draw(path, plot)
    if as_json:
        failed = [msgspec.structs.asdict(one) for one in failures_of(path, MOST_FAILURES_JSON)]
        print_json(story.to_dict() | {"failures": failed})
    else:
        click.echo(job_page(story, failures_of(path, MOST_FAILURES)))
    return SUCCESS


def _draw(path: Path, plot: Path) -> None:
    from exo.gpu.coordination.jobs import story_of, tries_of

    with drawing(plot):
        from exo.gpu.cli.jobs_view import draw_gantt

        draw_gantt(story_of(path), tries_of(path), plot)
