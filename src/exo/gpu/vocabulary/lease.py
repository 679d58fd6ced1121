"""A reservation of memory, of a share or of a whole device, and a place in the line for one."""

from __future__ import annotations

from exo.gpu.vocabulary.errors import InvalidValue
from exo.gpu.vocabulary.messages import WireValue
from exo.gpu.vocabulary.request import Request
from exo.gpu.vocabulary.units import check_number, check_whole


class Lease(WireValue, frozen=True, kw_only=True):
    """A reservation on one device that ends when the last process working under it ends.

    ``pid``, ``user``, ``command`` and ``taken_at`` (Unix seconds) are for people; liveness is
    judged by the kernel's lock on the lease's file, not by them. Times that decide anything are
    on the machine's monotonic clock, which all its processes share and nobody sets.

    Raises:
        InvalidValue: for memory or a share that is no amount.

    """

    lease_id: str
    device_id: str
    hardware_id: str
    memory_pool: str
    memory_bytes: int | None = None
    exclusive: bool = False
    share: float | None = None
    """The part of the device that it holds, within 0..1, for those who ask in fractions."""
    host_cpus: int | None = None
    """Processor cores of the machine that it holds beside the device."""
    host_memory_bytes: int | None = None
    """Memory of the machine that it holds beside the device."""
    used_before_bytes: int | None = None
    """Memory used on the device when the lease was granted, None where that is unknown."""
    holder: str = ""
    pid: int = 0
    user: str = ""
    command: str = ""
    taken_at: float = 0.0
    granted_seconds: float = 0.0
    """When it was granted, on the monotonic clock."""
    expected_seconds: float | None = None
    """How long whoever took it said that it would hold it; None where nobody said."""
    expires_seconds: float | None = None
    """When it ends although processes may still work under it; None: never, the usual case."""
    ended_seconds: float | None = None
    """When its last process was gone; from then on it only waits for the memory to come back."""
    seen_bytes: int | None = None
    """What its processes were last seen to hold; None where nobody looked or nobody tells."""
    seen_pids: tuple[int, ...] = ()
    """Its processes on the driver's list at that time."""
    kind: str = ""
    """What kind of work it is for, where that was said."""

    def __post_init__(self) -> None:
        """Check the amounts."""
        check_whole("memory_bytes", self.memory_bytes, low=1, optional=True)
        check_number("share", self.share, low=0, high=1, optional=True)
        if self.share == 0:
            raise InvalidValue("share", self.share, "above 0 and at most 1")

    @property
    def settling(self) -> bool:
        """True when nobody works under it any more and only its memory is still awaited."""
        return self.ended_seconds is not None

    @property
    def overrun_bytes(self) -> int:
        """How much more its processes were seen to hold than was declared; 0 where not known."""
        if self.memory_bytes is None or self.seen_bytes is None:
            return 0
        return max(0, self.seen_bytes - self.memory_bytes)


class Waiter(WireValue, frozen=True, kw_only=True):
    """A request that waits its turn; it lives as long as a process holds the lock on its file.

    ``pid``, ``user``, ``command`` and ``waiting_since`` (Unix seconds) are for people.
    """

    waiter_id: str
    request: Request
    number: int = 0
    """Counts arrivals of this boot; decides between two that are otherwise alike."""
    arrived_seconds: float = 0.0
    """On the monotonic clock, as are the next two."""
    gives_up_seconds: float | None = None
    reserved_seconds: float | None = None
    reserved: tuple[str, ...] = ()
    """Device ids that are kept for it while it is the first who cannot be served."""
    umbrella: tuple[str, ...] = ()
    """Ids of the leases under which the asker itself works."""
    visible: tuple[str, ...] = ()
    """Hardware ids of the devices that the asker sees; an inherited restriction is its universe."""
    pid: int = 0
    user: str = ""
    command: str = ""
    waiting_since: float = 0.0
