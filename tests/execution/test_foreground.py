"""A command with the caller's terminal: its status, and the signals meant for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from exo.gpu.execution.foreground import run_attached


def test_the_commands_own_status_comes_back():
    assert run_attached(["/bin/sh", "-c", "exit 7"], dict(os.environ), ()) == 7


def test_a_command_that_is_not_there_says_so():
    with pytest.raises(FileNotFoundError):
        run_attached(["/no/such/command"], dict(os.environ), ())


def test_the_environment_is_the_one_given(tmp_path):
    command = ["/bin/sh", "-c", f"echo $PINNED > {tmp_path}/seen"]
    assert run_attached(command, {"PINNED": "GPU-1"}, ()) == 0
    assert (tmp_path / "seen").read_text() == "GPU-1\n"


def test_signals_are_forwarded_and_handlers_restored(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    script = f"trap 'exit 42' TERM; touch {tmp_path}/up; while :; do sleep 0.05; done"

    def send_when_up():
        while not Path(tmp_path, "up").exists():
            os.sched_yield()
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=send_when_up)
    thread.start()
    assert run_attached(["/bin/sh", "-c", script], dict(os.environ), ()) == 42
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_interrupt_of_the_wrapper_alone_does_not_end_it(tmp_path):
    """Ctrl-C reaches the command through the terminal; the wrapper waits for it."""
    code = (
        "import os, sys\n"
        "from exo.gpu.execution.foreground import run_attached\n"
        "command = 'touch %s/up; sleep 0.5; exit 5' % sys.argv[1]\n"
        "sys.exit(run_attached(['/bin/sh', '-c', command], dict(os.environ), ()))\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    while not Path(tmp_path, "up").exists():
        os.sched_yield()
    child.send_signal(signal.SIGINT)
    assert child.wait(30) == 5


def test_what_the_caller_ignores_the_command_ignores_too(tmp_path):
    """nohup exo-gpu run ...: a hang-up ends neither the wrapper nor the command."""
    code = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from exo.gpu.execution.foreground import run_attached\n"
        "command = 'kill -HUP $$; kill -HUP $PPID; exit 6'\n"
        "sys.exit(run_attached(['/bin/sh', '-c', command], dict(os.environ), ()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, timeout=30)
    assert done.returncode == 6
