"""The forms of the answers, for programs: units in every name, unknown is null."""

from __future__ import annotations

from typing import Any

import msgspec

from exo.gpu.coordination.jobs import JobSummary
from exo.gpu.coordination.overview import Overview
from exo.gpu.scheduling.explanation import refusal_message
from exo.gpu.telemetry.store.series import KnownDevice
from exo.gpu.telemetry.table.figures import Aggregate
from exo.gpu.vocabulary.cluster import NodeStanding
from exo.gpu.vocabulary.decision import Decision, Refusal
from exo.gpu.vocabulary.device import GPUDevice
from exo.gpu.vocabulary.errors import InvalidValue
from exo.gpu.vocabulary.health import Cordon, Health
from exo.gpu.vocabulary.lease import Lease, Waiter
from exo.gpu.vocabulary.links import Link
from exo.gpu.vocabulary.metrics import GPUMetrics
from exo.gpu.vocabulary.process import DeviceUser
from exo.gpu.vocabulary.request import Request
from exo.gpu.vocabulary.snapshot import DeviceState
from exo.gpu.vocabulary.units import parse_size


class DeviceView(GPUDevice, frozen=True, kw_only=True):
    """A device: what it is, and how it is at the moment."""

    health: Health
    health_reason: str
    health_since: float | None
    """Unix seconds."""
    sample: GPUMetrics | None
    sample_age_seconds: float | None
    """By the time of receipt, when the answer was made."""
    sample_failure: str = ""
    """Why it gave no sample the last time it was asked."""
    leases: tuple[Lease, ...]
    measured_gflops: float | None
    """FP32 speed that a probe measured, in 10**9 a second."""
    cordon: Cordon | None
    labels: tuple[str, ...] = ()


class MissingView(msgspec.Struct, frozen=True, kw_only=True):
    """A device that was here before; ``last_seen`` is Unix seconds."""

    device: GPUDevice
    last_seen: float
    reason: str


class DeviceList(msgspec.Struct, frozen=True, kw_only=True):
    """Every device at one moment; ``at`` is Unix seconds, null before the first search ended."""

    at: float | None
    table_version: int
    stale_after_seconds: float
    """From which age a sample says nothing about now."""
    devices: tuple[DeviceView, ...]
    missing: tuple[MissingView, ...]
    notes: tuple[str, ...]


class ServiceView(msgspec.Struct, frozen=True, kw_only=True):
    """What answers here: its version, and how well it is informed."""

    version: str
    at: float | None
    quiet_seconds: float
    """How long ago the newest picture of the machine was taken."""
    cadence_seconds: float
    device_count: int
    stream_clients: int
    history_recorded: bool
    """Whether this process writes the history."""
    history_reason: str
    notes: tuple[str, ...]


class RecentLoads(msgspec.Struct, frozen=True, kw_only=True):
    """The load of each device in percent, oldest first, one value a cadence; null: not known."""

    cadence_seconds: float
    values: dict[str, list[float | None]]


class SeriesView(msgspec.Struct, frozen=True, kw_only=True):
    """One reading over time in points of equal length; a point without a reading is null."""

    metric: str
    since: float
    step_seconds: float
    source: str
    """``memory``, ``raw`` or ``rollups``."""
    minimum: list[float | None]
    mean: list[float | None]
    maximum: list[float | None]
    count: list[int]


class HistoryView(msgspec.Struct, frozen=True, kw_only=True):
    """What a device did in a span of Unix seconds."""

    device: KnownDevice
    series: tuple[SeriesView, ...]
    note: str = ""
    """Why there is less than was asked for."""


class EventView(msgspec.Struct, frozen=True, kw_only=True):
    """A change of health, a fault, or a device that came or went; ``at`` is Unix seconds."""

    kind: str
    device_id: str
    at: float
    fields: dict[str, Any]


class EventList(msgspec.Struct, frozen=True, kw_only=True):
    """Events, the newest first."""

    events: tuple[EventView, ...]
    note: str = ""
    """Why earlier ones may be missing."""


class NodeList(msgspec.Struct, frozen=True, kw_only=True):
    """Every node that is or was in the cluster."""

    nodes: tuple[NodeStanding, ...]
    notes: tuple[str, ...]


class LinkList(msgspec.Struct, frozen=True, kw_only=True):
    """How devices are joined."""

    links: tuple[Link, ...]


class ProcessesView(msgspec.Struct, frozen=True, kw_only=True):
    """Everybody on every device; ``untold`` says by device why its processes are not known."""

    users: tuple[DeviceUser, ...]
    untold: dict[str, str]


class Aggregates(msgspec.Struct, frozen=True, kw_only=True):
    """The newest samples added up: of all devices, and of each group."""

    total: Aggregate
    groups: dict[str, Aggregate]


class LeaseView(Lease, frozen=True, kw_only=True):
    """A lease, and what follows from it."""

    overrun_bytes: int = 0  # pyright: ignore[reportIncompatibleMethodOverride] - told as a value
    settling: bool = False  # pyright: ignore[reportIncompatibleMethodOverride] - told as a value


class WaiterView(Waiter, frozen=True, kw_only=True):
    """One who waits: its place from 1, whom it waits behind, and why it is not served."""

    place: int
    reason: str
    ahead: tuple[str, ...]
    kept_for: str | None
    """The id of the waiter for whom devices are kept."""
    refusals: tuple[Refusal, ...]


