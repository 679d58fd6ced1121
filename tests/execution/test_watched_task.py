"""What a slot is at, as the watchdog sees it."""

from __future__ import annotations

from exo.gpu.execution.watched_task import Limits, WatchedTask


class Deaf:
    """A process that nobody may ask anything."""

    def cancel(self, place):
        raise AssertionError("it cannot be asked")

    terminate = kill = answers = cpu_seconds = cancel


def test_one_that_cannot_be_asked_is_not_looked_at_without_end():
    """Rule: whatever the time, the next look at a shell command lies ahead of this one."""
    task = WatchedTask(Deaf(), (1,), 0.0, Limits(), asked=lambda: False)
    now = task.first_due
    for _ in range(100):
        due = task.check(now)
        assert due > now
        now = due
