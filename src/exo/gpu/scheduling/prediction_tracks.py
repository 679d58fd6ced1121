"""What one kind of work takes on one device, learned as its outcomes come in."""

from __future__ import annotations

import math

import msgspec

# Outcomes that count: older ones fade, so that a device that changes slowly is followed.
MEMORY = 20.0

# Before anything is known of it, work is taken to vary by a third, which counts as two outcomes.
PRIOR_SPREAD = 0.3
PRIOR_WEIGHT = 2.0

# Beyond so many spreads an outcome counts as if it were just there (Huber's clipping).
CLIPPED = 3.0

# Below it a timer and the scheduling of the host are all that is seen.
LEAST_SPREAD = 0.01

# Page's cumulative sum: drift of fewer spreads than SLACK is none, and ALARM of them together
# are a change. One outlier adds CLIPPED - SLACK, so three in a row are needed at least.
SLACK = 0.75
ALARM = 6.0

# Of the mean absolute deviation, for a normal distribution.
_SPREAD_OF_DEVIATION = math.sqrt(math.pi / 2)


class Drift(msgspec.Struct):
    """One side of the cumulative sum, and the outcomes since it last was at zero."""

    excess: float = 0.0
    count: int = 0
    total: float = 0.0

    def add(self, excess: float, value: float) -> bool:
        """Take an outcome that is ``excess`` spreads off; True where that makes a change."""
        self.excess += excess - SLACK
        if self.excess <= 0:
            self.excess, self.count, self.total = 0.0, 0, 0.0
            return False
        self.count += 1
        self.total += value
        return self.excess > ALARM


class Track(msgspec.Struct, kw_only=True):
    """The typical seconds of an item, as a logarithm, and how far single outcomes lie from it.

    An outlier moves it little; a change that stays, such as a device that throttles, is noticed
    after three outcomes at the earliest, and what was before is forgotten at once.
    """

    level: float
    """Natural logarithm of the seconds that an item takes."""
    deviation: float = PRIOR_SPREAD / _SPREAD_OF_DEVIATION
    """Mean absolute deviation of single outcomes from the level, in logarithms."""
    weight: float = 0.0
    """Outcomes that count for the level: at most :data:`MEMORY`."""
    samples: int = 0
    """Outcomes since the last change."""
    slower: Drift = msgspec.field(default_factory=Drift)
    faster: Drift = msgspec.field(default_factory=Drift)

    @property
    def spread(self) -> float:
        """Standard deviation of single outcomes, in logarithms."""
        return max(self.deviation * _SPREAD_OF_DEVIATION, LEAST_SPREAD)

    def take(self, seconds: float) -> None:
        """Learn from an outcome; a time that is not above 0 and finite teaches nothing."""
        if not 0 < seconds < math.inf:
            return
        value = math.log(seconds)
        self.samples += 1
        if not self.weight:
            self.level, self.weight = value, 1.0
            return
        spread = self.spread
        off = min(max((value - self.level) / spread, -CLIPPED), CLIPPED)
        slower, faster = self.slower.add(off, value), self.faster.add(-off, value)
        if slower or faster:
            self._start_anew(self.slower if slower else self.faster)
            return
        self.weight = min(self.weight + 1, MEMORY)
        self.level += off * spread / self.weight
        shares = min(self.samples + PRIOR_WEIGHT, MEMORY)
        self.deviation += (abs(off) * spread - self.deviation) / shares

    def _start_anew(self, drift: Drift) -> None:
        self.level, self.weight = drift.total / drift.count, float(drift.count)
        self.samples = drift.count
        self.slower, self.faster = Drift(), Drift()


class Lesson(msgspec.Struct, kw_only=True):
    """What was learned of a kind on a device, as it is kept."""

    kind: str
    device: str
    track: Track
