"""What the machine itself has: memory and cores within its control group, clock, temperature."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

# Below this many bytes, control-group limits are limits; above, "none" (v1 writes 2**63 - 4096).
_NO_LIMIT = 2**60

# Names that kernels give to the sensor of the CPU package, by preference.
_SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "cpu-thermal", "acpitz")


class HostMemory(NamedTuple):
    """Bytes of the machine's memory that processes here can have, and that are taken."""

    total_bytes: int
    used_bytes: int

    @property
    def free_bytes(self) -> int:
        """What can still be taken without swapping."""
        return self.total_bytes - self.used_bytes


def memory(root: Path = Path("/")) -> HostMemory:
    """The machine's memory as ``free`` tells it ("available"), or less under a control group.

    ``root`` is where ``proc`` and ``sys`` lie.
    """
    total, free = _machine_memory(root)
    for group in _groups(root, "memory"):
        limit = _number(group / "memory.max", group / "memory.limit_in_bytes")
        used = _number(group / "memory.current", group / "memory.usage_in_bytes")
        if limit is None or used is None or limit >= _NO_LIMIT:
            continue
        # Cached file pages count as used in a group, but the kernel gives them back on demand.
        working = max(0, used - _inactive_file_bytes(group))
        total = min(total, limit)
        free = min(free, max(0, limit - working))
    free = min(free, total)
    return HostMemory(total, total - free)


def clock_mhz(root: Path = Path("/")) -> float | None:
    """The mean clock of the cores at this moment (``lscpu``), or None where it is not told."""
    policies = (root / "sys/devices/system/cpu/cpufreq").glob("policy*/scaling_cur_freq")
    kilohertz = [clock for path in policies if (clock := _number(path))]
    if kilohertz:
        return sum(kilohertz) / len(kilohertz) / 1000
    try:
        lines = (root / "proc/cpuinfo").read_text().splitlines()
    except OSError:
        import psutil

        now = psutil.cpu_freq() if hasattr(psutil, "cpu_freq") else None
        return (now.current or None) if now is not None else None
    fields = (line.partition(":") for line in lines)
    clocks = [_real(value) for name, _, value in fields if name.strip() == "cpu MHz"]
    told = [clock for clock in clocks if clock]
    return sum(told) / len(told) if told else None


def temperature_celsius(root: Path = Path("/")) -> float | None:
    """The hottest value of the processor's own sensor (``sensors``), or None without one."""
    found: dict[str, Path] = {}
    for path in (root / "sys/class/hwmon").glob("hwmon*"):
        found.setdefault(_line(path / "name"), path)
    for path in (root / "sys/class/thermal").glob("thermal_zone*"):
        found.setdefault(_line(path / "type"), path)
    for name in _SENSORS:
        if name in found:
            inputs = (*found[name].glob("temp*_input"), found[name] / "temp")
            millidegrees = [value for path in inputs if (value := _number(path))]
            if millidegrees:
                return max(millidegrees) / 1000
    return None


def usable_cores(root: Path = Path("/")) -> int:
    """Cores that this process may use at once: its affinity, cut by its group's CPU quota."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # only Linux and some BSDs have affinity
        cores = os.cpu_count() or 1
    for group in _groups(root, "cpu"):
        quota = _quota(group)
        if quota is not None:
            cores = min(cores, max(1, int(quota)))
    return cores


def _machine_memory(root: Path) -> tuple[int, int]:
    """Total and available bytes, before any control group's limit."""
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        told = {name: value for name, _, value in (line.partition(":") for line in lines)}
        # The kernel writes kB and means KiB.
        total, free = (int(told[name].split()[0]) * 2**10 for name in ("MemTotal", "MemAvailable"))
    except (OSError, LookupError, ValueError):  # no Linux, or one without the second line
        import psutil

        now = psutil.virtual_memory()
        return now.total, now.available
    return total, free


def _groups(root: Path, controller: str) -> list[Path]:
    """Folders of this process's group and of all its parents, for one controller."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        number, names, path = line.split(":", 2)
        if number == "0":
            top = root / "sys/fs/cgroup"
        elif controller in names.split(","):
            top = root / "sys/fs/cgroup" / controller
        else:
            continue
        group = top / path.strip("/")
        if not group.exists():  # another namespace's path: ours is the top then
            group = top
        folders = [group, *group.parents]
        found = folders[: folders.index(top) + 1]
        if any((folder / name).exists() for folder in found for name in _FILES[controller]):
            return found
    return []


_FILES = {
    "memory": ("memory.max", "memory.limit_in_bytes"),
    "cpu": ("cpu.max", "cpu.cfs_quota_us"),
}


def _quota(group: Path) -> float | None:
    try:
        quota, period = (group / "cpu.max").read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        pass
    quota_us = _number(group / "cpu.cfs_quota_us")
    period_us = _number(group / "cpu.cfs_period_us")
    if quota_us is None or not period_us or quota_us <= 0:
        return None
    return quota_us / period_us


def _inactive_file_bytes(group: Path) -> int:
    try:
        lines = (group / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    values = dict(line.split(None, 1) for line in lines if " " in line)
    for name in ("total_inactive_file", "inactive_file"):
        if values.get(name, "").isdigit():
            return int(values[name])
    return 0


def _real(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _line(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _number(*paths: Path) -> int | None:
    """The first of the files that holds a whole number; "max" and absent files do not."""
    for path in paths:
        try:
            return int(path.read_text())
        except (OSError, ValueError):
            continue
    return None
