"""gpu.map: one call from a function and items to results, on the devices that suit it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from exo.gpu.coordination.executor import GPUExecutor

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable

Result = TypeVar("Result")


def map_items(
    function: Callable[..., Result],
    *iterables: Iterable[Any],
    memory: str | int | None = None,
    journal: str | os.PathLike[str] | None = None,
    resume: bool = False,
    **options: Any,
) -> list[Result]:
    """Results of a function over items, in order, computed on the devices that suit it.

    ``options`` are those of :class:`GPUExecutor`; ``memory`` is what one worker needs. A
    ``journal`` is kept and gone on with as by :meth:`GPUExecutor.map`.

    Raises:
        NeverAvailable: when no device here can ever satisfy it.
        NotNow: when one could, but not at the moment.
        Exception: whatever ``function`` raised first, in the order of the items.

    """
    with GPUExecutor(memory=memory, **options) as executor:
        return list(executor.map(function, *iterables, journal=journal, resume=resume))
