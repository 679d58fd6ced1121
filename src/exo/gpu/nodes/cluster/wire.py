"""Work and events in the form in which they cross: plain values, and large ones beside them."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, cast

import msgspec
import numpy as np

from exo.gpu.execution.packing import flatten, raise_up
from exo.gpu.execution.successes import Successes
from exo.gpu.vocabulary.job import Outcome, SlotEvent, SlotOutcomes, SlotOutput, Work
from exo.gpu.vocabulary.parcel import Batch, Parcel, size_of

if TYPE_CHECKING:
    from collections.abc import Callable

# Values of this size are put into the object store once, whoever needs them: below it, that costs
# more than it saves.
SHARED_BYTES = 1024 * 1024

# Of what was put once, so much stays there for whoever sends the same again.
KEPT_BYTES = 256 * 1024 * 1024

# Functions that an agent keeps for a driver; both sides count alike.
FUNCTIONS_KEPT = 64


class Shared(msgspec.Struct, frozen=True):
    """Stands for a large value that was put once; ``handle`` is the carrier's."""

    handle: Any


class Shelf:
    """Large values that were put once, by what they hold: the same array is never sent twice.

    A value is known by a digest of its bytes, so that one that was changed meanwhile is another.
    """

    def __init__(self, put: Callable[[Any], Any]) -> None:
        self._put = put
        self._handles: OrderedDict[bytes, tuple[Shared, int]] = OrderedDict()
        self._held_bytes = 0

    def take(self, buffer: Any) -> Any:
        """What is sent in place of a buffer."""
        view: Any = np.frombuffer(buffer, np.uint8)
        if view.nbytes < SHARED_BYTES:
            return view
        digest = hashlib.blake2b(memoryview(view), digest_size=20).digest()
        if digest in self._handles:
            self._handles.move_to_end(digest)
            return self._handles[digest][0]
        shared = Shared(self._put(view))
        self._handles[digest] = (shared, view.nbytes)
        self._held_bytes += view.nbytes
        while self._held_bytes > KEPT_BYTES and len(self._handles) > 1:
            _, (_, size) = self._handles.popitem(last=False)
            self._held_bytes -= size
        return shared


def pack_parcels(batch: Batch, take: Callable[[Any], Any]) -> tuple[Any, list[Any]]:
    """A batch as plain values, and its large pieces each as ``take`` says."""
    flat, beside = flatten(batch)
    return flat, [_taken(one, take) for one in beside]


def _taken(one: Any, take: Callable[[Any], Any]) -> Any:
    if isinstance(one, tuple):
        one = b"".join(cast("tuple[Any, ...]", one))  # of one pickle
    return take(one) if size_of(one) else b""


def unpack_parcels(packed: tuple[Any, list[Any]], fetch: Callable[[Any], Any]) -> Batch:
    """The batch again; its large pieces are views of what came."""
    flat, beside = packed
    return raise_up(flat, iter([_fetched(one, fetch) for one in beside]))


def _fetched(one: Any, fetch: Callable[[Any], Any]) -> Any:
    return memoryview(fetch(one.handle) if isinstance(one, Shared) else one)


def pack_work(work: Work, take: Callable[[Any], Any], *, with_function: bool) -> tuple[Any, ...]:
    """A piece of work; its function goes along where the agent does not have it yet."""
    batch = None if work.batch is None else pack_parcels(work.batch, take)
    function = None
    if with_function:
        payload = work.function_payload
        parcel = payload if isinstance(payload, Parcel) else Parcel((payload,), by_value=True)
        function = pack_parcels(Batch(1, parcels=(parcel,)), take)
    plain = msgspec.structs.replace(work, batch=None, function_payload=b"")
    return plain, batch, function


def unpack_work(packed: tuple[Any, ...], fetch: Callable[[Any], Any]) -> tuple[Work, Parcel | None]:
    """The work without its function, and the function where it came along."""
    plain, batch, function = packed
    work = msgspec.structs.replace(
        plain, batch=None if batch is None else unpack_parcels(batch, fetch)
    )
    return work, None if function is None else unpack_parcels(function, fetch).parcels[0]


