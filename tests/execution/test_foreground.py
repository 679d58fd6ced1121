"""A command with the caller's terminal: its status, and the signals meant for it."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from terminal import Terminal

from exo.gpu.execution.foreground import run_attached

WRAPPER = """
import os, sys
from exo.gpu.execution.foreground import run_attached
end = run_attached(sys.argv[1:], dict(os.environ), ())
print(f"ended {end.status} interrupted={end.interrupted}", flush=True)
sys.exit(end.status)
"""

# Counts the interrupts that it gets, and says how many on a line of its standard input.
COUNTER = """
import signal, sys
counted = []
signal.signal(signal.SIGINT, lambda *_: (counted.append(1), print("heard", flush=True)))
signal.signal(signal.SIGWINCH, lambda *_: print("resized", flush=True))
print("up", flush=True)
while sys.stdin.readline():
    print("interrupts:", len(counted), flush=True)
"""


def run(*argv: str, environ: dict[str, str] | None = None, **more):
    return run_attached(argv, dict(os.environ) if environ is None else environ, (), **more)


def shell(script: str, **more):
    return run("/bin/sh", "-c", script, **more)


def wait_for_file(path: Path) -> None:
    while not path.exists():
        os.sched_yield()


def wrapped(*argv: str, **more) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRAPPER, *argv], stdout=subprocess.PIPE, text=True, **more
    )


def test_the_commands_own_status_comes_back():
    end = shell("exit 7")
    assert (end.status, end.returncode, end.timed_out, end.interrupted) == (7, 7, False, False)
    assert shell("kill -9 $$").status == 137


def test_a_command_that_is_not_there_says_so():
    with pytest.raises(FileNotFoundError):
        run("/no/such/command")


def test_the_environment_is_the_one_given(tmp_path):
    end = shell(f"echo $PINNED > {tmp_path}/seen", environ={"PINNED": "GPU-1"})
    assert end.status == 0
    assert (tmp_path / "seen").read_text() == "GPU-1\n"


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"])
def test_signals_are_forwarded_and_handlers_restored(name, tmp_path):
    number = signal.Signals[name]
    before = signal.getsignal(number)
    word = name.removeprefix("SIG")
    script = f"trap 'exit 42' {word}; touch {tmp_path}/up; while :; do sleep 0.05; done"

    def send_when_up():
        wait_for_file(tmp_path / "up")
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=send_when_up)
    thread.start()
    end = shell(script)
    thread.join()
    assert end.status == 42
    assert end.interrupted == (name in {"SIGTERM", "SIGHUP"})
    assert signal.getsignal(number) is before


def test_an_interrupt_sent_to_the_wrapper_reaches_the_command():
    """Without a terminal nobody else tells the command: a supervisor's SIGINT is passed on, once."""
    child = wrapped(sys.executable, "-c", COUNTER, stdin=subprocess.PIPE, start_new_session=True)
    assert child.stdout.readline() == "up\n"
    child.send_signal(signal.SIGINT)
    assert child.stdout.readline() == "heard\n"
    out, _ = child.communicate("\n", timeout=30)
    assert out == "interrupts: 1\nended 0 interrupted=True\n"


def test_what_the_caller_ignores_the_command_ignores_too():
    """nohup exo-gpu run ...: a hang-up ends neither the wrapper nor the command."""
    code = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from exo.gpu.execution.foreground import run_attached\n"
        "command = 'kill -HUP $$; kill -HUP $PPID; exit 6'\n"
        "sys.exit(run_attached(['/bin/sh', '-c', command], dict(os.environ), ()).status)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, timeout=30)
    assert done.returncode == 6


def test_the_memory_of_the_largest_process_is_told():
    """A command that holds more than we do ourselves is measured; of a small one nothing is said."""
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    size = own + 2**28
    big = f"b = bytearray({size}); b[::4096] = b'x' * len(b[::4096])"
    peak = shell(f'"{sys.executable}" -c "{big}"').peak_host_bytes
    assert peak is not None
    assert size <= peak < size + 2**27
    assert run("true").peak_host_bytes is None


# The time limit


