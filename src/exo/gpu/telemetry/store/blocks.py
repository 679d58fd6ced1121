"""Packing of columns of numbers into few bytes, and back; a pure codec without any file.

A block is a version byte and a compressed body: how many rows, which columns are known, the first
value of each, and what changed from row to row. Times are written as changes of changes, numbers
in whole quanta as changes, byte by byte of equal weight, so that ``zlib`` finds what repeats. A
column that has no place in whole quanta is written as float64, each exclusive-or with the last.
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from exo.gpu.vocabulary.errors import StoreDamaged

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    Whole = NDArray[np.int64]
    Numbers = NDArray[np.float64]

STEPS: dict[str, int] = {
    "memory_used_bytes": 1,
    "memory_total_bytes": 1,
    "compute_utilization_percent": 10,
    "power_watts": 100,
    "temperature_celsius": 10,
    "clock_rate_mhz": 10,
    "memory_reserved_bytes": 1,
    "memory_utilization_percent": 10,
    "memory_clock_mhz": 10,
    "memory_temperature_celsius": 10,
    "hotspot_temperature_celsius": 10,
    "power_limit_watts": 100,
    "power_window_seconds": 1000,
    "energy_joules": 10,
    "fan_percent": 10,
    "corrected_errors": 1,
    "uncorrected_errors": 1,
    "pcie_generation": 1,
    "pcie_width": 1,
    "encoder_percent": 10,
    "decoder_percent": 10,
    "performance_state": 1,
}
"""How many quanta a unit of each reading has: what a block keeps is exact to half a quantum.

