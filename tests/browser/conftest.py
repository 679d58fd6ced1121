"""The dashboard in Debian's Chromium, over a service that runs on scripted devices."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "service"))
sys.path.insert(0, str(Path(__file__).parents[1] / "coordination"))

sys.path.insert(0, str(Path(__file__).parent))

from cards import CHROMIUM, write
from served import Served

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from playwright.sync_api import Browser, Page


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One worker has the browser."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("browser"))


@pytest.fixture(scope="module")  # Playwright keeps an event loop open, which others must not meet
def browser() -> Iterator[Browser]:
    """Debian's Chromium, without a screen."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine: apt install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


class Seen:
    """A page, with all that it said and asked for."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.addresses: list[str] = []
        self.transfer_bytes = 0
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.addresses.append(request.url))

    def _said(self, message: Any) -> None:
        if message.type in {"error", "warning"}:
            self.complaints.append(message.text)


@pytest.fixture
def look(browser: Browser) -> Iterator[Callable[..., Seen]]:
    """Opens a page of a service; at the end nothing was complained of and nobody else was asked."""
    opened: list[tuple[Seen, str]] = []
    contexts: list[Any] = []

    def open_page(service: Served, path: str = "/", **options: Any) -> Seen:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        seen = Seen(context.new_page())
        seen.page.set_default_timeout(30_000)
        opened.append((seen, service.url))
        seen.page.goto(service.url + path)
        return seen

    yield open_page
    for context in contexts:
        context.close()
    for seen, url in opened:
        assert [one for one in seen.addresses if not one.startswith(url)] == []
        assert seen.complaints == []


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    """Starts a service on these devices; called again with it, changes them under it."""
    started: list[Served] = []
    folders: list[Path] = []

    def start(*devices: dict[str, Any], options: tuple[str, ...] = (), **more: Any) -> Served:
        folder = Path(tempfile.mkdtemp(prefix="exo-"))
        folders.append(folder)
        machine = write(folder / "machine.json", *devices)
        started.append(Served(folder, *options, machine=machine, **more))
        return started[-1]

    yield start
    for one in started:
        one.stop()
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
