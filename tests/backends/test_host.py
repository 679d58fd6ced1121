"""The machine's memory and cores, within the limits of its control group."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from exo.gpu.backends import host

MIB = 2**20


def write(root: Path, **files: str) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def group(root: Path, folder: str, **files: str) -> None:
    write(root, **{f"sys/fs/cgroup/{folder}/{name}": text for name, text in files.items()})


@pytest.fixture
def second_version(tmp_path: Path) -> Path:
    """A machine with control groups of version 2, this process three folders down."""
    write(tmp_path, **{"proc/self/cgroup": "0::/a/b\n"})
    group(tmp_path, "", **{"cgroup.controllers": "cpu memory"})
    return tmp_path


def test_without_control_groups_memory_is_the_machines(tmp_path: Path) -> None:
    """Rule: total and used are what the operating system calls available, nothing cut."""
    memory = host.memory(tmp_path)
    assert memory.total_bytes == psutil.virtual_memory().total
    assert 0 < memory.free_bytes < memory.total_bytes
    assert host.usable_cores(tmp_path) == len(os.sched_getaffinity(0))


def test_the_tightest_limit_on_the_way_up_counts(second_version: Path) -> None:
    """Rule: a limit of any parent holds; cached file pages are not counted as used."""
    group(second_version, "a/b", **{"memory.max": "max\n", "memory.current": f"{90 * MIB}\n"})
    group(
        second_version,
        "a",
        **{
            "memory.max": f"{100 * MIB}\n",
            "memory.current": f"{90 * MIB}\n",
            "memory.stat": f"anon 1\ninactive_file {30 * MIB}\n",
        },
    )
    memory = host.memory(second_version)
    assert (memory.total_bytes, memory.used_bytes) == (100 * MIB, 60 * MIB)
    assert memory.free_bytes == 40 * MIB


def test_a_group_above_its_limit_has_nothing_free(second_version: Path) -> None:
    """Rule: free memory is never negative."""
    group(second_version, "a/b", **{"memory.max": str(MIB), "memory.current": str(2 * MIB)})
    memory = host.memory(second_version)
    assert (memory.total_bytes, memory.free_bytes) == (MIB, 0)


def test_limits_of_the_first_version(tmp_path: Path) -> None:
    """Rule: the older control groups are read too, and their way of saying "no limit" is none."""
    write(tmp_path, **{"proc/self/cgroup": "5:memory:/job\n4:cpu,cpuacct:/job\n"})
    unlimited = {"memory.limit_in_bytes": str(2**63 - 4096), "memory.usage_in_bytes": "1"}
    group(tmp_path, "memory", **unlimited)
    limited = {
        "memory.limit_in_bytes": str(50 * MIB),
        "memory.usage_in_bytes": str(20 * MIB),
        "memory.stat": f"inactive_file 1\ntotal_inactive_file {10 * MIB}\n",
    }
    group(tmp_path, "memory/job", **limited)
    group(tmp_path, "cpu/job", **{"cpu.cfs_quota_us": "100000", "cpu.cfs_period_us": "100000"})
    group(tmp_path, "cpu", **{"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"})
    assert host.memory(tmp_path) == host.HostMemory(50 * MIB, 10 * MIB)
    assert host.usable_cores(tmp_path) == 1


def test_memory_is_what_the_kernel_calls_available(tmp_path: Path) -> None:
    """Rule: on Linux total and available come from meminfo, whose kB are KiB."""
    write(tmp_path, **{"proc/meminfo": "MemTotal:  1000 kB\nMemFree: 1 kB\nMemAvailable: 600 kB\n"})
    assert host.memory(tmp_path) == host.HostMemory(1000 * 1024, 400 * 1024)


@pytest.mark.parametrize("text", ["", "MemTotal: 5 kB\n", "MemTotal: x\nMemAvailable: y\n"])
def test_a_kernel_without_available_memory_is_asked_otherwise(tmp_path: Path, text: str) -> None:
    """Rule: kernels before 3.14, and half a file, leave the figure to psutil."""
    write(tmp_path, **{"proc/meminfo": text})
    assert host.memory(tmp_path).total_bytes == psutil.virtual_memory().total


def test_the_clock_is_the_mean_of_all_cores(tmp_path: Path) -> None:
    """Rule: the governor's kHz come first, then cpuinfo's MHz; what is no number does not count."""
    write(tmp_path, **{"proc/cpuinfo": "cpu MHz : 1000.5\ncpu MHz : odd\n\ncpu MHz : 2000.5\n"})
    assert host.clock_mhz(tmp_path) == pytest.approx(1500.5)
    for number, kilohertz in enumerate(("3000000", "1000000", "<unknown>")):
        policy = f"sys/devices/system/cpu/cpufreq/policy{number}/scaling_cur_freq"
        write(tmp_path, **{policy: f"{kilohertz}\n"})
    assert host.clock_mhz(tmp_path) == 2000


def test_a_machine_without_proc_is_asked_for_its_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: elsewhere psutil tells; no answer, or one of 0 MHz, is unknown."""
    for answer, clock in ((None, None), (0.0, None), (2400.0, 2400.0)):
        told = None if answer is None else SimpleNamespace(current=answer)
        monkeypatch.setattr(psutil, "cpu_freq", lambda told=told: told, raising=False)
        assert host.clock_mhz(tmp_path) == clock
    monkeypatch.delattr(psutil, "cpu_freq")
    assert host.clock_mhz(tmp_path) is None


def test_the_sensor_of_the_package_is_preferred(tmp_path: Path) -> None:
    """Rule: the processor's own sensor counts, its hottest value; other chips do not."""
    assert host.temperature_celsius(tmp_path) is None
    zone = "sys/class/thermal/thermal_zone0"
    write(tmp_path, **{f"{zone}/type": "acpitz\n", f"{zone}/temp": "42000\n"})
    assert host.temperature_celsius(tmp_path) == 42
    sensors = {"nvme": ("90000",), "k10temp": ("61000", "63500", "no number", "0")}
    for place, (name, values) in enumerate(sensors.items()):
        folder = f"sys/class/hwmon/hwmon{place}"
        write(tmp_path, **{f"{folder}/name": f"{name}\n"})
        for number, value in enumerate(values, start=1):
            write(tmp_path, **{f"{folder}/temp{number}_input": f"{value}\n"})
    assert host.temperature_celsius(tmp_path) == 63.5


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("50000 100000", 1), ("100000 100000", 1), ("max 100000", None), ("1 0", None), ("", None)],
)
def test_a_cpu_quota_cuts_the_cores(second_version: Path, quota: str, cores: int | None) -> None:
    """Rule: a quota of half a core leaves one slot; no quota leaves the affinity."""
    group(second_version, "a/b", **{"cpu.max": f"{quota}\n"})
    assert host.usable_cores(second_version) == (cores or len(os.sched_getaffinity(0)))


def test_a_path_of_another_namespace_means_the_top(tmp_path: Path) -> None:
    """Rule: in a container the group's path may not exist; then its top is ours."""
    write(tmp_path, **{"proc/self/cgroup": "0::/elsewhere\n"})
    group(tmp_path, "", **{"memory.max": str(MIB), "memory.current": "0"})
    assert host.memory(tmp_path).total_bytes == MIB


def test_without_affinity_all_cores_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule: an operating system without affinity gives the number of cores."""
    monkeypatch.delattr(os, "sched_getaffinity")
    assert host.usable_cores(tmp_path) == os.cpu_count()
