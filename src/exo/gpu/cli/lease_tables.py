"""Leases and the line in words for people: 80 columns, plain."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from exo.gpu.cli.render import UNKNOWN, WIDTH, moment
from exo.gpu.nodes.overrun import overrun_words
from exo.gpu.scheduling.explanation import refusal_message
from exo.gpu.vocabulary.units import format_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from exo.gpu.scheduling.job_queue import Turn
    from exo.gpu.vocabulary.forecast import MemoryAdvice
    from exo.gpu.vocabulary.lease import Lease, Waiter

_INDENT = " " * 4


def leases_table(leases: Iterable[Lease]) -> str:
    """Two lines a lease: its figures, and below them who holds it and what else there is to say."""
    header = ("ID", "DEVICE", "HOLDS", "SEEN", "SINCE", "PID", "USER")
    leases = tuple(leases)
    rows = [header, *(_lease_row(lease) for lease in leases)]
    lines = _aligned(rows)
    text = [lines[0]]
    for lease, line in zip(leases, lines[1:], strict=True):
        text += [line, *_wrapped("; ".join(_lease_details(lease)), _INDENT)]
    return "\n".join(text)


def line_table(line: Iterable[tuple[Waiter, Turn]]) -> str:
    """Who waits, the first one first: what for, and why not now."""
    header = ("WAITING", "ASKS", "SINCE", "PID", "USER")
    line = tuple(line)
    rows = [header, *(_waiter_row(waiter) for waiter, _ in line)]
    lines = _aligned(rows)
    text = [lines[0]]
    for (waiter, turn), row in zip(line, lines[1:], strict=True):
        who = waiter.request.holder or waiter.command
        text += [row, *_wrapped(f"{who}; {_reason(turn)}", _INDENT)]
    return "\n".join(text)


def why_held(lease: Lease, advice: MemoryAdvice | None = None) -> str:
    """A lease waits for nothing: who has it, and what on."""
    if lease.settling:
        text = (
            f"{lease.lease_id} has ended. Its memory on {lease.device_id} is awaited, for some "
            "seconds at most."
        )
    else:
        text = (
            f"{lease.lease_id} waits for nothing: it holds {_holds(lease)} of {lease.device_id} "
            f"since {moment(lease.taken_at)}, and ends with the last process under it."
        )
    details = "; ".join(_lease_details(lease))
    lines = [*_wrapped(text, ""), *_wrapped(details, _INDENT)]
    return "\n".join([*lines, *_wrapped(_memory_words(lease.memory_bytes, advice), _INDENT)])


def why_waiting(waiter: Waiter, turn: Turn, advice: MemoryAdvice | None = None) -> str:
    """The place in the line, who is before it, and what each device says."""
    place = len(turn.ahead) + 1
    lines = _wrapped(
        f"{waiter.waiter_id} is number {place} in the line, since {moment(waiter.waiting_since)}: "
        f"it asks for {_asks(waiter)}.",
        "",
    )
    for other in turn.ahead:
        who = other.request.holder or other.command or f"process {other.pid}"
        lines += _wrapped(f"before it: {other.waiter_id}, {_asks(other)} ({who})", "  ")
    head = turn.head
    if head is not None and head.reserved:
        owner = "it" if head.waiter_id == waiter.waiter_id else head.waiter_id
        lines += _wrapped(f"kept for {owner}: {', '.join(head.reserved)}", "  ")
    if turn.decision.chosen:
        lines += _wrapped(f"free for it now: {', '.join(turn.decision.chosen)}", "  ")
    for refusal in turn.decision.refusals:
        when = "never" if refusal.permanent else "not now"
        lines += _wrapped(f"{refusal.device_id} [{refusal.rule}, {when}] {refusal.reason}", "  ")
    lines += _wrapped(_memory_words(waiter.request.memory_bytes, advice), "  ")
    return "\n".join(lines)


def _memory_words(declared_bytes: int | None, advice: MemoryAdvice | None) -> str:
    """Declared against seen; empty where nothing was seen of the kind."""
    if advice is None:
        return ""
    declared = "none" if declared_bytes is None else format_size(declared_bytes)
    runs = "1 run" if advice.samples == 1 else f"{advice.samples} runs"
    return (
        f"memory: declared {declared}; 99 % of {runs} of its kind took "
        f"{format_size(advice.seen_bytes)} at most, {format_size(advice.advised_bytes)} with a "
        "margin ('--memory auto' asks for that)"
    )


def _lease_row(lease: Lease) -> tuple[str, ...]:
    return (
        lease.lease_id,
        lease.device_id,
        _holds(lease),
        UNKNOWN if lease.seen_bytes is None else format_size(lease.seen_bytes),
        moment(lease.taken_at),
        str(lease.pid),
        lease.user or UNKNOWN,
    )


def _holds(lease: Lease) -> str:
    if lease.exclusive:
        return "all"
    if lease.share is not None:
        return f"{lease.share:g}"
    return "a slot" if lease.memory_bytes is None else format_size(lease.memory_bytes)


def _lease_details(lease: Lease) -> list[str]:
    details = [lease.holder or lease.command]
    if lease.settling:
        details.append("ended: its memory is awaited")
    if lease.overrun_bytes:
        details.append(f"MORE THAN DECLARED: {overrun_words(lease)}")
    return [detail for detail in details if detail]


def _waiter_row(waiter: Waiter) -> tuple[str, ...]:
    since = moment(waiter.waiting_since)
    return (waiter.waiter_id, _asks(waiter), since, str(waiter.pid), waiter.user or UNKNOWN)


def _asks(waiter: Waiter) -> str:
    request = waiter.request
    what = "a slot" if request.memory_bytes is None else format_size(request.memory_bytes)
    if request.share is not None:
        what = f"a share of {request.share:g}"
    if request.exclusive:
        what = "a whole device"
    return what if request.count == 1 else f"{request.count} x {what}"


def _reason(turn: Turn) -> str:
    if turn.decision.chosen:
        return f"about to get {', '.join(turn.decision.chosen)}"
    return refusal_message(turn.decision)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _wrapped(text: str, indent: str) -> list[str]:
    hanging = indent + "  " if indent else ""
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=hanging)
