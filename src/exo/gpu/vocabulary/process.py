"""Who is on a device: the processes that its driver lists, and the leases that live on it."""

from __future__ import annotations

from exo.gpu.vocabulary.messages import WireValue
from exo.gpu.vocabulary.units import check_number, check_text, check_whole


class RunningProcess(WireValue, frozen=True, kw_only=True):
    """A process that a driver lists, with what the system tells of it; None: not told.

    Raises:
        InvalidValue: for a number that cannot be.

    """

    pid: int
    memory_bytes: int | None = None
    """What it holds of the device's memory."""
    user: str | None = None
    name: str | None = None
    """What the program is called, without its folder and arguments."""
    command: str | None = None
    since: float | None = None
    """When it started, in Unix seconds."""
    lease_ids: tuple[str, ...] = ()
    """The leases that its environment names."""
    ancestry: tuple[tuple[int, float], ...] = ()
    """Itself, its parent and so on: the pid and the start in Unix seconds of each."""
    reason: str = ""
    """Why something of it is not known; empty where all is."""

    def __post_init__(self) -> None:
        """Check every number."""
        check_whole("pid", self.pid)
        check_whole("memory_bytes", self.memory_bytes, optional=True)
        check_number("since", self.since, optional=True)


class ProcessList(WireValue, frozen=True, kw_only=True):
    """The processes on one device, or the reason why they are not known."""

    device_id: str
    processes: tuple[RunningProcess, ...] = ()
    reason: str = ""
    """Empty where the list is the driver's whole answer, an empty list included."""


class DeviceUser(WireValue, frozen=True, kw_only=True):
    """A process on a device, a lease on it, or a process under a lease; None: not known.

    Raises:
        InvalidValue: for an empty device id or a number that cannot be.

    """

    device_id: str
    pid: int | None = None
    user: str | None = None
    command: str | None = None
    since: float | None = None
    """Unix seconds: start of the process, or of the lease where there is no process."""
    memory_bytes: int | None = None
    """What the process holds of the device's memory."""
    listed: bool = True
    """Whether the driver lists the process; False for a lease alone."""
    foreign: bool = False
    """Whether it works on the device without a lease on it."""
    lease_id: str | None = None
    holder: str = ""
    """What the lease was taken for, in its holder's words."""
    declared_bytes: int | None = None
    """The memory that the lease reserves; None where it takes a slot or the whole device."""
    exclusive: bool = False
    share: float | None = None
    """The part of the device that the lease holds, within 0..1, where it was asked in parts."""
    reason: str = ""
    """Why something of it is not known; empty where all is."""

    def __post_init__(self) -> None:
        """Check the identity and every number."""
        check_text("device_id", self.device_id)
        for field in ("pid", "memory_bytes", "declared_bytes"):
            check_whole(field, getattr(self, field), optional=True)
        check_number("since", self.since, optional=True)
        check_number("share", self.share, low=0, high=1, optional=True)


class Occupancy(WireValue, frozen=True, kw_only=True):
    """Everybody on every device; ``untold`` says by device id why its processes are not known."""

    users: tuple[DeviceUser, ...] = ()
    untold: dict[str, str] = {}  # msgspec copies an empty default for each value
