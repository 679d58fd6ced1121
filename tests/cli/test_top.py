"""``exo-gpu top`` as a command: the plain table, JSON, what is missing, and a real terminal."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time

import pytest

from tests.cli.conftest import CUDA, GIB, HOST, ROCM

WAIT_SECONDS = 60

# The command where Textual, or all that it may load, cannot be imported.
WITHOUT = """
import sys
sys.modules.update(dict.fromkeys(sys.argv[1].split(",")))
from exo.gpu.cli.main import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture
def terminal(command_line):
    """Starts the live table on a terminal of this size, and gives its screen's text to wait for."""
    started = []

    def start(*arguments, size=(24, 80)):
        main_end, terminal_end = pty.openpty()
        fcntl.ioctl(terminal_end, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
        process = subprocess.Popen(
            command_line("top", *arguments),
            stdin=terminal_end,
            stdout=terminal_end,
            stderr=terminal_end,
            env=os.environ | {"TERM": "xterm-256color"},
            start_new_session=True,
        )
        os.close(terminal_end)
        started.append((process, main_end))
        return Terminal(process, main_end)

    yield start
    for process, main_end in started:
        process.kill()
        process.wait()
        os.close(main_end)


class Terminal:
    """The far end of a terminal."""

    def __init__(self, process, main_end):
        self.process = process
        self._main_end = main_end
        self.text = ""

    def until(self, word):
        """Wait until the word was drawn."""
        ends = time.monotonic() + WAIT_SECONDS
        while word not in self.text:
            assert time.monotonic() < ends, self.text
            self._read(1.0)

    def _read(self, patience_seconds):
        ready, _, _ = select.select([self._main_end], [], [], patience_seconds)
        if ready:
            try:
                self.text += os.read(self._main_end, 65536).decode(errors="replace")
            except OSError:  # nobody has the near end any more
                return

    def press(self, keys):
        self.text = ""
        os.write(self._main_end, keys.encode())

    def status(self):
        """The exit status, with what is still drawn taken away."""
        ends = time.monotonic() + WAIT_SECONDS
        while self.process.poll() is None:
            assert time.monotonic() < ends
            self._read(0.05)
        return self.process.returncode


def test_once_is_a_plain_table_that_fits_a_pipe(script, exo_gpu):
    """Rule: totals, devices and users in 80 columns, without a terminal."""
    script(CUDA | {"processes": [{"pid": 2**22 + 1, "memory_bytes": GIB}]}, ROCM, HOST)
    done = exo_gpu("top", "--once")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "3 devices ok  mem 17.0/44.0 GiB  util 3%  power 31W  1 foreign"
    assert lines[2].split()[:4] == ["ID", "CLASS", "RUNTIME", "HEALTH"]
    assert [line.split()[0] for line in lines if line[:1].isalpha()][1:4] == [
        "cuda:0",
        "rocm:0",
        "cpu:0",
    ]
    assert "DEVICE      PID  USER  SINCE     USED  LEASE    COMMAND" in lines
    assert "cuda:0  4194305  -     -      1.0 GiB  foreign  -" in lines
    assert "rocm:0: its script lists no processes" in lines


def test_json_is_one_object_with_everything(script, exo_gpu):
    """Rule: programs get the same as people, null for what is unknown."""
    script(CUDA, ROCM)
    frame = json.loads(exo_gpu("top", "--json").stdout)
    assert set(frame) == {"taken_at", "totals", "devices", "users", "untold"}
    assert frame["totals"]["devices"] == 2
    assert frame["totals"]["power_watts"] == 31.2
    first, second = frame["devices"]
    assert first["device"]["device_id"] == "cuda:0"
    assert first["sample"]["compute_utilization_percent"] == 3
    assert second["sample"]["power_watts"] is None
    assert (first["health"], first["cordon"], first["leases"]) == ("ok", None, [])
    assert frame["users"] == []


def test_without_a_device_the_table_says_so(script, exo_gpu):
    """Rule: nothing found is an answer."""
    script()
    done = exo_gpu("top", "--once")
    assert (done.returncode, done.stdout) == (0, "0 devices\n")


@pytest.mark.parametrize("arguments", [["top", "--once"], ["top", "--json"], ["ps"]])
def test_the_plain_tables_need_no_textual(arguments, devices):
    """Rule: what is printed once loads neither Textual nor rich nor NumPy."""
    command = [sys.executable, "-c", WITHOUT, "textual,rich,numpy", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_without_textual_one_line_says_what_to_install(devices):
    """Rule: a missing extra is named, with the way round it."""
    command = [sys.executable, "-c", WITHOUT, "textual", "top"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "pip install 'exo-gpu[tui]'" in done.stderr
    assert "--once" in done.stderr


def test_without_a_terminal_one_line_says_what_to_do(devices, exo_gpu):
    """Rule: the live table does not write into pipes."""
    done = exo_gpu("top")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--once" in done.stderr


@pytest.mark.parametrize("cadence", ["0.5s", "banana", "-1s"])
def test_a_cadence_that_cannot_be(cadence, exo_gpu):
    """Rule: more often than drivers tell is refused, and so is what is no duration."""
    done = exo_gpu("top", "--every", cadence)
    assert done.returncode == 2
    assert "--every" in done.stderr


def test_on_a_terminal(devices, terminal):
    """Rule: the table is drawn, keys work, and q ends it with the terminal as it was."""
    screen = terminal("--every", "2s")
    screen.until("GeForce RTX 4090")
    screen.press("?")
    screen.until("reverse the order")
    screen.press("q")
    screen.until("arrows choose")
    screen.press("q")
    assert screen.status() == 0


def test_a_wedged_driver_freezes_nothing(script, terminal):
    """Rule: with a driver that does not answer the table is drawn, says so, and can be left."""
    script(CUDA, ROCM | {"delay_seconds": 600})
    screen = terminal()
    screen.until("degraded")
    screen.press("q")
    assert screen.status() == 0


def test_the_log_keeps_off_the_screen(script, terminal):
    """Rule: what is logged while the table is drawn is told when it has gone."""
    script(CUDA, ROCM | {"fail": "the riser cable is loose"})
    screen = terminal()
    screen.until("failed")
    assert "rocm:0 cannot be read" not in screen.text
    screen.press("q")
    assert screen.status() == 0
    assert "exo-gpu: rocm:0 cannot be read: rocm:0: the riser cable is loose" in screen.text


def test_before_anything_is_known(script, terminal):
    """Rule: while drivers are still looked for, keys are heard."""
    script(CUDA, delay_seconds=600)
    screen = terminal()
    screen.until("looking for devices")
    screen.press("q")
    assert screen.status() == 0
