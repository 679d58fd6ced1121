"""What is on the screen, as text, compared with what was recorded and looked at.

``RECORD_SCREENS=1 python -m pytest tests/cli/top/test_screens.py`` writes the recordings anew: look
at the difference before it is committed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from textual.app import App

RECORDINGS = Path(__file__).with_name("screens")
VARIABLE = "RECORD_SCREENS"


def lines(app: App) -> list[str]:
    """The lines of the screen in front, without the blanks at their ends."""
    return [strip.text.rstrip() for strip in app.screen._compositor.render_strips()]


def compare(name: str, shown: list[str]) -> None:
    """Fail where the screen is not the recorded one."""
    path = RECORDINGS / f"{name}.txt"
    text = "\n".join(shown) + "\n"
    if os.environ.get(VARIABLE):
        path.write_text(text)
    assert text == path.read_text(), f"{path.name} differs"
