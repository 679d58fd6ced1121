"""The widget of the live table: titles, a line for each device, one of them chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from rich.segment import Segment
from textual.binding import Binding
from textual.geometry import Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from exo.gpu.cli.render import UNKNOWN
from exo.gpu.cli.top.colours import BOLD, CHOSEN, CONDITIONS, DIM, PLAIN
from exo.gpu.cli.top.columns import Column, Row
from exo.gpu.cli.top.rows import GAP, Sorting, columns_for, header, line, ordered

if TYPE_CHECKING:
    from collections.abc import Sequence

    from textual.events import Click


class DeviceTable(ScrollView, can_focus=True):
    """Draws only the lines that are seen, so that many devices cost no more than few."""

    DEFAULT_CSS = """
    DeviceTable {
        height: auto; max-height: 50%; min-height: 2;
        overflow-x: hidden; scrollbar-size-vertical: 1;
    }
    """
    BINDINGS: ClassVar = [
        Binding("up,k", "move(-1)", "Up", show=False),
        Binding("down,j", "move(1)", "Down", show=False),
        Binding("pageup", "page(-1)", "Page up", show=False),
        Binding("pagedown", "page(1)", "Page down", show=False),
        Binding("home,g", "move(-1000000)", "First", show=False),
        Binding("end,G", "move(1000000)", "Last", show=False),
    ]

    class Chosen(Message):
        """Another device was chosen."""

    class TitleClicked(Message):
        """The title of a column was clicked; ``title`` says which."""

        def __init__(self, title: str) -> None:
            super().__init__()
            self.title = title

    def __init__(self) -> None:
        super().__init__(id="devices")
        self.rows: list[Row] = []
        """In the order shown."""
        self.columns: list[tuple[Column, int]] = []
        self.chosen = 0
        """The place of the chosen row."""
        self._sorting = Sorting()

    @property
    def chosen_row(self) -> Row | None:
        """The chosen row, or None where there is no device."""
        return self.rows[self.chosen] if self.rows else None

    def show(self, rows: Sequence[Row], sorting: Sorting) -> str:
        """Draw these rows; the chosen device stays chosen, wherever it is now.

        Returns the id of the chosen device where that is gone: its neighbour is chosen then.
        """
        before = self.chosen_row
        self._sorting = sorting
        self.rows = ordered(rows, sorting)
        places = {row.device_id: place for place, row in enumerate(self.rows)}
        gone = ""
        if before is not None:
            gone = "" if before.device_id in places else before.device_id
            place = places.get(before.device_id, min(self.chosen, len(self.rows) - 1))
            self.chosen = max(0, place)
        self._lay_out()
        return gone

    def on_resize(self) -> None:
        """Choose the columns anew."""
        self._lay_out()

    def _lay_out(self) -> None:
        self.columns = columns_for(self._room, self.rows)
        size = Size(self.size.width, len(self.rows) + 1)
        if size != self.virtual_size:
            self.virtual_size = size
        self.refresh()

    @property
    def _room(self) -> int:
        # The scroll bar's column stays free, so that its coming changes nothing.
        return max(1, self.container_size.width - 1)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """The titles and a line for each device."""
        del container, viewport, width
        return max(2, len(self.rows) + 1)

    def render_line(self, y: int) -> Strip:
        """The titles at the top, the rows below them as far as they are scrolled."""
        width = self.size.width
        if y == 0:
            titles = Segment(" ".join(("", header(self.columns, self._sorting)))[1:], BOLD)
            return Strip([titles]).adjust_cell_length(width, BOLD)
        place = y - 1 + self.scroll_offset.y
        if place >= len(self.rows):
            empty = "no device" if not self.rows and y == 1 else ""
            return Strip([Segment(empty, DIM)]).adjust_cell_length(width, PLAIN)
        row = self.rows[place]
        base = CHOSEN if place == self.chosen else PLAIN
        segments: list[Segment] = []
        for (column, _), text in zip(self.columns, line(row, self.columns), strict=True):
            style = PLAIN
            if column.title == "STATE":
                style = CONDITIONS.get(text.strip(), PLAIN)
            elif text.strip() == UNKNOWN:
                style = DIM
            if segments:
                segments.append(Segment(" " * GAP, base))
            segments.append(Segment(text, base if base is CHOSEN else style))
        return Strip(segments).adjust_cell_length(width, base)

    def action_move(self, step: int) -> None:
        """Choose the device so many lines below."""
        place = max(0, min(len(self.rows) - 1, self.chosen + step))
        if place != self.chosen and self.rows:
            self.chosen = place
            self._into_view()
            self.refresh()
            self.post_message(self.Chosen())

    def action_page(self, direction: int) -> None:
        """Choose the device a screen below or above."""
        self.action_move(direction * max(1, self.size.height - 2))

    def _into_view(self) -> None:
        seen = max(1, self.size.height - 1)
        top = self.scroll_offset.y
        if self.chosen < top:
            self.scroll_to(y=self.chosen, animate=False, force=True)
        elif self.chosen >= top + seen:
            self.scroll_to(y=self.chosen - seen + 1, animate=False, force=True)

    def on_click(self, event: Click) -> None:
        """Choose the device that is clicked, or sort by the title that is."""
        if event.y > 0:
            self.action_move(event.y - 1 + self.scroll_offset.y - self.chosen)
            return
        left = 0
        for column, size in self.columns:
            if left <= event.x < left + size + GAP:
                self.post_message(self.TitleClicked(column.title))
                return
            left += size + GAP
