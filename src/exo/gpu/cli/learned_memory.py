"""``--memory auto``: what work of a kind was seen to take, as the fields of a request."""

from __future__ import annotations

import os
from typing import Any

import click

from exo.gpu.nodes.experience import Experience, experience_path
from exo.gpu.vocabulary.units import format_size


def memory_fields(kind: str) -> dict[str, Any]:
    """The fields of a request for the memory that a kind of work was seen to take.

    Raises:
        UsageError: without a kind, or where nothing was seen of it.

    """
    if not kind:
        raise click.UsageError("--memory auto: of what kind of work? say it with --kind")
    advice = Experience(experience_path(os.environ)).advice(kind)
    if advice is None:
        raise click.UsageError(
            f"--memory auto: nothing was seen yet of the kind {kind!r}; "
            "'exo-gpu run' learns it where the driver tells the memory of processes"
        )
    runs = "1 run" if advice.samples == 1 else f"{advice.samples} runs"
    basis = f"learned: 99 % of {runs} took {format_size(advice.seen_bytes)} at most, and a margin"
    return {"memory_bytes": advice.advised_bytes, "memory_basis": basis}
