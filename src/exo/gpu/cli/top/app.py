"""The application of ``exo-gpu top``: frames of a source on the screen, and what keys do."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual.app import App
from textual.binding import Binding
from textual.containers import Container
from textual.widgets import Static

from exo.gpu.cli.render import WIDTH
from exo.gpu.cli.top.colours import BOLD, DIM, WARNING
from exo.gpu.cli.top.columns import Row
from exo.gpu.cli.top.device_table import DeviceTable
from exo.gpu.cli.top.history import history_text
from exo.gpu.cli.top.occupants import users_text
from exo.gpu.cli.top.pages import DetailPage, HelpPage
from exo.gpu.cli.top.remarks import detail_lines
from exo.gpu.cli.top.rows import Sorting, next_sorting, rows_of
from exo.gpu.cli.top.totals import totals, totals_line
from exo.gpu.cli.users import fit

if TYPE_CHECKING:
    from textual.app import ComposeResult

    from exo.gpu.coordination.top_source import Series, TopFrame, TopSource

# How often the source is asked whether there is news; asking costs nothing.
_LOOK_SECONDS = 0.25

# From here on history and users stand beside each other.
_WIDE_COLUMNS = 120
_PANES_APART = 2

# In a small window, who is on the device matters as much as how it went.
_LEAST_HISTORY_LINES = 5
_LEAST_USER_LINES = 5
_NOTE_LINES = 3

_KEYS = "s/S sort  r reverse  arrows choose  p pause  d detail  ? help  q quit"


class TopApp(App[None]):
    """Shows the newest frame of ``source``; it never waits for one."""

    ENABLE_COMMAND_PALETTE = False
    CSS = """
    Screen { background: ansi_default; color: ansi_default; }
    #summary { height: auto; }
    #devices { margin-bottom: 1; }
    #panes { layout: vertical; height: 1fr; }
    #panes.wide { layout: horizontal; }
    #panes.wide #history { width: 1fr; margin-right: 2; }
    #panes.wide #users { width: 1fr; }
    #history { height: auto; margin-bottom: 1; }
    #users { height: 1fr; }
    #keys { height: 1; dock: bottom; }
    """
    BINDINGS: ClassVar = [
        Binding("s", "sort(1)", show=False),
        Binding("S", "sort(-1)", show=False),
        Binding("r", "reverse", show=False),
        Binding("p,space", "pause", show=False),
        Binding("d,enter", "detail", show=False),
        Binding("question_mark", "help", show=False),
        Binding("q,escape", "quit", show=False),
        Binding("ctrl+c", "quit", show=False, priority=True),
    ]

    def __init__(self, source: TopSource) -> None:
        super().__init__(ansi_color=True)
        self._source = source
        self._frame: TopFrame = source.frame()
        self._sorting = Sorting()
        self._paused = False
        self._gone = ""
        self._table = DeviceTable()
        self._history = Static(id="history")
        self._users = Static(id="users")

    def compose(self) -> ComposeResult:
        """Totals, table, the panes of the chosen device, keys."""
        yield Static(id="summary")
        yield self._table
        with Container(id="panes"):
            yield self._history
            yield self._users
        yield Static(Text(_KEYS, BOLD, no_wrap=True), id="keys")

    def on_mount(self) -> None:
        """Begin to look for news."""
        self._table.focus()
        self.set_interval(_LOOK_SECONDS, self._look)
        self._draw()

    def on_resize(self) -> None:
        """Lay the panes out anew."""
        self.call_after_refresh(self._draw)

    def _look(self) -> None:
        if self._paused:
            return
        frame = self._source.frame()
        if frame is not self._frame:
            self._frame = frame
            self._draw()

    def _draw(self) -> None:
        """Bring everything up to date with the frame."""
        frame = self._frame
        rows = rows_of(frame.snapshot.devices, frame.users, frame.untold)
        gone = self._table.show(rows, self._sorting)
        self._gone = gone or self._gone
        self._draw_summary()
        self._draw_chosen()

    def _draw_summary(self) -> None:
        frame, width = self._frame, self.size.width
        shown = (
            "-"
            if frame.taken_at is None
            else time.strftime("%H:%M:%S", time.localtime(frame.taken_at))
        )
        state = "paused" if self._paused else ""
        clock = "  ".join(filter(None, (state, shown)))
        sums = totals(frame.snapshot.devices, frame.users)
        first = fit(totals_line(sums, width=width - len(clock) - 2), max(1, width - len(clock) - 2))
        gap = " " * max(2, width - len(first) - len(clock))
        text = Text(no_wrap=True)
        text.append(first, BOLD)
        text.append(gap)
        text.append(clock, WARNING if self._paused else DIM)
        for note in self._notes():
            text.append("\n" + fit(note, width), WARNING)
        self.query_one("#summary", Static).update(text)

    def _notes(self) -> list[str]:
        gone = [f"{self._gone} is no longer listed"] if self._gone else []
        return [*gone, *self._frame.notes][:_NOTE_LINES]

    def _draw_chosen(self) -> None:
        frame, row = self._frame, self._table.chosen_row
        width, lines = self.size.width, self._pane_lines()
        wide = width >= _WIDE_COLUMNS
        self.query_one("#panes", Container).set_class(wide, "wide")
        own = (width - _PANES_APART) // 2 if wide else width
        history: Series = {}
        if row is not None:
            history = frame.histories.get(row.device_id, history)
        room = lines if wide else max(_LEAST_HISTORY_LINES, lines - _LEAST_USER_LINES - 1)
        drawn = history_text(row, history, frame.cadence_seconds, width=own, lines=room)
        self._history.update(drawn)
        left = lines if wide else lines - drawn.plain.count("\n") - 2
        now = self._now()
        users = users_text(row, frame.untold, now=now, width=own, lines=max(2, left))
        self._users.update(users)
        if isinstance(self.screen, DetailPage):
            self.screen.show(self._detail(self.screen.device_id))

    def _pane_lines(self) -> int:
        """How high the panes of the chosen device are."""
        summary = 1 + len(self._notes())
        table = min(1 + max(1, len(self._table.rows)), self.size.height // 2)
        return max(1, self.size.height - summary - table - 2)

    def _now(self) -> float:
        return time.time() if self._frame.taken_at is None else self._frame.taken_at

    def _detail(self, device_id: str) -> str:
        row = next((row for row in self._table.rows if row.device_id == device_id), None)
        if row is None:
            return f"{device_id} is no longer listed"
        return "\n".join(self._detail_lines(row))

    def _detail_lines(self, row: Row) -> list[str]:
        now = self._now()
        width = max(WIDTH, self.size.width) - 1
        return detail_lines(row, self._frame.untold, now=now, width=width)

    def on_device_table_chosen(self) -> None:
        """Show the device that was chosen."""
        self._gone = ""
        self._draw_summary()
        self._draw_chosen()

    def on_device_table_title_clicked(self, event: DeviceTable.TitleClicked) -> None:
        """Sort by a column; by the same one again the other way round."""
        same = event.title == self._sorting.title
        self._sorting = Sorting(event.title, same and not self._sorting.reverse)
        self._draw()

    def action_sort(self, step: int) -> None:
        """Sort by another of the columns shown."""
        titles = [column.title for column, _ in self._table.columns]
        self._sorting = next_sorting(self._sorting, titles, step=step)
        self._draw()

    def action_reverse(self) -> None:
        """Turn the order round."""
        self._sorting = self._sorting._replace(reverse=not self._sorting.reverse)
        self._draw()

    def action_pause(self) -> None:
        """Keep what is shown, or go on with the newest."""
        self._paused = not self._paused
        self._look()
        self._draw_summary()

    def action_detail(self) -> None:
        """Show all about the chosen device."""
        row = self._table.chosen_row
        if row is not None:
            self.push_screen(DetailPage(row.device_id, self._detail(row.device_id)))

    def action_help(self) -> None:
        """Show the keys."""
        self.push_screen(HelpPage())
