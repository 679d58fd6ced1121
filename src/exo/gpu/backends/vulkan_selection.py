"""Which of a machine's Vulkan devices an environment leaves, beside the list of drivers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

MESA = "MESA_VK_DEVICE_SELECT"
MESA_FORCED = "MESA_VK_DEVICE_SELECT_FORCE_DEFAULT_DEVICE"

MESA_OFF = "NODEVICE_SELECT"
"""Set, Mesa's layer puts no other order on the devices than their driver does."""

GGML = "GGML_VK_VISIBLE_DEVICES"
"""ggml's own list: places among all that the loader shows, ended by an error at a wrong one."""

# "vendor:device" in hexadecimal; an exclamation mark at the end leaves no other device.
_FORM = re.compile(r"([0-9a-fA-F]{1,8}):([0-9a-fA-F]{1,8})(!?)\Z")


def forced(environ: Mapping[str, str]) -> tuple[int, int] | None:
    """PCI vendor and device of the only model that Mesa's layer leaves, or None.

    Without being forced, the variable only puts that model first.
    """
    match = _FORM.match(environ.get(MESA, ""))
    if match is None or not (match[3] or environ.get(MESA_FORCED, "") not in {"", "0"}):
        return None
    return int(match[1], 16), int(match[2], 16)


def selecting(place: int) -> dict[str, str | None]:
    """What makes programs that know no variable of ours take this place of the one driver."""
    return {GGML: str(place), MESA_OFF: "1"}


NOTHING: dict[str, str | None] = {GGML: None}
"""Where no driver is left, a list of places could only be wrong."""
