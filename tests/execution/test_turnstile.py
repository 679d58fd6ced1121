"""The turnstile: one at a time, whatever dies or is stopped, and nobody is forgotten."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing

import pytest

from exo.gpu.execution.turnstile import Turnstile, holder_of
from exo.gpu.vocabulary.errors import StoreError

HOLDER = """
import sys
from pathlib import Path
from exo.gpu.execution.turnstile import Turnstile
folder = Path(sys.argv[1])
with Turnstile(folder / "turn", folder / "tickets", folder / "bells").turn():
    print("in", flush=True)
    sys.stdin.readline()
"""

COUNTER = """
import sys
from pathlib import Path
from exo.gpu.execution.turnstile import Turnstile
folder = Path(sys.argv[1])
turnstile = Turnstile(folder / "turn", folder / "tickets", folder / "bells")
count = folder / "count"
for _ in range(int(sys.argv[2])):
    with turnstile.turn():
        count.write_text(str(int(count.read_text()) + 1))
turnstile.close()
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "turn").touch()
    (tmp_path / "tickets").mkdir()
    (tmp_path / "bells").mkdir()
    return tmp_path


def gate(folder, seconds=10.0):
    turn, tickets, bells = folder / "turn", folder / "tickets", folder / "bells"
    return Turnstile(turn, tickets, bells, deadline_seconds=seconds)


def opened(folder, seconds=10.0):
    return closing(gate(folder, seconds))


def start(folder, code, *words):
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder), *map(str, words)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_only_one_is_through_at_a_time(folder):
    """Rule: a count that is read and written under the turnstile loses nothing."""
    (folder / "count").write_text("0")
    children = [start(folder, COUNTER, 60) for _ in range(8)]
    for child in children:
        child.communicate(timeout=90)
        assert child.returncode == 0
    assert (folder / "count").read_text() == "480"
    assert not list(folder.glob("tickets/*"))
    assert not list(folder.glob("bells/*"))


def test_the_death_of_who_is_through_lets_the_next_one_in(folder):
    with start(folder, HOLDER) as holder:
        assert holder.stdout.readline() == "in\n"
        threading.Timer(0.1, holder.kill).start()
        with opened(folder) as mine, mine.turn():
            assert holder.wait() == -signal.SIGKILL


def test_one_that_is_stopped_is_named_after_the_deadline(folder):
    """Rule: no wait without an end, and the error says who and what to do."""
    with start(folder, HOLDER) as holder:
        assert holder.stdout.readline() == "in\n"
        holder.send_signal(signal.SIGSTOP)
        told = rf"process {holder.pid} .*0\.2 s.*kill -CONT"
        with opened(folder, 0.2) as mine, pytest.raises(StoreError, match=told), mine.turn():
            pass
        holder.send_signal(signal.SIGCONT)
        holder.communicate("\n")
    assert not list(folder.glob("tickets/*"))


def test_a_waiter_that_died_holds_nobody_up(folder):
    """Rule: a ticket whose bell nobody hears is thrown away."""
    (folder / "tickets" / f"{1:020d} gone").symlink_to("-")
    first = gate(folder)
    for _ in range(2):
        with first.turn():
            time.sleep(0.002)  # beyond the time in which others may be overtaken
    assert not list(folder.glob("tickets/*"))
    first.close()


def test_who_waits_is_let_through_although_others_come_again_and_again(folder):
    """Rule: one that has just been through may overtake, but not for ever."""
    greedy, patient = gate(folder), gate(folder)
    over, through = threading.Event(), threading.Event()

    def greed():
        while not over.is_set():
            with greedy.turn():
                time.sleep(0.0005)

    def wait():
        with patient.turn():
            through.set()

    threads = [threading.Thread(target=greed), threading.Thread(target=wait)]
    for thread in threads:
        thread.start()
    assert through.wait(30)
    over.set()
    for thread in threads:
        thread.join()
    greedy.close()
    patient.close()


def test_an_interrupt_in_the_queue_leaves_no_ticket(folder, monkeypatch):
    from exo.gpu.execution.bells import Bell

    def interrupt(self, seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(Bell, "wait", interrupt)
    one, other = gate(folder), gate(folder)
    with one.turn(), pytest.raises(KeyboardInterrupt), other.turn():
        pass
    one.close()
    other.close()
    assert not list(folder.glob("tickets/*"))


def test_who_holds_a_file_is_read_from_the_kernels_list(folder, tmp_path):
    assert holder_of(folder / "turn") is None
    with opened(folder) as mine, mine.turn():
        assert holder_of(folder / "turn") in {os.getpid(), None}
        assert holder_of(folder / "turn", tmp_path / "none") is None
    assert holder_of(folder / "missing") is None
