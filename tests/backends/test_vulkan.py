"""Vulkan on the real loader and two real software drivers, and on drivers that break."""

from __future__ import annotations

import array
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import anyio
import msgspec
import psutil
import pytest

from exo.gpu.backend import ComputeAbility, MemoryHandle, PinningAbility, TelemetryAbility
from exo.gpu.backends import host, vulkan_drivers, vulkan_listing
from exo.gpu.backends.vulkan import VulkanGPUBackend
from exo.gpu.backends.webgpu import WebGPUDevice
from exo.gpu.telemetry.probe import FIGURES
from exo.gpu.vocabulary.device import HOST_POOL, DeviceClass, GPUDevice
from exo.gpu.vocabulary.errors import (
    BackendError,
    BackendUnavailable,
    InvalidHandle,
    NoSuchDevice,
    OutOfDeviceMemory,
)

MIB = 2**20
VARIABLES = ("VK_DRIVER_FILES", "VK_ICD_FILENAMES")
DOUBLE = """
@group(0) @binding(0) var<storage, read> numbers: array<f32>;
@group(0) @binding(1) var<storage, read_write> doubled: array<f32>;
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) place: vec3<u32>) {
    doubled[place.x] = 2.0 * numbers[place.x];
}
"""


def seeing(*manifests: Path, **more: str) -> dict[str, str]:
    """This environment with these drivers alone."""
    named = os.pathsep.join(map(str, manifests))
    return {**os.environ, **dict.fromkeys(VARIABLES, named), **more}


def listed(*manifests: Path, **more: str) -> VulkanGPUBackend:
    backend = VulkanGPUBackend(environ=seeing(*manifests, **more))
    backend.find()
    return backend


def by_name(backend: VulkanGPUBackend, part: str) -> GPUDevice:
    return next(device for device in backend.list_devices() if part in device.name)


@pytest.fixture
def both(vulkan_environment: dict[str, str]) -> Iterator[VulkanGPUBackend]:
    """Both software drivers, found in the environment of this process."""
    backend = VulkanGPUBackend()
    backend.find()
    yield backend
    anyio.run(backend.shutdown)


@pytest.fixture
def tell(both: VulkanGPUBackend, shown_on: Callable[[str, str], None]) -> Callable[[], None]:
    """Says that a test ran on both drivers."""

    def on_both() -> None:
        devices = both.list_devices()
        shown_on(
            " and ".join(device.name for device in devices),
            " and ".join(str(device.driver_version) for device in devices),
        )

    return on_both


# Finding


@pytest.mark.shows("vulkan", "finding", "software driver")
def test_both_software_drivers_are_found(
    both: VulkanGPUBackend, tell: Callable[[], None], vulkan_manifests: list[Path]
) -> None:
    """Rule: each driver's device once, of class software, in the host's memory, known by name."""
    tell()
    devices = both.list_devices()
    assert len(devices) == 2
    assert [device.device_id for device in devices] == ["vulkan:0", "vulkan:1"]
    assert [device.driver_manifest for device in devices] == sorted(map(str, vulkan_manifests))
    for device in devices:
        assert device.device_class is DeviceClass.SOFTWARE
        assert (device.memory_pool, device.driver_index) == (HOST_POOL, 0)
        assert device.hardware_id == f"{device.driver_manifest}:{device.name}"
        assert 0 < (device.memory_available or 0) <= (device.memory_bytes or 0)
        assert device.pci_address is None
    assert len({device.hardware_id for device in devices}) == 2
    assert both.remark == ""


def test_a_driver_with_two_manifests_is_listed_once(
    tmp_path: Path, llvmpipe_manifest: Path
) -> None:
    """Rule: the driver's library counts, not the number of manifests that name it."""
    copy = tmp_path / "copy_icd.json"
    content = json.loads(llvmpipe_manifest.read_text())
    library = Path(content["ICD"]["library_path"])
    content["ICD"]["library_path"] = library.name if library.is_absolute() else str(library)
    copy.write_text(json.dumps(content))
    (tmp_path / "again_icd.json").write_text(llvmpipe_manifest.read_text())
    backend = listed(llvmpipe_manifest, copy, tmp_path / "again_icd.json")
    assert len(backend.list_devices()) == 1


