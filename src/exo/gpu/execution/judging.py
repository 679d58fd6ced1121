"""From what a process reported, or left behind, to outcomes with a cause."""

from __future__ import annotations

import time

import msgspec

from exo.gpu.execution.out_of_memory import Patterns
from exo.gpu.execution.outcome import TAIL_BYTES, Evidence, classify
from exo.gpu.execution.payloads import names_and_text
from exo.gpu.vocabulary.job import Cause, Ending, Outcome

SPOILING = (Cause.OUT_OF_DEVICE_MEMORY, Cause.OUT_OF_HOST_MEMORY, Cause.DEVICE_LOST)
"""After these a process is replaced: its context may be unusable, its memory in pieces."""

_WORDS = {Cause.CANCELLED: "it was cancelled", Cause.TIMEOUT: "it took too long"}


def judged_report(
    outcome: Outcome, ended_for: Cause | None, why: str, patterns: Patterns
) -> Outcome:
    """The outcome of a function that reported, with the cause where it failed."""
    if outcome.ending is Ending.SUCCEEDED:
        return outcome
    names, text = names_and_text(outcome.payload)
    finding = classify(Evidence(exception=names, text=text, ended_for=ended_for), patterns)
    words = why or _WORDS.get(finding.cause, "") if ended_for else finding.words
    return msgspec.structs.replace(
        outcome,
        # It was asked to stop and did: the exception that did it is nobody's.
        ending=Ending.DIED if ended_for else Ending.FAILED,
        cause=finding.cause,
        names=names,
        reason=words,
    )


def judged_command(
    outcome: Outcome,
    ended_for: Cause | None,
    why: str,
    oom_kills: int | None,
    patterns: Patterns,
) -> Outcome:
    """The outcome of a shell command, with the cause where it failed."""
    if outcome.ending is Ending.SUCCEEDED:
        return outcome
    status = outcome.exit_status
    if status is None and ended_for is None:
        return msgspec.structs.replace(outcome, cause=Cause.NOT_STARTED)
    tail = outcome.stderr[-TAIL_BYTES:].decode(errors="replace")
    evidence = Evidence(returncode=status, text=tail, ended_for=ended_for, oom_kills=oom_kills)
    finding = classify(evidence, patterns)
    words = why or _WORDS.get(finding.cause, "") if ended_for else finding.words
    return msgspec.structs.replace(
        outcome,
        cause=finding.cause,
        names=() if status is None else (str(status),),
        reason=f"{outcome.reason} ({words})" if words else outcome.reason,
    )


def dead_outcome(item: int, cause: Cause, why: str, started_at: float) -> Outcome:
    """Of an item that was ended together with its process."""
    return Outcome(
        item=item,
        ending=Ending.DIED,
        started_at=started_at,
        ended_at=time.time(),
        reason=why or _WORDS.get(cause, cause.value),
        cause=cause,
    )
