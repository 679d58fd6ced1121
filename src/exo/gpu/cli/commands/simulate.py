"""``exo-gpu simulate``: run a recorded workload on paper, under one policy or another."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from exo.gpu.cli.context import drawing, duration, files, plot_option, print_json
from exo.gpu.cli.main import SUCCESS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exo.gpu.simulation.outcome import Summary
    from exo.gpu.simulation.study import Study

FIRST_SEED = 42


@click.command(epilog="Exit status: 0; 1 a file cannot be read; 2 usage.")
@click.option(
    "--cluster",
    required=True,
    shell_complete=files,
    metavar="C",
    help="A number of GPUs that are alike; a table of machines as openb has it; or a script of "
    "devices, such as EXO_GPU_FAKE names.",
)
@click.option(
    "--trace",
    required=True,
    type=click.Path(exists=True, path_type=Path),
    shell_complete=files,
    metavar="T",
    help="Pods of openb, jobs of Philly or Gavel, a journal of 'map' or a folder of them, or a "
    "table with arrived_seconds and run_seconds.",
)
@click.option(
    "--speeds",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    shell_complete=files,
    metavar="FILE",
    help="Gavel's table of speeds, for Gavel's jobs.",
)
@click.option(
    "--policy",
    "policies",
    metavar="A,B,C",
    help="Which to compare; all that suit the cluster by default.",
)
@click.option(
    "--seeds",
    type=click.IntRange(1, 1000),
    default=1,
    metavar="N",
    help="So many runs of each (1).",
)
@click.option(
    "--add",
    metavar="MODEL=N",
    help="N more devices like the first whose name has MODEL in it.",
)
@click.option(
    "--fail-every", callback=duration, metavar="TIME", help="A device fails this often, on average."
)
@click.option(
    "--repair", callback=duration, default="1h", metavar="TIME", help="It is back after this (1h)."
)
@click.option(
    "--delay", callback=duration, metavar="TIME", help="Use of memory is known this late (0)."
)
@click.option(
    "--noise",
    type=click.FloatRange(0, 100),
    default=0.0,
    metavar="PERCENT",
    help="How inexact the use of memory is: its standard deviation (0).",
)
@click.option(
    "--processes",
    type=click.IntRange(1, 256),
    metavar="N",
    help="So many runs at once; as many as there are cores by default.",
)
@plot_option("a picture")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for programs.")
def command(cluster: str, trace: Path, policies: str | None, **options: Any) -> int:
    """Run a recorded workload on paper, under one policy or another.

    Nothing is started, and no device is touched. Machines that only fill up are compared by what
    they hold in the end; jobs by how long they wait and take.

    \b
    exo-gpu simulate --cluster 64 --trace philly.csv --policy fifo,line
    exo-gpu simulate --cluster nodes.csv --trace pods.csv --seeds 10
    """  # noqa: D301 - \b is click's mark of lines that stay as they are
    from exo.gpu.simulation.report import check_policies, means, policies_of, run_all

    study = _study(cluster, trace, options)
    names = [name.strip() for name in policies.split(",")] if policies else list(policies_of(study))
    names = list(dict.fromkeys(names))
    check_policies(study, names)
    seeds = range(FIRST_SEED, FIRST_SEED + options["seeds"])
    processes = options["processes"] or os.cpu_count() or 1
    summaries = run_all(study, names, seeds, processes=processes)
    if options["plot"]:
        _draw(summaries, options["plot"])
    if options["as_json"]:
        runs = [_described(one) for one in summaries]
        print_json({"kind": study.kind.value, "means": means(summaries), "runs": runs})
    else:
        click.echo(_table(study, summaries))
    return SUCCESS


def _study(cluster: str, trace: Path, options: dict[str, Any]) -> Study:
    import msgspec

    from exo.gpu.simulation.study import Kind, read_study
    from exo.gpu.simulation.traces.clusters import grown
    from exo.gpu.simulation.weather import Weather

    weather = Weather(
        failure_seconds=options["fail_every"],
        repair_seconds=options["repair"],
        telemetry_delay_seconds=options["delay"] or 0.0,
        noise_ratio=options["noise"] / 100,
    )
    study = read_study(cluster, trace, speeds=options["speeds"], weather=weather)
    if study.kind is not Kind.DEVICES and weather != Weather(repair_seconds=options["repair"]):
        raise click.UsageError("--fail-every, --delay and --noise need a script of devices")
    if options["add"] is None:
        return study
    model, _, count = options["add"].rpartition("=")
    if study.kind is not Kind.DEVICES or not model or not count.isdecimal():
        raise click.UsageError("--add needs MODEL=N and a script of devices")
    devices = grown(study.devices, model, int(count))
    return msgspec.structs.replace(study, devices=devices)


def _described(one: Summary) -> dict[str, Any]:
    import msgspec

    return msgspec.structs.asdict(one)


def _table(study: Study, summaries: Sequence[Summary]) -> str:
    """A line for each policy: the means over the seeds, without what is known of none."""
    from exo.gpu.simulation.report import means
    from exo.gpu.simulation.study import Kind

    by_policy = means(summaries)
    longest = max(figures["makespan_seconds"] or 0.0 for figures in by_policy.values())
    unit, seconds = ("h", 3600.0) if longest >= HOURS_FROM_SECONDS else ("s", 1.0)
    columns = [
        (head.replace("TIME", unit), name, 1 / seconds if factor == TIME else factor)
        for head, name, factor in (_PLACEMENT if study.kind is Kind.PLACEMENT else _JOBS)
        if any(figures[name] is not None for figures in by_policy.values())
    ]
    rows = [("POLICY", *(head for head, _, _ in columns))]
    for policy, figures in by_policy.items():
        rows.append((policy, *(_cell(name, figures[name], by) for _, name, by in columns)))
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


# Shorter workloads are told in seconds.
HOURS_FROM_SECONDS = 2 * 3600.0
TIME = -1.0

_PLACEMENT = (
    ("PODS", "jobs", 1.0),
    ("DROPPED", "refused", 1.0),
    ("ALLOCATED %", "allocation_ratio", 100.0),
    ("UNUSABLE %", "fragmentation_ratio", 100.0),
)
_JOBS = (
    ("DONE", "completed", 1.0),
    ("ALL TIME", "makespan_seconds", TIME),
    ("WAIT", "waiting_mean_seconds", TIME),
    ("MEAN", "completion_mean_seconds", TIME),
    ("P50", "completion_p50_seconds", TIME),
    ("P95", "completion_p95_seconds", TIME),
    ("P99.9", "completion_p999_seconds", TIME),
    ("USED %", "utilization_ratio", 100.0),
    ("kWh", "energy_joules", 1 / 3.6e6),
)
_COUNTS = frozenset({"jobs", "completed", "refused"})


def _cell(name: str, value: float | None, factor: float) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if name in _COUNTS else f"{value * factor:.2f}"


def _draw(summaries: Sequence[Summary], path: Path) -> None:
    with drawing(path):
        from exo.gpu.simulation.report import draw

        draw(summaries, path)
