"""Tables in comma-separated text, where every fault is told with its file, line and column."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from exo.gpu.vocabulary.errors import TraceError


class TraceRow:
    """One line of a table, asked for by the names of its columns."""

    def __init__(self, path: Path, line: int, cells: dict[str, str]) -> None:
        self.path = path
        self.line = line
        self._cells = cells

    def text(self, column: str) -> str:
        """The cell as it stands; empty where the table has no such column."""
        return self._cells.get(column, "")

    def whole(self, column: str, *, low: int = 0, high: int | None = None) -> int:
        """A whole number within these bounds.

        Raises:
            TraceError: naming file, line and column, for anything else.

        """
        text = self.text(column)
        try:
            number = int(text)
        except ValueError:
            raise self.error(column, "a whole number") from None
        if number < low or (high is not None and number > high):
            bounds = f"{low} or more" if high is None else f"within {low}..{high}"
            raise self.error(column, bounds)
        return number

    def number(self, column: str, *, low: float = 0.0) -> float:
        """A finite number of at least ``low``.

        Raises:
            TraceError: naming file, line and column, for anything else.

        """
        try:
            number = float(self.text(column))
        except ValueError:
            raise self.error(column, "a number") from None
        if not math.isfinite(number) or number < low:
            raise self.error(column, f"a finite number of {low:g} or more")
        return number

    def error(self, column: str, expected: str) -> TraceError:
        """The fault of one cell."""
        where = f"{self.path}, line {self.line}, column {column}"
        return TraceError(f"{where}: {self.text(column)!r} is not {expected}")


def read_table(path: Path, needed: Sequence[str]) -> Iterator[TraceRow]:
    """The lines of a table below its header.

    Raises:
        TraceError: for a file that cannot be read or is empty, for a column that is missing, and
            for a line with fewer or more cells than the header.

    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = csv.reader(file)
            header = next(lines, None)
            if header is None:
                raise TraceError(f"{path}, line 1: the file is empty")
            missing = [name for name in needed if name not in header]
            if missing:
                have = ", ".join(header)
                raise TraceError(f"{path}, line 1: there is no column {missing[0]}, only {have}")
            for cells in lines:
                if not cells:
                    continue
                if len(cells) != len(header):
                    count = f"{len(cells)} cells under {len(header)} columns"
                    column = header[min(len(cells), len(header) - 1)]
                    message = f"{path}, line {lines.line_num}, column {column}: {count}"
                    raise TraceError(message)
                yield TraceRow(path, lines.line_num, dict(zip(header, cells, strict=True)))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TraceError(f"{path} cannot be read: {error}") from error
