"""``exo-gpu split``: which layers of a model go where, and an engine's settings that say so."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from exo.gpu.cli.context import files, print_json
from exo.gpu.cli.main import NEVER_AVAILABLE, NOT_NOW, SUCCESS, complain

if TYPE_CHECKING:
    from exo.gpu.cli.split.devices_file import Box
    from exo.gpu.vocabulary.split import SplitPlan
    from exo.gpu.vocabulary.split_network import SplitNetwork


def _bandwidths(
    ctx: click.Context, option: click.Parameter, words: tuple[str, ...]
) -> dict[str, float]:
    """GB/s by device id of ``ID=GBPS``; a click callback."""
    found: dict[str, float] = {}
    for word in words:
        name, _, number = word.rpartition("=")
        try:
            found[name] = float(number)
        except ValueError:
            name = ""
        if not name or not 0 < found[name] < float("inf"):
            message = f"{option.opts[-1]}: {word!r} is not ID=GBPS, such as cuda:0=936"
            raise click.UsageError(message, ctx)
    return found


@click.command(
    epilog="Exit status: 0; 1 the model cannot be read, or the format cannot express the plan; "
    "2 usage; 69 it fits on these devices never; 75 not now."
)
@click.argument("model", shell_complete=files)
@click.option(
    "--goal",
    type=click.Choice(["latency", "throughput"]),
    default="latency",
    help="The least time for a token (one user), or the most tokens a second (many).",
)
@click.option(
    "--context", type=click.IntRange(1), metavar="TOKENS", help="Of each sequence (4096)."
)
@click.option(
    "--batch",
    type=click.IntRange(1),
    default=1,
    metavar="N",
    help="Sequences that one step decodes together (1); for throughput, in each device.",
)
@click.option(
    "--device", "devices", multiple=True, metavar="ID", help="Only this device; repeatable."
)
@click.option("--on", "runtime", metavar="RUNTIME", help="Only devices of this runtime.")
@click.option("--all-devices", is_flag=True, help="Devices of every class at once.")
@click.option(
    "--host", "use_host", is_flag=True, help="The machine's own memory takes layers, too."
)
@click.option("--reserve", default="0", metavar="SIZE", help="Keep so much free on each device.")
@click.option(
    "--buffer",
    metavar="SIZE",
    help="What the engine takes on each device beside weights and cache (1GiB, assumed).",
)
@click.option(
    "--bandwidth",
    "bandwidths",
    multiple=True,
    callback=_bandwidths,
    metavar="ID=GBPS",
    help="How fast a device reads its memory, where you know better; repeatable.",
)
@click.option(
    "--devices",
    "devices_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    shell_complete=files,
    metavar="FILE",
    help="Plan for the devices of a JSON file, or a network of nodes, in place of this machine's.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "llama.cpp", "vllm", "accelerate", "exo", "json"]),
    default="table",
    help="For people, for an engine, or JSON.",
)
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
def command(model: str, devices_file: Path | None, form: str, as_json: bool, **options: Any) -> int:
    """Split one model over unlike devices, and say why so.

    MODEL is a GGUF or safetensors file, one of its shards, their index or folder, or a JSON
    description. Only headers are read. Nothing is taken or started.

    \b
    exo-gpu split model.gguf --context 8192
    exo-gpu split model.gguf --goal throughput --batch 8 --format llama.cpp
    """  # noqa: D301 - \b is click's mark of lines that stay as they are
    from exo.gpu.models.reading import read_model

    form = "json" if as_json else form
    given = _given(devices_file)
    if given is not None and not hasattr(given, "devices"):
        return _network(given, form)
    needs = read_model(model)
    plan = _plan(needs, given, options, form)
    if not plan.fits:
        return _refuse(plan, form)
    if form == "json":
        print_json(plan)
    elif form == "table":
        from exo.gpu.cli.split.view import plan_view

        click.echo(plan_view(plan))
    else:
        from exo.gpu.cli.split.engines import ENGINES, accelerate_hint

        click.echo(ENGINES[form](plan, needs, model))
        if form == "accelerate" and (hint := accelerate_hint(plan)):
            complain(hint)
    return SUCCESS


def _given(path: Path | None) -> Any:
    if path is None:
        return None
    from exo.gpu.cli.split.devices_file import read_devices

    return read_devices(path)


def _plan(needs: Any, given: Box | None, options: dict[str, Any], form: str) -> SplitPlan:
    from exo.gpu.cli.split.engines import RUNTIMES
    from exo.gpu.coordination.splitting import plan_split

    if given is None:
        named = options.pop("devices")
        runtimes = RUNTIMES.get(form)
        one = runtimes is not None
        return plan_split(needs, named or None, runtimes=runtimes, one_runtime=one, **options)
    own = ("devices", "runtime", "all_devices", "use_host", "buffer", "bandwidths")
    named = [name for name in own if options[name]]
    if named or options["reserve"] != "0":
        raise click.UsageError("--devices cannot go with options that choose or change devices")
    asked = {name: options[name] for name in ("goal", "context", "batch")}
    return plan_split(needs, given.devices, links=given.links, **asked)


def _network(network: SplitNetwork, form: str) -> int:
    from exo.gpu.coordination.splitting import plan_split

    if form not in {"table", "json"}:
        raise click.UsageError(f"--format {form} has no words for a network: table and json have")
    plan = plan_split(None, network)
    if form == "json":
        print_json(plan)
    else:
        from exo.gpu.cli.split.view import network_view

        click.echo(network_view(plan))
    return SUCCESS if plan.placement else NEVER_AVAILABLE


def _refuse(plan: SplitPlan, form: str) -> int:
    """Say that it does not fit; the exit status."""
    assert plan.shortage is not None
    if form == "json":
        print_json(plan)
    else:
        from exo.gpu.cli.split.view import plan_view

        click.echo(plan_view(plan), err=True)
    return NOT_NOW if plan.shortage.fits_when_empty else NEVER_AVAILABLE
