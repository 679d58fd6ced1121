"""What to do about an attempt that did not succeed: again, where, with how much, or not at all."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import msgspec

from exo.gpu.vocabulary.errors import InvalidValue
from exo.gpu.vocabulary.job import Attempt, Cause
from exo.gpu.vocabulary.units import check_number, check_whole, format_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

OUT_OF_MEMORY = (Cause.OUT_OF_DEVICE_MEMORY, Cause.OUT_OF_HOST_MEMORY)

DEATHS = (Cause.KILLED, Cause.CLOSED, Cause.UNRESPONSIVE)
"""The process went without a report, so that the item may be innocent."""

PLAIN = (Cause.EXCEPTION, Cause.EXIT_STATUS, Cause.TIMEOUT, Cause.NOT_STARTED)
"""It failed by itself, and is likely to do so again."""


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How often an item is tried again, and after what.

    Raises:
        InvalidValue: naming the field.

    """

    max_attempts: int = 3
    """How many deaths of its process, or lost devices, an item is given."""
    retries: int = 0
    """How many further tries after a failure of its own: an exception, a status, a timeout."""
    retry_on: tuple[str, ...] = ()
    """Only after these, by cause, exit status or class of the exception; empty: after any."""
    grow: bool = True
    """Whether one that ran out of memory is tried again with more."""
    growth_factor: float = 2.0
    """How much more at each time."""
    max_growths: int = 3
    """How often it gets more."""

    def __post_init__(self) -> None:
        """Check every field."""
        check_whole("max_attempts", self.max_attempts, low=1)
        check_whole("retries", self.retries)
        check_whole("max_growths", self.max_growths)
        check_number("growth_factor", self.growth_factor, low=1)
        if self.growth_factor == 1:
            raise InvalidValue("growth_factor", self.growth_factor, "above 1")
        if self.retry_on and not self.retries:
            raise InvalidValue("retry_on", self.retry_on, "given together with retries")


class Room(msgspec.Struct, frozen=True):
    """One device that the item may go to, and what leases there can hold at most."""

    device_id: str
    memory_bytes: int | None = None
    """None: not known."""
    slots: int = 1
    """How many items share it where no memory was declared."""
    own_memory: bool = True
    """False where the device's memory is the machine's."""


class RetryVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of an item, and why in words."""

    again: bool
    reason: str = ""
    memory_bytes: int | None = None
    """What the next attempt asks for; None: as much as the first one."""
    without_devices: tuple[str, ...] = ()
    """Where it does not go again."""
    cordon: bool = False
    """The device of the last attempt is to be kept out of scheduling."""
    alone: bool = True
    """It is sent by itself, so that it takes nobody down."""


def retry_names(retry_on: Iterable[Any]) -> tuple[str, ...]:
    """Exception classes, causes and exit statuses as the texts of :attr:`RetryPolicy.retry_on`.

    Raises:
        InvalidValue: for anything else.

    """
    names: list[str] = []
    for one in retry_on:
        if isinstance(one, type) and issubclass(one, BaseException):
            names.append(f"{one.__module__}.{one.__qualname__}")
        elif isinstance(one, Cause):
            names.append(one.value)
        elif isinstance(one, (int, str)) and one != "" and not isinstance(one, bool):
            names.append(str(one))
        else:
            asked = "an exception class, a cause or an exit status"
            raise InvalidValue("retry_on", f"{one!r}", asked)
    return tuple(names)


def decide(
    attempts: Sequence[Attempt],
    policy: RetryPolicy,
    rooms: Sequence[Room],
    *,
    alone: bool = True,
) -> RetryVerdict:
    """Judge the item whose last attempt just failed; all that counts is in ``attempts``.

    ``rooms`` are the devices that its request allows. ``alone`` is False where others went with
    it to the same process, so that what ended the process may have been theirs.
    """
    last = attempts[-1]
    lost = tuple(dict.fromkeys(one.device_id for one in attempts if one.cause is Cause.DEVICE_LOST))
    again = RetryVerdict(again=True, memory_bytes=_grown(attempts), without_devices=lost)
    match last.cause:
        case None | Cause.CANCELLED:
            return RetryVerdict(again=False)
        case Cause.COLLATERAL:
            return again
        case Cause.DEVICE_LOST:
            return _elsewhere(attempts, policy, rooms, again)
        case Cause.OUT_OF_DEVICE_MEMORY | Cause.OUT_OF_HOST_MEMORY:
            if not alone:
                return again  # whoever took it, the next time each is by itself
            return _after_memory(attempts, policy, rooms, again)
        case _:
            return _repeat(attempts, policy, again)


def try_again(deaths: int, max_attempts: int) -> bool:
    """Judge an item that was in a dying process for the ``deaths``-th time (1 for the first).

    The process may have died of another item of the same chunk; from then on each goes alone, so
    that a poisonous item takes down only itself.
    """
    return deaths < max_attempts


def _grown(attempts: Sequence[Attempt]) -> int | None:
    """What an item that got more once keeps; None for one that did not."""
    first = attempts[0].memory_bytes
    most = max(one.memory_bytes or 0 for one in attempts)
    return most if most > (first or 0) else None


def _after_memory(
    attempts: Sequence[Attempt], policy: RetryPolicy, rooms: Sequence[Room], again: RetryVerdict
) -> RetryVerdict:
    last = attempts[-1]
    here = next((room for room in rooms if room.device_id == last.device_id), None)
    machines = last.cause is Cause.OUT_OF_HOST_MEMORY and here is not None and here.own_memory
    if machines or not policy.grow:
        return _repeat(attempts, policy, again)  # no lease on a device would help
    times = sum(one.cause in OUT_OF_MEMORY for one in attempts)
    if times > policy.max_growths:
        return RetryVerdict(again=False, reason=f"it ran out of memory {times} times")
    had = last.memory_bytes
    if had is None and here is not None and here.memory_bytes is not None:
        had = here.memory_bytes // here.slots
    if had is None:
        return RetryVerdict(again=False, reason="how much memory it had is not known")
    others = [room for room in rooms if room.device_id not in again.without_devices]
    largest = max((room.memory_bytes or 0 for room in others), default=0)
    wanted = min(math.ceil(had * policy.growth_factor), largest)
    if wanted <= had:
        reason = f"it had {format_size(had)}, and no device that it may use holds more"
        return RetryVerdict(again=False, reason=reason)
    reason = f"it had {format_size(had)} and gets {format_size(wanted)}"
    return msgspec.structs.replace(again, reason=reason, memory_bytes=wanted)


def _elsewhere(
    attempts: Sequence[Attempt], policy: RetryPolicy, rooms: Sequence[Room], again: RetryVerdict
) -> RetryVerdict:
    losses = sum(one.cause is Cause.DEVICE_LOST for one in attempts)
    need = again.memory_bytes or 0
    others = [
        room
        for room in rooms
        if room.device_id not in again.without_devices
        and (room.memory_bytes is None or room.memory_bytes >= need)
    ]
    if not others:
        no, reason = True, "there is no other device that it may use"
    else:
        no = not try_again(losses, policy.max_attempts)
        reason = f"it lost its device {losses} times" if no else "it goes to another device"
    return msgspec.structs.replace(again, again=not no, reason=reason, cordon=True)


def _repeat(attempts: Sequence[Attempt], policy: RetryPolicy, again: RetryVerdict) -> RetryVerdict:
    """A death is tried again up to a number; a failure of its own only where that was asked."""
    last = attempts[-1]
    deaths = sum(one.cause in DEATHS or _is_the_machines(one, policy) for one in attempts)
    if last.cause in DEATHS or _is_the_machines(last, policy):
        if try_again(deaths, policy.max_attempts):
            return again
        return RetryVerdict(again=False, reason=f"its process died {deaths} times")
    named = {last.cause.value if last.cause else "", *last.names}
    failures = sum(one.cause in PLAIN or one.cause in OUT_OF_MEMORY for one in attempts)
    asked = not policy.retry_on or not named.isdisjoint(policy.retry_on)
    return again if asked and failures <= policy.retries else RetryVerdict(again=False)


def _is_the_machines(attempt: Attempt, policy: RetryPolicy) -> bool:
    """Memory that may be free again at the next try, as it was others who took it."""
    return policy.grow and attempt.cause is Cause.OUT_OF_HOST_MEMORY
