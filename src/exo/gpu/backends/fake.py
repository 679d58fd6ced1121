"""Scripted devices: they ship with the product for tests, docs and demos of scheduling.

They prove nothing about any vendor.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec

from exo.gpu.backend import DeviceProcess
from exo.gpu.backends.host_buffers import HostBufferBackend
from exo.gpu.vocabulary.device import GPUDevice
from exo.gpu.vocabulary.errors import BackendError, BackendUnavailable, InvalidValue, UnknownName
from exo.gpu.vocabulary.metrics import READINGS, GPUMetrics

VISIBLE_VARIABLE = "EXO_GPU_FAKE_VISIBLE"
"""Comma-separated hardware ids that are visible; unset: all, empty: none."""


class FakeBackend(HostBufferBackend):
    """Devices from a script: a mapping, or the path of a JSON file, read anew at every call.

    The form is ``{"devices": [{...fields of GPUDevice..., "sample": {...readings...}}]}``.
    A device may also have ``processes`` (``[{"pid": ..., "memory_bytes": ...}]``), ``fail`` (a
    reason: reading it fails) and ``delay_seconds`` (reading it takes so long); the script itself
    may have the last two, for finding.

    Raises:
        InvalidValue: for a script that is no such object, or has a name that it must not have.

    """

    name = "fake"

    def __init__(
        self, script: str | Path | Mapping[str, Any], *, environ: Mapping[str, str] | None = None
    ) -> None:
        super().__init__()
        self._script = script
        self._environ = environ

    def find(self) -> list[GPUDevice]:
        """The scripted devices, less those that the environment hides."""
        script = self._read_script()
        _pause(script)
        if script.get("fail"):
            raise BackendUnavailable(str(script["fail"]))
        devices = [_device(entry) for entry in script["devices"]]
        visible = (os.environ if self._environ is None else self._environ).get(VISIBLE_VARIABLE)
        if visible is not None:
            devices = [device for device in devices if device.hardware_id in visible.split(",")]
        self._devices = {device.device_id: device for device in devices}
        return devices

    def read(self, device_id: str) -> GPUMetrics:
        """The scripted sample, stamped with the present time."""
        entry = self._entry(device_id)
        sample: dict[str, Any] = {"timestamp": time.time(), **entry.get("sample", {})}
        reasons = {name: "not in the script" for name in READINGS if sample.get(name) is None}
        sample["missing_reasons"] = reasons | sample.get("missing_reasons", {})
        return GPUMetrics.from_dict({**sample, "device_id": device_id})

    def processes(self, device_id: str) -> list[DeviceProcess]:
        """The scripted processes."""
        listed = self._entry(device_id).get("processes")
        if listed is None:
            raise BackendError("its script lists no processes")
        return [DeviceProcess.from_dict(one) for one in listed]

    def pinning(
        self, devices: Sequence[GPUDevice], inherited: Mapping[str, str]
    ) -> dict[str, str | None]:
        """The devices' hardware ids in the variable of this backend."""
        visible = inherited.get(VISIBLE_VARIABLE)
        for device in devices:
            if visible is not None and device.hardware_id not in visible.split(","):
                name = device.device_id
                raise BackendError(f"{name} is not among {VISIBLE_VARIABLE}={visible!r}")
        return {VISIBLE_VARIABLE: ",".join(device.hardware_id for device in devices)}

    def hiding(self) -> dict[str, str | None]:
        """An empty list hides every scripted device."""
        return {VISIBLE_VARIABLE: ""}

    def _entry(self, device_id: str) -> dict[str, Any]:
        """The present script of one device, after its delay.

        Raises:
            BackendError: where the script says that it fails, or has it no longer.

        """
        self.require(device_id)
        for entry in self._read_script()["devices"]:
            if entry.get("device_id") == device_id:
                break
        else:
            raise BackendError(f"{device_id} is no longer in the script")
        _pause(entry)
        if entry.get("fail"):
            raise BackendError(f"{device_id}: {entry['fail']}")
        return entry

    def _room(self, device: GPUDevice) -> tuple[int | None, int | None]:
        return device.memory_bytes, None

    def _read_script(self) -> dict[str, Any]:
        if isinstance(self._script, (str, Path)):
            try:
                script: Any = json.loads(Path(self._script).read_text())
            except (OSError, ValueError) as error:
                raise BackendUnavailable(f"the script {self._script}: {error}") from error
        else:
            script = self._script
        checked = _checked("script", script, ("devices", "fail", "delay_seconds"))
        if not isinstance(checked.get("devices"), list):
            raise InvalidValue("devices", checked.get("devices"), "a list")
        for entry in checked["devices"]:
            known = (*_DEVICE_NAMES, "sample", "processes", "fail", "delay_seconds")
            _checked("sample", _checked("device", entry, known).get("sample", {}), _SAMPLE_NAMES)
        return checked


_DEVICE_NAMES = tuple(field.name for field in msgspec.structs.fields(GPUDevice))
_SAMPLE_NAMES = tuple(field.name for field in msgspec.structs.fields(GPUMetrics))


def _checked(what: str, entry: Any, known: tuple[str, ...]) -> dict[str, Any]:
    """The entry, when it is an object whose names are all known.

    Raises:
        InvalidValue: naming the entry or the name that it must not have.

    """
    if not isinstance(entry, Mapping):
        raise InvalidValue(what, entry, "an object")
    checked: dict[str, Any] = {
        str(name): value for name, value in cast("Mapping[Any, Any]", entry).items()
    }
    for name in checked:
        if name not in known:
            raise UnknownName(what, name, known)
    return checked


def _device(entry: dict[str, Any]) -> GPUDevice:
    return GPUDevice.from_dict({name: entry[name] for name in _DEVICE_NAMES if name in entry})


def _pause(entry: dict[str, Any]) -> None:
    if entry.get("delay_seconds"):
        time.sleep(float(entry["delay_seconds"]))
