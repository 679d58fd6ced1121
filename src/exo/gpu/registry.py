"""What was here before, on disk: labels that stay, devices last seen, and slow drivers' answers.

It compares and keeps; who asks the drivers is ``discovery.py``.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import platform
import re
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import msgspec

from exo.gpu.file_lock import wait_for_lock
from exo.gpu.vocabulary.device import GPUDevice
from exo.gpu.vocabulary.messages import WireValue

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence

logger = logging.getLogger("exo.gpu.registry")

PATH_VARIABLE = "EXO_GPU_REGISTRY"
"""Path of the registry file in place of the usual one."""

# Beyond this many devices that are gone, those gone longest are forgotten: cloud machines and
# MIG instances come with a new identity each time.
MOST_ABSENT = 64


@runtime_checkable
class RemembersAnswers(Protocol):
    """A backend whose search is slow and may start from what its drivers said before.

    Discovery sets ``answers`` before each search and keeps what is in it afterwards. What is a
    valid answer is the backend's to say; None means that nothing is kept.
    """

    answers: dict[str, str] | None


def hand_over(backend: object, answers: Mapping[str, str]) -> None:
    """Let a backend that remembers start from these answers."""
    if isinstance(backend, RemembersAnswers):
        backend.answers = dict(answers)


def left_behind(backend: object) -> dict[str, str] | None:
    """The answers in a backend after a search; None where it keeps none."""
    if isinstance(backend, RemembersAnswers) and backend.answers is not None:
        return dict(backend.answers)
    return None


class KnownDevice(WireValue, frozen=True, kw_only=True):
    """A device as one backend saw it, under the label that it keeps."""

    backend: str
    """The backend that found it."""
    key: str
    """What it is recognised by among the devices of its backend."""
    device: GPUDevice
    last_seen: float
    """Unix seconds."""


class Contents(WireValue, frozen=True, kw_only=True):
    """All that is kept."""

    known: tuple[KnownDevice, ...] = ()
    answers: dict[str, dict[str, str]] = {}  # msgspec copies an empty default for each value
    """What slow drivers said, by backend."""


class DeviceRegistry:
    """A JSON file that several processes read and replace; it never costs a discovery."""

    def __init__(self, path: Path, *, chosen: bool = True) -> None:
        """``chosen`` says that somebody named this path, and should hear when it cannot be used."""
        self.path = path
        self.problem = ""
        """Why the file could not be used the last time; empty when it could."""
        self._level = logging.WARNING if chosen else logging.INFO

    def read(self) -> Contents:
        """What the file holds; nothing where it is missing, unreadable or no registry.

        A file that is no registry is renamed to end in ``.corrupt-N``, with a warning.
        """
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return Contents()
        except OSError as error:
            self._tell(f"the registry {self.path} was not read: {error}")
            return Contents()
        try:
            return msgspec.json.decode(data, type=Contents)
        except ValueError as error:  # msgspec's errors and those of our values
            self._set_aside(error)
            return Contents()

    def update(self, change: Callable[[Contents], tuple[Contents, Mapping[str, Any]]]) -> Contents:
        """Read, change and replace the file while no other process does.

        ``change`` gives the new contents, and what else is written for people to read. What
        cannot be written is logged, and the new contents are given back all the same.
        """
        self.problem = ""
        with self._alone():
            contents, beside = change(self.read())
            self._write(msgspec.json.encode({**beside, **contents.to_dict()}))
        return contents

    @contextlib.contextmanager
    def _alone(self) -> Generator[None]:
        """The lock of the file's folder; without one, the last writer wins, and nothing breaks."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            folder = os.open(self.path.parent, os.O_RDONLY)
        except OSError as error:
            logger.debug("no lock for %s: %s", self.path, error)
            yield
            return
        try:
            wait_for_lock(folder, what=str(self.path))
            yield
        finally:
            os.close(folder)

    def _write(self, data: bytes) -> None:
        draft = self.path.with_name(f".{self.path.name}.{os.getpid()}-{threading.get_ident()}")
        try:
            draft.write_bytes(data)
            draft.replace(self.path)
        except OSError as error:
            self._tell(f"the registry {self.path} was not written: {error}")
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)

    def _set_aside(self, error: ValueError) -> None:
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.corrupt-{number}")).exists():
            number += 1
        reason = f"the registry {self.path} is damaged ({error})"
        try:
            self.path.replace(aside)
        except OSError as failure:
            self._tell(f"{reason} and cannot be set aside: {failure}")
            return
        logger.warning("%s; it was set aside as %s and a new one started", reason, aside)

    def _tell(self, problem: str) -> None:
        self.problem = problem
        logger.log(self._level, problem)


