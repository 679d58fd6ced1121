"""What Python code may ask for, in the words that people use, and the request they make."""

from __future__ import annotations

import difflib
import os
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from exo.gpu.nodes.policies import default_policy
from exo.gpu.vocabulary.request import Request
from exo.gpu.vocabulary.units import parse_size

if TYPE_CHECKING:
    from collections.abc import Iterable

    from exo.gpu.vocabulary.device import DeviceClass
    from exo.gpu.vocabulary.links import Interconnect

# Words for people, and the fields that they fill: a size may be written "8GiB".
_SIZES = {"memory": "memory_bytes", "host_memory": "host_memory_bytes"}

# One name may stand alone where several may be listed.
_LISTS = frozenset(
    {"devices", "without_devices", "prefer", "vendors", "backends", "labels", "without_labels"}
)

# The machine is the one that is asked, and only a probe goes where a cordon is.
_KNOWN = frozenset(Request.__struct_fields__) - {
    *_SIZES.values(),
    "node",
    "despite_cordon",
    "memory_basis",
}


class Wishes(TypedDict, total=False):
    """Keywords for one device; each is the field of :class:`~exo.gpu.Request` of that name.

    Where several names may be listed, one may stand alone.
    """

    devices: str | Iterable[str] | None
    without_devices: str | Iterable[str]
    prefer: str | Iterable[str]
    runtime: str | None
    device_class: DeviceClass | str | None
    all_devices: bool
    vendors: str | Iterable[str]
    backends: str | Iterable[str]
    min_compute_capability: str | None
    labels: str | Iterable[str]
    without_labels: str | Iterable[str]
    exclusive: bool
    share: float | None
    host_cpus: int | None
    host_memory: str | int | None
    """Memory of the machine beside the device, as ``"8GiB"`` or bytes."""
    min_idle_percent: float | None
    max_temperature_celsius: float | None
    affinity_key: str
    policy: str | None
    kind: str
    priority: int
    expected_seconds: float | None
    holder: str


class GangWishes(Wishes, total=False):
    """The same, and keywords for several devices at once or for several leases on one."""

    slots: int | None
    count: int
    same_node: bool
    interconnect: Interconnect | str


def request_of(memory: str | int | None = None, **wishes: Unpack[GangWishes]) -> Request:
    """A request in the words that people use; ``memory`` is in total, as ``"8GiB"`` or bytes.

    Without a ``policy`` the one that is set in the configuration holds.

    Raises:
        TypeError: for a word that nobody knows, with the near spelling.
        InvalidValue: naming what cannot be.
        ConfigurationError: for a set policy that nobody has.

    """
    asked: dict[str, Any] = {"memory": memory, **wishes}
    fields: dict[str, Any] = {}
    for name, value in asked.items():
        if name in _SIZES:
            fields[_SIZES[name]] = None if value is None else parse_size(value, name)
        elif name not in _KNOWN:
            raise TypeError(_unknown(name))
        elif name in _LISTS:
            fields[name] = (value,) if isinstance(value, str) else tuple(value or ())
        else:
            fields[name] = value
    if fields.get("policy") is None:
        fields["policy"] = default_policy(os.environ)
    return Request(**fields)


def _unknown(name: str) -> str:
    known = sorted({*_SIZES, *_KNOWN})
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{name!r} is nothing that can be asked of a device{hint} (known: {', '.join(known)})"
