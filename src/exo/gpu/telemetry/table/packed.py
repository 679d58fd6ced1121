"""A column of history: each value in the narrowest form that gives it back exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]
Mask = NDArray[np.bool_]


class _Form(NamedTuple):
    """How a number is stored: ``steps_per_unit`` times itself, as a whole number of that type."""

    dtype: type[np.generic]
    steps_per_unit: float
    largest: float
    unknown: float


# Vendors report whole percents and degrees, thousandths (mW, mJ, millidegrees) and KiB: 2 or 4
# bytes give those back bit for bit. Anything else takes the 8 bytes that it has.
_FORMS = (
    _Form(np.int16, 1.0, 2**15 - 1, -(2**15)),
    _Form(np.int32, 1000.0, 2**31 - 1, -(2**31)),
    _Form(np.int32, 1 / 1024, 2**31 - 1, -(2**31)),
    _Form(np.float64, 1.0, np.inf, np.nan),
)
_WIDEST = len(_FORMS) - 1


class PackedColumn:
    """One reading of all devices: a row for each, ``depth`` cells long; NaN is unknown.

    It starts narrow and widens, as a whole, when a value comes that would lose a bit. A cell that
    was never put holds nothing that means anything: the caller knows which were.
    """

    def __init__(self, row_count: int, depth: int) -> None:
        self._form = 0
        self._cells: NDArray[Any] = np.empty((row_count, depth), _FORMS[0].dtype)

    @property
    def memory_bytes(self) -> int:
        """What its cells take, used or not."""
        return self._cells.nbytes

    def put(self, places: Rows, values: Floats, put_before: Callable[[], Mask]) -> None:
        """Store ``values`` at flat ``places``; ``put_before`` masks the cells that hold a value."""
        packed = _packed(values, _FORMS[self._form])
        if packed is None:
            packed = self._widen(values, put_before())
        self._cells.reshape(-1)[places] = packed

    def put_unknown(self, places: Rows | Mask) -> None:
        """Store unknown at flat ``places``, or where a mask of all cells says so."""
        cells = self._cells if places.dtype == np.bool_ else self._cells.reshape(-1)
        cells[places] = _FORMS[self._form].unknown

    def take(self, places: NDArray[Any]) -> Floats:
        """The values at flat ``places``, in their shape."""
        return _unpacked(self._cells.reshape(-1)[places], _FORMS[self._form])

    def resize(self, row_count: int, depth: int, used_row_count: int) -> None:
        """Make room; what stood in the first ``used_row_count`` rows stays in its place."""
        old = self._cells
        self._cells = np.empty((row_count, depth), old.dtype)
        self._cells[:used_row_count, : old.shape[1]] = old[:used_row_count]

    def _widen(self, values: Floats, put_before: Mask) -> NDArray[Any]:
        kept = _unpacked(self._cells[put_before], _FORMS[self._form])
        for number in range(self._form + 1, _WIDEST + 1):
            form = _FORMS[number]
            packed = _packed(values, form)
            stored = None if packed is None else _packed(kept, form)
            if packed is not None and stored is not None:
                self._form = number
                self._cells = np.empty(self._cells.shape, form.dtype)
                self._cells[put_before] = stored
                return packed
        raise AssertionError("the widest form takes every value")


def _packed(values: Floats, form: _Form) -> NDArray[Any] | None:
    """The stored form, or None where a value would not come back as it was."""
    if form.dtype is np.float64:
        return values
    with np.errstate(over="ignore", invalid="ignore"):
        steps = np.rint(values if form.steps_per_unit == 1 else values * form.steps_per_unit)
        exact = (steps / form.steps_per_unit == values) & (np.abs(steps) <= form.largest)
    if exact.all():
        return steps.astype(form.dtype)
    unknown = np.isnan(values)
    if not (exact | unknown).all():
        return None
    return np.where(unknown, form.unknown, steps).astype(form.dtype)


def _unpacked(cells: NDArray[Any], form: _Form) -> Floats:
    if form.dtype is np.float64:
        return cells
    values = cells / form.steps_per_unit
    values[cells == form.unknown] = np.nan
    return values
