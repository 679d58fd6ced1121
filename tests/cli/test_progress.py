"""The line of ``map`` on a terminal: drawn where it changed, out of the way of everything else."""

from __future__ import annotations

import io

import pytest

from exo.gpu.cli.progress import Progress

ERASE = "\r\x1b[K"


class Terminal(io.StringIO):
    """Text that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_line_is_drawn_only_where_it_changed():
    """Rule: what is on the screen already is not written again."""
    terminal = Terminal()
    progress = Progress(terminal, total=3)
    progress.draw()
    progress.draw()
    assert terminal.getvalue() == ERASE + "0/3 done"
    progress.count(0, "cuda:0", succeeded=False)
    progress.draw()
    assert terminal.getvalue().endswith(ERASE + "1/3 done, 1 failed  cuda:0 1")


def test_the_line_makes_room_for_what_is_written_beside_it():
    """Rule: the line is erased before an item's output, and drawn again after it."""
    terminal = Terminal()
    progress = Progress(terminal, total=None)
    progress.draw()
    with progress.aside():
        terminal.write("output\n")
    progress.draw()
    assert terminal.getvalue() == f"{ERASE}0 done{ERASE}output\n{ERASE}0 done"


def test_leaving_takes_the_line_away():
    """Rule: what ended leaves no line behind, and its thread has ended too."""
    terminal = Terminal()
    with Progress(terminal, total=None) as progress:
        progress.draw()
    assert terminal.getvalue().endswith(ERASE)
    assert not progress._ticker.is_alive()


@pytest.mark.parametrize("stream", [io.StringIO(), None])
def test_without_a_terminal_nothing_is_drawn(stream):
    """Rule: a pipe, a file or a closed stream sees no progress, only counts are kept."""
    with Progress(stream, total=2) as progress:
        progress.count(0, "cuda:0", succeeded=True)
    assert stream is None or stream.getvalue() == ""
    assert (progress.done, progress.failed) == (1, 0)