@pytest.mark.parametrize(
    ("kind", "reason"), [("crashes", "died of SIGABRT"), ("hangs", "gave no answer within")]
)
def test_a_broken_driver_hides_its_own_devices_only(
    broken_manifests: dict[str, Path], llvmpipe_manifest: Path, kind: str, reason: str
) -> None:
    """Rule: a driver that crashes or hangs is named with what it did; the others are listed."""
    backend = VulkanGPUBackend(
        environ=seeing(broken_manifests[kind], llvmpipe_manifest), driver_seconds=3
    )
    assert [device.name[:8] for device in backend.find()] == ["llvmpipe"]
    assert str(broken_manifests[kind]) in backend.remark
    assert reason in backend.remark


def test_a_manifest_that_is_none_is_named(tmp_path: Path, llvmpipe_manifest: Path) -> None:
    """Rule: a missing or malformed manifest is a remark, and costs nobody else anything."""
    garbage = tmp_path / "garbage.json"
    garbage.write_text("no json")
    backend = listed(garbage, tmp_path / "absent.json", llvmpipe_manifest)
    assert len(backend.list_devices()) == 1
    assert "JSONDecodeError" in backend.remark
    assert "absent.json FileNotFoundError" in backend.remark


def test_a_driver_without_hardware_lists_nothing(tmp_path: Path) -> None:
    """Rule: a library that the loader cannot open is a driver without devices, not an error."""
    manifest = tmp_path / "absent_icd.json"
    described = {"library_path": "libno_such_driver.so", "api_version": "1.3.0"}
    manifest.write_text(json.dumps({"file_format_version": "1.0.0", "ICD": described}))
    backend = listed(manifest)
    assert (backend.list_devices(), backend.remark) == ([], "")


def test_no_manifest_says_what_to_install(tmp_path: Path) -> None:
    """Rule: a machine without Vulkan drivers learns how to get one."""
    empty = {"XDG_DATA_DIRS": str(tmp_path), "VK_DRIVER_FILES": os.devnull}
    with pytest.raises(BackendUnavailable, match="mesa-vulkan-drivers"):
        VulkanGPUBackend(environ=empty).find()


@pytest.mark.parametrize(
    ("program", "reason", "hint"),
    [
        ("raise ImportError('No module named vulkan')", "No module", "exo-gpu[vulkan]"),
        ("raise OSError('Cannot find Vulkan SDK')", "Cannot find", "libvulkan1"),
    ],
)
def test_what_is_missing_is_named(
    tmp_path: Path, llvmpipe_manifest: Path, program: str, reason: str, hint: str
) -> None:
    """Rule: without the package or the loader the hint says what to install."""
    (tmp_path / "vulkan.py").write_text(program)
    with pytest.raises(BackendUnavailable) as caught:
        listed(llvmpipe_manifest, PYTHONPATH=str(tmp_path))
    assert reason in caught.value.reason
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import os\nos._exit(3)", "ended with status 3"),
        ("import signal\nsignal.pause()", "hangs"),
    ],
)
def test_a_listing_process_that_breaks_is_an_error(
    tmp_path: Path,
    llvmpipe_manifest: Path,
    monkeypatch: pytest.MonkeyPatch,
    program: str,
    reason: str,
) -> None:
    """Rule: when the child itself dies or hangs, that is said, and no process stays behind."""
    monkeypatch.setattr(vulkan_drivers, "START_SECONDS", 1.0)
    (tmp_path / "vulkan.py").write_text(program)
    backend = VulkanGPUBackend(
        environ=seeing(llvmpipe_manifest, PYTHONPATH=str(tmp_path)), driver_seconds=1
    )
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    with pytest.raises(BackendError, match=reason):
        backend.find()
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before


# What drivers say of hardware: facts as the listing gives them