class LeaseList(msgspec.Struct, frozen=True, kw_only=True):
    """All live leases."""

    leases: tuple[LeaseView, ...]
    notes: tuple[str, ...]


class Queue(msgspec.Struct, frozen=True, kw_only=True):
    """Everybody who waits, the first one first."""

    waiting: tuple[WaiterView, ...]
    notes: tuple[str, ...]


class JobList(msgspec.Struct, frozen=True, kw_only=True):
    """The newest jobs of this user first, and what could not be read."""

    jobs: tuple[JobSummary, ...]
    problems: tuple[str, ...]


class TryView(msgspec.Struct, frozen=True, kw_only=True):
    """Tries that one slot made in one go; ``items`` are runs of (first, last), from 0."""

    items: list[tuple[int, int]]
    failed: list[int]
    ending: str
    """``succeeded``, ``failed`` or ``died``."""
    cause: str
    """What kind of failure it was: ``exit_status``, ``out_of_device_memory`` and so on."""
    reason: str
    """The same in words, as far as the journal has them."""
    device_id: str | None
    slot: int
    attempt: int | None
    final: bool | None
    """Whether no other try of it follows; null where the journal does not tell."""
    started_at: float
    ended_at: float
    exit_status: int | None
    signal: int | None


class TryList(msgspec.Struct, frozen=True, kw_only=True):
    """Tries of a job in the order of their ends; ``total`` counts those that match."""

    job_id: str
    total: int
    offset: int
    tries: tuple[TryView, ...]


class TermView(msgspec.Struct, frozen=True, kw_only=True):
    """A named part of a policy's score."""

    name: str
    weight: float
    multiplies: bool


class PolicyView(msgspec.Struct, frozen=True, kw_only=True):
    """How a policy weighs devices."""

    name: str
    terms: tuple[TermView, ...]


class PolicyList(msgspec.Struct, frozen=True, kw_only=True):
    """The policies that a request may name, and the one that holds where it names none."""

    default: str
    policies: tuple[PolicyView, ...]


class Question(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request to be explained; ``memory`` is ``memory_bytes`` as people write it: ``8GiB``."""

    memory: str | None = None

    def __post_init__(self) -> None:
        """Check every field, the size in words as well.

        Raises:
            InvalidValue: naming the field.

        """
        super().__post_init__()
        if self.memory is not None:
            if self.memory_bytes is not None:
                raise InvalidValue("memory", self.memory, "needed beside memory_bytes")
            parse_size(self.memory, "memory")

    def request(self, **others: str) -> Request:
        """The same as a plain request, with ``others`` in the place of its own fields."""
        size = self.memory_bytes if self.memory is None else parse_size(self.memory, "memory")
        fields = {name: getattr(self, name) for name in Request.__struct_fields__}
        return msgspec.convert({**fields, "memory_bytes": size, **others}, Request)


class Explanation(Decision, frozen=True, kw_only=True):
    """A decision with every term and refusal, and the same in words. Nothing was taken."""

    never: bool  # pyright: ignore[reportIncompatibleMethodOverride] - told as a value
    """Whether no device here can ever satisfy it."""
    message: str
    """Why nothing was chosen; empty where something was."""
    text: str


_JSON = msgspec.json.Encoder()


def device_json(state: DeviceState, failure: str = "") -> bytes:
    """A :class:`DeviceView` as JSON, without the checks of making one: hundreds a second."""
    now = {
        "health": state.health,
        "health_reason": state.health_reason,
        "health_since": state.health_since,
        "sample": state.sample,
        "sample_age_seconds": state.sample_age_seconds,
        "sample_failure": failure,
        "leases": state.leases,
        "measured_gflops": state.measured_gflops,
        "cordon": state.cordon,
        "labels": state.settings.labels,
    }
    return _JSON.encode(state.device)[:-1] + b"," + _JSON.encode(now)[1:]


def devices_json(overview: Overview) -> bytes:
    """A :class:`DeviceList` as JSON."""
    snapshot = overview.snapshot
    head = {
        "at": overview.taken_at,
        "table_version": snapshot.version,
        "stale_after_seconds": snapshot.stale_after_seconds,
        "missing": overview.missing,
        "notes": overview.notes,
    }
    devices = b",".join(
        device_json(state, overview.failures.get(state.device.device_id, ""))
        for state in snapshot.devices
    )
    return _JSON.encode(head)[:-1] + b',"devices":[' + devices + b"]}"


def lease_views(overview: Overview) -> tuple[LeaseView, ...]:
    """The leases with what follows from them."""
    return tuple(
        LeaseView(
            **msgspec.structs.asdict(lease),
            overrun_bytes=lease.overrun_bytes,
            settling=lease.settling,
        )
        for lease in overview.leases
    )


def waiter_views(overview: Overview) -> tuple[WaiterView, ...]:
    """Everybody who waits, and why."""
    return tuple(
        WaiterView(
            **msgspec.structs.asdict(waiter),
            place=len(turn.ahead) + 1,
            reason=refusal_message(turn.decision),
            ahead=tuple(one.waiter_id for one in turn.ahead),
            kept_for=None if turn.head is None else turn.head.waiter_id,
            refusals=turn.decision.refusals,
        )
        for waiter, turn in overview.line
    )
