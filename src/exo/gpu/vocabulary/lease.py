"""A reservation of memory, or of a whole device, and the ledger of those that live."""

from __future__ import annotations

from exo.gpu.vocabulary.messages import WireValue


class Lease(WireValue, frozen=True, kw_only=True):
    """A reservation on one device that ends when the last process working under it ends.

    ``pid``, ``user``, ``command`` and ``taken_at`` (Unix seconds) are for people; liveness is
    judged by the kernel's lock on the lease's file, not by them.
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
