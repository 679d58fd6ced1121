"""Who a process is that a driver lists: user, command, start and descent, as the system tells."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from exo.gpu.execution.pinning import LEASES_VARIABLE
from exo.gpu.vocabulary.process import RunningProcess

if TYPE_CHECKING:
    from collections.abc import Callable

Answer = TypeVar("Answer")

PROC = Path("/proc")

# PROC_PID_INIT_INO of the kernel's include/linux/proc_ns.h: that of a machine's boot.
FIRST_PID_NAMESPACE = "pid:[4026531836]"

# Device files that programs hold open whether or not they use an accelerator.
_EVERYBODYS = tuple(
    f"/dev/{name}"
    for name in (
        "console",
        "fd",
        "full",
        "mqueue/",
        "null",
        "ptmx",
        "pts/",
        "random",
        "shm/",
        "std",
        "tty",
        "urandom",
        "zero",
    )
)

# A command line may have megabytes; nobody reads more.
_LONGEST_COMMAND = 4096

# It adopts whom others leave behind, so being its child says nothing.
_INIT_PID = 1


def describe(pid: int, memory_bytes: int | None = None, *, proc: Path = PROC) -> RunningProcess:
    """What the system tells of the process of this number; never raises for a process.

    In a container a driver may count processes as the host does. There, the process that has the
    number here is taken for the one meant only where it holds a device file open. ``proc`` is
    where namespaces and open files are looked up.
    """
    import psutil

    unknown = RunningProcess(pid=pid, memory_bytes=memory_bytes)
    try:
        process = psutil.Process(pid)
        doubt = "" if numbers_agree(proc) else _doubt(pid, proc)
        if doubt:
            return _because(unknown, doubt)
        return _told(process, memory_bytes)
    except psutil.NoSuchProcess:
        return _because(unknown, "no such process here: it ended, or is of another container")
    except psutil.Error as error:
        return _because(unknown, f"the system does not tell: {error}")


def numbers_agree(proc: Path = PROC) -> bool:
    """Whether processes have the machine's own numbers here, and not a container's."""
    if sys.platform != "linux":
        return True
    try:
        return str((proc / "self" / "ns" / "pid").readlink()) == FIRST_PID_NAMESPACE
    except OSError:
        return False


def _doubt(pid: int, proc: Path) -> str:
    """Why the process of this number here may be another than the driver means; or empty."""
    try:
        files = [str(file.readlink()) for file in (proc / str(pid) / "fd").iterdir()]
    except PermissionError:
        return "in this container it cannot be seen whether the driver means its own process"
    except OSError:
        files = []
    if any(file.startswith("/dev/") and not file.startswith(_EVERYBODYS) for file in files):
        return ""
    return "the driver means a process outside of this container"


def _told(process: Any, memory_bytes: int | None) -> RunningProcess:
    """What is readable of a process that is there."""
    with process.oneshot():
        user, hidden_user = _ask(process.username)
        words, hidden_words = _ask(process.cmdline)
        name, _ = _ask(process.name)
        command = None
        if words is not None:
            command = " ".join(words)[:_LONGEST_COMMAND] or f"[{name}]"
        environ, _ = _ask(process.environ)
        leases = "" if environ is None else str(environ.get(LEASES_VARIABLE, ""))
        return RunningProcess(
            pid=process.pid,
            memory_bytes=memory_bytes,
            user=user,
            name=name,
            command=command,
            since=process.create_time(),
            lease_ids=tuple(filter(None, leases.split(","))),
            ancestry=_ancestry(process),
            reason=hidden_user or hidden_words,
        )


def _ask(question: Callable[[], Answer]) -> tuple[Answer | None, str]:
    """The answer, or None with the reason; an ended process is the caller's to notice."""
    import psutil

    try:
        return question(), ""
    except psutil.AccessDenied:
        return None, "another user's process: the system does not tell"
    except OSError as error:
        return None, f"the system does not tell: {error.strerror or error}"


def _ancestry(process: Any) -> tuple[tuple[int, float], ...]:
    parents, _ = _ask(process.parents)
    line = [process, *(parent for parent in parents or () if parent.pid > _INIT_PID)]
    return tuple((one.pid, one.create_time()) for one in line)


def _because(process: RunningProcess, reason: str) -> RunningProcess:
    return RunningProcess(pid=process.pid, memory_bytes=process.memory_bytes, reason=reason)
