"""What keys and news do to the live table."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import msgspec
import pytest

from exo.gpu.cli.top.app import TopApp
from exo.gpu.cli.top.device_table import DeviceTable
from exo.gpu.coordination.top_source import TopFrame
from tests.cli.top.frames import MACHINE, NOTHING, UNKNOWN, FixedSource, many, without
from tests.cli.top.screens import lines

SMALL = (80, 24)
WAIT_SECONDS = 60


class Screen:
    """The live table on a screen, with what a person sees and does."""

    def __init__(self, app: TopApp, source: FixedSource, pilot) -> None:
        self.app = app
        self.source = source
        self.pilot = pilot

    async def press(self, *keys: str) -> list[str]:
        """Press keys and look at the screen."""
        await self.pilot.press(*keys)
        await self.pilot.pause()
        return lines(self.app)

    async def until(self, word: str, *, there: bool = True) -> list[str]:
        """The screen from when the word is on it, or is no more."""
        ends = time.monotonic() + WAIT_SECONDS
        while (word in "\n".join(lines(self.app))) is not there:
            assert time.monotonic() < ends, "\n".join(lines(self.app))
            await self.pilot.pause(0.02)
        return lines(self.app)

    @property
    def chosen(self) -> str:
        row = self.app.query_one(DeviceTable).chosen_row
        assert row is not None
        return row.device_id

    @property
    def order(self) -> list[str]:
        return [row.device_id for row in self.app.query_one(DeviceTable).rows]


@pytest.fixture(autouse=True)
def in_utc(utc):
    """The reader's zone is UTC."""


def on_screen(
    frame: TopFrame, work: Callable[[Screen], Awaitable[None]], size: tuple[int, int] = SMALL
) -> TopApp:
    """Show a frame and work with it; the application, which has ended by then or not."""
    source = FixedSource(frame)
    app = TopApp(source)

    async def run() -> None:
        async with app.run_test(size=size) as pilot:
            await pilot.pause()
            await work(Screen(app, source, pilot))

    asyncio.run(run())
    return app


def test_arrows_choose_a_device():
    """Rule: the panes are of the device under the cursor, which stops at both ends."""

    async def work(screen: Screen) -> None:
        assert screen.chosen == "cuda:0"
        shown = await screen.press("down")
        assert screen.chosen == "cuda:1"
        assert any(line.startswith("cuda:1  NVIDIA GeForce RTX 3060") for line in shown)
        await screen.press("up", "up", "up")
        assert screen.chosen == "cuda:0"
        await screen.press("end", "down", "pagedown")
        assert screen.chosen == "cpu:0"
        await screen.press("home")
        assert screen.chosen == "cuda:0"

    on_screen(MACHINE, work)


def test_every_shown_column_can_be_sorted_by():
    """Rule: s goes through all titles and back to the order of the machine, S the other way."""

    async def work(screen: Screen) -> None:
        found = screen.order
        titles = [column.title for column, _ in screen.app.query_one(DeviceTable).columns]
        for title in titles:
            header = (await screen.press("s"))[1]
            assert f"{title}▼" in header or f"{title}▲" in header
        await screen.press("s")
        assert screen.order == found
        assert f"{titles[-1]}▼" in (await screen.press("S"))[1]

    on_screen(MACHINE, work)


def test_the_chosen_device_stays_chosen_when_the_order_changes():
    """Rule: a person watches a device, and not a line."""

    async def work(screen: Screen) -> None:
        await screen.press("down", "down")
        for _ in range(10):
            await screen.press("s")
            assert screen.chosen == "rocm:0"
        await screen.press("r")
        assert screen.chosen == "rocm:0"

    on_screen(MACHINE, work)


def test_reversing_keeps_the_unknown_last():
    """Rule: what nobody told is neither the most nor the least."""

    async def work(screen: Screen) -> None:
        await screen.press("s", "s", "s", "s")
        assert screen.order == ["cuda:0", "cpu:0", "cuda:1", "rocm:0", "xpu:0"]
        await screen.press("r")
        assert screen.order == ["cuda:1", "cpu:0", "cuda:0", "rocm:0", "xpu:0"]

    on_screen(MACHINE, work)


def test_a_click_sorts_and_chooses():
    """Rule: titles and lines can be clicked; the same title again turns the order round."""

    async def work(screen: Screen) -> None:
        await screen.pilot.click(DeviceTable, offset=(2, 4))
        await screen.pilot.pause()
        assert screen.chosen == "xpu:0"
        await screen.pilot.click(DeviceTable, offset=(2, 0))
        assert "ID▲" in (await screen.press())[1]
        await screen.pilot.click(DeviceTable, offset=(2, 0))
        assert "ID▼" in (await screen.press())[1]
        assert screen.chosen == "xpu:0"

    on_screen(MACHINE, work)


