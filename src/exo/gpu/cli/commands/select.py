"""``exo-gpu select``: the choice alone, with nothing taken."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, BinaryIO

import click

from exo.gpu.cli.context import (
    gang_options,
    left_out_line,
    make_request,
    print_json,
    request_options,
)
from exo.gpu.cli.main import complain

if TYPE_CHECKING:
    from exo.gpu.vocabulary.decision import Decision
    from exo.gpu.vocabulary.request import Request
    from exo.gpu.vocabulary.snapshot import Snapshot


@click.command(
    epilog="Exit status: 0; 69 no device here can ever satisfy this; 75 not now; 2 usage."
)
@request_options
@gang_options
@click.option(
    "--request",
    "request_file",
    type=click.File("rb"),
    metavar="FILE",
    help="A request as JSON, '-' for standard input; options given beside it come on top.",
)
@click.option("--explain", is_flag=True, help="Also say why, device by device and term by term.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["id", "uuid", "env", "json"]),
    default="id",
    help="Device ids, hardware ids, shell lines for eval that pin a process, or JSON.",
)
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
def command(
    form: str, as_json: bool, explain: bool, request_file: BinaryIO | None, **options: Any
) -> None:
    """Choose devices for a piece of work, and say why.

    Nothing is reserved: another process may get there first. 'exo-gpu run' takes a lease.

    \b
    exo-gpu select --memory 8GiB --explain
    eval "$(exo-gpu select --memory 8GiB --format env)"
    """  # noqa: D301 - \b is click's mark of lines that stay as they are
    from exo.gpu.coordination.leases import decide
    from exo.gpu.coordination.slots import refusal
    from exo.gpu.nodes.local import LocalNode
    from exo.gpu.scheduling.selector import explain as explanation_of

    base = None if request_file is None else _request_of(request_file.read())
    request = make_request("exo-gpu select", options, base)
    form = "json" if as_json else form
    with LocalNode() as node:
        decision, snapshot = decide(request, node=node)
        text = explanation_of(decision, snapshot) if explain else ""
        if form == "json":
            _print_decision(decision, snapshot, text)
        else:
            if decision.chosen:
                changes = node.environment(decision.chosen) if form == "env" else {}
                click.echo(_choice(decision, snapshot, form, changes))
            if text:
                click.echo(_as_comment(text) if form == "env" else text)
    if not decision.chosen:
        raise refusal(decision)
    left_out = left_out_line(decision.left_out)
    if left_out:
        complain(left_out)


def _request_of(text: bytes) -> Request:
    """The request in a JSON object.

    Raises:
        UsageError: for what is no request; with the near spelling for a field that does not exist.

    """
    import msgspec

    from exo.gpu.vocabulary.errors import UnknownName
    from exo.gpu.vocabulary.request import Request

    try:
        fields = msgspec.json.decode(text, type=dict[str, Any])
        for name in fields:
            if name not in Request.__struct_fields__:
                raise UnknownName("field", name, Request.__struct_fields__)
        return Request.from_dict(fields)
    except ValueError as error:
        raise click.UsageError(f"--request: {error}") from None


def _choice(
    decision: Decision, snapshot: Snapshot, form: str, changes: dict[str, str | None]
) -> str:
    if form == "env":
        from exo.gpu.cli.render import shell_lines

        return shell_lines(changes)
    if form == "uuid":
        hardware = {state.device.device_id: state.device.hardware_id for state in snapshot.devices}
        return "\n".join(hardware[device_id] for device_id in decision.chosen)
    return "\n".join(decision.chosen)


def _print_decision(decision: Decision, snapshot: Snapshot, explanation: str) -> None:
    by_id = {state.device.device_id: state.device for state in snapshot.devices}
    fields = decision.to_dict()
    fields["devices"] = [by_id[device_id].to_dict() for device_id in decision.chosen]
    if not decision.chosen:
        fields["never"] = decision.never
    if explanation:
        fields["explanation"] = explanation
    print_json(fields)


def _as_comment(text: str) -> str:
    return "\n".join(f"# {line}".rstrip() for line in text.splitlines())
