"""Colours that can be read on a light and on a dark terminal; no meaning is in a colour alone."""

from __future__ import annotations

from rich.style import Style

# Of the 256 fixed colours: at least 3.9 to 1 against both black and white (WCAG 2.1).
_RED = "color(160)"
_ORANGE = "color(166)"
_BLUE = "color(32)"

PLAIN = Style()
DIM = Style(dim=True)
BOLD = Style(bold=True)
CHOSEN = Style(reverse=True)
GRAPH = Style(color=_BLUE)
BAD = Style(color=_RED, bold=True)
WARNING = Style(color=_ORANGE, bold=True)

CONDITIONS = {
    "failed": BAD,
    "lost": BAD,
    "degraded": WARNING,
    "cordoned": WARNING,
    "draining": WARNING,
    "sleeping": DIM,
}
"""Condition of a device -> how the word is written; a sound one is written plainly."""
