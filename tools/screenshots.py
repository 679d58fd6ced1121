"""Takes the pictures of the dashboard for the documents, over the devices that are here.

The demo renders on every device and a job with a failing item runs meanwhile, so that there is
something to see; the service keeps all of it in a folder that is thrown away. With
``EXO_GPU_FAKE`` the devices are those of a script, and the demo is left out.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
DEMO = ROOT / "examples" / "mandelbrot" / "demo.py"
SIZE = {"width": 1280, "height": 800}
# A sparkline and a chart are worth a look with so much behind them.
WARM_UP_SECONDS = 20


@contextmanager
def service(environ: dict[str, str]) -> Iterator[str]:
    """A service of its own; its address."""
    command = [sys.executable, "-m", "exo.gpu", "serve", "--port", "0"]
    child = subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True)
    try:
        assert child.stderr is not None
        for line in child.stderr:
            if "serving " in line:
                yield line.rpartition("serving ")[2].strip()
                return
        raise SystemExit("screenshots: the service did not start")
    finally:
        child.terminate()
        child.communicate()


@contextmanager
def work(environ: dict[str, str], output: Path) -> Iterator[None]:
    """The demo on every device, and a job of which one item fails."""
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    words = ["map", "--all-devices", "sleep 5.{}; test {} != 7", ":::", *map(str, range(24))]
    command = [sys.executable, "-m", "exo.gpu", *words]
    # Where a job was begun is in the picture: a folder that everybody has.
    running = [subprocess.Popen(command, env=environ, cwd=tempfile.gettempdir(), **quiet)]
    if "EXO_GPU_FAKE" not in environ:
        command = [sys.executable, str(DEMO), "--all-devices", "--output", str(output)]
        running.append(subprocess.Popen(command, env=environ, **quiet))
    try:
        yield
    finally:
        for process in running:
            process.terminate()
            process.wait()


def take(address: str, chromium: str) -> None:
    """Visit every view and keep what is seen."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE, color_scheme="light")
        page.goto(address)
        page.locator(".tile").first.wait_for()
        time.sleep(WARM_UP_SECONDS)
        page.screenshot(path=IMAGES / "cluster.png")
        first = page.locator(".tile strong").first.inner_text()
        page.emulate_media(color_scheme="dark")
        page.goto(f"{address}#/device/{quote(first, safe='')}")
        page.locator(".plot").first.wait_for()
        page.screenshot(path=IMAGES / "device.png")
        page.emulate_media(color_scheme="light")
        page.goto(f"{address}#/work")
        page.get_by_role("region", name="Jobs").get_by_role("link").first.wait_for()
        page.screenshot(path=IMAGES / "work.png")
        page.get_by_role("region", name="Jobs").get_by_role("link").first.click()
        page.locator(".gantt").wait_for()
        page.screenshot(path=IMAGES / "job.png")
        page.goto(f"{address}#/explain")
        page.get_by_label("Memory").fill("1GiB")
        page.get_by_role("button", name="Explain").click()
        page.locator(".ranking").wait_for()
        page.screenshot(path=IMAGES / "explain.png")
        browser.close()


def main() -> int:
    """Take all pictures; 1 where there is no browser to take them with."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        print("screenshots: no Chromium here: apt install chromium", file=sys.stderr)
        return 1
    IMAGES.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="exo-"))
    names = ("STATE", "HISTORY", "JOBS", "REGISTRY", "PROBES")
    own = {f"EXO_GPU_{name}": str(folder / name.lower()) for name in names}
    environ = dict(os.environ) | own
    try:
        with service(environ) as address, work(environ, folder / "output"):
            take(address, chromium)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for image in sorted(IMAGES.glob("*.png")):
        print(f"{image.relative_to(ROOT)}: {image.stat().st_size // 1024} KiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
