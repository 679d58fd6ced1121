"""Clients of DRM devices from ``/proc`` trees that the tests make, in the kernel's form."""

from __future__ import annotations

from pathlib import Path

import pytest

from exo.gpu.backend import DeviceProcess, ProcessAbility
from exo.gpu.backends import drm_clients
from exo.gpu.backends.counter_rates import CounterRates
from exo.gpu.backends.level_zero import LevelZeroBackend
from exo.gpu.backends.rocm import RocmBackend
from exo.gpu.vocabulary.errors import BackendError, ReadingMissing
from tests.backends.sysfs import ARC, RX, card, client

CARD = "0000:03:00.0"
MIB = 2**20


def amdgpu(number: int, *, gfx: int = 0, vram_kib: int = 1024, pdev: str = CARD) -> str:
    """What amdgpu writes of one client."""
    return (
        f"pos:\t0\nflags:\t02100002\ndrm-driver:\tamdgpu\ndrm-client-id:\t{number}\n"
        f"drm-pdev:\t{pdev}\npasid:\t32770\ndrm-memory-vram:\t{vram_kib} KiB\n"
        f"drm-memory-gtt: \t2048 KiB\ndrm-memory-cpu: \t0 KiB\n"
        f"drm-engine-gfx:\t{gfx} ns\ndrm-engine-compute:\t0 ns\n"
    )


def xe(number: int, *, worked: int, passed: int, pdev: str = "0000:09:00.0") -> str:
    """What xe writes of one client."""
    return (
        f"drm-driver:\txe\ndrm-client-id:\t{number}\ndrm-pdev:\t{pdev}\n"
        "drm-total-system:\t0\ndrm-resident-system:\t0\n"
        "drm-total-vram0:\t8 MiB\ndrm-resident-vram0:\t4 MiB\n"
        f"drm-cycles-rcs:\t{worked}\ndrm-total-cycles-rcs:\t{passed}\n"
        "drm-engine-capacity-ccs:\t4\n"
    )


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_processes_are_listed_with_their_memory(tmp_path: Path) -> None:
    """Rule: a process counts once with all its clients, a client once however often it is open."""
    client(tmp_path, 70, 5, amdgpu(1, vram_kib=1024))
    client(tmp_path, 70, 6, amdgpu(1, vram_kib=1024))  # the same client, opened twice
    client(tmp_path, 70, 7, amdgpu(2, vram_kib=2048))
    client(tmp_path, 71, 5, amdgpu(1, vram_kib=1024))  # inherited by a child
    client(tmp_path, 72, 5, amdgpu(3, pdev="0000:44:00.0"))  # another card
    client(tmp_path, 73, 5, "drm-driver:\tamdgpu\n")  # says nothing of itself
    client(tmp_path, 74, 5, amdgpu(4), target="/dev/null")  # no DRM file
    (tmp_path / "75").mkdir()  # ended meanwhile
    (tmp_path / "self").mkdir()
    assert drm_clients.processes(CARD, integrated=False, proc=tmp_path) == [
        DeviceProcess(pid=70, memory_bytes=3 * MIB)
    ]
    shared = drm_clients.processes(CARD, integrated=True, proc=tmp_path)
    assert shared == [DeviceProcess(pid=70, memory_bytes=7 * MIB)]


def test_memory_that_the_driver_hides_is_unknown(tmp_path: Path) -> None:
    """Rule: resident before total; a client without any size has none, not 0."""
    client(tmp_path, 70, 5, xe(1, worked=0, passed=0))
    client(tmp_path, 71, 5, "drm-client-id:\t2\ndrm-pdev:\t0000:09:00.0\n")
    assert drm_clients.processes("0000:09:00.0", integrated=False, proc=tmp_path) == [
        DeviceProcess(pid=70, memory_bytes=4 * MIB),
        DeviceProcess(pid=71, memory_bytes=None),
    ]


