"""Templates of commands: GNU parallel's replacement strings, and those of a device."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from exo.gpu.coordination.commands import Lane

_PLACE = re.compile(r"\{(?:(#|%|device|device_index)|(-?[1-9][0-9]*)?(\.|//|/\.|/)?)\}")

# Those that say nothing of the item: a template that has only them gets the item behind it.
_OF_DEVICES = ("device", "device_index")


def without_extension(text: str) -> str:
    """``a/b.c.gz`` as ``a/b.c``; a name that is all extension, as ``.bashrc``, leaves nothing."""
    head, dot, extension = text.rpartition(".")
    return head if dot and extension and "/" not in extension else text


def base_name(text: str) -> str:
    """``a/b.c`` as ``b.c``; ``a/`` leaves nothing."""
    return text.rpartition("/")[2]


def folder_name(text: str) -> str:
    """``a/b.c`` as ``a``, ``/a`` as ``/``, ``a`` as ``.``, as ``dirname`` does."""
    bare = text.rstrip("/")
    if text and not bare:
        return "/"
    head, slash, _ = bare.rpartition("/")
    return (head.rstrip("/") or "/") if slash else "."


_FORMS: dict[str, Callable[[str], str]] = {
    "": str,
    ".": without_extension,
    "/": base_name,
    "//": folder_name,
    "/.": lambda text: without_extension(base_name(text)),
}


class _Place(NamedTuple):
    """A replacement string: a fact of the run, or an argument (None: all of them) in some form."""

    fact: str
    position: int | None
    form: str
    literal: str


class Template:
    """A command with replacement strings; what stands for one is a single word to the shell.

    One that nobody knows stays as it is. A template that does not mention the item, nor its number
    or slot, gets the item behind it.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._parts: list[str | _Place] = []
        end = 0
        for match in _PLACE.finditer(text):
            fact, position, form = match.groups()
            number = None if position is None else int(position)
            self._parts.append(text[end : match.start()])
            self._parts.append(_Place(fact or "", number, form or "", match.group()))
            end = match.end()
        self._parts.append(text[end:])
        places = (part for part in self._parts if isinstance(part, _Place))
        if all(place.fact in _OF_DEVICES for place in places):
            self._parts += [" ", _Place("", None, "", "{}")]

    def fill(self, arguments: Sequence[str], number: int, lane: Lane | None) -> str:
        """The command for one item; without a lane, what depends on it stays as it is.

        ``number`` counts from 1.
        """
        return "".join(
            part if isinstance(part, str) else _word(part, arguments, number, lane)
            for part in self._parts
        )


def _word(place: _Place, arguments: Sequence[str], number: int, lane: Lane | None) -> str:
    if place.fact:
        return _fact(place, number, lane)
    form = _FORMS[place.form]
    if place.position is None:
        return " ".join(shlex.quote(form(argument)) for argument in arguments)
    at = place.position - 1 if place.position > 0 else place.position + len(arguments)
    return shlex.quote(form(arguments[at])) if 0 <= at < len(arguments) else ""


def _fact(place: _Place, number: int, lane: Lane | None) -> str:
    if place.fact == "#":
        return str(number)
    if lane is None:
        return place.literal
    if place.fact == "%":
        return str(lane.number)
    device_id = lane.device.device_id
    return shlex.quote(device_id if place.fact == "device" else device_id.rpartition(":")[2])
