"""A capture of a machine that its user can send: identities masked, and ready to be a fixture."""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

_UUID = re.compile(r"\b[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}\b")
# Attributes whose whole text identifies the one device, by what their names contain.
_SECRET = ("serial", "unique_id", "uuid")
# Shorter texts are words and numbers; masking them everywhere would garble readings.
_SHORTEST = 8
_PCI_ADDRESS = re.compile(r"[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_KINDS = re.compile(r"^(?:GPU-|MIG-)")


class Mask:
    """Replaces what identifies a machine or a device, each time by the same other text.

    ``names`` are texts such as the host's and the user's, each with the word to put in its place;
    ``identities`` are hardware ids and serial numbers. A masked identity keeps its form, so that
    what reads it goes on reading it.
    """

    def __init__(self, names: Mapping[str, str], identities: Iterable[str]) -> None:
        self._names = {name: word for name, word in names.items() if name}
        cores = {_KINDS.sub("", one) for one in identities}
        self._cores = sorted(filter(_identifies, cores), key=len, reverse=True)

    def text(self, text: str) -> str:
        """The text without anything that identifies."""
        for core in self._cores:
            text = text.replace(core, masked(core))
        text = _UUID.sub(lambda match: self._once(match[0]), text)
        for name, word in self._names.items():
            text = re.sub(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", word, text)
        return text

    def _once(self, uuid: str) -> str:
        """A UUID masked, unless it is one that was masked before."""
        return uuid if uuid in {masked(core) for core in self._cores} else masked(uuid)


def write(path: Path, files: Mapping[str, bytes], mask: Mask) -> int:
    """Write the files, masked, as a ``tar.gz``; how many they are.

    Raises:
        OSError: when it cannot be written.

    """
    with tarfile.open(path, "w:gz") as archive:
        for name, data in sorted(files.items()):
            kept = _masked_file(name, data, mask)
            entry = tarfile.TarInfo(name)
            entry.size = len(kept)
            entry.mode = 0o644
            archive.addfile(entry, io.BytesIO(kept))
    return len(files)


def secrets(files: Mapping[str, bytes]) -> list[str]:
    """The identities that files hold whole, to be masked wherever else they stand."""
    return [data.decode(errors="replace").strip() for name, data in files.items() if _secret(name)]


def masked(identity: str) -> str:
    """Other hexadecimal digits in the same form, the same for the same identity."""
    plain = re.sub(r"[^0-9a-z]", "", identity.lower())
    if not plain.strip("0"):
        return identity
    digits = iter(hashlib.shake_256(plain.encode()).hexdigest(len(identity)))
    return "".join(next(digits) if letter.isalnum() else letter for letter in identity)


def _masked_file(name: str, data: bytes, mask: Mask) -> bytes:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return data  # readings in binary, which hold no identity
    if _secret(name):
        return (masked(text.strip()) + "\n").encode()
    return mask.text(text).encode()


def _secret(name: str) -> bool:
    return any(part in name.rpartition("/")[2].lower() for part in _SECRET)


def _identifies(core: str) -> bool:
    return (
        len(core) >= _SHORTEST
        and core.strip("0-") != ""
        and "/" not in core
        and not _PCI_ADDRESS.fullmatch(core)
    )