CARD = {
    "name": "NVIDIA GeForce RTX 4090",
    "kind": 2,
    "vendor_id": 0x10DE,
    "device_id": 0x2684,
    "api_version": 4206822,
    "driver_version": 2396258432,
    "device_local_bytes": 24 * 1024 * MIB,
    "max_threads_per_block": 1024,
    "uuid": "01234567-89ab-cdef-0123-456789abcdef",
    "pci_address": "0000:01:00.0",
}
OTHER = {"uuid": "11234567-89ab-cdef-0123-456789abcdef", "pci_address": "0000:02:00.0"}


def devices_of(*drivers: tuple[str, list[dict[str, object]]]) -> list[GPUDevice]:
    answers = [
        {"manifest": f"{library}.json", "library": library, "devices": devices}
        for library, devices in drivers
    ]
    return [listed.device for listed in vulkan_drivers.distinct(answers)]


def test_a_card_is_known_by_its_uuid() -> None:
    """Rule: hardware has its own memory and an identity that NVML writes the same way."""
    (device,) = devices_of(("nvidia", [CARD]))
    assert device.device_class is DeviceClass.HARDWARE
    assert device.hardware_id == device.memory_pool == f"GPU-{CARD['uuid']}"
    assert (device.vendor, device.memory_bytes) == ("NVIDIA", 24 * 1024 * MIB)


def test_integrated_graphics_share_the_hosts_memory() -> None:
    """Rule: an integrated GPU is hardware in the host's pool; other vendors' UUIDs stay bare."""
    integrated = CARD | {"kind": 1, "vendor_id": 0x8086}
    (device,) = devices_of(("intel", [integrated]))
    assert (device.device_class, device.memory_pool) == (DeviceClass.HARDWARE, HOST_POOL)
    assert (device.vendor, device.hardware_id) == ("Intel", CARD["uuid"])


def test_identity_without_a_uuid() -> None:
    """Rule: without a UUID the PCI address is the identity, and without both the driver's name."""
    zeros = CARD | {"uuid": "00000000-0000-0000-0000-000000000000"}
    bare = {name: value for name, value in CARD.items() if name not in {"uuid", "pci_address"}}
    (by_address,) = devices_of(("nvidia", [zeros]))
    (by_driver,) = devices_of(("nvidia", [bare | {"vendor_id": 0x1234}]))
    assert by_address.hardware_id == "0000:01:00.0"
    assert by_driver.hardware_id == "nvidia.json:NVIDIA GeForce RTX 4090"
    assert by_driver.vendor == "PCI vendor 1234"


def test_a_card_with_two_drivers_is_listed_once() -> None:
    """Rule: the same UUID or place on the bus under another driver is the same card."""
    assert len(devices_of(("radv", [CARD]), ("amdvlk", [CARD | {"uuid": OTHER["uuid"]}]))) == 1
    assert len(devices_of(("radv", [CARD]), ("amdvlk", [CARD | OTHER]))) == 2


def test_two_cards_with_one_uuid_stay_two() -> None:
    """Rule: what one driver lists twice is two devices, whatever identity it gives them."""
    first, second = devices_of(("odd", [CARD, CARD | {"pci_address": "0000:02:00.0"}]))
    assert first.hardware_id != second.hardware_id
    assert (first.driver_index, second.driver_index) == (0, 1)


def test_a_process_budget_is_told_as_such_and_only_where_the_driver_tells(
    both: VulkanGPUBackend,
) -> None:
    """Rule: each heap has its size; a budget is one process's, and None without the extension."""
    for device in both.list_devices():
        (heap,) = both.heaps(device.device_id)
        assert heap.device_local
        assert heap.size_bytes > 0
        assert heap.budget_bytes is None
    with pytest.raises(NoSuchDevice):
        both.heaps("vulkan:7")
    heaps = [{"size_bytes": 24, "device_local": True, "budget_bytes": 20}]
    (listed,) = vulkan_drivers.distinct(
        [{"manifest": "nvidia.json", "devices": [CARD | {"heaps": heaps}]}]
    )
    assert listed.heaps == (vulkan_drivers.MemoryHeap(24, True, 20),)


