"""The live table as people see it: whole screens, narrow and wide, against recorded text."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from exo.gpu.cli.top.app import TopApp
from exo.gpu.coordination.top_source import TopFrame
from tests.cli.top.frames import MACHINE, NOTHING, UNKNOWN, FixedSource, many
from tests.cli.top.screens import compare, lines

SMALL, WIDE = (80, 24), (160, 50)


@pytest.fixture(autouse=True)
def in_utc(utc):
    """The reader's zone is UTC."""


@pytest.fixture
def shown() -> Callable[..., list[str]]:
    """The screen of a frame, after these keys."""

    def show(frame: TopFrame, size: tuple[int, int], *keys: str) -> list[str]:
        async def look() -> list[str]:
            app = TopApp(FixedSource(frame))
            async with app.run_test(size=size) as pilot:
                await pilot.pause()
                await pilot.press(*keys)
                await pilot.pause()
                return lines(app)

        return asyncio.run(look())

    return show


SCREENS = [
    ("machine", MACHINE, SMALL, ()),
    ("machine-wide", MACHINE, WIDE, ()),
    ("degraded", MACHINE, SMALL, ("down", "down")),
    ("degraded-wide", MACHINE, WIDE, ("down", "down")),
    ("cordoned", MACHINE, SMALL, ("down",)),
    ("failed", MACHINE, SMALL, ("end", "up")),
    ("sorted", MACHINE, SMALL, ("s", "s", "s", "s")),
    ("detail", MACHINE, SMALL, ("d",)),
    ("detail-wide", MACHINE, WIDE, ("down", "enter")),
    ("help", MACHINE, SMALL, ("question_mark",)),
    ("nothing", NOTHING, SMALL, ()),
    ("unknown", UNKNOWN, SMALL, ()),
    ("unknown-wide", UNKNOWN, WIDE, ()),
    ("many", many(256), SMALL, ("end",)),
    ("before", TopFrame(notes=("looking for devices",)), SMALL, ()),
    ("tiny", MACHINE, (40, 10), ()),
]


@pytest.mark.parametrize(
    ("name", "frame", "size", "keys"), SCREENS, ids=[screen[0] for screen in SCREENS]
)
def test_the_screen_is_the_recorded_one(name, frame, size, keys, shown):
    """Rule: what people see changes only where somebody looked at the change."""
    screen = shown(frame, size, *keys)
    assert len(screen) == size[1]
    compare(name, screen)
