"""What a device is: identity, class, runtime, memory pool and static facts."""

from __future__ import annotations

from enum import Enum, StrEnum

from msgspec.structs import force_setattr

from exo.gpu.vocabulary.errors import UnknownName
from exo.gpu.vocabulary.messages import WireValue
from exo.gpu.vocabulary.units import check_number, check_text, check_whole

HOST_POOL = "host"
"""The memory pool of the machine itself, shared by host, software and integrated devices."""


class DeviceClass(StrEnum):
    """How real a device is; unless asked, only the best class with an eligible device is used."""

    HARDWARE = "hardware"
    SOFTWARE = "software"
    HOST = "host"

    @property
    def rank(self) -> int:
        """0 for the best class."""
        return _CLASS_ORDER.index(self)


_CLASS_ORDER = (DeviceClass.HARDWARE, DeviceClass.SOFTWARE, DeviceClass.HOST)


class DeviceType(Enum):
    """The kinds of device that the telemetry protocol names."""

    CUDA = "cuda"
    ROCM = "rocm"
    METAL = "metal"
    VULKAN_ANDROID = "vulkan_android"
    VULKAN_LINUX = "vulkan_linux"
    INTEL_XE = "intel_xe"
    DIRECTML = "directml"
    CPU = "cpu"


# Backend name -> (runtime that programs are built for, type on the wire).
_KINDS: dict[str, tuple[str, DeviceType]] = {
    "cuda": ("cuda", DeviceType.CUDA),
    "rocm": ("rocm", DeviceType.ROCM),
    "metal": ("metal", DeviceType.METAL),
    "level_zero": ("xpu", DeviceType.INTEL_XE),
    "intel_xe": ("xpu", DeviceType.INTEL_XE),
    "xpu": ("xpu", DeviceType.INTEL_XE),
    "vulkan": ("vulkan", DeviceType.VULKAN_LINUX),
    "vulkan_linux": ("vulkan", DeviceType.VULKAN_LINUX),
    "vulkan_android": ("vulkan", DeviceType.VULKAN_ANDROID),
    "directml": ("directml", DeviceType.DIRECTML),
    "cpu": ("cpu", DeviceType.CPU),
}

RUNTIMES = tuple(dict.fromkeys(runtime for runtime, _ in _KINDS.values()))
"""What a program can be built for: it runs on the devices of one runtime."""


