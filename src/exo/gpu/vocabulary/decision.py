"""The answer to a request: the devices, the named score terms, and every refusal."""

from __future__ import annotations

import msgspec

from exo.gpu.vocabulary.lease import Lease
from exo.gpu.vocabulary.messages import WireValue
from exo.gpu.vocabulary.request import Request


class ScoreTerm(WireValue, frozen=True):
    """One named part of a score: ``contribution = weight * value``, or a factor of the sum."""

    name: str
    value: float | None
    weight: float
    note: str = ""
    multiplies: bool = False
    """True for a factor, such as the penalty for heat."""


class Score(WireValue, frozen=True, kw_only=True):
    """What a device scored and from which terms.

    Within 0..1, where neither a person's weight above 1 nor a warm worker adds to it.
    """

    device_id: str
    total: float
    terms: tuple[ScoreTerm, ...] = ()
    notes: tuple[str, ...] = ()


class Refusal(WireValue, frozen=True, kw_only=True):
    """Why a device was not taken.

    ``permanent`` is true when no wait can change the answer ("never"), false when it holds only
    at the moment ("not now").
    """

    device_id: str
    rule: str
    reason: str
    permanent: bool
    total_bytes: int | None = None
    """Where memory is the matter: what the device holds in all."""
    free_bytes: int | None = None
    """Where memory is the matter: what was left of it at the moment."""
    also: tuple[str, ...] = ()
    """What other rules say against it, where they were asked."""


class Decision(WireValue, frozen=True, kw_only=True):
    """The answer to one request. ``chosen`` is empty or has exactly ``request.count`` ids."""

    request: Request
    chosen: tuple[str, ...] = ()
    ranking: tuple[Score, ...] = ()
    """Every eligible device, best first."""
    refusals: tuple[Refusal, ...] = ()
    left_out: tuple[Refusal, ...] = ()
    """Devices that would do, but that the class and runtime rules leave out."""
    table_version: int = 0
    never_reason: str = ""
    """Why no wait helps although single devices would do: too few of one class and runtime."""
    slowest_link: str = ""
    """Of several devices: how the two that are joined worst are joined, and which they are."""
    remarks: tuple[str, ...] = ()
    """What was ruled out or preferred and is not here, perhaps misspelt: it changed nothing."""

    @property
    def never(self) -> bool:
        """True when no device here can ever satisfy the request."""
        if self.never_reason and not self.chosen:
            return True
        possible = sum(not refusal.permanent for refusal in self.refusals) + len(self.ranking)
        return not self.chosen and possible < self.request.count


class Allotment(msgspec.Struct, frozen=True):
    """A decision of several made in one pass, and what it takes of each chosen device."""

    decision: Decision
    taken: tuple[Lease, ...] = ()


class Choice(msgspec.Struct, frozen=True):
    """What was chosen, without the reasons: a decision where every microsecond counts.

    ``chosen`` is empty or has exactly as many ids as were asked for. Each lease in ``taken`` is
    what the choice reserved, where it was asked to.
    """

    chosen: tuple[str, ...]
    table_version: int = 0
    taken: tuple[Lease, ...] = ()
