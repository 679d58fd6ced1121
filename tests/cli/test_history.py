"""``exo-gpu history``: what a device did, for people, spreadsheets, programs and as a picture."""

from __future__ import annotations

import csv
import io
import json
import math
import subprocess
import sys
import time
from datetime import UTC, datetime

import pytest

from exo.gpu.cli.history_view import (
    METRICS,
    bars_for,
    event_lines,
    metric_field,
    sparkline,
)
from exo.gpu.telemetry.store.series import KeptEvent
from exo.gpu.telemetry.store.writer import HistoryWriter
from exo.gpu.vocabulary.device import GPUDevice
from exo.gpu.vocabulary.health import DeviceFault, FaultAction, Health, HealthEvent
from exo.gpu.vocabulary.metrics import SERIES, GPUMetrics

GIB = 2**30


@pytest.fixture
def path(tmp_path, monkeypatch):
    """Where the history of this test is."""
    path = tmp_path / "data" / "history.sqlite"
    monkeypatch.setenv("EXO_GPU_HISTORY", str(path))
    return path


@pytest.fixture
def recorded(path):
    """Two devices: one of the last half hour, one seen long ago."""
    now = time.time()
    with HistoryWriter.open(path) as writer:
        card = GPUDevice("cuda:0", "NVIDIA Made Up 9000", "NVIDIA", "cuda", hardware_id="GPU-1")
        writer.register(card)
        for index in range(1800):
            writer.add(
                GPUMetrics(
                    "cuda:0",
                    now - 1800 + index,
                    memory_used_bytes=6 * GIB,
                    memory_total_bytes=24 * GIB,
                    power_watts=100.0 + index // 18,
                    temperature_celsius=60 + 5 * math.sin(index / 100),
                )
            )
        writer.add(GPUMetrics("rocm:0", now - 40_000, power_watts=30.0))
        writer.add_event(
            HealthEvent(
                device_id="cuda:0",
                before=Health.OK,
                after=Health.DEGRADED,
                reasons=("91 C",),
                at=now - 600,
            )
        )
    return path


def test_a_table_has_a_line_and_a_course_for_each_reading(exo_gpu, recorded):
    """Rule: 80 columns; lowest, mean, highest and unit of what was read, and nothing else."""
    done = exo_gpu("history", "cuda:0", "--since", "1h", PYTHONUTF8="1")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "cuda:0 NVIDIA Made Up 9000 (GPU-1)"
    rows = {line.split()[0]: line.split() for line in lines[4:-1]}
    assert list(rows) == ["memory", "power", "temperature", "memory-total"]
    assert rows["memory"][1:5] == ["6.0", "6.0", "6.0", "GiB"]
    assert rows["power"][1:5] == ["100.0", "149.5", "199.0", "W"]
    assert rows["power"][5].startswith("▁▁")
    assert rows["power"][5].endswith("█")
    assert lines[-1].endswith("ok -> degraded: 91 C")
    assert max(map(len, lines)) <= 80