def open_default(environ: Mapping[str, str]) -> DeviceRegistry:
    """The registry of this user and machine, unless ``EXO_GPU_REGISTRY`` names one."""
    named = environ.get(PATH_VARIABLE)
    if named:
        return DeviceRegistry(Path(named))
    # A home may be shared by machines, whose devices differ.
    name = f"devices-{platform.node() or 'machine'}.json"
    return DeviceRegistry(_state_folder(environ) / name, chosen=False)


def _state_folder(environ: Mapping[str, str]) -> Path:
    """Where a user's programs keep what they may lose."""
    if sys.platform == "linux":  # as platformdirs has it, without the time to load it
        base = environ.get("XDG_STATE_HOME", "")
        return (Path(base) if base.strip() else Path("~/.local/state").expanduser()) / "exo-gpu"
    import platformdirs

    return platformdirs.user_state_path("exo-gpu")


class Labelled(msgspec.Struct, frozen=True):
    """A device under its label, the id that its backend gave it, and what it is recognised by."""

    device: GPUDevice
    given_id: str
    key: str


def label(
    known: Sequence[KnownDevice], backend: str, devices: Sequence[GPUDevice]
) -> list[Labelled]:
    """The devices of one backend under the labels that they had, new ones under free labels.

    The labels of devices that are missing now stay theirs. A new device keeps the id that its
    backend gave it where nobody has it; else it takes the lowest free number.
    """
    kept = {one.key: one.device.device_id for one in known if one.backend == backend}
    taken = {one.device.device_id for one in known}
    labelled: list[Labelled] = []
    for key, device in zip(_keys(devices), devices, strict=True):
        name = kept.get(key)
        if name is None:
            name = _free(device.device_id, taken)
            taken.add(name)
        renamed = msgspec.structs.replace(device, device_id=name)
        labelled.append(Labelled(renamed, device.device_id, key))
    return sorted(labelled, key=lambda one: label_order(one.device.device_id))


def remember(
    known: Sequence[KnownDevice],
    found: Mapping[str, Sequence[Labelled]],
    now: float,
) -> tuple[KnownDevice, ...]:
    """Those found, by backend, and behind them the newest of those that were not."""
    present = [
        KnownDevice(backend=backend, key=one.key, device=one.device, last_seen=now)
        for backend, devices in found.items()
        for one in devices
    ]
    return (*present, *sorted(absent(known, found), key=lambda one: -one.last_seen)[:MOST_ABSENT])


def absent(
    known: Sequence[KnownDevice], found: Mapping[str, Sequence[Labelled]]
) -> list[KnownDevice]:
    """Those known that are not among those found."""
    seen = {(backend, one.key) for backend, devices in found.items() for one in devices}
    return [one for one in known if (one.backend, one.key) not in seen]


def _keys(devices: Sequence[GPUDevice]) -> list[str]:
    """The hardware ids; of those that several devices share, with the place of each."""
    ids = [device.hardware_id for device in devices]
    return [
        device.hardware_id
        if ids.count(device.hardware_id) == 1
        else f"{device.hardware_id}@{device.pci_address or ids[:place].count(device.hardware_id)}"
        for place, device in enumerate(devices)
    ]


def _free(name: str, taken: set[str]) -> str:
    """The name itself, or with the lowest number that nobody has."""
    if name not in taken:
        return name
    prefix = name.rpartition(":")[0] or name
    return next(free for free in (f"{prefix}:{n}" for n in itertools.count()) if free not in taken)


def label_order(name: str) -> tuple[int, ...]:
    """Labels in the order of people, cuda:2 before cuda:10."""
    return tuple(int(digits) for digits in re.findall(r"[0-9]+", name.partition(":")[2]))
