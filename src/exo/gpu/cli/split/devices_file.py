"""Devices that are not this machine's, from a JSON file: a box to plan for, or a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from exo.gpu.vocabulary.errors import ConfigurationError, InvalidValue
from exo.gpu.vocabulary.split import SplitDevice, SplitLink
from exo.gpu.vocabulary.split_network import SplitNetwork

_LONGEST_BYTES = 2**26


class Box(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Devices, and the links between them that are known."""

    devices: tuple[SplitDevice, ...]
    links: tuple[SplitLink, ...] = ()


def read_devices(path: Path) -> Box | SplitNetwork:
    """What a file says: ``{"devices": [...], "links": [...]}``, or a network with ``nodes``.

    Raises:
        ConfigurationError: naming the file and what is wrong in it.

    """
    try:
        if path.stat().st_size > _LONGEST_BYTES:
            raise ConfigurationError(f"{path} has more than {_LONGEST_BYTES} bytes")
        value: Any = msgspec.json.decode(path.read_bytes())
        kind = SplitNetwork if isinstance(value, dict) and "nodes" in value else Box
        return msgspec.convert(value, type=kind)
    except (
        msgspec.DecodeError,
        msgspec.ValidationError,
        UnicodeDecodeError,
        InvalidValue,
    ) as error:
        raise ConfigurationError(f"{path}: {error}") from error
