"""What work took, kept on disk for the next one: by any number of processes, and never in its way."""

from __future__ import annotations

import subprocess
import sys

from exo.gpu.nodes.experience import MOST_LESSONS, Ended, Experience, experience_path
from exo.gpu.scheduling.prediction import SpeedPredictor


def told(book, kind="render", device="GPU-1"):
    forecast = SpeedPredictor(book.lessons()).predict(kind, device)
    return None if forecast is None else round(forecast.seconds, 3)


def ended(seconds, **more):
    return Ended(**({"kind": "render", "hardware_id": "GPU-1", "seconds": seconds} | more))


def test_what_was_learned_is_there_the_next_time(tmp_path):
    """Rule: speeds by kind and device, and peaks of memory by kind, outlive the process."""
    path = tmp_path / "learned" / "experience.sqlite"
    assert Experience(path).lessons() == ()
    assert Experience(path).advice("render") is None
    Experience(path).learn([ended(8.0, items=4) for _ in range(5)])
    Experience(path).learn([ended(None, peak_bytes=2**30), ended(None, peak_bytes=3 * 2**30)])
    again = Experience(path)
    assert told(again) == 2.0
    advice = again.advice("render")
    assert advice is not None
    assert (advice.seen_bytes, advice.samples) == (3 * 2**30, 2)
    assert again.advice("something else") is None


def test_what_teaches_nothing_is_not_kept(tmp_path):
    path = tmp_path / "experience.sqlite"
    Experience(path).learn([ended(1.0, kind="")])
    assert not path.exists()
    Experience(path).learn([ended(None), ended(0.0), ended(1.0, items=0), ended(-3.0)])
    assert Experience(path).lessons() == ()


def test_the_newest_are_kept_and_no_more(tmp_path):
    """Rule: the file is bounded, and what was used last stays."""
    book = Experience(tmp_path / "experience.sqlite")
    book.learn([ended(1.0, kind=f"kind {n}") for n in range(MOST_LESSONS)], now=1.0)
    book.learn([ended(1.0, kind=f"new {n}") for n in range(10)], now=2.0)
    kinds = [one.kind for one in book.lessons()]
    assert len(kinds) == MOST_LESSONS
    assert {f"new {n}" for n in range(10)} <= set(kinds)


PROGRAM = """
import sys
from pathlib import Path
from exo.gpu.nodes.experience import Ended, Experience
book = Experience(Path(sys.argv[1]))
for _ in range(20):
    book.learn([Ended(kind=sys.argv[2], hardware_id="GPU-1", seconds=1.0)])
"""


def test_processes_that_learn_at_once_lose_nothing(tmp_path):
    """Rule: each adds to what the others wrote, also where the file is made at that moment."""
    path = tmp_path / "experience.sqlite"
    running = [
        subprocess.Popen([sys.executable, "-c", PROGRAM, str(path), f"kind {n % 2}"])
        for n in range(4)
    ]
    assert [one.wait(60) for one in running] == [0] * 4
    assert {one.kind: one.track.samples for one in Experience(path).lessons()} == {
        "kind 0": 40,
        "kind 1": 40,
    }


def test_a_broken_file_is_set_aside_and_one_that_cannot_be_made_costs_nothing(tmp_path, caplog):
    """Rule: learning is a help: whatever is the matter with its file, the work goes on."""
    path = tmp_path / "experience.sqlite"
    path.write_bytes(b"no database at all" * 1000)
    assert Experience(path).lessons() == ()
    Experience(path).learn([ended(1.0) for _ in range(4)])
    assert told(Experience(path)) == 1.0
    assert "learning begins anew" in caplog.text
    (tmp_path / "file").write_text("")
    caplog.set_level("INFO")
    Experience(tmp_path / "file" / "x.sqlite").learn([ended(1.0)])
    assert "not kept" in caplog.text


def test_it_lies_beside_the_probes():
    path = experience_path({"EXO_GPU_PROBES": "/somewhere/probes.json"})
    assert str(path) == "/somewhere/experience.sqlite"