The order is that of the files on disk: a new reading comes last, and none is ever taken away.
"""

_FORMAT = 1
_HEAD = struct.Struct("<IqH")  # rows, first time in milliseconds, bytes of the mask of columns
_WIDTHS = (0, 1, 2, 4, 8)  # bytes of a change; 0: the value never changes
_FLOAT, _PARTIAL = 0x08, 0x10  # beside the index of a width in the code of a column
_WIDTH_OF_CODE = bytes(code & ~_PARTIAL for code in range(256))
_LARGEST_WHOLE = 2**63 - 1
_LARGEST_STEPS = 2.0**51  # whole quanta below it are exact in float64, their changes in int64


class Layout(msgspec.Struct, frozen=True):
    """The columns that a kind of block may have, and how many quanta a unit of each has."""

    names: tuple[str, ...]
    steps: tuple[int, ...]


SAMPLES = Layout(tuple(STEPS), tuple(STEPS.values()))
"""Readings of one device."""


def pack(
    layout: Layout, milliseconds: Whole, values: Numbers, starts: Sequence[int], *, level: int = 6
) -> list[bytes]:
    """A block for each run of rows that begins at one of ``starts``, whose first is 0.

    ``values`` has a column for each name of the layout, NaN for what is unknown; a column without
    any value takes no space. Times are milliseconds since 1970, in any order. ``level`` is zlib's.
    """
    import numpy as np

    if not len(milliseconds):
        return []
    at = np.asarray(starts, dtype=np.intp)
    ends = np.append(at[1:], len(milliseconds))
    table = _quantize(layout, values, at, ends)
    changes = np.empty((len(values), len(layout.names) + 1), dtype=np.int64)
    changes[:, 0] = _time_changes(milliseconds, at)
    changes[1:, 1:] = table.whole[1:] - table.whole[:-1]
    changes[at, 1:] = 0
    folded = ((changes << 1) ^ (changes >> 63)).view(np.uint64)
    bounds = np.array([0, 2**8 - 1, 2**16 - 1, 2**32 - 1], dtype=np.uint64)
    widths = np.searchsorted(bounds, np.maximum.reduceat(folded, at, axis=0))
    widths[:, 1:][table.odd] = _FLOAT
    widths[:, 1:][table.partial] |= _PARTIAL
    blocks: list[bytes] = []
    for index, (begin, end) in enumerate(zip(at.tolist(), ends.tolist(), strict=True)):
        columns = np.flatnonzero(table.given[index])
        codes = widths[index, np.append(0, columns + 1)]
        body = [
            _head(int(milliseconds[begin]), end - begin, columns, len(layout.names)),
            codes.astype(np.uint8).tobytes(),
            table.whole[begin, columns].tobytes(),
            *_planes(folded[begin:end], codes, columns),
        ]
        if codes.max() >= _FLOAT:
            body += _exceptions(values[begin:end], codes[1:], columns)
        blocks.append(bytes([_FORMAT]) + zlib.compress(b"".join(body), level))
    return blocks


def unpack(
    layout: Layout, block: bytes, wanted: Sequence[int] | None = None
) -> tuple[Whole, Numbers]:
    """The times of a block in milliseconds and its values, a column for each of ``wanted``.

    ``wanted`` are places in the layout, all by default; NaN stands for what is unknown.

    Raises:
        StoreDamaged: for bytes that are no block of this format.

    """
    try:
        if block[0] != _FORMAT:
            raise StoreDamaged(f"a block of samples has the unknown format {block[0]}")
        return _unpack(layout, zlib.decompress(memoryview(block)[1:]), wanted)
    except (zlib.error, struct.error, ValueError, IndexError) as error:
        raise StoreDamaged(f"a block of samples cannot be read: {error}") from error


def _unpack(layout: Layout, body: bytes, wanted: Sequence[int] | None) -> tuple[Whole, Numbers]:
    import numpy as np

    rows, first, mask_bytes = _HEAD.unpack_from(body)
    place = _HEAD.size + mask_bytes
    mask = int.from_bytes(body[_HEAD.size : place], "little")
    codes = body[place : place + mask.bit_count() + 1]
    place += len(codes)
    bases = np.frombuffer(body, np.int64, mask.bit_count(), place)
    widths = codes.translate(_WIDTH_OF_CODE)
    begins, place = _begins(widths, rows, place + bases.nbytes)
    if len(body) < place:
        raise ValueError(f"{len(body)} bytes where there must be {place}")
    times = _changes(body, begins, widths, 0, rows).cumsum().cumsum() + first
    exceptions = _exception_offsets(codes, rows, place) if max(codes) >= _FLOAT else {}
    targets = range(len(layout.names)) if wanted is None else wanted
    values = np.full((rows, len(targets)), np.nan)
    for target, column in enumerate(targets):
        if not mask >> column & 1:
            continue
        index = (mask & ((1 << column) - 1)).bit_count() + 1
        bits, words = exceptions.get(index, (0, 0))
        if codes[index] & _FLOAT:
            series = _running_xor(body, words, rows)
        else:
            whole = _changes(body, begins, widths, index, rows).cumsum()
            series = (whole + bases[index - 1]) / layout.steps[column]
        if codes[index] & _PARTIAL:
            present = np.frombuffer(body, np.uint8, -(-rows // 8), bits)
            series[np.unpackbits(present, count=rows) == 0] = np.nan
        values[:, target] = series
    return times, values


class _Quanta(NamedTuple):
    """Values in whole quanta, and by run and column: is there any, are some unknown, or too odd."""

    whole: Whole
    given: NDArray[np.bool_]
    partial: NDArray[np.bool_]
    odd: NDArray[np.bool_]


def _quantize(
    layout: Layout, values: Numbers, starts: NDArray[np.intp], ends: NDArray[np.intp]
) -> _Quanta:
    import numpy as np

    known = ~np.isnan(values)
    with np.errstate(over="ignore"):
        scaled = values * np.array(layout.steps, dtype=np.float64)
    counts = np.add.reduceat(known, starts, axis=0, dtype=np.int64)
    partial = (counts > 0) & (counts < (ends - starts)[:, None])
    sound = known & (np.abs(scaled) < _LARGEST_STEPS)
    odd = np.logical_or.reduceat(known & ~sound, starts, axis=0)
    whole = np.rint(np.where(sound, scaled, 0)).astype(np.int64)
    if partial.any():
        _repeat_last(whole, known, starts)
    return _Quanta(whole, counts > 0, partial, odd)


def _head(first: int, rows: int, columns: NDArray[np.intp], width: int) -> bytes:
    import numpy as np

    mask = np.zeros(width, dtype=np.uint8)
    mask[columns] = 1
    bits = np.packbits(mask, bitorder="little").tobytes()
    return _HEAD.pack(rows, first, len(bits)) + bits


def _time_changes(milliseconds: Whole, starts: NDArray[np.intp]) -> Whole:
    """Changes of changes; the first of a run is 0, the second the distance to the first."""
    import numpy as np

    steps = np.diff(milliseconds, prepend=milliseconds[:1])
    steps[starts] = 0
    changes = np.diff(steps, prepend=steps[:1])
    changes[starts] = 0
    return changes


def _repeat_last(whole: Whole, known: NDArray[np.bool_], starts: NDArray[np.intp]) -> None:
    """Let an unknown value repeat the last known one of its run, so that nothing changes there."""
    import numpy as np

    rows = np.arange(len(whole))[:, None]
    sources = np.where(known, rows, -1)
    sources[starts] = starts[:, None]
    np.maximum.accumulate(sources, axis=0, out=sources)
    whole[:] = np.take_along_axis(whole, sources, axis=0)


def _planes(folded: NDArray[np.uint64], codes: Any, columns: NDArray[np.intp]) -> list[bytes]:
    """The changes of all columns, by width; of each the lowest bytes first, then the next."""
    import numpy as np

    parts: list[bytes] = []
    places = np.append(0, columns + 1)
    for index, width in enumerate(_WIDTHS):
        chosen = places[(codes & ~_PARTIAL) == index]
        if width and len(chosen):
            narrow = folded[:, chosen].T.astype(f"<u{width}")
            split = narrow.view(np.uint8).reshape(len(chosen), -1, width)
            parts.append(split.transpose(0, 2, 1).tobytes())
    return parts


def _exceptions(values: Numbers, codes: Any, columns: NDArray[np.intp]) -> list[bytes]:
    """Which rows of a column are known, and the columns that stay float64."""
    import numpy as np

    parts: list[bytes] = []
    for code, column in zip(codes.tolist(), columns.tolist(), strict=True):
        series = values[:, column]
        if code & _PARTIAL:
            parts.append(np.packbits(~np.isnan(series)).tobytes())
        if code & _FLOAT:
            words = np.ascontiguousarray(series).view(np.uint64)
            crossed = words.copy()
            crossed[1:] ^= words[:-1]
            parts.append(crossed.astype("<u8").view(np.uint8).reshape(-1, 8).T.tobytes())
    return parts


def _begins(widths: bytes, rows: int, place: int) -> tuple[list[int], int]:
    """Where the columns of each width begin, and where the exceptions do."""
    begins: list[int] = []
    for index, width in enumerate(_WIDTHS):
        begins.append(place)
        place += width * rows * widths.count(index)
    return begins, place


def _exception_offsets(codes: bytes, rows: int, place: int) -> dict[int, tuple[int, int]]:
    """Where the bits of known rows and the words of float64 begin, of columns that have any."""
    offsets: dict[int, tuple[int, int]] = {}
    for index, code in enumerate(codes):
        if code >= _FLOAT:
            words = place + (-(-rows // 8) if code & _PARTIAL else 0)
            offsets[index] = place, words
            place = words + (8 * rows if code & _FLOAT else 0)
    return offsets


def _changes(body: bytes, begins: list[int], widths: bytes, index: int, rows: int) -> Whole:
    """What changed from row to row in a column; columns of one width stand one after the other."""
    import numpy as np

    code = widths[index]
    width = _WIDTHS[code]
    if not width:
        return np.zeros(rows, dtype=np.int64)
    place = begins[code] + widths.count(code, 0, index) * width * rows
    folded = np.frombuffer(body, np.uint8, width * rows, place)
    if width > 1:
        folded = np.ascontiguousarray(folded.reshape(width, rows).T).view(f"<u{width}")[:, 0]
    wide = folded.astype(np.int64)
    return (wide >> 1 & _LARGEST_WHOLE) ^ -(wide & 1)


def _running_xor(body: bytes, place: int, rows: int) -> Numbers:
    import numpy as np

    split = np.frombuffer(body, np.uint8, 8 * rows, place).reshape(8, rows)
    crossed = np.ascontiguousarray(split.T).view("<u8").reshape(rows)
    return np.bitwise_xor.accumulate(crossed).view(np.float64)
