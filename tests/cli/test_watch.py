"""``exo-gpu watch``: a stream for programs, a file for Prometheus, a history, and a clean end."""

from __future__ import annotations

import json
import os
import signal
import subprocess

import pytest
from prometheus_client.parser import text_string_to_metric_families


@pytest.fixture
def stream(devices, command_line, tmp_path):
    """Starts the command and leaves it running; its process."""
    started: list[subprocess.Popen] = []

    def start(*words: str, **variables: str) -> subprocess.Popen:
        started.append(
            subprocess.Popen(
                command_line("watch", "--every", "100ms", *words),
                env=os.environ | variables,
                cwd=tmp_path,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_the_stream_is_one_object_a_line(stream):
    """Rule: devices first, then samples of every one of them; a signal ends it with 0."""
    process = stream("--json", "--no-history")
    sampled: set[str] = set()
    known: set[str] = set()
    for line in process.stdout:
        told = json.loads(line)
        if told["type"] == "device":
            known.add(told["device_id"])
        elif told["type"] == "sample":
            assert told["device_id"] in known
            sampled.add(told["device_id"])
        if len(sampled) == 3:
            break
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 0


def test_a_reader_that_goes_ends_it(stream):
    """Rule: ``exo-gpu watch | head -1`` ends."""
    process = stream("--json", "--no-history")
    assert process.stdout.readline()
    process.stdout.close()
    assert process.wait(30) == 128 + signal.SIGPIPE
    assert process.stderr.read() == ""


def test_people_get_a_line_for_each_sample(devices, exo_gpu):
    done = exo_gpu("watch", "--every", "100ms", "--for", "500ms", "--no-history")
    assert done.returncode == 0
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert any("cuda:0" in line and "1.0/24.0 GiB" in line and "41C" in line for line in lines)
    assert any("rocm:0" in line and "16.0/20.0 GiB" in line for line in lines)


def test_a_file_for_prometheus_is_kept_up_to_date(devices, exo_gpu, tmp_path):
    """Rule: the file is whole at any time, and has the figures."""
    path = tmp_path / "exo.prom"
    done = exo_gpu(
        "watch", "--every", "100ms", "--for", "800ms", "--textfile", str(path), "--no-history"
    )
    assert done.returncode == 0
    families = {one.name: one for one in text_string_to_metric_families(path.read_text())}
    used = {one.labels["uuid"]: one.value for one in families["exo_gpu_memory_used_bytes"].samples}
    assert used["GPU-1111"] == 2**30
    assert [name for name in os.listdir(tmp_path) if name.startswith(".exo.prom")] == []


def test_it_keeps_the_history_and_says_where(devices, exo_gpu, tmp_path):
    """Rule: what was watched can be looked at later."""
    history = str(tmp_path / "history.sqlite")
    done = exo_gpu("watch", "--every", "100ms", "--for", "1s", "--json", EXO_GPU_HISTORY=history)
    assert done.returncode == 0
    assert f"keeping the history in {history}" in done.stderr
    shown = exo_gpu("history", "cuda:0", "--since", "1h", "--json", EXO_GPU_HISTORY=history)
    assert shown.returncode == 0, shown.stderr
    assert "power_watts" in shown.stdout or "power" in shown.stdout


@pytest.mark.parametrize("words", [("--every", "banana"), ("--for", "-1s"), ("--every", "0")])
def test_bad_times_are_usage(devices, exo_gpu, words):
    """Rule: one line that names the option, and nothing is begun."""
    done = exo_gpu("watch", *words)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"exo-gpu: {words[0]}: '{words[1]}' is not a duration")


def test_a_textfile_that_cannot_be_written_is_named(devices, exo_gpu, tmp_path):
    done = exo_gpu("watch", "--no-history", "--textfile", str(tmp_path / "no" / "such.prom"))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.endswith("such.prom is not written: No such file or directory")


def test_a_textfile_that_fails_later_ends_no_watch(devices, stream, tmp_path):
    """Rule: it is told once, sampling goes on, and the file is written again when that works."""
    folder = tmp_path / "collector"
    folder.mkdir()
    path = folder / "exo.prom"
    process = stream("--every", "100ms", "--no-history", "--textfile", str(path))
    assert process.stdout.readline()
    away = folder.rename(tmp_path / "away")
    assert "is not written: No such file" in process.stderr.readline()
    for _ in range(30):
        assert process.stdout.readline()
    away.rename(folder)
    path.unlink()
    while not path.exists():
        assert process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert process.stderr.read() == ""
