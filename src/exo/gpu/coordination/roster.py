"""The devices that a manager was told of, in the order of registration, no card twice."""

from __future__ import annotations

from exo.gpu.vocabulary.device import GPUDevice
from exo.gpu.vocabulary.errors import DuplicateDevice, InvalidValue


class Roster(dict[str, GPUDevice]):
    """Devices by id; change it by its own methods only."""

    def __init__(self) -> None:
        super().__init__()
        self._hardware: dict[tuple[str, str], str] = {}

    def add(self, device: GPUDevice) -> bool:
        """Add a device; False where the same facts are here already.

        Raises:
            DuplicateDevice: for an id that is here with other facts, or a card under another id.
            InvalidValue: for anything that is no GPUDevice.

        """
        if not isinstance(device, GPUDevice):
            raise InvalidValue("device", device, "a GPUDevice")
        known = self.get(device.device_id)
        if known == device:
            return False
        if known is not None:
            raise DuplicateDevice("device_id", device.device_id, "free: unregister it first")
        identity = (device.node, device.hardware_id)
        if identity in self._hardware:
            expected = f"free: {self._hardware[identity]} is the same hardware"
            raise DuplicateDevice("hardware_id", device.hardware_id, expected)
        self[device.device_id] = device
        self._hardware[identity] = device.device_id
        return True

    def remove(self, device_id: str) -> bool:
        """Forget a device; False where it is not here."""
        device = self.pop(device_id, None)
        if device is not None:
            del self._hardware[device.node, device.hardware_id]
        return device is not None
