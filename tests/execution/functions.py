"""Functions that tests send to workers by name."""

from __future__ import annotations

import os
import signal
import stat
import sys
import time
from pathlib import Path
from typing import Any


def double(number: int) -> int:
    return number * 2


def fail(number: int) -> int:
    raise ValueError(f"no {number}")


class Fussy(Exception):
    """Cannot be rebuilt from its arguments: pickle's reduce gives the constructor too few."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(one)
        self.two = two


def fail_fussily(number: int) -> int:
    raise Fussy("one", str(number))


def leave(number: int) -> int:
    sys.exit(number)


def vanish(number: int) -> int:
    os._exit(number)


def vanish_once(mark: str) -> str:
    """Kills its own process the first time, by a mark on disk; fine the second time."""
    path = Path(mark)
    if not path.exists():
        path.write_text("was here")
        os.kill(os.getpid(), signal.SIGKILL)
    return f"done {path.name}"


def make_unpicklable(number: int) -> object:
    return (number for _ in range(number))


def where(_: object) -> tuple[int, dict[str, str]]:
    return os.getpid(), dict(os.environ)


def slowly(number: int) -> int:
    time.sleep(0.02)
    return number


def slowly_where(number: int) -> tuple[int, int]:
    time.sleep(0.02)
    return number, os.getpid()


def blow_up() -> None:
    raise RuntimeError("no model here")


LOADED: list[str] = []


def load_model(name: str) -> None:
    LOADED.append(name)


def loaded(_: int) -> list[str]:
    return LOADED


def touch_and_wait(folder: str) -> str:
    """Says by a file that it runs, and never ends by itself."""
    Path(folder, str(os.getpid())).touch()
    while True:
        signal.pause()


def fail_the_second_time(folder: str) -> None:
    """An initializer that only the first two processes pass."""
    if len(list(Path(folder).iterdir())) >= 2:
        raise RuntimeError("no memory for the model now")
    Path(folder, str(os.getpid())).touch()


def sleep_for(seconds: float) -> None:
    time.sleep(seconds)


def fork_and_die(child_file: str) -> None:
    """Leaves a child behind that would live for an hour, and dies by SIGKILL."""
    child = os.fork()
    if child == 0:
        time.sleep(3600)
        os._exit(0)
    Path(child_file).write_text(str(child))
    os.kill(os.getpid(), signal.SIGKILL)


def speak_nonsense(number: int) -> int:
    """Writes bytes that are no frame into every socket of this process."""
    for descriptor in range(3, 64):
        try:
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                os.write(descriptor, b"\xff" * 64)
        except OSError:
            continue
    return number


def fail_at_seven(number: int) -> int:
    if number == 7:
        raise ValueError(f"no {number}")
    return number


class Unreadable:
    """Can be pickled and sent, and cannot be made again."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return int, ("no number",)


def make_unreadable(number: int) -> object:
    return Unreadable() if number == 2 else [number]


def touch(path: str) -> None:
    Path(path).touch()


def wait_for_file_or_nothing(item: tuple[str, bool]) -> None:
    path, waits = item
    while waits and not Path(path).exists():
        time.sleep(0.001)


def quickly_where(number: int) -> tuple[int, int]:
    return number, os.getpid()


def add_in_place(array: Any) -> Any:
    array += 1
    return array


ARRAY: list[Any] = []


def same_array(number: int) -> Any:
    import numpy as np

    if not ARRAY:
        ARRAY.append(np.zeros(100_000))
    ARRAY[0][:] = number
    return ARRAY[0]


GROWING: list[int] = []


def same_list(number: int) -> list[int]:
    GROWING.append(number)
    return GROWING


def device_names(_: object) -> tuple[str | None, str | None]:
    import exo.gpu as gpu

    device = gpu.current_device()
    assert device is not None
    return device.torch, device.jax


def leave_trace(folder_and_number):
    """One file for each item, and one line in it for each time that it was run."""
    folder, number = folder_and_number
    with (Path(folder) / str(number)).open("a") as trace:
        trace.write("run\n")
    return number


class Thing:
    """An item that can be asked whether anybody still holds it."""


def exit_quietly(_: object) -> None:
    """Takes the worker down, as a library's crash would."""
    os._exit(0)
