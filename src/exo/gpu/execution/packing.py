"""Values to parcels and back, in both processes; standard library only, for the child's sake."""

from __future__ import annotations

import copyreg
import pickle
import sys
from collections import ChainMap
from functools import partial
from importlib import import_module
from itertools import chain
from typing import TYPE_CHECKING, Any, Protocol

from exo.gpu.execution.main_namespace import load
from exo.gpu.vocabulary.parcel import Batch, Parcel, size_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

# A page fault or two costs as much as copying this; smaller buffers stay inside the pickle.
OUT_OF_BAND_BYTES = 64 * 1024

# Values of exactly these types can always be read, and share nothing that could be changed.
PLAIN_TYPES = frozenset({type(None), bool, int, float, complex, str})

# A list of texts that is longer than this is no longer small beside what else a frame holds.
_PLAIN_TEXT_CHARACTERS = 64 * 1024

# The worker's __main__ is its own: what lives in the caller's has to travel by value.
_MAIN = b"__main__"


class _Pieces:
    """A file that keeps what is written: the pickler hands large bytes on without a copy."""

    __slots__ = ("pieces", "write")

    def __init__(self) -> None:
        self.pieces: list[Any] = []
        self.write = self.pieces.append


class _Maker(Protocol):
    """Makes a pickler of a file, as ``pickle.Pickler`` does."""

    def __call__(
        self, file: Any, *, protocol: int, buffer_callback: Callable[[pickle.PickleBuffer], bool]
    ) -> Any: ...


def pack(value: object, by_value: _Maker | None = None) -> Parcel:
    """The parcel of a value; what pickle cannot name, and what is of ``__main__``, by value.

    Without a maker of picklers that do so, what pickle cannot name is refused.

    Raises:
        Exception: whatever the value's own reducers raise, or pickle itself.

    """
    try:
        parcel = _pack_with(pickle.Pickler, value)
    except Exception:
        if by_value is None:
            raise
    else:
        if by_value is None or not any(map(_may_name_main, parcel.pieces)):
            return parcel
    return _pack_with(by_value, value)._replace(by_value=True)


def _pack_with(maker: _Maker, value: object) -> Parcel:
    buffers: list[Any] = []
    file = _Pieces()
    pickler = maker(file, protocol=5, buffer_callback=_taker(buffers))
    if "torch" in sys.modules:
        known = getattr(pickler, "dispatch_table", copyreg.dispatch_table)
        pickler.dispatch_table = ChainMap(_tensor_reducers(), known)
    pickler.dump(value)
    return Parcel(tuple(file.pieces), tuple(buffers))


def _may_name_main(piece: bytes) -> bool:
    # What is longer is one text or one bytes object of the value, and no name.
    return len(piece) < 2 * OUT_OF_BAND_BYTES and _MAIN in piece


def pack_all(values: Sequence[Any], pack_one: Callable[[Any], Parcel] = pack) -> Batch:
    """The batch of several values; ``pack_one`` is asked for each where they are not all plain.

    Raises:
        Exception: what ``pack_one`` raises.

    """
    types = set(map(type, values))
    if types == {tuple}:
        plain = are_plain(list(chain.from_iterable(values)))
    else:
        plain = types <= PLAIN_TYPES and are_plain(values)
    if plain:
        return Batch(len(values), plain=pickle.dumps(values, 5))
    return Batch(len(values), parcels=tuple(map(pack_one, values)))


def are_plain(values: Sequence[Any]) -> bool:
    """Whether these are None, numbers or short texts: they can always be read and never change."""
    types = set(map(type, values))
    return types <= PLAIN_TYPES and not (
        str in types
        and sum(len(one) for one in values if type(one) is str) > _PLAIN_TEXT_CHARACTERS
    )


def unpack(parcel: Parcel) -> Any:
    """The value of a parcel; its large arrays stay where the parcel's buffers are.

    Raises:
        Exception: whatever the value's own constructors raise.

    """
    pieces = parcel.pieces
    whole = pieces[0] if len(pieces) == 1 else b"".join(pieces)
    if parcel.by_value:
        return load(whole, parcel.buffers)
    return pickle.loads(whole, buffers=parcel.buffers)


def unpack_all(batch: Batch) -> Iterator[Any] | list[Any]:
    """The values of a batch; those that are not plain are made one by one, as they are asked for.

    Raises:
        Exception: at a value that cannot be read; the next ones can be.

    """
    if batch.plain is not None:
        return pickle.loads(batch.plain)
    return map(unpack, batch.parcels)


def unpack_lazily(batch: Batch) -> list[Any]:
    """The values of a batch, or where they are not plain a function for each that makes it.

    Raises:
        Exception: the function, at a value that cannot be read.

    """
    if batch.plain is not None:
        return pickle.loads(batch.plain)
    return [partial(unpack, parcel) for parcel in batch.parcels]


def flatten(batch: Batch) -> tuple[Any, list[Any]]:
    """A batch as a plain value that pickle knows, and the large pieces that go beside it."""
    if not batch.parcels:
        return (batch.size, batch.plain, None), []
    beside: list[Any] = []
    return (batch.size, None, [_flat(parcel, beside) for parcel in batch.parcels]), beside


def _flat(parcel: Parcel, beside: list[Any]) -> tuple[bytes | int, int, bool]:
    beside += parcel.buffers
    pieces, count = parcel.pieces, len(parcel.buffers)
    if sum(map(len, pieces)) < OUT_OF_BAND_BYTES:
        return (b"".join(pieces), count, parcel.by_value)
    beside.append(pieces)
    return (-1, count, parcel.by_value)


def raise_up(flat: Any, beside: Iterator[Any]) -> Batch:
    """The batch that :func:`flatten` laid flat, with what came beside it, in the same order."""
    count, plain, parcels = flat
    if parcels is None:
        return Batch(count, plain=plain)
    return Batch(count, parcels=tuple(_raised(one, beside) for one in parcels))


def _raised(flat: tuple[bytes | int, int, bool], beside: Iterator[Any]) -> Parcel:
    head, count, by_value = flat
    buffers = tuple(next(beside) for _ in range(count))
    return Parcel((next(beside) if isinstance(head, int) else head,), buffers, by_value)


def _taker(buffers: list[Any]) -> Callable[[pickle.PickleBuffer], bool]:
    def take(buffer: pickle.PickleBuffer) -> bool:
        """Whether the buffer goes inside the pickle after all."""
        raw = buffer.raw()
        if size_of(raw) < OUT_OF_BAND_BYTES:
            return True
        buffers.append(raw)
        return False

    return take


def _tensor_reducers() -> dict[type, Callable[[Any], Any]]:
    torch = sys.modules["torch"]
    return {torch.Tensor: _reduce_tensor}


def _reduce_tensor(tensor: Any) -> Any:
    """A dense tensor of the host travels as its NumPy array, any other in PyTorch's own way."""
    torch = sys.modules["torch"]
    plain = tensor.device.type == "cpu" and tensor.layout is torch.strided
    if not plain or tensor.requires_grad or tensor.is_conj() or tensor.is_neg():
        return tensor.__reduce_ex__(5)
    try:
        return _tensor_of, (tensor.numpy(),)
    except (TypeError, RuntimeError):  # a type that NumPy does not have, such as bfloat16
        return tensor.__reduce_ex__(5)


def _tensor_of(array: Any) -> Any:
    return import_module("torch").from_numpy(array)
