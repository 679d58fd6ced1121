"""Whole screens in front of the table: all about one device, and the keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual.binding import Binding
from textual.containers import VerticalScroll
from textual.screen import Screen
from textual.widgets import Static

from exo.gpu.cli.render import paragraphs
from exo.gpu.cli.top.colours import BOLD

if TYPE_CHECKING:
    from textual.app import ComposeResult

# A key -> what it does.
KEYS = (
    ("arrows, j k", "choose a device; page up and down, home and end too"),
    ("s, S", "sort by the next column, or the one before; so does a click on a title"),
    ("r", "reverse the order"),
    ("p, space", "pause: what is shown stays; again goes on"),
    ("d, enter", "all about the chosen device"),
    ("q, escape", "back, or quit"),
)

# A word of the table -> what it means.
WORDS = (
    ("-", "not known; d says why, where anybody said so"),
    ("STATE", "health; of a sound device that is kept out of scheduling, cordoned or draining"),
    ("UTIL", "share of time in which the device worked"),
    ("USERS", "processes and leases on it; 1+ where its driver does not tell its processes"),
    ("USED", "what a process holds of the device's memory"),
    ("LEASE", "what was reserved: memory, a slot, the whole device, or nothing (foreign)"),
    ("charts", "from 0 to 100 % and 100 C; power to the device's limit, else to the highest shown"),
    ("", "an empty place is a moment without a reading, the lowest block is zero"),
)


class Page(Screen[None]):
    """Text that scrolls; escape leads back."""

    DEFAULT_CSS = """
    Page { background: ansi_default; color: ansi_default; }
    Page VerticalScroll { scrollbar-size-vertical: 1; }
    Page .keys { height: 1; dock: bottom; }
    """
    BINDINGS: ClassVar = [Binding("escape,q,d,enter,question_mark", "dismiss", show=False)]

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text

    def compose(self) -> ComposeResult:
        """The text and the key that leads back."""
        with VerticalScroll():
            yield Static(Text(self._text), classes="text")
        yield Static(Text("escape back  arrows scroll", BOLD), classes="keys")

    def show(self, text: str) -> None:
        """Draw another text, as far scrolled as before."""
        if text != self._text:
            self._text = text
            self.query_one(".text", Static).update(Text(text))


class DetailPage(Page):
    """All about one device; ``device_id`` says which."""

    def __init__(self, device_id: str, text: str) -> None:
        super().__init__(text)
        self.device_id = device_id


class HelpPage(Page):
    """The keys, and what the columns mean."""

    def __init__(self) -> None:
        super().__init__("\n\n".join((paragraphs(KEYS), paragraphs(WORDS))))
