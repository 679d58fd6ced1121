"""The machine's memory and cores, within the limits of its control group."""

from __future__ import annotations

import os
from pathlib import Path

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
