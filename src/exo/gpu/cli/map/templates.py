"""One template for all devices, or one for each runtime."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple
from zlib import crc32

import click

from exo.gpu.cli.map.replacements import Template
from exo.gpu.coordination.commands import Command
from exo.gpu.vocabulary.device import RUNTIMES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from exo.gpu.coordination.commands import Lane

_ON = "--on"
_LEAST_OF_TWO = 4  # words: a template, --on, a runtime, a template


class Templates(NamedTuple):
    """What runs where."""

    by_runtime: dict[str, Template]
    """One for all is under ``""``."""
    runtimes: tuple[str, ...]
    """Only devices of these; of any, where there are none."""

    @property
    def texts(self) -> dict[str, str]:
        """As they were written."""
        return {runtime: template.text for runtime, template in self.by_runtime.items()}

    @property
    def title(self) -> str:
        """All in one, for people."""
        return " / ".join(dict.fromkeys(self.texts.values()))

    def text_for(self, arguments: Sequence[str], number: int) -> Callable[[Lane], str]:
        """The command of one item, once it is known who runs it; ``number`` counts from 1."""

        def text(lane: Lane) -> str:
            template = self.by_runtime.get("") or self.by_runtime[lane.device.runtime]
            return template.fill(arguments, number, lane)

        return text

    def listed(self, arguments: Sequence[str], number: int) -> Iterator[str]:
        """The commands as far as they are known before anybody runs them."""
        for runtime, template in self.by_runtime.items():
            text = template.fill(arguments, number, None)
            yield f"{text}  # {runtime}" if runtime else text


def parse_templates(runtimes: Sequence[str], words: Sequence[str]) -> Templates:
    """The templates among the words in front of the items.

    ``runtimes`` are those named before the first template. ``A --on rocm B`` behind one of them
    are two templates; each then is one word.

    Raises:
        UsageError: for an empty template, or pairs of ``--on`` and template that do not come out.

    """
    pairs: list[tuple[tuple[str, ...], str]] = []
    if runtimes and len(words) >= _LEAST_OF_TWO and words[1] == _ON:
        pairs.append((tuple(runtimes), words[0]))
        pairs += _following(words[1:])
    else:
        if runtimes and any(
            word == _ON and following in RUNTIMES for word, following in pairwise(words)
        ):
            raise click.UsageError(
                "quote each template as one word: --on cuda 'A {}' --on rocm 'B {}'"
            )
        pairs.append((tuple(runtimes), " ".join(words)))
    if not all(text.strip() for _, text in pairs):
        raise click.UsageError("the command template is empty")
    named = [runtime for owners, _ in pairs for runtime in owners]
    if len(set(named)) < len(named):
        raise click.UsageError("--on names a runtime twice: it has one template")
    if len(pairs) == 1:
        return Templates({"": Template(pairs[0][1])}, tuple(named))
    templates = {runtime: Template(text) for owners, text in pairs for runtime in owners}
    return Templates(templates, tuple(named))


def _following(words: Sequence[str]) -> Iterator[tuple[tuple[str, ...], str]]:
    rest = list(words)
    while rest:
        owners: list[str] = []
        while len(rest) > 1 and rest[0] == _ON:
            owners.append(rest[1])
            del rest[:2]
        if not owners or not rest:
            raise click.UsageError("each --on RUNTIME is followed by one quoted template")
        for owner in owners:
            if owner not in RUNTIMES:
                from exo.gpu.vocabulary.errors import UnknownName

                raise click.UsageError(str(UnknownName(_ON, owner, RUNTIMES)))
        yield tuple(owners), rest.pop(0)


def digest_of(arguments: Iterable[str]) -> int:
    """A checksum of an item, by which another list is told from the one that was begun."""
    return crc32("\0".join(arguments).encode(errors="surrogateescape"))


def command_of(
    templates: Templates, index: int, arguments: Sequence[str], *, labelled: bool
) -> Command:
    """One item as a command; ``index`` counts from 0."""
    return Command(
        index,
        templates.text_for(arguments, index + 1),
        digest_of(arguments),
        " ".join(arguments) if labelled else "",
    )