def test_a_terminal_without_those_characters_gets_plain_ones(exo_gpu, recorded):
    """Rule: no output fails because of its encoding."""
    done = exo_gpu("history", "cuda:0", "--metric", "power", PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert done.stdout.isascii()
    assert "#" in done.stdout


def test_json_has_every_point(exo_gpu, recorded):
    """Rule: base units, full names, None for gaps; the hardware id finds the device too."""
    done = exo_gpu(
        "history", "GPU-1", "--since", "1h", "--points", "30", "--metric", "mem", "--json"
    )
    answer = json.loads(done.stdout)
    assert answer["device"]["device_id"] == "cuda:0"
    (series,) = answer["series"]
    assert series["metric"] == "memory_used_bytes"
    assert series["step_seconds"] == pytest.approx(120, rel=0.01)
    assert sum(series["count"]) == 1800
    assert series["mean"][0] is None
    assert series["mean"][-2] == 6 * GIB
    assert [event["kind"] for event in answer["events"]] == ["health"]


def test_csv_has_every_point(exo_gpu, recorded):
    """Rule: a heading and a line a point, times in UTC."""
    done = exo_gpu(
        "history", "cuda:0", "--since", "30m", "--points", "10", "--metric", "power", "--csv"
    )
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert len(rows) == 10
    assert rows[0]["time"].endswith("Z")
    assert datetime.fromisoformat(rows[0]["time"]).timestamp() == pytest.approx(
        time.time() - 1800, abs=120
    )
    assert {row["metric"] for row in rows} == {"power_watts"}
    assert sum(int(row["count"]) for row in rows) >= 1750


@pytest.mark.parametrize(("ending", "magic"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_a_picture_is_drawn(exo_gpu, recorded, tmp_path, ending, magic):
    """Rule: --plot writes the kind of picture that its name says, beside the table."""
    picture = tmp_path / f"history.{ending}"
    done = exo_gpu("history", "cuda:0", "--plot", str(picture), MPLCONFIGDIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert picture.read_bytes().startswith(magic)
    assert "power" in done.stdout


def test_a_kind_of_picture_that_does_not_exist_is_usage(exo_gpu, recorded, tmp_path):
    """Rule: one line names the file."""
    done = exo_gpu("history", "cuda:0", "--plot", "history.banana", MPLCONFIGDIR=str(tmp_path))
    assert done.returncode == 2
    assert "history.banana" in done.stderr.splitlines()[-1]


def test_without_matplotlib_one_line_says_what_to_install(recorded, tmp_path):
    """Rule: the extra is named, and the status is a failure."""
    program = (
        "import sys; sys.modules['matplotlib'] = sys.modules['matplotlib.figure'] = None\n"
        "from exo.gpu.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, "history", "cuda:0", "--plot", "x.png"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == (
        "exo-gpu: --plot needs matplotlib, which is not here (pip install 'exo-gpu[plot]')\n"
    )


def test_without_a_device_those_with_a_history_are_listed(exo_gpu, recorded):
    """Rule: the one seen last comes first; --json has times, sizes and the path."""
    done = exo_gpu("history")
    assert done.returncode == 0
    heads = [line.split()[0] for line in done.stdout.splitlines()]
    assert heads[:3] == ["ID", "cuda:0", "rocm:0"]
    answer = json.loads(exo_gpu("history", "--json").stdout)
    assert answer["path"] == str(recorded)
    assert [device["hardware_id"] for device in answer["devices"]] == ["GPU-1", "rocm:0"]
    assert answer["statistics"]["devices"] == 2


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["cuda:1"], 1, "'cuda:1' has no history; of these there is one: cuda:0, rocm:0 (did you"),
        (["rocm:0"], 1, "there is nothing of rocm:0 in that span; it was last seen 20"),
        (["cuda:0", "--metric", "fan"], 1, "there is no fan_percent of cuda:0 in that span"),
        (["cuda:0", "--metric", "pwer"], 2, "(did you mean 'power'?)"),
        (["cuda:0", "--since", "banana"], 2, "--since: 'banana' is not a duration such as"),
        (["cuda:0", "--until", "2h"], 2, "--until must be later than --since"),
        (["cuda:0", "--csv", "--json"], 2, "--csv cannot go with --json"),
        (["--csv"], 2, "need a DEVICE"),
    ],
)
def test_what_cannot_be_answered_is_one_line(exo_gpu, recorded, arguments, status, text):
    """Rule: 1 where there is no history of that, 2 for what cannot be meant."""
    done = exo_gpu("history", *arguments)
    assert done.returncode == status
    assert text in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


def test_before_anything_was_recorded_it_says_how_to(exo_gpu, path):
    """Rule: no file is made by looking, and an empty one is told apart."""
    done = exo_gpu("history", "cuda:0")
    assert done.returncode == 1
    assert str(path) in done.stderr
    assert "'exo-gpu watch' records it" in done.stderr
    assert not path.parent.exists()
    HistoryWriter.open(path).close()
    done = exo_gpu("history")
    assert done.returncode == 1
    assert "is empty" in done.stderr


def test_a_span_may_be_named_by_its_times(exo_gpu, recorded):
    """Rule: a time without a zone is in the reader's own, as the table shows it."""
    start = (
        datetime.fromtimestamp(time.time() - 1200, tz=UTC)
        .astimezone()
        .strftime("%Y-%m-%d %H:%M:%S")
    )
    done = exo_gpu("history", "cuda:0", "--since", start, "--until", "10m", "--json")
    (series, *_) = json.loads(done.stdout)["series"]
    assert sum(series["count"]) == pytest.approx(600, abs=60)


def test_every_reading_has_a_word():
    """Rule: short words and full names mean the same, and none is left out."""
    assert {metric.field for metric in METRICS.values()} == set(SERIES)
    for word, metric in METRICS.items():
        assert metric_field(word) == metric_field(word.replace("-", "_")) == metric.field
        assert metric_field(metric.field) == metric.field
    assert metric_field("temp") == "temperature_celsius"
    assert metric_field("banana") is None


def test_a_sparkline_shows_the_course():
    """Rule: lowest to highest, gaps blank, a constant lies low, many values share a character."""
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([0, None, 7], 20) == "▁ █"
    assert sparkline([5, 5, 5], 3) == "▁▁▁"
    assert sparkline([0, 0, 10, 10], 2) == "▁█"
    assert sparkline([None, None], 2) == "  "
    assert sparkline([], 9) == ""
    assert bars_for("utf-8") != bars_for("latin-1") == bars_for(None) == bars_for("nonsense")


def test_faults_are_told_by_number():
    """Rule: an event line says what the driver said."""
    fault = DeviceFault(
        device_id="cuda:0", code=79, what="off the bus", action=FaultAction.CHECK, at=1.0
    )
    kept = KeptEvent(kind="fault", device_id="cuda:0", at=1.0, fields=fault.to_dict())
    (line,) = event_lines([kept])
    assert line.endswith("fault 79: off the bus")
