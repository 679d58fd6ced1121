"""The machine's load: the share of time in which cores were not idle, over an honest window."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from exo.gpu.backends.host_load import HostLoad

TICKS = os.sysconf("SC_CLK_TCK")


class Machine:
    """A machine whose clock and idle time stand still until they are told to move."""

    def __init__(self, root: Path, cores: int) -> None:
        self.root = root
        self.cores = cores
        self.seconds = 100.0
        self.idle = 1000.0
        self.busy_share = 0.0
        self.paused: list[float] = []
        (root / "proc").mkdir()
        self.passes(0.0)

    def passes(self, seconds: float) -> None:
        self.seconds += seconds
        self.idle += seconds * self.cores * (1 - self.busy_share)
        waited = round(self.idle * TICKS) // 4
        idle = round(self.idle * TICKS) - waited
        fields = f"7 0 7 {idle} {waited} 0 0 0 0 0"
        lines = [f"cpu  {fields}", *(f"cpu{core} {fields}" for core in range(self.cores))]
        (self.root / "proc/stat").write_text("\n".join([*lines, "intr 5", "ctxt 9", ""]))

    def pause(self, seconds: float) -> None:
        self.paused.append(seconds)
        self.passes(seconds)

    def load(self) -> HostLoad:
        return HostLoad(self.root, clock=lambda: self.seconds, pause=self.pause)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path, cores=2)


def test_load_is_measured_since_the_last_time(machine: Machine) -> None:
    """Rule: each reading covers the time since the one before, the first since the beginning."""
    load = machine.load()
    machine.busy_share = 0.75
    machine.passes(1.0)
    assert load.percent() == pytest.approx(75)
    machine.busy_share = 0.5
    machine.passes(2.0)
    assert load.percent() == pytest.approx(50)
    assert machine.paused == []


def test_a_first_reading_waits_for_a_window(machine: Machine) -> None:
    """Rule: nothing is told of a window in which two cores pass fewer than five ticks."""
    load = machine.load()
    machine.busy_share = 0.5
    machine.passes(0.01)
    assert load.percent() == pytest.approx(50, abs=20)  # one tick of five
    assert machine.paused == [pytest.approx(0.015)]


def test_a_window_too_short_repeats_the_last_answer(machine: Machine) -> None:
    """Rule: asked again at once, it says the same and does not wait."""
    load = machine.load()
    machine.passes(1.0)
    before = load.percent()
    machine.busy_share = 1.0
    machine.passes(0.001)
    assert load.percent() == before == pytest.approx(0)
    assert machine.paused == []


def test_what_was_long_ago_says_nothing_of_now(machine: Machine) -> None:
    """Rule: after a long pause a fresh window is measured."""
    load = machine.load()
    machine.passes(1.0)
    load.percent()
    machine.passes(60.0)
    machine.busy_share = 1.0
    assert load.percent() == pytest.approx(100)
    assert machine.paused == [pytest.approx(0.025)]


@pytest.mark.parametrize(("cores", "seconds"), [(1, 0.05), (2, 0.025), (64, 0.02)])
def test_many_cores_need_a_shorter_window(tmp_path: Path, cores: int, seconds: float) -> None:
    """Rule: what counts is how much time all cores together pass, and 20 ms at least."""
    machine = Machine(tmp_path, cores)
    machine.load().percent()
    assert machine.paused == [pytest.approx(seconds)]


def test_idle_time_that_ran_backwards_is_no_load_above_all(machine: Machine) -> None:
    """Rule: a load is between 0 and 100, whatever the kernel counted, also in no time."""
    load = machine.load()
    machine.idle -= 5
    machine.passes(1.0)
    assert load.percent() == 100
    machine.idle += 9
    machine.passes(1.0)
    assert load.percent() == 0
    still = HostLoad(machine.root, clock=lambda: 1.0, pause=lambda _: None)
    assert still.percent() == 0


@pytest.mark.parametrize("text", [None, "", "cpu  1 2", "cpu  a b c d e f"])
def test_elsewhere_psutil_counts(
    tmp_path: Path, text: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: without Linux's counters, or with half of them, psutil's serve."""
    if text is not None:
        (tmp_path / "proc").mkdir()
        (tmp_path / "proc/stat").write_text(text)
    seconds = iter([0.0, 1.0])
    times = iter([SimpleNamespace(idle=50.0), SimpleNamespace(idle=50.6)])
    monkeypatch.setattr(psutil, "cpu_times", lambda: next(times))
    monkeypatch.setattr(psutil, "cpu_count", lambda: 2)
    load = HostLoad(tmp_path, clock=lambda: next(seconds))
    assert load.percent() == pytest.approx(70)
