"""All rows of one class in the order of a policy: a list of blocks that grow, part and vanish."""

from __future__ import annotations

from bisect import bisect_left

from exo.gpu.scheduling.columns import Block, Question, Sizes, first_of
from exo.gpu.scheduling.rows import Key, Row


class Lane:
    """The rows of one class under one policy, in order; a change moves one row of one block."""

    def __init__(self, policy: str, rows: list[Row], sizes: Sizes) -> None:
        self._policy = policy
        self._sizes = sizes
        rows = sorted(rows, key=lambda row: row.keys[policy])
        keys = [row.keys[policy] for row in rows]
        self._blocks = [
            Block(keys[start : start + sizes.block], rows[start : start + sizes.block], sizes)
            for start in range(0, len(rows), sizes.block)
        ]
        self._lasts = [block.keys[-1] for block in self._blocks if block.keys]

    def __bool__(self) -> bool:
        return bool(self._blocks)

    def put(self, row: Row, before: Row | None) -> None:
        """Add a row, in place of an earlier one of the same device where there is one."""
        key = row.keys[self._policy]
        if before is None:
            self._insert(key, row)
            return
        number, place = self._find(before.keys[self._policy])
        block = self._blocks[number]
        first = number == 0 or self._lasts[number - 1] < key
        if first and (key <= self._lasts[number] or number == len(self._lasts) - 1):
            block.move(place, key, row)
            self._lasts[number] = block.keys[-1]
        else:
            self._drop(number, place)
            self._insert(key, row)

    def remove(self, row: Row) -> None:
        """Take a row out."""
        self._drop(*self._find(row.keys[self._policy]))

    def first(self, question: Question, last_place: int | None = None) -> Row | None:
        """The first row in order that will do, up to ``last_place``."""
        # As a float, like the columns: rounded both ways alike, no block is left out too many.
        memory = float(question.request.memory_bytes or -1)
        for block in self._blocks:
            if block.best_free >= memory:
                if block.columns is None:
                    row = first_of(block.rows, question, last_place)
                else:
                    row = block.first(question, last_place)
                if row is not None:
                    return row
        return None

    def holds(self, question: Question) -> bool:
        """Whether a device that could serve is only taken for now, where none will do now."""
        for block in self._blocks:  # noqa: SIM110 - twice as fast as any() for a single block
            if block.holds(question):
                return True
        return False

    def _find(self, key: Key) -> tuple[int, int]:
        number = bisect_left(self._lasts, key)
        return number, bisect_left(self._blocks[number].keys, key)

    def _insert(self, key: Key, row: Row) -> None:
        if not self._lasts:
            self._blocks = [Block([key], [row], self._sizes)]
            self._lasts = [key]
            return
        number = bisect_left(self._lasts, key)
        if number == len(self._lasts):
            number -= 1
        block = self._blocks[number]
        block.insert(bisect_left(block.keys, key), key, row)
        half = self._sizes.block
        if len(block.keys) > 2 * half:
            upper = Block(block.keys[half:], block.rows[half:], self._sizes)
            del block.keys[half:], block.rows[half:]
            block.gather()
            self._blocks.insert(number + 1, upper)
            self._lasts.insert(number + 1, upper.keys[-1])
        self._lasts[number] = block.keys[-1]

    def _drop(self, number: int, place: int) -> None:
        block = self._blocks[number]
        block.remove(place)
        if block.keys:
            self._lasts[number] = block.keys[-1]
        else:
            del self._blocks[number], self._lasts[number]