class GPUDevice(WireValue, frozen=True):
    """One schedulable accelerator, as its backend found it. Unknown facts are None.

    ``memory_bytes`` and ``memory_available`` are bytes, ``clock_rate_mhz`` MHz,
    ``bandwidth_gbps`` GB/s (10**9 bytes). ``memory_available`` was true when the device was
    found; live figures are in :class:`~exo.gpu.vocabulary.metrics.GPUMetrics`.

    Raises:
        InvalidValue: for an empty id or a number that cannot be.

    """

    device_id: str
    name: str
    vendor: str
    backend: str
    compute_capability: str | None = None
    memory_bytes: int | None = None
    memory_available: int | None = None
    compute_units: int | None = None
    tensor_core_count: int | None = None
    max_threads_per_block: int | None = None
    clock_rate_mhz: float | None = None
    bandwidth_gbps: float | None = None
    support_level: str = "experimental"
    driver_version: str | None = None
    backend_name: str = ""
    device_class: DeviceClass = DeviceClass.HARDWARE
    runtime: str = ""
    hardware_id: str = ""
    """Stable identity: UUID, else PCI address; software drivers: manifest and device name."""
    pci_address: str | None = None
    memory_pool: str = ""
    """Name of the pool behind it: its own hardware id, or ``"host"``."""
    slots: int = 1
    driver_manifest: str | None = None
    """Vulkan: path of the manifest that names the driver of this device."""
    driver_index: int | None = None
    """Vulkan: place of this device among those of its driver."""
    aliases: tuple[str, ...] = ()
    """Ids under which other backends see the same physical device."""
    node: str = ""
    numa_node: int | None = None
    """Number of the NUMA node whose memory is nearest to it."""
    drives_display: bool | None = None
    """Whether a screen shows its pictures; work on it then makes the desktop slow."""
    warn_celsius: float | None = None
    """From where it slows itself down, as its driver or firmware states."""
    critical_celsius: float | None = None
    """From where it is slowed down by force or switches itself off, as its driver states."""

    def __post_init__(self) -> None:
        """Check every field and fill in what follows from the backend's name."""
        for field in ("device_id", "name", "vendor", "backend"):
            check_text(field, getattr(self, field))
        for field in (
            "memory_bytes",
            "memory_available",
            "compute_units",
            "tensor_core_count",
            "max_threads_per_block",
        ):
            check_whole(field, getattr(self, field), optional=True)
        for field in ("clock_rate_mhz", "bandwidth_gbps", "warn_celsius", "critical_celsius"):
            check_number(field, getattr(self, field), low=0, optional=True)
        check_whole("slots", self.slots, low=1)
        check_whole("numa_node", self.numa_node, optional=True)
        if self.device_class not in tuple(DeviceClass):
            raise UnknownName("device_class", self.device_class, DeviceClass)
        force_setattr(self, "device_class", DeviceClass(self.device_class))
        if self.backend == "cpu":
            force_setattr(self, "device_class", DeviceClass.HOST)
        force_setattr(self, "backend_name", self.backend_name or self.backend)
        force_setattr(self, "hardware_id", self.hardware_id or self.device_id)
        if not self.runtime:
            force_setattr(self, "runtime", _KINDS.get(self.backend, (self.backend,))[0])
        if not self.memory_pool:
            own = self.device_class is DeviceClass.HARDWARE
            force_setattr(self, "memory_pool", self.hardware_id if own else HOST_POOL)

    @property
    def device_type(self) -> DeviceType:
        """Its kind on the wire, from the backend that found it.

        Raises:
            UnknownName: for a backend that the protocol has no type for.

        """
        for name in (self.backend, self.backend_name, self.runtime):
            if name in _KINDS:
                return _KINDS[name][1]
        raise UnknownName("backend", self.backend, _KINDS)


class DeviceCapabilities(WireValue, frozen=True):
    """Static facts of a device as the telemetry protocol carries them.

    Raises:
        InvalidValue: for an empty id or a number that cannot be.

    """

    device_id: str
    device_type: DeviceType
    device_name: str
    vendor: str
    compute_units: int | None = None
    memory_bandwidth_gbps: float | None = None
    max_memory_bytes: int | None = None
    driver_version: str | None = None
    supports_fp64: bool = False
    supports_tensor_cores: bool = False

    def __post_init__(self) -> None:
        """Check every field."""
        check_text("device_id", self.device_id)
        if not isinstance(self.device_type, DeviceType):
            raise UnknownName("device_type", self.device_type, [kind.value for kind in DeviceType])
        check_text("device_name", self.device_name, empty=True)
        check_text("vendor", self.vendor, empty=True)
        check_whole("compute_units", self.compute_units, optional=True)
        check_number("memory_bandwidth_gbps", self.memory_bandwidth_gbps, low=0, optional=True)
        check_whole("max_memory_bytes", self.max_memory_bytes, optional=True)

    @classmethod
    def of(cls, device: GPUDevice) -> DeviceCapabilities:
        """The capabilities of a device, from its real type.

        FP64 is claimed only for the runtimes whose programming model guarantees it (CUDA, ROCm
        and the host); elsewhere it is not known before a probe.
        """
        return cls(
            device_id=device.device_id,
            device_type=device.device_type,
            device_name=device.name,
            vendor=device.vendor,
            compute_units=device.compute_units,
            memory_bandwidth_gbps=device.bandwidth_gbps,
            max_memory_bytes=device.memory_bytes,
            driver_version=device.driver_version,
            supports_fp64=device.runtime in {"cuda", "rocm", "cpu"},
            supports_tensor_cores=bool(device.tensor_core_count),
        )