def test_garbage_in_place_of_numbers_is_passed_over(tmp_path: Path) -> None:
    """Rule: what is no number tells nothing, and the rest still counts."""
    text = amdgpu(1).replace("1024 KiB", "much").replace("0 ns", "-5 ns")
    client(tmp_path, 70, 5, text)
    (found,) = drm_clients.clients(CARD, proc=tmp_path)
    assert found.engines == {}
    assert found.memory == {"gtt": 2 * MIB, "cpu": 0}


def test_processes_that_cannot_be_listed_are_an_error(tmp_path: Path) -> None:
    """Rule: without a list there is no answer, rather than an empty one."""
    with pytest.raises(BackendError, match="cannot be listed"):
        drm_clients.clients(CARD, proc=tmp_path / "absent")


def test_work_is_the_busiest_engines_share(tmp_path: Path) -> None:
    """Rule: clients of one engine add up, the busiest kind counts, resets and newcomers wait."""
    clock = Clock()
    rates = CounterRates(clock)

    def busy() -> float:
        found = drm_clients.clients(CARD, proc=tmp_path)
        return drm_clients.busy_percent(found, rates, "rocm:0")

    with pytest.raises(ReadingMissing, match="no program"):
        busy()
    client(tmp_path, 70, 5, amdgpu(1, gfx=10**9))
    with pytest.raises(ReadingMissing, match="two readings"):
        busy()
    clock.now += 2
    client(tmp_path, 70, 5, amdgpu(1, gfx=15 * 10**8))
    client(tmp_path, 71, 5, amdgpu(2, gfx=9 * 10**9))
    assert busy() == pytest.approx(25)
    clock.now += 1
    client(tmp_path, 70, 5, amdgpu(1, gfx=16 * 10**8))
    client(tmp_path, 71, 5, amdgpu(2, gfx=93 * 10**8))
    assert busy() == pytest.approx(40)
    clock.now += 1
    client(tmp_path, 70, 5, amdgpu(1, gfx=5))  # stepped back
    client(tmp_path, 71, 5, amdgpu(2, gfx=193 * 10**8))  # more than passed: several rings
    assert busy() == 100


def test_xe_counts_cycles_against_those_that_passed(tmp_path: Path) -> None:
    """Rule: the share is cycles worked of cycles passed; a clock that stood still gives 0."""
    clock = Clock()
    rates = CounterRates(clock)

    def busy(worked: int, passed: int) -> float:
        client(tmp_path, 70, 5, xe(1, worked=worked, passed=passed))
        found = drm_clients.clients("0000:09:00.0", proc=tmp_path)
        return drm_clients.busy_percent(found, rates, "level_zero:0")

    with pytest.raises(ReadingMissing):
        busy(0, 1000)
    clock.now += 1
    assert busy(300, 2000) == pytest.approx(30)
    clock.now += 1
    assert busy(300, 2000) == 0


def test_several_engines_of_a_kind_share_the_time(tmp_path: Path) -> None:
    """Rule: the time of a kind with several engines is divided among them."""
    text = amdgpu(1, gfx=8000) + "drm-engine-capacity-gfx:\t4\n"
    client(tmp_path, 70, 5, text)
    (found,) = drm_clients.clients(CARD, proc=tmp_path)
    assert found.engines["gfx"] == 2000


@pytest.mark.parametrize("kind", [RocmBackend, LevelZeroBackend])
def test_backends_list_processes(
    tmp_path: Path, kind: type[RocmBackend] | type[LevelZeroBackend]
) -> None:
    """Rule: both vendors list the programs on a card by the kernel's account."""
    root, proc = tmp_path / "drm", tmp_path / "proc"
    card(root, 0, RX)
    card(root, 1, ARC)
    client(proc, 70, 5, amdgpu(1))
    client(proc, 71, 5, xe(1, worked=0, passed=0))
    backend = kind(environ={}, root=root, proc=proc)
    (device,) = backend.find()
    assert isinstance(backend, ProcessAbility)
    (process,) = backend.processes(device.device_id)
    assert process.pid == (70 if kind is RocmBackend else 71)
    absent = kind(environ={}, root=root, proc=tmp_path / "absent")
    absent.find()
    with pytest.raises(BackendError, match="cannot be listed"):
        absent.processes(device.device_id)
