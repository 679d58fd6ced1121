"""When ``map`` stops before its end: ``now,fail=1``, ``soon,fail=20%``, ``soon,success=3``."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

import click

from exo.gpu.vocabulary.errors import InvalidValue

_FORM = re.compile(r"(now|soon),(fail|success|done)=([0-9]+)(%?)", re.ASCII)

# A share of what has ended so far says nothing while next to nothing has.
_LEAST_ENDED = 3

# GNU parallel's older spellings.
_NUMBERS = {
    "0": "never",
    "1": "soon,fail=1",
    "2": "now,fail=1",
    "-1": "soon,success=1",
    "-2": "now,success=1",
}


class Halt(NamedTuple):
    """Stop once so many, or so large a share, have failed, succeeded or ended."""

    now: bool
    """End what runs, too."""
    counted: str
    limit: int
    percent: bool

    def reached(self, *, failed: int, succeeded: int, total: int | None) -> bool:
        """Whether to stop; a share is one of ``total``, or of what has ended if that is unknown."""
        done = failed + succeeded
        count = {"fail": failed, "success": succeeded, "done": done}[self.counted]
        if not self.percent:
            return count >= self.limit
        if total is None and done < _LEAST_ENDED:
            return False
        whole = done if total is None else total
        return count > 0 and count >= math.ceil(whole * self.limit / 100)


def parse_halt(text: str) -> Halt | None:
    """``now,fail=1`` and the like; None for ``never``.

    Raises:
        InvalidValue: for anything else.

    """
    text = _NUMBERS.get(text, text)
    if text == "never":
        return None
    match = _FORM.fullmatch(text)
    percent = match is not None and match[4] == "%"
    if match is None or int(match[3]) < 1 or (percent and int(match[3]) > 100):
        expected = "such as now,fail=1 or soon,fail=20% (now or soon; fail, success or done)"
        raise InvalidValue("--halt", text, expected)
    return Halt(match[1] == "now", match[2], int(match[3]), percent)


def halt_option(_ctx: click.Context, _option: click.Parameter, text: str | None) -> Halt | None:
    """A click callback.

    Raises:
        UsageError: for what :func:`parse_halt` refuses.

    """
    try:
        return None if text is None else parse_halt(text)
    except InvalidValue as error:
        raise click.UsageError(str(error)) from None
