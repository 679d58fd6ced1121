"""Why the answer is what it is: a decision in words, for people."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence

from exo.gpu.vocabulary.decision import Decision, Refusal, Score, ScoreTerm
from exo.gpu.vocabulary.links import Interconnect
from exo.gpu.vocabulary.request import DEFAULT_POLICY, Request
from exo.gpu.vocabulary.snapshot import Snapshot
from exo.gpu.vocabulary.units import format_size

WIDTH = 80
# One line for an error: a reader compares three reasons at a glance, not thirty.
_REASONS_SHOWN = 3
# The order of the rules that can never change, as the filters apply them; "closest to a yes" last.
_PERMANENT_RULES = (
    "contradiction",
    "device",
    "node",
    "class",
    "runtime",
    "vendor",
    "backend",
    "capability",
    "label",
    "share",
    "idle",
    "temperature",
    "host",
    "memory",
)


def explain(decision: Decision, snapshot: Snapshot) -> str:
    """Text of at most 80 columns: the request, every score term and refusal, what was left out."""
    names = {state.device.device_id: state.device.name for state in snapshot.devices}
    kinds = {
        state.device.device_id: f"{state.device.device_class}, {state.device.runtime}"
        for state in snapshot.devices
    }
    lines = _wrapped("Request: ", _request_words(decision.request))
    if decision.chosen:
        chosen = ", ".join(
            f"{device_id} ({names.get(device_id, '?')})" for device_id in decision.chosen
        )
        lines += _wrapped("Chosen:  ", chosen)
        if decision.slowest_link:
            lines += _wrapped("Links:   ", f"the slowest is {decision.slowest_link}")
    else:
        lines += _wrapped("Chosen:  ", f"none; {refusal_message(decision)}")
    if decision.ranking:
        lines += ["", "Eligible, best first:"]
        for place, score in enumerate(decision.ranking, start=1):
            lines += _score_lines(place, score, kinds.get(score.device_id, "?"))
    lines += _refusal_lines("Left out:", decision.left_out)
    lines += _refusal_lines("Refused:", decision.refusals)
    return "\n".join(lines)


def refusal_message(decision: Decision) -> str:
    """One line that says why nothing was chosen, for an error; empty where something was.

    It begins with ``no device`` or a count where no wait helps, and with ``not now`` where one may.
    """
    if decision.chosen:
        return ""
    if not decision.refusals and not decision.ranking:
        return "no device was found here"
    if not decision.never:
        return _not_now_message(decision)
    faults = [one.reason for one in decision.refusals if _is_of_the_request(one, decision.request)]
    if faults:
        return "; ".join(faults)
    if decision.never_reason:
        return decision.never_reason
    return _never_message(decision)


def _is_of_the_request(refusal: Refusal, request: Request) -> bool:
    """Whether it refuses no device but a name, a label or a contradiction of the request."""
    return (
        (refusal.rule == "contradiction" and refusal.device_id == "request")
        or (refusal.rule == "name" and refusal.device_id in request.devices)
        or (refusal.rule == "label" and refusal.device_id in request.labels)
    )


def _never_message(decision: Decision) -> str:
    """Led by the rule that the refused devices failed last, the closest to a yes."""
    refusals = [one for one in decision.refusals if one.permanent]
    rule = max((one.rule for one in refusals), key=_closeness)
    closest = [one for one in refusals if one.rule == rule]
    request = decision.request
    # That a device is not among those named is no news to who named them.
    others = [one for one in refusals if one.rule not in {rule, "device"}]
    more = f"; {_joined(others)}" if others else ""
    if rule == "memory":
        kind = " ".join(filter(None, (request.device_class, request.runtime)))
        where = "none of the devices named" if request.devices else f"no {kind} device here"
        asked = format_size(request.memory_bytes)
        return f"{' '.join(where.split())} can hold {asked}: {_largest(closest)}{more}"
    if rule == "runtime":
        return f"no device here belongs to runtime {request.runtime!r}: {_joined(closest)}{more}"
    if rule == "class":
        return f"no device here is of class {request.device_class}: {_joined(closest)}{more}"
    return f"no device here will do: {_joined(closest)}{more}"


def _closeness(rule: str) -> int:
    known = rule in _PERMANENT_RULES
    return _PERMANENT_RULES.index(rule) if known else len(_PERMANENT_RULES)


def _largest(refusals: Sequence[Refusal]) -> str:
    known = [one for one in refusals if one.total_bytes is not None]
    if not known:
        return _joined(refusals)
    largest = max(known, key=lambda one: one.total_bytes or 0)
    return f"the largest is {largest.device_id} with {format_size(largest.total_bytes)}"


def _not_now_message(decision: Decision) -> str:
    waiting = [one for one in decision.refusals if not one.permanent]
    count = decision.request.count
    asked = f"{count} devices are asked for; " if count > 1 else ""
    names = ", ".join(one.device_id for one in decision.left_out[:_REASONS_SHOWN])
    instead = f"; {names} would do now, if asked for by name" if names else ""
    return f"not now: {asked}{_joined(waiting)}{instead}"


def _joined(refusals: Sequence[Refusal]) -> str:
    shown = "; ".join(f"{one.device_id} {one.reason}" for one in refusals[:_REASONS_SHOWN])
    more = len(refusals) - _REASONS_SHOWN
    return f"{shown}; and {more} more" if more > 0 else shown


def _request_words(request: Request) -> str:
    nothing = "memory not declared" if request.share is None else ""
    memory = f"memory {format_size(request.memory_bytes)}" if request.memory_bytes else nothing
    if request.memory_basis:
        memory += f" ({request.memory_basis})"
    devices = "1 device" if request.count == 1 else f"{request.count} devices"
    words = [memory, devices, "alone on it" if request.exclusive else ""]
    words += [text.format(value) for text, value in _wishes(request) if value not in {None, ""}]
    return ", ".join(filter(None, words))


def _wishes(request: Request) -> Iterator[tuple[str, object]]:
    """Each further part of a request as words with a place for its value; empty for no wish."""
    yield "a share of {:g}", request.share
    yield "only {}", ", ".join(request.devices)
    yield "not {}", ", ".join(request.without_devices)
    yield "node {!r}", request.node
    yield "class {}", request.device_class
    yield "runtime {}", request.runtime
    yield "{}", "every class and runtime" if request.all_devices else ""
    yield "made by {}", " or ".join(request.vendors)
    yield "backend {}", " or ".join(request.backends)
    yield "compute capability {} or more", request.min_compute_capability
    yield "labelled {}", " and ".join(request.labels)
    yield "not labelled {}", " or ".join(request.without_labels)
    yield "{:g} % idle or more", request.min_idle_percent
    yield "{:g} C or less", request.max_temperature_celsius
    yield "{} cores beside it", request.host_cpus
    yield "{} of the machine's memory beside it", _size(request.host_memory_bytes)
    if request.count > 1:
        yield "{}", "on one machine" if request.same_node else ""
        joined = request.interconnect
        yield "joined by {}", "" if joined is Interconnect.ANY else joined.replace("_", " ")
    yield "preferably {}", " or ".join(request.prefer)
    yield "warm for {!r} if possible", request.affinity_key
    yield "of kind {!r}", request.kind
    yield "policy {}", "" if request.policy == DEFAULT_POLICY else request.policy


def _size(size_bytes: int | None) -> str:
    return "" if size_bytes is None else format_size(size_bytes)


def _score_lines(place: int, score: Score, kind: str) -> list[str]:
    lines = _wrapped(f"  {place}. ", f"{score.device_id} ({kind}): score {score.total:.3f}")
    for term in score.terms:
        lines += _wrapped("     ", _term_words(term), hanging=14)
    for note in score.notes:
        lines += _wrapped("     ", note, hanging=7)
    return lines


def _term_words(term: ScoreTerm) -> str:
    name = f"{term.name:<8}"
    note = f"  {term.note}" if term.note else ""
    if term.value is None:
        return f"{name} -{note}"
    if term.multiplies:
        return f"{name} times {term.value:.3f}{note}"
    contribution = term.value * term.weight
    return f"{name} {term.value:.3f} x {term.weight:.2f} = {contribution:.3f}{note}"


def _refusal_lines(title: str, refusals: Iterable[Refusal]) -> list[str]:
    lines: list[str] = []
    for one in refusals:
        when = "never" if one.permanent else "not now"
        label = one.rule if title.startswith("Left") else f"{one.rule}, {when}"
        text = "; also ".join((f"{one.device_id} [{label}] {one.reason}", *one.also))
        lines += _wrapped("  ", text, hanging=6)
    return ["", title, *lines] if lines else []


def _wrapped(lead: str, text: str, hanging: int | None = None) -> list[str]:
    return textwrap.wrap(
        text,
        width=WIDTH,
        initial_indent=lead,
        subsequent_indent=" " * (len(lead) if hanging is None else hanging),
        break_long_words=False,
        break_on_hyphens=False,
        drop_whitespace=True,
    )
