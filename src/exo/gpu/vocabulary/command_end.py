"""How a command that ran with the caller's terminal ended, and what it took."""

from __future__ import annotations

from exo.gpu.vocabulary.messages import WireValue
from exo.gpu.vocabulary.units import check_number, check_whole

# Shells report a command that a signal ended as 128 + the signal's number.
_SIGNAL_BASE = 128

TIMED_OUT = 124
"""The status of a command that its time limit ended, as of GNU's ``timeout``."""


class CommandEnd(WireValue, frozen=True, kw_only=True):
    """The end of one command, all its tries included; memory is the last try's.

    ``returncode`` counts as in ``subprocess``: negative for a signal.

    Raises:
        InvalidValue: for a duration or a number of tries that cannot be.

    """

    returncode: int
    seconds: float
    """How long the last try ran."""
    timed_out: bool = False
    """Its time limit ended it."""
    interrupted: bool = False
    """Somebody told it to end, by a signal to us or by the terminal."""
    peak_host_bytes: int | None = None
    """Memory of its largest process; None where that is less than this process itself has."""
    peak_device_bytes: dict[str, int] = {}
    """By device id, what the driver was seen to count for its processes; a device of which
    nothing was seen is absent."""
    device_ids: tuple[str, ...] = ()
    declared_bytes: int | None = None
    """The memory that it had declared for each device."""
    attempts: int = 1

    def __post_init__(self) -> None:
        """Check the figures."""
        check_number("seconds", self.seconds, low=0)
        check_whole("attempts", self.attempts, low=1)

    @property
    def status(self) -> int:
        """As a shell's: 0..255, 128 + n for signal n, 124 where the time limit ended it."""
        if self.timed_out:
            return TIMED_OUT
        return _SIGNAL_BASE - self.returncode if self.returncode < 0 else self.returncode
