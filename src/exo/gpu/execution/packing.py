"""Values to parcels and back, in both processes; standard library only, since the child reads it."""

from __future__ import annotations

import copyreg
import io
import pickle
import sys
from collections import ChainMap
from typing import TYPE_CHECKING, Any

from exo.gpu.vocabulary.parcel import Batch, Parcel, size_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

# A page fault or two costs as much as copying this; smaller buffers stay inside the pickle.
OUT_OF_BAND_BYTES = 64 * 1024

# Values of exactly these types can always be read, and share nothing that could be changed.
_PLAIN = frozenset({type(None), bool, int, float, complex, str})

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


def pack(value: object, by_value: Callable[[Any], pickle.Pickler] | None = None) -> Parcel:
    """The parcel of a value. What pickle cannot name goes through the ``by_value`` pickler.

    That one is given a file and keywords of ``pickle.Pickler``. Without it, what pickle cannot
    name is refused.

    Raises:
        Exception: whatever the value's own reducers raise, or pickle itself.

    """
    buffers: list[Any] = []
    file = _Pieces()
    pickler = pickle.Pickler(file, 5, buffer_callback=_taker(buffers))
    if "torch" in sys.modules:
        pickler.dispatch_table = ChainMap(_tensor_reducers(), copyreg.dispatch_table)
    if by_value is None:
        pickler.dump(value)
        return Parcel(tuple(file.pieces), tuple(buffers))
    try:
        pickler.dump(value)
    except Exception:  # noqa: BLE001 - a reducer raises whatever it does; by value it may go
        pass
    else:
        if not any(len(piece) < 2 * OUT_OF_BAND_BYTES and _MAIN in piece for piece in file.pieces):
            return Parcel(tuple(file.pieces), tuple(buffers))
    buffers.clear()
    whole = io.BytesIO()
    by_value_pickler = by_value(whole)
    by_value_pickler.dump(value)
    return Parcel((whole.getvalue(),), (), by_value=True)


def pack_all(values: Sequence[Any], pack_one: Callable[[Any], Parcel]) -> Batch:
    """The batch of several values; ``pack_one`` is asked for each that is not plain.

    Raises:
        Exception: what ``pack_one`` raises.

    """
    types = set(map(type, values))
    if types <= _PLAIN and not (str in types and _is_long(values)):
        return Batch(len(values), plain=pickle.dumps(list(values), 5))
    return Batch(len(values), parcels=tuple(map(pack_one, values)))


def unpack(parcel: Parcel, load: Callable[..., Any] = pickle.loads) -> Any:
    """The value of a parcel; its large arrays stay where the parcel's buffers are.

    Raises:
        Exception: whatever the value's own constructors raise.

    """
    pieces = parcel.pieces
    whole = pieces[0] if len(pieces) == 1 else b"".join(pieces)
    return load(whole, buffers=parcel.buffers)


def unpack_all(batch: Batch) -> Iterator[Any] | list[Any]:
    """The values of a batch; those that are not plain are made one by one, as they are asked for.

    Raises:
        Exception: at a value that cannot be read; the next ones can be.

    """
    if batch.plain is not None:
        return pickle.loads(batch.plain)
    return map(unpack, batch.parcels)


def flatten(batch: Batch) -> tuple[Any, list[Any]]:
    """A batch as a plain value that pickle knows, and the large pieces that go beside it."""
    if not batch.parcels:
        return (batch.count, batch.plain, None), []
    beside: list[Any] = []
    return (batch.count, None, [_flat(parcel, beside) for parcel in batch.parcels]), beside


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


def _is_long(values: Sequence[Any]) -> bool:
    return sum(len(one) for one in values if type(one) is str) > _PLAIN_TEXT_CHARACTERS


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
    import torch

    return torch.from_numpy(array)
