"""The table of live memory: nothing above the pool, nothing freed twice."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from exo.gpu.backend import MemoryHandle
from exo.gpu.backends.buffers import BufferTable
from exo.gpu.vocabulary.errors import (
    BackendError,
    InvalidHandle,
    InvalidValue,
    OutOfDeviceMemory,
)

TOTAL, USED = 1000, 300


def take(table: BufferTable[bytearray], size: int, pool: str = "") -> MemoryHandle:
    return table.add("fake:0", size, lambda: bytearray(size), lambda: (TOTAL, USED), pool=pool)


def test_live_pieces_count_although_the_driver_reports_no_more_use() -> None:
    """Rule: memory that is promised but not touched yet is taken all the same."""
    table: BufferTable[bytearray] = BufferTable()
    first = take(table, 400)
    take(table, 300)
    with pytest.raises(OutOfDeviceMemory, match="1 B asked, 0 B free"):
        take(table, 1)
    table.remove(first)
    take(table, 400)


def test_use_that_the_driver_reports_is_not_counted_twice() -> None:
    """Rule: once touched, a piece shows in the driver's use, and counts once."""
    table: BufferTable[bytearray] = BufferTable()
    take(table, 400)
    seen = table.add("fake:0", 300, lambda: bytearray(300), lambda: (TOTAL, USED + 400))
    with pytest.raises(OutOfDeviceMemory):
        take(table, 1)
    table.remove(seen)
    take(table, 300)


def test_devices_of_one_pool_share_it() -> None:
    """Rule: two devices on the host's memory cannot each have all of it."""
    table: BufferTable[bytearray] = BufferTable()
    take(table, 400, pool="host")
    with pytest.raises(OutOfDeviceMemory):
        table.add("fake:1", 400, lambda: bytearray(400), lambda: (TOTAL, USED), pool="host")


def test_an_unknown_total_is_left_to_the_driver() -> None:
    """Rule: where no total is known, the driver itself refuses what does not fit."""
    table: BufferTable[bytearray] = BufferTable()
    handle = table.add("fake:0", 5000, lambda: bytearray(5000), lambda: (None, None))
    assert len(table.remove(handle)) == 5000


def test_a_buffer_that_cannot_be_made_leaves_nothing() -> None:
    """Rule: reserve first, act second: a driver's refusal takes nothing out of the pool."""

    def refuse() -> bytearray:
        raise BackendError("no")

    table: BufferTable[bytearray] = BufferTable()
    with pytest.raises(BackendError):
        table.add("fake:0", 700, refuse, lambda: (TOTAL, USED))
    take(table, 700)


def test_what_is_cleared_while_a_driver_works_is_counted_all_the_same() -> None:
    """Rule: a piece that comes after everything was forgotten is a piece like any other."""
    table: BufferTable[bytearray] = BufferTable()

    def slow() -> bytearray:
        assert table.clear() == []
        return bytearray(700)

    def slow_refusal() -> bytearray:
        table.clear()
        raise BackendError("no")

    with pytest.raises(BackendError, match="no"):
        table.add("fake:0", 700, slow_refusal, lambda: (TOTAL, USED))
    late = table.add("fake:0", 700, slow, lambda: (TOTAL, USED))
    with pytest.raises(OutOfDeviceMemory):
        take(table, 1)
    assert len(table.remove(late)) == 700


@pytest.mark.parametrize(("offset", "size"), [(-1, 1), (0, -1)])
def test_negative_ranges_are_refused(offset: int, size: int) -> None:
    """Rule: a range is two amounts of at least nothing."""
    table: BufferTable[bytearray] = BufferTable()
    handle = take(table, 10)
    with pytest.raises(InvalidValue, match="_bytes"):
        table.get(handle, offset, size)


class Tables(RuleBasedStateMachine):
    """Invariant: live pieces never exceed the pool, and a freed handle is never taken again."""

    def __init__(self) -> None:
        super().__init__()
        self.table: BufferTable[bytearray] = BufferTable()
        self.live: list[MemoryHandle] = []
        self.freed: list[MemoryHandle] = []

    @rule(size=st.integers(0, TOTAL))
    def add(self, size: int) -> None:
        try:
            self.live.append(take(self.table, size))
        except OutOfDeviceMemory:
            assert size > TOTAL - USED - self.held()

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        handle = self.live.pop(data.draw(st.integers(0, len(self.live) - 1)))
        assert len(self.table.remove(handle)) == handle.size_bytes
        self.freed.append(handle)

    @precondition(lambda self: self.freed)
    @rule()
    def remove_again(self) -> None:
        with pytest.raises(InvalidHandle):
            self.table.remove(self.freed[-1])

    @rule()
    def clear(self) -> None:
        assert len(self.table.clear()) == len(self.live)
        self.freed += self.live
        self.live = []

    @invariant()
    def within_the_pool(self) -> None:
        assert self.held() <= TOTAL - USED

    def held(self) -> int:
        return sum(handle.size_bytes for handle in self.live)


TestTables = Tables.TestCase