def pack_event(
    event: SlotEvent | SlotOutput,
    number: int,
    hold: Callable[[Any], Any],
    take: Callable[[Any], Any],
) -> tuple[Any, ...]:
    """An event under the driver's number of its slot.

    ``hold`` keeps long outputs of commands, and ``take`` says what is sent for a large result.
    """
    if isinstance(event, SlotOutcomes):
        outcomes = event.outcomes
        if isinstance(outcomes, Successes):
            packed = pack_parcels(outcomes.batch, take)
            return ("ran", number, outcomes.items, packed, *outcomes.times)
        return ("ended", number, tuple(_solid(one, hold, take) for one in outcomes))
    return ("event", number, msgspec.structs.replace(event, slot_id=number))


def unpack_event(
    packed: tuple[Any, ...],
    open_output: Callable[[int, int], Any],
    fetch: Callable[[Any], Any],
) -> SlotEvent | SlotOutput:
    """The event again, on memory of its own; ``open_output`` gets a command's long output."""
    kind, number, *rest = packed
    if kind == "ran":
        items, (flat, beside), origin, moments = rest
        batch = raise_up(flat, iter([memoryview(_own(one, fetch)) for one in beside]))
        return SlotOutcomes(number, Successes(items, batch, origin, moments))
    if kind == "ended":
        return SlotOutcomes(number, tuple(_opened(one, open_output, fetch) for one in rest[0]))
    return rest[0]


def _own(one: Any, fetch: Callable[[Any], Any]) -> bytearray:
    """A buffer of one's own, to be changed at will."""
    return bytearray(fetch(one.handle) if isinstance(one, Shared) else one)


def sender(put: Callable[[Any], Any] | None) -> Callable[[Any], Any]:
    """What is sent in place of a buffer: where it is large, what ``put`` gives for it."""

    def take(buffer: Any) -> Any:
        view: Any = np.frombuffer(buffer, np.uint8)
        if put is None or view.nbytes < SHARED_BYTES:
            return view
        return Shared(put(view))

    return take


def size_of_event(packed: tuple[Any, ...]) -> int:
    """About how many bytes an event takes on its way."""
    kind, _, *rest = packed
    if kind == "ran":
        _, beside = rest[1]
        return sum(one.nbytes for one in beside if isinstance(one, np.ndarray))
    if kind == "ended":
        return sum(len(plain.stdout) + len(plain.stderr) for plain, _ in rest[0])
    return len(rest[0].data) if isinstance(rest[0], SlotOutput) else 0


def _solid(
    outcome: Outcome, hold: Callable[[Any], Any], take: Callable[[Any], Any]
) -> tuple[Any, ...]:
    """An outcome that holds nothing of this process."""
    payload = outcome.payload
    if isinstance(payload, Parcel):
        payload = Parcel(
            tuple(map(bytes, payload.pieces)),
            tuple(map(take, payload.buffers)),
            payload.by_value,
        )
    outputs = tuple(
        None if one is None else (hold(one), one.size_bytes)
        for one in (outcome.held_stdout, outcome.held_stderr)
    )
    plain = msgspec.structs.replace(outcome, payload=payload, held_stdout=None, held_stderr=None)
    return plain, outputs


def _opened(
    packed: tuple[Any, ...],
    open_output: Callable[[int, int], Any],
    fetch: Callable[[Any], Any],
) -> Outcome:
    plain, outputs = packed
    if isinstance(plain.payload, Parcel):
        buffers = tuple(_own(one, fetch) for one in plain.payload.buffers)
        plain = msgspec.structs.replace(plain, payload=plain.payload._replace(buffers=buffers))
    stdout, stderr = (None if one is None else open_output(*one) for one in outputs)
    return msgspec.structs.replace(plain, held_stdout=stdout, held_stderr=stderr)
