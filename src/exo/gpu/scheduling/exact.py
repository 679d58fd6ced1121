"""The only door to HiGHS: a mixed-integer program over the places that can still matter.

A place whose waste is above the gap cannot be part of a better assignment, so that leaving it out
loses nothing. What is left of a small problem is solved to the end, which proves the optimum; of a
large one only the places of least waste are taken, which may improve it but proves nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Matrix = NDArray[np.float64]
    Row = NDArray[np.float64]
    Places = NDArray[np.int64]

_WHOLE = 1200
"""Places up to which all that matter are taken; a second solves a few hundred to the end."""
_PART = 160
"""Places beside those taken that a larger problem is cut to; tried from 60 to 250."""
_NODES = 100
"""Of the branch-and-bound tree, where there are no seconds; fewer places are taken then, too."""
_WHOLE_WITHOUT_SECONDS = 200
_RELATIVE_GAP = 1e-6
_TOLERANCE = 2e-6
"""Taken off its bound: HiGHS lets rows be missed by 1e-6."""


class Answer(msgspec.Struct, frozen=True):
    """The places found, or None; ``bound`` is proven for all assignments, or None."""

    places: NDArray[np.int64] | None
    bound: float | None


def is_here() -> bool:
    """Whether HiGHS can be loaded: it comes with the extra ``solver``."""
    try:
        import highspy
    except ImportError:
        return False
    return hasattr(highspy, "Highs")


def solve(
    costs: Matrix,
    ready: Row,
    room: Places,
    *,
    waste: Matrix,
    places: Places,
    seconds: float | None,
) -> Answer:
    """Improve ``places``. Costs are in multiples of the relaxation's bound, as is the waste."""
    items = np.arange(len(costs))
    loads = ready + np.bincount(places, costs[items, places], minlength=costs.shape[1])
    gap = float(loads.max()) - 1
    open_ = np.isfinite(costs) & (waste <= gap)
    most = _WHOLE_WITHOUT_SECONDS if seconds is None else _WHOLE
    whole = int(open_.sum()) - len(costs) <= most
    if not whole:
        limit = np.partition(waste, len(costs) + _PART, axis=None)[len(costs) + _PART]
        open_ &= waste <= limit
    open_[items, places] = True
    model = _Model(costs, ready, room, open_, float(loads.max()))
    solver = _quiet_solver()
    solver.setOptionValue("parallel", "off")
    solver.setOptionValue("mip_rel_gap", _RELATIVE_GAP)
    if seconds is None:
        solver.setOptionValue("mip_max_nodes", _NODES)
    else:
        solver.setOptionValue("time_limit", max(seconds, 0.0))
    solver.passModel(model.program())
    solver.setSolution(*model.given(places))
    solver.run()
    bound = float(solver.getInfo().mip_dual_bound) * (1 - _TOLERANCE) if whole else -np.inf
    proven = bound if np.isfinite(bound) and bound > 1 else None
    return Answer(model.places(np.array(solver.getSolution().col_value), places), proven)


class _Model:
    """The program: columns for the open places of items with a choice, and for the makespan."""

    def __init__(
        self, costs: Matrix, ready: Row, room: Places, open_: NDArray[np.bool_], most: float
    ) -> None:
        self.costs, self.most = costs, most
        free = open_.sum(axis=1) > 1
        self.free = np.flatnonzero(free)
        settled = np.flatnonzero(~free)
        where = open_[settled].argmax(axis=1)
        devices = costs.shape[1]
        self.base = ready + np.bincount(where, costs[settled, where], minlength=devices)
        self.room = room - np.bincount(where, minlength=devices)
        self.limited = np.flatnonzero(self.room < len(self.free))
        rows, self.columns = np.nonzero(open_[self.free])
        self.rows, self.items = rows, self.free[rows]

    def program(self) -> Any:
        """As HiGHS takes it: rows for the items, the loads, and the devices with a maximum."""
        import highspy

        count, devices = len(self.items), len(self.base)
        infinite = highspy.kHighsInf
        program = highspy.HighsLp()
        program.num_col_ = count + 1
        program.num_row_ = len(self.free) + devices + len(self.limited)
        program.col_cost_ = np.append(np.zeros(count), 1.0)
        program.col_lower_ = np.append(np.zeros(count), 1.0)
        program.col_upper_ = np.append(np.ones(count), self.most)
        one_each = np.ones(len(self.free))
        nothing = np.full(devices + len(self.limited), -infinite)
        program.row_lower_ = np.concatenate([one_each, nothing])
        program.row_upper_ = np.concatenate(
            [one_each, -self.base, self.room[self.limited].astype(np.float64)]
        )
        starts, indices, values = self._entries()
        program.a_matrix_.format_ = highspy.MatrixFormat.kColwise
        program.a_matrix_.start_ = starts
        program.a_matrix_.index_ = indices
        program.a_matrix_.value_ = values
        whole, real = highspy.HighsVarType.kInteger, highspy.HighsVarType.kContinuous
        program.integrality_ = [whole] * count + [real]
        return program

    def _entries(self) -> tuple[Places, Places, Row]:
        """The matrix by columns: where each begins, the rows, the values."""
        count, devices = len(self.items), len(self.base)
        place = np.arange(count)
        number = np.full(devices, -1)
        number[self.limited] = len(self.free) + devices + np.arange(len(self.limited))
        maximum = number[self.columns]
        bound = np.flatnonzero(maximum >= 0)
        column = np.concatenate([place, place, place[bound], np.full(devices, count)])
        row = np.concatenate(
            [
                self.rows,
                len(self.free) + self.columns,
                maximum[bound],
                len(self.free) + np.arange(devices),
            ]
        )
        costs = self.costs[self.items, self.columns]
        value = np.concatenate([np.ones(count), costs, np.ones(len(bound)), -np.ones(devices)])
        order = np.argsort(column, kind="stable")
        starts = np.searchsorted(column[order], np.arange(count + 2))
        return starts, row[order], value[order]

    def given(self, places: Places) -> tuple[int, Places, Row]:
        """An assignment as a solution to begin from."""
        values = np.append((places[self.items] == self.columns).astype(np.float64), self.most)
        return len(values), np.arange(len(values)), values

    def places(self, values: Row, before: Places) -> Places | None:
        """The assignment of a solution; None where there is none."""
        if len(values) != len(self.items) + 1:
            return None
        taken = np.flatnonzero(values[:-1] > 0.5)
        if not np.array_equal(self.items[taken], self.free):
            return None
        places = before.copy()
        places[self.items[taken]] = self.columns[taken]
        return places


def _quiet_solver() -> Any:
    """A solver that prints nothing: its constructor already says hello unless it is silent."""
    import highspy

    class Quiet(highspy.Highs):
        """Silent from the first call that the constructor makes."""

        def enableCallbacks(self) -> None:  # noqa: N802 - HiGHS's name
            self.silent()
            super().enableCallbacks()

    return Quiet()
