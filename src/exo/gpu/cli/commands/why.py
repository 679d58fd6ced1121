"""``exo-gpu why``: what a waiting command waits for, device by device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from exo.gpu.cli.context import print_json

if TYPE_CHECKING:
    from exo.gpu.scheduling.job_queue import Turn
    from exo.gpu.vocabulary.forecast import MemoryAdvice
    from exo.gpu.vocabulary.lease import Waiter


@click.command()
@click.argument("name", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for programs.")
def command(name: str, as_json: bool) -> None:
    """Say what a waiting command waits for.

    ID is what 'exo-gpu leases' shows. For one who waits: its place in the line, who is before it,
    and for each device the rule that refuses it. For a lease: that it is held, by whom and on
    what. For both, the memory declared beside what work of its kind was seen to take.
    """
    import os

    from exo.gpu.cli.lease_tables import why_held, why_waiting
    from exo.gpu.nodes.experience import Experience, experience_path
    from exo.gpu.nodes.lease_report import find
    from exo.gpu.nodes.local import LocalNode
    from exo.gpu.vocabulary.lease import Lease

    with LocalNode() as node:
        leases, line = node.leases(), node.line()
    record = find(leases, tuple(waiter for waiter, _ in line), name)
    kind = record.kind if isinstance(record, Lease) else record.request.kind
    advice = Experience(experience_path(os.environ)).advice(kind) if kind else None
    if isinstance(record, Lease):
        if as_json:
            print_json({"lease": record.to_dict(), "waits_for": [], "memory": _to_dict(advice)})
        else:
            click.echo(why_held(record, advice))
        return
    turn = next(turn for waiter, turn in line if waiter.waiter_id == name)
    if as_json:
        print_json(_fields(record, turn) | {"memory": _to_dict(advice)})
    else:
        click.echo(why_waiting(record, turn, advice))


def _fields(waiter: Waiter, turn: Turn) -> dict[str, Any]:
    return {
        "waiter": waiter.to_dict(),
        "place": len(turn.ahead) + 1,
        "ahead": [one.waiter_id for one in turn.ahead],
        "kept_for": turn.head.waiter_id if turn.head is not None else None,
        "waits_for": [refusal.to_dict() for refusal in turn.decision.refusals],
    }


def _to_dict(advice: MemoryAdvice | None) -> dict[str, Any] | None:
    return None if advice is None else advice.to_dict()
