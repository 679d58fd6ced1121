"""Functions that behave badly, or for long, for tests of supervision."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path


def wait_for_ever(mark: str) -> None:
    """Says by a file that it runs; ends by an exception only."""
    Path(mark).touch()
    while True:
        time.sleep(60)


def tidy_up_when_interrupted(mark: str) -> None:
    """Leaves a note behind when it is asked to stop."""
    try:
        wait_for_ever(mark)
    finally:
        Path(f"{mark}.tidied").touch()


def be_stubborn(mark: str) -> None:
    """Hears neither an interrupt nor SIGTERM."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    wait_for_ever(mark)


def stop_itself(mark: str) -> str:
    """Freezes its whole process, the first time."""
    if not Path(mark).exists():
        Path(mark).touch()
        os.kill(os.getpid(), signal.SIGSTOP)
    return "went on"


def hold_the_interpreter(power: int) -> int:
    """One call in C that lets no other thread run."""
    return (7**power) % 10


def count_slowly(count: int, mark: str) -> Iterator[int]:
    """Writes how far it is beside what it yields."""
    try:
        for number in range(count):
            Path(mark).write_text(str(number))
            yield number
    finally:
        Path(f"{mark}.closed").touch()


def yield_then_fail(count: int) -> Iterator[int]:
    yield from range(count)
    raise ValueError("no more")


def yield_then_die(count: int) -> Iterator[int]:
    yield from range(count)
    os._exit(4)


def yield_what_cannot_travel() -> Iterator[object]:
    yield 1
    yield sys._getframe()


def speak(word: str) -> str:
    """Prints on both streams, through Python and beside it."""
    print(f"out {word}")
    print(f"err {word}", file=sys.stderr)
    os.write(1, b"raw \xff\x00\n")
    return word


def pid(_: object) -> int:
    return os.getpid()


def fork_and_return(_: object) -> int:
    """Both processes return."""
    return os.getpid() if os.fork() == 0 else 0


def close_every_socket(number: int) -> int:
    for descriptor in range(3, 64):
        try:
            socket.socket(fileno=descriptor).close()
        except OSError:
            continue
    return number


def take_memory(_: object) -> int:
    """More than the limit that it sets itself."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))
    return len(bytearray(2**33))


class OutOfMemoryError(RuntimeError):
    """As PyTorch has it, by name."""


OutOfMemoryError.__module__ = "torch"


def want_memory(need_bytes: int) -> str:
    """Runs where its device's lease is large enough, by the record of it that the store keeps."""
    if leased_bytes() < need_bytes:
        raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    return where()


def leased_bytes() -> int:
    from exo.gpu.nodes.local import LocalNode

    ids = os.environ["EXO_GPU_LEASES"].split(",")
    with LocalNode() as node:
        return sum(one.memory_bytes or 0 for one in node.leases() if one.lease_id in ids)


def where() -> str:
    import exo.gpu as gpu

    device = gpu.current_device()
    return device.device_id if device else ""


def lose_device(device_id: str, met: Path) -> str:
    """Finds one device gone; elsewhere it waits until one item has met that."""
    if where() == device_id:
        met.touch()
        raise RuntimeError("CUDA error: uncorrectable ECC error encountered")
    deadline = time.monotonic() + 30
    while not met.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    return where()


def fail_twice(folder: str) -> int:
    """Succeeds at its third try."""
    tries = len(list(Path(folder).iterdir()))
    Path(folder, str(tries)).touch()
    if tries < 2:
        raise KeyError(tries)
    return tries


def slow_where(_: object) -> str:
    time.sleep(0.02)
    return where()
