"""Builds the fake NVIDIA library with the system's compiler, and describes its devices."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")
VARIABLE = "EXO_GPU_FAKE_NVML"
GIB = 2**30

H100 = {
    "name": "NVIDIA H100 PCIe",
    "memory.total": 80 * GIB,
    "memory.used": 10 * GIB,
    "memory.reserved": GIB // 2,
    "utilization": 37,
    "temperature": 55,
    "power": 123_456,
    "clock": 1410,
    "clock.max": 1980,
    "capability": "9.0",
    "utilization.memory": 21,
    "clock.memory": 1593,
    "temperature.memory": 61,
    "power.average": 120_000,
    "power.instant": 131_072,
    "power.limit": 350_000,
    "energy": 987_654_321,
    "fan": 30,
    "throttle": "0x0",
    "ecc.volatile.corrected": 2,
    "ecc.volatile.uncorrected": 0,
    "ecc.aggregate.corrected": 7,
    "ecc.aggregate.uncorrected": 1,
    "pcie.generation": 5,
    "pcie.width": 16,
    "encoder": 3,
    "decoder": 4,
    "state": 0,
}
T4 = H100 | {"name": "Tesla T4", "memory.total": 16 * GIB, "memory.used": 0, "capability": "7.5"}


def uuid(index: int) -> str:
    """The UUID of a fake GPU: full length, and unlike every other from the third digit on."""
    return f"GPU-{index % 16:x}f{index // 16:x}e2d3c-aaaa-bbbb-cccc-{index:012d}"


def mig_uuid(index: int, place: int) -> str:
    """The UUID of a fake MIG instance."""
    return f"MIG-{index:x}{place:x}0e2d3c-dddd-eeee-ffff-{index:04d}{place:08d}"


def cut(gpu: dict[str, object], index: int, sizes: dict[int, int]) -> dict[str, object]:
    """A GPU in MIG mode with instances, by their places, of so many bytes."""
    fields: dict[str, object] = {"mig": 1, "bar1.total": 2**27}
    for place, size in sizes.items():
        facts = {
            "uuid": mig_uuid(index, place),
            "name": f"{gpu['name']} MIG {place}g",
            "memory.total": size,
            "memory.used": size // 4,
            "memory.reserved": 0,
            "units": 16,
            "bar1.total": 2**27,
            "ecc.volatile.corrected": 0,
            "ecc.volatile.uncorrected": 0,
        }
        fields |= {f"mig.{place}.{name}": value for name, value in facts.items()}
    return gpu | fields


def build(folder: Path, *, half: bool = False) -> Path:
    """The library, with all its functions or the older half of them.

    Raises:
        FileNotFoundError: where no C compiler is installed.

    """
    library = folder / "libnvidia-ml.so.1"
    command = [os.environ.get("CC", "cc"), "-O1", "-Wall", "-Werror", "-shared", "-fPIC"]
    half_of_it = ["-DHALF"] if half else []
    subprocess.run([*command, *half_of_it, "-o", str(library), str(SOURCE)], check=True)
    return library


class FakeNvml:
    """A fake library and the file that describes it; changes show at the next call."""

    def __init__(self, library: Path, description: Path) -> None:
        self.library = str(library)
        self.description = description
        self.fields: dict[str, object] = {}

    def write(self, *devices: dict[str, object], **top: object) -> None:
        """Describe the devices anew; a value such as ``"!3"`` is an error of NVML."""
        self.fields = {"driver": "570.86.15", **top}
        for index, device in enumerate(devices):
            place = {"uuid": uuid(index), "pci": f"0000:{index + 1:02x}:00.0"}
            for name, value in (place | device).items():
                self.fields[f"{index}.{name}"] = value
        self._save()

    def change(self, name: str, value: object) -> None:
        """Change one field, such as ``0.power``; None takes it away."""
        self.fields[name] = value
        if value is None:
            del self.fields[name]
        self._save()

    def _save(self) -> None:
        fresh = self.description.with_suffix(".new")  # another inode, so the change is noticed
        fresh.write_text("".join(f"{name}={value}\n" for name, value in self.fields.items()))
        fresh.replace(self.description)
