"""From the way an attempt ended to what it means; looks at values only."""

from __future__ import annotations

import signal

import msgspec

from exo.gpu.execution.out_of_memory import Patterns
from exo.gpu.vocabulary.job import Cause

# Shells report a command that a signal ended as 128 + the signal's number.
SIGNAL_BASE = 128

# The end of what a program printed is where it says why it ended.
TAIL_BYTES = 16384

# As much of a line as fits beside the rest of a reason.
_QUOTED_CHARACTERS = 200

_KNOWN = Patterns()

_WORDS = {
    Cause.OUT_OF_DEVICE_MEMORY: "out of device memory",
    Cause.OUT_OF_HOST_MEMORY: "out of the machine's memory",
    Cause.DEVICE_LOST: "device lost",
}


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known of the end of an attempt that did not succeed."""

    returncode: int | None = None
    """As in ``subprocess``: negative for a signal; None where no process ended."""
    exception: tuple[str, ...] = ()
    """Classes of the exception with their modules, its own first; empty where none was raised."""
    text: str = ""
    """The exception's text, or the end of what was printed on standard error."""
    ended_for: Cause | None = None
    """Why we ended it: a timeout, a cancel, no answer; None where it ended by itself."""
    oom_kills: int | None = None
    """How many processes here the kernel has killed for memory meanwhile; None: not known."""


class Finding(msgspec.Struct, frozen=True):
    """What it means: the cause, and the words behind it, if any, to put into a reason."""

    cause: Cause
    words: str = ""


def classify(evidence: Evidence, patterns: Patterns = _KNOWN) -> Finding:
    """Why an attempt did not succeed.

    What we did ourselves counts first, then the kernel's own count of those it killed for memory,
    then the last line of the text that a pattern knows, then the way the process ended.
    """
    if evidence.ended_for is not None:
        return Finding(evidence.ended_for)
    if killed_for_memory(evidence):
        return Finding(Cause.OUT_OF_HOST_MEMORY, "the kernel killed it for want of memory")
    if evidence.exception:
        raised = _raised(evidence, patterns)
        if raised is not None:
            return raised
    for line in reversed(evidence.text[-TAIL_BYTES:].splitlines()):
        kind = patterns.find(line.strip())
        if kind is not None:
            cause = Cause(kind)
            return Finding(cause, f"{_WORDS[cause]}: {line.strip()[:_QUOTED_CHARACTERS]}")
    return Finding(_plain(evidence))


def killed_for_memory(evidence: Evidence) -> bool:
    """Whether SIGKILL ended it, or a child of its shell, while the kernel's count went up."""
    killed = evidence.returncode in (-signal.SIGKILL, SIGNAL_BASE + signal.SIGKILL)
    return killed and bool(evidence.oom_kills)


def _raised(evidence: Evidence, patterns: Patterns) -> Finding | None:
    """By the exception's classes alone, which a text that is empty cannot hide."""
    for name in evidence.exception:
        kind = patterns.find(name)
        if kind is not None:
            cause = Cause(kind)
            line = evidence.text.strip().rpartition("\n")[2][:_QUOTED_CHARACTERS]
            return Finding(cause, f"{_WORDS[cause]}: {line or name}")
    return None


def _plain(evidence: Evidence) -> Cause:
    if evidence.exception:
        return Cause.EXCEPTION
    if evidence.returncode is None or evidence.returncode == 0:
        return Cause.CLOSED
    return Cause.KILLED if evidence.returncode < 0 else Cause.EXIT_STATUS


def oom_kills(memory_events: str) -> int | None:
    """How often the kernel killed for memory, from ``memory.events`` of a cgroup; None: not told.

    ``/proc/vmstat`` has the line too, for the whole machine.
    """
    for line in memory_events.splitlines():
        name, _, count = line.partition(" ")
        if name == "oom_kill" and count.strip().isdecimal():
            return int(count)
    return None


def describe_exit(returncode: int | None) -> str:
    """In words: ``"was killed by SIGKILL"``, ``"exited with status 3"``.

    ``returncode`` counts as in ``subprocess``: negative for a signal, None while it runs.
    """
    if returncode is None:
        return "is still running"
    if returncode < 0:
        try:
            name = signal.Signals(-returncode).name
        except ValueError:
            name = f"signal {-returncode}"
        return f"was killed by {name}"
    return f"exited with status {returncode}"


def shell_status(returncode: int) -> int:
    """The status that a shell would report: 0..255, 128 + n for signal n."""
    return SIGNAL_BASE - returncode if returncode < 0 else returncode