class BudgetDriver:
    """The ``vulkan`` package over a card with two heaps and VK_EXT_memory_budget."""

    VK_MEMORY_HEAP_DEVICE_LOCAL_BIT = 1

    class VkPhysicalDeviceMemoryBudgetPropertiesEXT:
        def __init__(self) -> None:
            self.heapBudget = [0] * 16

    class VkPhysicalDeviceMemoryProperties2:
        def __init__(self, pNext: object) -> None:  # noqa: N803 - Vulkan's own name
            self.next = pNext

    def vkGetPhysicalDeviceMemoryProperties(self, handle: object) -> SimpleNamespace:  # noqa: N802
        heaps = [SimpleNamespace(size=8 * MIB, flags=1), SimpleNamespace(size=MIB, flags=0)]
        return SimpleNamespace(memoryHeapCount=2, memoryHeaps=heaps)

    @staticmethod
    def memory2(handle: object, asked: VkPhysicalDeviceMemoryProperties2) -> None:
        asked.next.heapBudget[:2] = [6 * MIB, MIB // 2]


def test_a_budget_is_read_heap_by_heap() -> None:
    """Rule: with the extension each heap has what the driver grants one process, else nothing."""
    driver = BudgetDriver()
    with_it = vulkan_listing._heaps(driver, object(), driver.memory2)
    assert [heap["budget_bytes"] for heap in with_it] == [6 * MIB, MIB // 2]
    assert [heap["device_local"] for heap in with_it] == [True, False]
    assert all("budget_bytes" not in heap for heap in vulkan_listing._heaps(driver, 0, None))


# Telemetry


@pytest.mark.shows("vulkan", "telemetry", "software driver")
def test_a_software_driver_reads_the_machines_memory(
    both: VulkanGPUBackend, tell: Callable[[], None]
) -> None:
    """Rule: memory is the host's; what Vulkan does not tell is None with its reason."""
    tell()
    for device in both.list_devices():
        sample = both.read(device.device_id)
        assert 0 < (sample.memory_used_bytes or 0) < (sample.memory_total_bytes or 0)
        assert set(sample.missing_reasons) == {
            "compute_utilization_percent",
            "power_watts",
            "temperature_celsius",
            "clock_rate_mhz",
        }
    with pytest.raises(NoSuchDevice):
        both.read("vulkan:7")


def test_a_cards_memory_use_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule: a heap's use is this process's own, so a card's use is None, with that reason."""
    backend = VulkanGPUBackend(environ={})
    (device,) = devices_of(("nvidia", [CARD]))
    backend._devices = {device.device_id: device}
    sample = backend.read(device.device_id)
    assert (sample.memory_total_bytes, sample.memory_used_bytes) == (24 * 1024 * MIB, None)
    assert "this process only" in sample.missing_reasons["memory_used_bytes"]


# Memory


@pytest.mark.shows("vulkan", "memory", "software driver")
def test_memory_comes_back_as_it_was_written(
    both: VulkanGPUBackend, tell: Callable[[], None]
) -> None:
    """Rule: 256 MiB written, read, and copied across both drivers, are equal byte for byte."""
    tell()
    data = os.urandom(256 * MIB)

    async def roundtrip() -> None:
        handles = [
            await both.allocate(device.device_id, len(data)) for device in both.list_devices()
        ]
        await both.copy_to_device(data, handles[0])
        assert await both.copy_from_device(handles[0], 0, len(data)) == data
        await both.copy_device_to_device(handles[0], handles[1], len(data))
        assert await both.copy_from_device(handles[1], 0, len(data)) == data
        for handle in handles:
            await both.synchronize(handle.device_id)
            await both.deallocate(handle)

    anyio.run(roundtrip)


@pytest.mark.parametrize("driver", ["llvmpipe", "SwiftShader"])
def test_any_offset_and_length(both: VulkanGPUBackend, driver: str) -> None:
    """Rule: drivers move whole words; bytes before and behind a copy stay as they were."""
    device = by_name(both, driver)

    async def patch() -> None:
        handle = await both.allocate(device.device_id, 37)
        other = await both.allocate(device.device_id, 41)
        expected = bytearray(range(100, 137))
        await both.copy_to_device(bytes(expected), handle)
        for offset, text in ((0, b"x"), (5, b"hello"), (34, b"end"), (8, b"word"), (3, b"")):
            expected[offset : offset + len(text)] = text
            await both.copy_to_device(text, handle, offset)
            assert await both.copy_from_device(handle, 0, 37) == bytes(expected)
        assert await both.copy_from_device(handle, 6, 9) == bytes(expected[6:15])
        assert await both.copy_from_device(handle, 6, 0) == b""
        await both.copy_device_to_device(handle, other, 37)
        assert await both.copy_from_device(other, 0, 37) == bytes(expected)
        await both.copy_device_to_device(handle, other, 3)

    anyio.run(patch)


def test_memory_is_never_more_than_the_pool_has(both: VulkanGPUBackend) -> None:
    """Rule: more than the machine has free is refused before the driver is asked; no crash."""
    device = by_name(both, "llvmpipe")

    async def take() -> None:
        info = await both.get_device_memory_info(device.device_id)
        with pytest.raises(OutOfDeviceMemory, match="free"):
            await both.allocate(device.device_id, (info["total_bytes"] or 0) + 1)
        with pytest.raises(ValueError, match="size_bytes"):
            await both.allocate(device.device_id, -1)
        with pytest.raises(NoSuchDevice):
            await both.allocate("vulkan:7", 1)

    anyio.run(take)


def test_bad_handles_are_errors(both: VulkanGPUBackend) -> None:
    """Rule: freed twice, foreign, or beyond the end: an error each, and the rest still works."""
    device = by_name(both, "SwiftShader")

    async def misuse() -> None:
        handle = await both.allocate(device.device_id, 16)
        with pytest.raises(BackendError, match="beyond"):
            await both.copy_to_device(bytes(17), handle)
        await both.deallocate(handle)
        with pytest.raises(InvalidHandle):
            await both.deallocate(handle)
        with pytest.raises(InvalidHandle):
            await both.copy_from_device(MemoryHandle(device_id="vulkan:0", size_bytes=4), 0, 4)

    anyio.run(misuse)


@pytest.mark.parametrize("driver", ["llvmpipe", "SwiftShader"])
def test_a_thousand_allocations_and_frees_cost_nothing(both: VulkanGPUBackend, driver: str) -> None:
    """Rule: 1,000 times 1 MiB taken, written and freed: the process is no larger than before."""
    device = by_name(both, driver)
    data = bytes(MIB)

    async def churn(times: int) -> None:
        for _ in range(times):
            handle = await both.allocate(device.device_id, len(data))
            await both.copy_to_device(data, handle)
            await both.deallocate(handle)

    anyio.run(churn, 100)
    before = psutil.Process().memory_info().rss
    anyio.run(churn, 1000)
    assert psutil.Process().memory_info().rss < before + 32 * MIB


def test_pieces_that_fill_the_pool_end_in_an_error(
    both: VulkanGPUBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: many pieces together take no more than the pool has free, whichever driver has them."""
    free = 64 * MIB
    full = host.HostMemory(total_bytes=1024 * MIB, used_bytes=1024 * MIB - free)
    monkeypatch.setattr(host, "memory", lambda: full)

    async def fill() -> None:
        names = [device.device_id for device in both.list_devices()]
        handles = [await both.allocate(names[count % 2], 16 * MIB) for count in range(4)]
        for name in names:
            with pytest.raises(OutOfDeviceMemory, match="free"):
                await both.allocate(name, 4)
        await both.deallocate(handles.pop())
        handles.append(await both.allocate(names[0], 16 * MIB))
        for handle in handles:
            await both.deallocate(handle)

    anyio.run(fill)


def test_shutdown_frees_and_is_harmless_twice(both: VulkanGPUBackend) -> None:
    """Rule: after shutdown no handle and no device is known; a second one does nothing."""
    device = by_name(both, "llvmpipe")

    async def end() -> None:
        handle = await both.allocate(device.device_id, 16)
        await both.shutdown()
        await both.shutdown()
        with pytest.raises(InvalidHandle):
            await both.deallocate(handle)
        with pytest.raises(NoSuchDevice):
            await both.synchronize(device.device_id)

    anyio.run(end)


# Compute


@pytest.mark.shows("vulkan", "compute", "software driver")
def test_both_drivers_compute_the_same(both: VulkanGPUBackend, tell: Callable[[], None]) -> None:
    """Rule: a shader doubles 4,096 numbers on each driver, equal to what Python says."""
    tell()
    numbers = array.array("f", [place / 7 for place in range(4096)])
    expected = array.array("f", [2 * number for number in numbers])
    for device in both.list_devices():
        output = both.compute(
            device.device_id, DOUBLE, [numbers.tobytes()], 4 * len(numbers), (64, 1, 1)
        )
        assert array.array("f", output) == expected


@pytest.mark.parametrize(
    ("shader", "groups", "reason"),
    [
        ("garbage", (1, 1, 1), "garbage"),
        (DOUBLE.replace("main", "other"), (1, 1, 1), "main"),
        (DOUBLE, (100_000, 1, 1), "100000"),
    ],
)
def test_a_shader_that_is_refused_is_an_error(
    both: VulkanGPUBackend, shader: str, groups: tuple[int, int, int], reason: str
) -> None:
    """Rule: what the driver refuses raises with its words on one line; the device still works."""
    device = by_name(both, "llvmpipe")
    with pytest.raises(BackendError, match=reason) as caught:
        both.compute(device.device_id, shader, [bytes(256)], 256, groups)
    assert "\n" not in str(caught.value)
    assert both.compute(device.device_id, DOUBLE, [bytes(256)], 256, (1, 1, 1)) == bytes(256)


# Speed


@pytest.mark.parametrize("driver", ["llvmpipe", "SwiftShader"])
def test_every_operation_of_a_probe_does_the_work_that_it_counts(
    both: VulkanGPUBackend, driver: str
) -> None:
    """Rule: each figure's operation runs on the driver, and twice the amount is twice the work."""
    speed = both.speed(by_name(both, driver))
    operations = speed.operations()
    assert (set(operations), speed.reasons) == (set(FIGURES), {})
    for operation in operations.values():
        assert operation(2) == 2 * operation(1) > 0
    assert operations["memory_gbps"](1) == 2 * 64 * MIB  # read and written
    speed.close()
    speed.close()


def test_a_pinned_process_opens_its_device_without_a_listing(both: VulkanGPUBackend) -> None:
    """Rule: one adapter is the device whatever it is called; among several the name decides."""
    llvmpipe = by_name(both, "llvmpipe")
    fresh = VulkanGPUBackend()
    place = next(index for index in (0, 1) if WebGPUDevice(index).name == llvmpipe.name)
    right = msgspec.structs.replace(llvmpipe, driver_index=place)
    fresh.speed(right).close()
    with pytest.raises(BackendError, match="not surely"):
        fresh.speed(msgspec.structs.replace(llvmpipe, driver_index=1 - place))


def test_a_card_of_another_backend_is_known_by_its_ids(
    both: VulkanGPUBackend, tmp_path: Path
) -> None:
    """Rule: AMD's name of a card is not Vulkan's, so its ids on the bus say which adapter it is."""
    llvmpipe = by_name(both, "llvmpipe")
    place = next(index for index in (0, 1) if WebGPUDevice(index).name == llvmpipe.name)
    folder = tmp_path / "bus/pci/devices/0000:03:00.0"
    folder.mkdir(parents=True)
    vendor, kind = WebGPUDevice(place).ids
    (folder / "vendor").write_text(f"{vendor:#06x}\n")
    (folder / "device").write_text(f"{kind:#06x}\n")
    fresh = VulkanGPUBackend(sysfs=tmp_path)
    amd = msgspec.structs.replace(
        llvmpipe,
        device_id="rocm:0",
        backend="rocm",
        name="Radeon",
        pci_address="0000:03:00.0",
        driver_index=place,
    )
    fresh.speed(amd).close()
    for wrong in ({"driver_index": 1 - place}, {"pci_address": None}):
        with pytest.raises(BackendError, match="Radeon is not surely"):
            fresh.speed(msgspec.structs.replace(amd, **wrong))


def test_a_compiler_does_not_drop_the_work(both: VulkanGPUBackend) -> None:
    """Rule: sixteen times the multiply-adds take longer, so they are done."""
    speed = both.speed(by_name(both, "llvmpipe"))
    work = speed.operations()["fp32_gflops"]
    seconds = []
    for amount in (64, 1024):
        started = time.perf_counter()
        work(amount)
        seconds.append(time.perf_counter() - started)
    assert seconds[1] > 2 * seconds[0]
    speed.close()


# Pinning


def child(program: str, environ: dict[str, str], changes: dict[str, str | None]) -> list[str]:
    """What a program prints in an environment with the changes made."""
    changed = {name: value for name, value in environ.items() if name not in changes}
    changed |= {name: value for name, value in changes.items() if value is not None}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=changed, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.mark.shows("vulkan", "pinning", "software driver")
@pytest.mark.parametrize("driver", ["llvmpipe", "SwiftShader"])
def test_a_pinned_process_sees_one_driver(
    both: VulkanGPUBackend, shown_on: Callable[[str, str], None], driver: str
) -> None:
    """Rule: in a pinned child this device is all that wgpu and a nested search find."""
    device = by_name(both, driver)
    shown_on(device.name, str(device.driver_version))
    pinned = both.pinning([device], {})
    program = (
        "from exo.gpu.backends.vulkan import VulkanGPUBackend\n"
        "from exo.gpu.backends.webgpu import WebGPUDevice\n"
        "print(WebGPUDevice(0).name)\n"
        "print(*[device.hardware_id for device in VulkanGPUBackend().find()])"
    )
    assert child(program, dict(os.environ), pinned) == [device.name, device.hardware_id]


def test_hiding_leaves_no_vulkan_device(both: VulkanGPUBackend) -> None:
    """Rule: under the hiding variables the real loader finds no driver, and falls back to none."""
    program = (
        "import vulkan\n"
        "try:\n"
        "    vulkan.vkCreateInstance(vulkan.VkInstanceCreateInfo(), None)\n"
        "except vulkan.VkErrorIncompatibleDriver:\n"
        "    print('no driver')\n"
        "from exo.gpu.backends.webgpu import WebGPUDevice\n"
        "from exo.gpu.vocabulary.errors import BackendError\n"
        "try:\n"
        "    WebGPUDevice(0)\n"
        "except BackendError as error:\n"
        "    print(error)"
    )
    printed = child(program, dict(os.environ), both.hiding())
    assert printed == ["no driver", "there is no Vulkan adapter 0 (there is: none)"]


def test_pinning_stays_within_the_inherited_drivers(
    both: VulkanGPUBackend, llvmpipe_manifest: Path
) -> None:
    """Rule: a driver that the environment leaves out is not pinned, nor one without a manifest."""
    inherited = dict.fromkeys(VARIABLES, str(llvmpipe_manifest))
    llvmpipe, swiftshader = by_name(both, "llvmpipe"), by_name(both, "SwiftShader")
    assert both.pinning([llvmpipe], inherited)["VK_DRIVER_FILES"] == str(llvmpipe_manifest)
    with pytest.raises(BackendError, match="hidden"):
        both.pinning([swiftshader], inherited)
    with pytest.raises(BackendError, match="several devices"):
        both.pinning([llvmpipe, swiftshader], {})
    bare = GPUDevice("vulkan:0", "card", "AMD", "vulkan")
    with pytest.raises(BackendError, match="no Vulkan driver manifest"):
        both.pinning([bare], {})


def test_the_index_of_an_outer_lease_is_kept(llvmpipe_manifest: Path) -> None:
    """Rule: inside a pinned process the place among the driver's devices is part of the universe."""
    assert len(listed(llvmpipe_manifest, EXO_GPU_VULKAN_INDEX="0").list_devices()) == 1
    assert listed(llvmpipe_manifest, EXO_GPU_VULKAN_INDEX="1").list_devices() == []


def test_what_the_backend_offers() -> None:
    """Rule: the abilities are declared by the protocols that callers ask for."""
    backend = VulkanGPUBackend()
    for ability in (TelemetryAbility, PinningAbility, ComputeAbility):
        assert isinstance(backend, ability)
    assert shutil.which(sys.executable)
