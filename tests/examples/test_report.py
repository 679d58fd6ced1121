"""What the demo says and draws, from the records of a run that never happened."""

import json

import charts
import numpy as np
import pytest
from balance import Record, statistics
from kernel import Rendering, render_in_numpy
from report import Phase, introduction, summary, table, verdict
from view import Canvas, View

from exo.gpu.backend import GPUDevice

VIEW = View(24, 16, 8, 40)
DEVICES = [
    GPUDevice("vulkan:0", "a driver", "mesa", "vulkan"),
    GPUDevice("cpu:0", "a CPU", "x", "cpu", slots=2),
]


def phase(title, owners, view=VIEW):
    """Tile i is drawn by owners[i] in second i."""
    canvas, records = Canvas(view), []
    for tile, owner in zip(view.tiles(), owners, strict=True):
        counts, norms = render_in_numpy(tile)
        canvas.renderings[tile.index] = Rendering(tile.index, counts, norms, int(counts.sum()))
        start = 100.0 + tile.index
        records.append(Record(tile.index, owner, 0, start, start + 1, int(counts.sum())))
    agreement = canvas.agreement(dict(enumerate(owners)))
    slots = {device.device_id: device.slots for device in DEVICES}
    return Phase(title, 100.0, records, canvas, statistics(records, slots, 100.0), agreement)


@pytest.fixture
def phases():
    mixed = ["vulkan:0", "cpu:0"] * 3
    return [phase("equal split", mixed), phase("pull-based", ["vulkan:0"] * 4 + ["cpu:0"] * 2)]


def test_the_table_has_a_line_for_every_device_and_the_balance(phases):
    """Device, speed, tiles, busy share; then makespan and balance; all within 80 columns."""
    lines = table(phases[1]).splitlines()
    text = "\n".join(lines)
    assert [line.split()[0] for line in lines if ":" in line] == ["vulkan:0", "cpu:0"]
    assert "4" in lines[-3].split()
    assert "makespan 6.00 s" in text
    assert "balance" in text
    assert all(len(line) <= 80 for line in lines)


def test_an_idle_device_shows_no_speed():
    """A device that got no tile has shown no speed: a dash, not a zero."""
    line = table(phase("all on one", ["vulkan:0"] * 6)).splitlines()[-2]
    assert line.split() == ["cpu:0", "-", "0", "0.0%", "0.0%"]


def test_the_verdict_names_the_agreement_of_both_phases(phases):
    """How many pixels were computed twice, and how many came out the same."""
    text = verdict(phases)
    assert text.count("(100.0000%)") == 2
    alone = [phase("equal split", ["cpu:0"] * 6), phase("pull-based", ["cpu:0"] * 6)]
    assert verdict(alone).count("no tiles of different devices adjoin") == 2


def test_one_device_only_is_said(phases):
    """Nothing is compared with one device, and the reader is told before the run."""
    assert "One device only" in introduction(VIEW, DEVICES[:1])
    assert "One device only" not in introduction(VIEW, DEVICES)


def test_the_summary_is_json(phases):
    """All figures of both phases survive the way through JSON."""
    found = json.loads(json.dumps(summary(VIEW, phases, ["a.png"])))
    assert [part["title"] for part in found["phases"]] == ["equal split", "pull-based"]
    assert found["phases"][0]["agreement"]["ratio"] == 1.0
    assert found["tiles"] == 6


def test_both_pictures_are_drawn(phases, tmp_path):
    """The view at half its size, and the chart of both phases."""
    image = pytest.importorskip("matplotlib.image")
    picture, gantt = tmp_path / "view.png", tmp_path / "gantt.png"
    counts, norms = phases[0].canvas.assemble()
    charts.draw_picture(picture, counts, norms, VIEW.limit)
    charts.draw_gantt(gantt, phases, VIEW)
    assert image.imread(picture).shape[:2] == (8, 12)
    assert image.imread(gantt).std() > 0


@pytest.mark.parametrize("limit", [40, 1])
def test_colours_are_colours(limit):
    """Every pixel is within 0..1 and what never escaped is black, also when nothing escaped."""
    counts, norms = render_in_numpy(View(9, 9, 9, limit).tiles()[0])
    painted = charts.colours(counts, norms, limit)
    assert painted.min() >= 0
    assert painted.max() <= 1
    assert np.all(painted[counts >= limit] == 0)
