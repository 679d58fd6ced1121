"""What crosses between a driver and the agents of a cluster: nodes, and batches of their state."""

from __future__ import annotations

from typing import Any

import msgspec

from exo.gpu.vocabulary.lease import Lease
from exo.gpu.vocabulary.links import Link, Route
from exo.gpu.vocabulary.messages import WireValue
from exo.gpu.vocabulary.snapshot import DeviceState


class NodeBatch(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """All devices of one node at one moment, in columns; ids are the node's own.

    What seldom changes is in ``states``, which is None where it is as it was in the batch before;
    their samples are not in there but in the columns. ``readings`` holds a column for each field
    of a sample that any device gives, None where it does not.
    """

    node: str
    number: int
    """Counts the batches of one agent."""
    changed_number: int = 0
    """The batch in which what seldom changes changed last."""
    timestamps: tuple[float | None, ...] = ()
    """Of the samples, Unix seconds; None where a device has none."""
    ages_seconds: tuple[float | None, ...] = ()
    """Since each sample was received by the agent."""
    readings: dict[str, tuple[int | float | None, ...]] = {}
    """Numbers only: see :data:`~exo.gpu.vocabulary.metrics.SERIES`."""
    states: tuple[DeviceState, ...] | None = None
    remarks: tuple[dict[str, Any], ...] = ()
    """Beside ``states``: the fields of each sample that are no numbers."""
    links: tuple[Link, ...] = ()
    unseen: tuple[Lease, ...] = ()
    routes: tuple[Route, ...] = ()
    """To other nodes, as far as they were measured."""


class NodeStanding(WireValue, frozen=True, kw_only=True):
    """One node of a cluster, for people: whether its agent answers, and what it has."""

    node: str
    address: str = ""
    alive: bool = False
    reason: str = ""
    """Why it does not count; empty where it does."""
    version: str = ""
    """Of exo-gpu, as its agent says."""
    python: str = ""
    devices: tuple[str, ...] = ()


class Surroundings(WireValue, frozen=True, kw_only=True):
    """What a ``runtime_env`` became on one node: where and with what a driver's work runs there."""

    python: str = ""
    """Path of the interpreter; empty: the node's own."""
    import_path: tuple[str, ...] = ()
    """Goes before the driver's own ``sys.path``."""
    directory: str = ""
    """The working directory; empty: none of its own."""
    variables: dict[str, str] = {}  # msgspec copies an empty default for each value
    """Variables that differ from the node's own."""