def test_news_are_shown_unless_paused():
    """Rule: while paused the screen stays as it is, and says so; then the newest is shown."""

    async def work(screen: Screen) -> None:
        assert "paused" in (await screen.press("p"))[0]
        screen.source.now = without(MACHINE, "xpu:0")
        screen.app._look()
        assert "xpu:0" in screen.order
        assert "paused" not in (await screen.press("p"))[0]
        assert "xpu:0" not in screen.order
        screen.source.now = MACHINE
        await screen.until("xpu:0")

    on_screen(MACHINE, work)


def test_a_chosen_device_that_vanishes_gives_way_to_its_neighbour():
    """Rule: that it is gone is said until somebody chooses again."""

    async def work(screen: Screen) -> None:
        await screen.press("down")
        screen.source.now = without(MACHINE, "cuda:1")
        await screen.until("cuda:1 is no longer listed")
        await screen.until("cuda:1  GeForce", there=False)
        assert screen.chosen == "rocm:0"
        await screen.press("down")
        await screen.until("no longer listed", there=False)
        screen.source.now = without(screen.source.now, "cpu:0")
        await screen.until("cpu:0", there=False)
        assert screen.chosen == "xpu:0"

    on_screen(MACHINE, work)


def test_the_last_device_vanishes_and_comes_back():
    """Rule: an empty table is a full answer, and no end."""

    async def work(screen: Screen) -> None:
        await screen.press("end")
        screen.source.now = NOTHING
        await screen.until("cuda: no NVIDIA driver")
        await screen.until("no device")
        await screen.press("down", "s", "r", "d", "end")
        screen.source.now = MACHINE
        await screen.until("rocm:0")

    on_screen(MACHINE, work)


@pytest.mark.parametrize("key", ["d", "enter"])
def test_the_detail_follows_the_news(key):
    """Rule: all about a device is as new as the table, and says when the device is gone."""

    async def work(screen: Screen) -> None:
        shown = await screen.press("down", "down", key)
        assert "rocm:0  AMD Radeon RX 7900 XTX" in shown[0]
        assert any("93 C, above 90 C" in line for line in shown)
        screen.source.now = without(MACHINE, "rocm:0")
        await screen.until("rocm:0 is no longer listed")
        assert "ID" in (await screen.press("escape"))[2]
        assert screen.app.return_code is None

    on_screen(MACHINE, work)


def test_the_keys_are_explained():
    """Rule: ? tells every key and leads back; so does q, which only then quits."""

    async def work(screen: Screen) -> None:
        shown = await screen.press("question_mark")
        assert any("reverse the order" in line for line in shown)
        await screen.press("q")
        assert screen.app.is_running
        assert "ID" in lines(screen.app)[1]

    on_screen(MACHINE, work)


@pytest.mark.parametrize("key", ["q", "escape", "ctrl+c"])
def test_quitting(key):
    """Rule: each key by which people leave a monitor leaves this one."""

    async def work(screen: Screen) -> None:
        await screen.pilot.press(key)

    app = on_screen(MACHINE, work)
    assert not app.is_running
    assert app.return_code == 0


def test_256_devices_are_drawn_line_by_line():
    """Rule: the cursor reaches every device, and stays on the screen."""

    async def work(screen: Screen) -> None:
        assert screen.chosen == "cuda:0"
        assert any(line.startswith("cuda:255 ") for line in await screen.press("end"))
        assert screen.chosen == "cuda:255"
        assert any(line.startswith("cuda:246 ") for line in await screen.press("pageup"))
        await screen.press("home", "pagedown")
        assert screen.chosen in "\n".join(lines(screen.app))
        screen.source.now = many(3)
        await screen.until("3 devices")
        assert screen.order == ["cuda:0", "cuda:1", "cuda:2"]

    on_screen(many(256), work)


def test_a_frame_without_any_history_is_a_frame():
    """Rule: a device of which nothing was heard yet has a pane all the same."""

    async def work(screen: Screen) -> None:
        screen.source.now = msgspec.structs.replace(MACHINE, histories={})
        await screen.until("no history yet")

    on_screen(MACHINE, work)


@pytest.mark.parametrize("size", [(1, 1), (10, 3), (80, 24), (119, 30), (120, 30), (400, 100)])
@pytest.mark.parametrize(
    "frame", [MACHINE, NOTHING, UNKNOWN], ids=["machine", "nothing", "unknown"]
)
def test_any_window_will_do(frame, size):
    """Rule: no window is too small or too large, and nothing is wider than it."""

    async def work(screen: Screen) -> None:
        shown = await screen.press("down", "s", "r", "end")
        assert len(shown) == size[1]

    on_screen(frame, work, size)


def test_the_window_may_change():
    """Rule: columns and panes follow the window."""

    async def work(screen: Screen) -> None:
        assert "LIMIT" not in lines(screen.app)[1]
        await screen.pilot.resize_terminal(160, 50)
        assert any("LIMIT" in line for line in await screen.until("LIMIT"))
        await screen.pilot.resize_terminal(60, 20)
        await screen.until("LIMIT", there=False)

    on_screen(MACHINE, work)
