"""Every view of the dashboard, in a browser, on a machine that changes under it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from urllib.parse import quote

import pytest
import uvicorn
from axe_playwright_python.sync_playwright import Axe
from boxes import device
from cables import Cables
from cards import CHROMIUM, GIB, card, write

from exo.gpu.coordination.cluster_watch import ClusterWatch
from exo.gpu.coordination.overview import Overseer
from exo.gpu.service.app import Service
from exo.gpu.service.server import listen

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt install chromium")

SILENT = {
    "device_id": "rocm:0",
    "name": "AMD Radeon RX 7900 XTX",
    "vendor": "AMD",
    "backend": "fake",
    "runtime": "rocm",
    "hardware_id": "GPU-9999",
    "sample": {"missing_reasons": {"temperature_celsius": "the sensor is asleep"}},
}


def exo_gpu(service, *words: str, **options) -> subprocess.Popen:
    """``exo-gpu`` beside a service, on the same stores."""
    command = [sys.executable, "-m", "exo.gpu", *words]
    return subprocess.Popen(command, env=service.environ, **options)


def violations(page) -> list[str]:
    """What axe-core finds that is serious or worse."""
    found = Axe().run(page).response["violations"]
    return [
        f"{one['id']}: {one['nodes'][0]['html']}"
        for one in found
        if one["impact"] in {"serious", "critical"}
    ]


def test_the_cluster_shows_every_device(serve, look):
    """Rule: a tile tells memory, load, heat, power, health; unknown is a word, with its reason."""
    page = look(serve(card(1), SILENT)).page
    tile = page.locator(".tile", has_text="cuda:1")
    tile.get_by_text("1.0 GiB of 24.0 GiB").wait_for()
    tile.get_by_text("37 %").wait_for()
    tile.get_by_text("31 °C").wait_for()
    tile.get_by_text("41 W").wait_for()
    tile.get_by_text("ok", exact=True).wait_for()
    silent = page.locator(".tile", has_text="rocm:0")
    unknown = silent.locator(".figure.unknown")
    assert unknown.count() == 4
    assert unknown.all_inner_texts() == ["unknown"] * 4
    assert silent.locator("[title='the sensor is asleep']").inner_text() == "unknown"
    totals = page.locator(".totals")
    totals.get_by_text("1 of 2 tell").first.wait_for()


def test_a_change_is_seen_without_a_reload(serve, look):
    """Rule: what the stream tells is shown: readings, health, a device that is held."""
    service = serve(card(1))
    page = look(service).page
    page.get_by_text("31 °C").first.wait_for()
    hot = card(1)
    hot["sample"]["temperature_celsius"] = 97.0
    write(machine_of(service), hot)
    page.locator(".tile").get_by_text("97 °C").wait_for()
    page.locator(".tile").get_by_text("degraded").wait_for()
    holder = exo_gpu(service, "run", "--device", "cuda:1", "--", "sleep", "60")
    try:
        page.locator(".tile .holder", has_text="sleep").wait_for()
        page.goto(f"{service.url}/#/device/cuda%3A1")
        page.get_by_role("region", name="Leases").get_by_text("sleep 60").wait_for()
        page.get_by_role("region", name="Events").get_by_text("ok → degraded").wait_for()
    finally:
        holder.kill()
        holder.wait()


def machine_of(service):
    """The script of a service's devices."""
    from pathlib import Path

    return Path(service.environ["EXO_GPU_FAKE"])


def test_a_device_has_a_page_of_its_own(serve, look):
    """Rule: a tile leads to charts with zoom, readings with reasons, facts, and a way back."""
    page = look(serve(card(1), SILENT)).page
    page.locator(".tile", has_text="cuda:1").click()
    page.get_by_role("heading", name="cuda:1: NVIDIA GeForce RTX 4090").wait_for()
    plot = page.locator(".plot").first
    plot.wait_for()
    assert page.locator(".plot").count() == 4
    plot.focus()
    page.keyboard.press("ArrowLeft")
    page.locator("output", has_text=" at ").first.wait_for()
    page.keyboard.press("-")
    page.get_by_text("zoomed; choose a span to go back").wait_for()
    page.get_by_role("button", name="1 h", exact=True).click()
    page.get_by_text("zoomed").wait_for(state="detached")
    box = page.locator(".plot").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.9, box["y"] + 40)
    page.mouse.up()
    page.get_by_text("zoomed; choose a span to go back").wait_for()
    page.get_by_role("region", name="Facts").get_by_text("GPU-0001").first.wait_for()
    page.get_by_role("link", name="All devices").click()
    page.locator(".tile").first.wait_for()


