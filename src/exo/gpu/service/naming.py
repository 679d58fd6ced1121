"""Which device a client means by a name: one that is here, or one that was."""

from __future__ import annotations

from typing import TYPE_CHECKING

from exo.gpu.vocabulary.errors import NoSuchDevice

if TYPE_CHECKING:
    from exo.gpu.coordination.overview import Overview
    from exo.gpu.vocabulary.inventory import MissingDevice
    from exo.gpu.vocabulary.snapshot import DeviceState


def state_called(overview: Overview, name: str) -> DeviceState | None:
    """The device of that device id, else of that hardware id; None where there is none.

    Raises:
        NoSuchDevice: for a hardware id that several nodes have, as the host's processor may be.

    """
    states = overview.snapshot.devices
    found = [one for one in states if one.device.device_id == name]
    found = found or [one for one in states if one.device.hardware_id == name]
    if len(found) > 1:
        ids = ", ".join(one.device.device_id for one in found)
        raise NoSuchDevice(f"{name!r} are several devices: name one of {ids}")
    return found[0] if found else None


def missing_called(overview: Overview, name: str) -> MissingDevice | None:
    """The device of either id that was here before, the one seen last; None where none was."""
    found = [
        one for one in overview.missing if name in {one.device.device_id, one.device.hardware_id}
    ]
    return max(found, key=lambda one: one.last_seen, default=None)