def test_after_its_time_a_command_and_its_children_are_asked_to_end(tmp_path):
    """Rule: status 124, and what it had started is gone too."""
    script = f'sh -c "sleep 1000 & echo \\$! > {tmp_path}/pid; wait" & wait'
    end = shell(script, timeout_seconds=0.5, grace_seconds=20)
    assert (end.timed_out, end.status, end.returncode) == (True, 124, -signal.SIGTERM)
    pid = int((tmp_path / "pid").read_text())
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_command_that_will_not_end_is_killed(tmp_path):
    """Rule: SIGKILL follows where SIGTERM is not heard, and the status stays 124."""
    script = f"trap '' TERM; touch {tmp_path}/up; while :; do sleep 0.05; done"
    end = shell(script, timeout_seconds=0.5, grace_seconds=0.2)
    assert (end.timed_out, end.status, end.returncode) == (True, 124, -signal.SIGKILL)


def test_a_command_that_is_in_time_has_its_own_status():
    """Rule: a limit that is not reached changes nothing."""
    end = shell("exit 3", timeout_seconds=1000)
    assert (end.timed_out, end.status) == (False, 3)
    assert end.seconds < 1000


# The terminal


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash on this machine, and no other shell is sure to have job control")
    opened = Terminal(bash, "--norc", "--noprofile", "--noediting", "-i")
    opened.type("stty -echo; set -b; echo ready-$((40 + 2))\n")
    opened.wait_for("ready-42")
    yield opened
    opened.close()


@pytest.fixture
def wrapper(tmp_path: Path) -> str:
    """Shell words that run what follows them attached."""
    script = tmp_path / "wrapper.py"
    script.write_text(WRAPPER)
    return f"{sys.executable} {script}"


@pytest.fixture
def counter(tmp_path: Path) -> str:
    script = tmp_path / "counter.py"
    script.write_text(COUNTER)
    return f"{sys.executable} {script}"


def test_ctrl_c_reaches_the_command_once(terminal, wrapper, counter):
    """Rule: the terminal tells the command itself, so that the wrapper passes nothing on."""
    terminal.type(f"{wrapper} {counter}\n")
    terminal.wait_for("up")
    terminal.type("\x03")
    terminal.wait_for("heard")
    terminal.type("\n")
    assert terminal.wait_for(r"interrupts: (\d)")[1] == "1"
    terminal.type("\x04")
    assert terminal.wait_for(r"ended (\d+) interrupted=(\w+)").groups() == ("0", "True")


def test_ctrl_z_stops_the_whole_job_and_fg_continues_it(terminal, wrapper, counter):
    """Rule: to the shell it is one job, which stops, and goes on where it was."""
    terminal.type(f"{wrapper} {counter}\n")
    terminal.wait_for("up")
    for _ in range(3):
        # Pressed while a slow machine still continues the job, it may be undone with that.
        terminal.press("\x1a", "Stopped")
        terminal.type("echo shell-$((1 + 1)) again\n")
        terminal.wait_for("shell-2 again")
        terminal.type("fg\n")
        terminal.wait_for("counter.py")
        terminal.type("\n")
        terminal.wait_for(r"interrupts: 0")
    terminal.type("\x04")
    terminal.wait_for("ended 0")


def test_a_command_that_reads_in_the_background_stops_until_it_is_fetched(
    terminal, wrapper, counter
):
    """Rule: "&" is what it is without the wrapper: reading the terminal stops the job."""
    terminal.type(f"{wrapper} {counter} &\n")
    terminal.wait_for("up")
    terminal.wait_for("Stopped")
    terminal.type("fg\n")
    terminal.wait_for("counter.py")
    terminal.type("\n")
    terminal.wait_for("interrupts: 0")
    terminal.type("\x04")
    terminal.wait_for("ended 0")


def test_a_new_window_size_reaches_the_command(terminal, wrapper, counter):
    """Rule: the command has the real terminal, and hears when its size changes."""
    terminal.type(f"{wrapper} {counter}\n")
    terminal.wait_for("up")
    terminal.resize(33, 99)
    terminal.wait_for("resized")
    terminal.type("\x04")
    terminal.wait_for("ended 0")
    terminal.type(f"{wrapper} stty size\n")
    terminal.wait_for("33 99")


def test_a_stop_that_somebody_else_sends_stops_the_command_alone():
    """Rule: who stops the command's own process continues it; the wrapper waits and is not lost."""
    code = "import os, sys; print(os.getpid(), flush=True); sys.stdin.readline(); print('on')"
    child = wrapped(sys.executable, "-c", code, stdin=subprocess.PIPE)
    command = psutil.Process(int(child.stdout.readline()))
    command.suspend()
    while command.status() != psutil.STATUS_STOPPED:
        time.sleep(0.01)
    assert psutil.Process(child.pid).status() != psutil.STATUS_STOPPED
    command.resume()
    out, _ = child.communicate("\n", timeout=30)
    assert out == "on\nended 0 interrupted=False\n"