def of_node(node: str, number: int) -> dict:
    """A card as it is called in a cluster."""
    whole = {"device_id": f"{node}/cuda:{number}", "hardware_id": f"GPU-{node}-{number}"}
    return {**card(number), **whole, "node": node}


def test_devices_of_several_nodes_stand_below_their_node(serve, look):
    """Rule: each node has a head; a tile's link, page and history work with a slash in the id."""
    page = look(serve(of_node("rig1", 1), of_node("rig2", 2), of_node("rig2", 3))).page
    page.locator(".tile").nth(2).wait_for()
    texts = page.locator(".tiles > li").all_inner_texts()
    assert [one.split("\n")[0].strip() for one in texts] == [
        "rig1", "rig1/cuda:1", "rig2", "rig2/cuda:2", "rig2/cuda:3",
    ]  # fmt: skip
    page.locator(".node", has_text="rig2").get_by_text("2 devices").wait_for()
    assert violations(page) == []
    page.get_by_label("Find").fill("rig1")
    page.locator(".node", has_text="rig2").wait_for(state="detached")
    page.get_by_label("Find").fill("")
    page.get_by_label("Order").select_option("load")
    page.locator(".node").first.wait_for(state="detached")
    page.locator(".tile", has_text="rig2/cuda:2").click()
    page.get_by_role("heading", name="rig2/cuda:2: NVIDIA GeForce RTX 4090").wait_for()
    page.locator(".plot").first.wait_for()
    assert "no history" not in page.locator("main").inner_text()
    assert page.locator(".plot").count() == 4


class Running:
    """A service over a watch of this process, at an address of its own."""

    def __init__(self, watch) -> None:
        self._overseer = Overseer(watch, os.environ)
        self._service = Service(self._overseer)
        listening = listen("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        config = uvicorn.Config(self._service.application, log_config=None, ws="none")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([listening],))

    def __enter__(self) -> Running:
        self._overseer.__enter__()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = self._server.force_exit = True
        self._thread.join()
        self._overseer.__exit__()


@pytest.fixture
def cables(tmp_path, monkeypatch):
    """A cluster without a network."""
    monkeypatch.setenv("EXO_GPU_HISTORY", str(tmp_path / "history.sqlite"))
    found = Cables(tmp_path)
    for name in ("rig1", "rig2"):
        found.plug(name, device("cuda:0", "NVIDIA", "cuda"))
    yield found
    found.pull_all()


@pytest.mark.filterwarnings("ignore::litestar.exceptions.LitestarDeprecationWarning")
def test_a_lost_node_stays_in_sight_until_it_is_back(cables, look):
    """Rule: below the head of a lost node it says why; so does its device's page, with its past."""
    with ClusterWatch(cables.join) as watch, Running(watch) as service:
        seen = look(service)
        page = seen.page
        page.locator(".tile", has_text="rig2/cuda:0").wait_for()
        cables.pull("rig2")
        page.locator(".node", has_text="rig2").get_by_text("1 missing: its node is lost").wait_for()
        page.locator(".tile", has_text="rig2/cuda:0").wait_for(state="detached")
        page.locator("#notes").get_by_text("node rig2 is lost: ").wait_for()
        assert violations(page) == []
        page.goto(f"{service.url}/#/device/rig2%2Fcuda%3A0")
        page.get_by_text("this device is not here now, last seen").wait_for()
        page.locator(".plot").first.wait_for()
        page.goto(f"{service.url}/#/cluster")
        cables.plug("rig2", device("cuda:0", "NVIDIA", "cuda"))
        page.locator(".tile", has_text="rig2/cuda:0").wait_for()
        page.locator(".node .alarm", has_text="missing").wait_for(state="detached")
        page.close()


def test_one_machine_needs_no_head(serve, look):
    """Rule: where there is one node only, its devices stand by themselves."""
    page = look(serve(card(1), card(2))).page
    page.locator(".tile").nth(1).wait_for()
    assert page.locator(".node").count() == 0


def test_an_unknown_reading_says_why_on_its_page(serve, look):
    """Rule: the table of readings has the reason in words."""
    page = look(serve(SILENT), "/#/device/rocm%3A0").page
    page.get_by_role("region", name="Readings").get_by_text("the sensor is asleep").wait_for()
    page.get_by_text("no reading in this span").first.wait_for()


def test_a_lost_connection_is_said_and_comes_back(serve, look):
    """Rule: the page says since when it is not live, and is right again after a restart."""
    service = serve(card(1), options=())
    seen = look(service)
    page = seen.page
    page.get_by_text("live", exact=True).wait_for()
    port = service.url.rpartition(":")[2]
    assert service.stop(signal.SIGTERM) == 0
    page.get_by_text("connection lost at").wait_for()
    changed = card(1)
    changed["sample"]["temperature_celsius"] = 55.0
    write(machine_of(service), changed, card(2))
    command = [sys.executable, "-m", "exo.gpu", "serve", "--port", port, "--every", "200ms"]
    again = subprocess.Popen(command, env=service.environ, stderr=subprocess.DEVNULL)
    try:
        page.get_by_text("live", exact=True).wait_for()
        page.locator(".tile", has_text="cuda:1").get_by_text("55 °C").wait_for()
        page.locator(".tile", has_text="cuda:2").wait_for()
    finally:
        page.close()  # so that it does not complain of the second end
        again.terminate()
        again.wait()
    refused = [
        one
        for one in seen.complaints
        if re.search("ERR_CONNECTION|ERR_INCOMPLETE|Failed to load", one)
    ]
    assert seen.complaints == refused  # the browser's own words for what was staged
    seen.complaints.clear()


def test_work_shows_a_failing_job(serve, look):
    """Rule: a job's page has its Gantt chart, and each failure with reason, attempt and end."""
    service = serve(card(1), card(2))
    job = exo_gpu(
        service, "map", "--retries", "1", "sleep 0.05; test {} != b", ":::", "a", "b", "c",
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    job.wait()
    page = look(service, "/#/work").page
    page.get_by_role("region", name="Jobs").get_by_role("link").first.click()
    page.get_by_role("heading", name="Failures (1)").or_(
        page.get_by_role("heading", name="Failures (2)")
    ).wait_for()
    row = page.get_by_role("region", name="Failures").get_by_role("row").last
    text = row.inner_text()
    assert "#2" in text
    assert "exit 1" in text
    assert "gave up" in text
    assert page.locator(".gantt .try").count() >= 3
    assert page.locator(".gantt .try.failed").count() >= 1


def test_work_shows_a_job_that_goes_on(serve, look):
    """Rule: the progress of a running job moves, and its state turns to done."""
    service = serve(card(1))
    page = look(service, "/#/work").page
    page.get_by_text("no jobs yet").wait_for()
    items = [str(number) for number in range(30)]
    job = exo_gpu(
        service,
        "map",
        "--device",
        "cuda:1",
        "sleep 0.2; true {}",
        ":::",
        *items,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        page.locator("[data-state='running']").wait_for()
    finally:
        job.wait()
    page.locator("[data-state='done']").wait_for()
    page.get_by_text("30 of 30").wait_for()


def test_who_waits_is_told_why(serve, look):
    """Rule: the queue has the place, the wish, and the reason for each device."""
    service = serve(card(1))
    hold = ("run", "--device", "cuda:1", "--exclusive")
    holder = exo_gpu(service, *hold, "--", "sleep", "60")
    waiter: subprocess.Popen | None = None
    page = look(service, "/#/work").page
    try:
        page.get_by_role("region", name="Leases").get_by_text("sleep 60").wait_for()
        waiter = exo_gpu(service, *hold, "--wait", "60s", "--", "true")
        queue = page.get_by_role("region", name="Queue")
        queue.get_by_text("not now").first.wait_for()
        queue.locator("summary").click()
        queue.get_by_text(re.compile("^cuda:1: ")).wait_for()
    finally:
        for process in (waiter, holder):
            if process is not None:
                process.kill()
                process.wait()


def test_explain_shows_ranking_terms_and_refusals(serve, look):
    """Rule: a request typed by a person is answered with each term and each refusal."""
    full = card(3)
    full["sample"]["memory_used_bytes"] = 23 * GIB
    seen = look(serve(card(1), full), "/#/explain")
    page = seen.page
    page.get_by_role("textbox", name="Memory").fill("8GiB")
    page.get_by_role("button", name="Explain").click()
    page.locator(".chosen", has_text="Chosen: cuda:1").wait_for()
    assert page.locator(".terms li").count() == 3
    page.get_by_role("region", name="Refused").get_by_role(
        "cell", name="cuda:3", exact=True
    ).wait_for()
    page.get_by_role("textbox", name="Memory").fill("8 parsecs")
    page.keyboard.press("Enter")
    page.locator("#ask-memory[aria-invalid]").wait_for()
    page.get_by_text("memory: '8 parsecs' is not").wait_for()
    assert all("400" in one for one in seen.complaints)  # the browser's own word for it
    seen.complaints.clear()


def test_explain_complains_once(serve, look):
    """Rule: a request that cannot be is answered in the page; the browser logs the 400 alone."""
    seen = look(serve(card(1)), "/#/explain")
    seen.page.get_by_label("Devices").fill("0")
    seen.page.get_by_role("button", name="Explain").click()
    seen.page.locator("#ask-count[aria-invalid]").wait_for()
    assert all("400" in one for one in seen.complaints)
    seen.complaints.clear()


def test_a_token_is_asked_for_and_kept(serve, look):
    """Rule: without the token the page asks for it; with it behind the # it does not."""
    service = serve(card(1), options=("--token", "a-token-of-a-test"))
    with_it = look(service, "/#token=a-token-of-a-test").page
    with_it.locator(".tile").wait_for()
    assert "token" not in with_it.url
    without = look(service)
    without.page.get_by_label("Token").fill("a-token-of-a-test")
    without.page.get_by_role("button", name="Open").click()
    without.page.locator(".tile").wait_for()
    assert all("401" in one for one in without.complaints)
    without.complaints.clear()


def test_256_devices_are_shown_found_and_kept_up(serve, look):
    """Rule: at the largest size every device has a tile, is found by name, and moves on."""
    service = serve(*(card(number) for number in range(256)), options=("--every", "5s"))
    page = look(service).page
    page.locator(".tile").nth(255).wait_for()
    assert page.locator(".tile").count() == 256
    page.get_by_label("Find").fill("cuda:200")
    page.locator(".tile").nth(1).wait_for(state="detached")
    assert page.locator(".tile strong").all_inner_texts() == ["cuda:200"]
    page.get_by_label("Find").fill("nothing like it")
    page.get_by_text("no device matches").wait_for()
    page.get_by_label("Find").fill("")
    page.get_by_label("Order").select_option("heat")
    page.locator(".tile").nth(255).wait_for()
    page.locator(".tiles li:first-child", has_text="69 °C").wait_for()


VIEWS = ("/#/cluster", "/#/device/cuda%3A1", "/#/work", "/#/explain")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_view_keeps_anybody_out(serve, look, scheme):
    """Rule: axe-core finds no serious violation in any view, light or dark."""
    service = serve(card(1), SILENT, {**card(3), "fail": "the driver is on strike"})
    job = exo_gpu(
        service,
        "map",
        "test {} != b",
        ":::",
        "a",
        "b",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    job.wait()
    page = look(service, color_scheme=scheme).page
    page.locator(".tile").nth(2).wait_for()
    for view in VIEWS:
        page.goto(service.url + view)
        page.locator("h1").first.wait_for(state="attached")
        if "device" in view:
            page.locator(".plot").first.wait_for()
        if "explain" in view:
            page.get_by_role("button", name="Explain").click()
            page.locator(".ranking").wait_for()
        assert violations(page) == [], view
    page.goto(service.url + "/#/work")
    page.get_by_role("region", name="Jobs").get_by_role("link").first.click()
    page.locator(".gantt").wait_for()
    assert violations(page) == []


def test_the_keyboard_alone_is_enough(serve, look):
    """Rule: tab and enter lead from the top of the page to a device, past the navigation."""
    page = look(serve(card(1))).page
    page.locator(".tile").wait_for()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    page.locator(".tile").focus()
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="cuda:1: NVIDIA GeForce RTX 4090").wait_for()
    assert page.evaluate("document.activeElement.id") == "main"


def test_the_colours_are_a_choice_that_stays(serve, look):
    """Rule: light or dark is as the system has it, until somebody chooses; that is remembered."""
    page = look(serve(card(1)), color_scheme="light").page
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.get_by_label("Colours").select_option("dark")
    dark = page.evaluate(ground)
    assert dark != light
    page.reload()
    assert page.evaluate(ground) == dark


def test_markup_in_a_name_stays_text(serve, look):
    """Rule: what a driver or a user says is shown as it is, and never run."""
    nasty = "<img src=x onerror=alert(1)>"
    seen = look(serve({**card(1), "name": nasty}))
    seen.page.locator(".model", has_text=nasty).wait_for()
    seen.page.goto(seen.page.url.partition("#")[0] + "#/device/" + quote("<b>x</b>"))
    seen.page.get_by_role("heading", name="<b>x</b>").wait_for()
    assert seen.page.locator("main img, main b").count() == 0
    assert all("404" in one for one in seen.complaints)  # it has no history
    seen.complaints.clear()


def test_the_page_is_small(serve, look):
    """Rule: everything that a first visit of 100 devices loads stays within 250 KB."""
    service = serve(*(card(number) for number in range(100)), options=("--every", "5s"))
    page = look(service).page
    page.locator(".tile").nth(99).wait_for()
    sizes = page.evaluate(
        "performance.getEntries().filter((one) => 'transferSize' in one && !one.name.endsWith('stream'))"
        ".map((one) => [one.name, one.transferSize])"
    )
    assert len(sizes) >= 14
    assert sum(size for _, size in sizes) <= 250_000, sizes
