"""The caller's ``__main__`` in a worker: one namespace for its functions, as they have there.

Standard library only, since the child reads it.
"""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

NAMESPACE: dict[str, Any] = {"__name__": "__main__"}
"""Globals of every function that came by value from the caller's ``__main__``."""

_SENT: dict[str, int | None] = {}
"""For each name a digest of what the caller last sent; None for what pickle cannot name."""


class CallersMain(dict[str, Any]):
    """Stands for the globals of ``__main__`` in a pickle; in the worker it is the namespace."""

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        """By name: the worker's own namespace takes its place."""
        return namespace, ()


def namespace() -> dict[str, Any]:
    """The namespace of this process."""
    return NAMESPACE


_MARK = __name__.rpartition(".")[2].encode()


def load(payload: bytes | bytearray | memoryview, buffers: Iterable[Any] = ()) -> Any:
    """Unpickle what the caller sent; a global follows the caller only where the caller changed it.

    So a model that an initializer puts into a global, or into a dictionary there, is still there
    for every item, while what a notebook defines anew takes the place of the old.
    """
    if not isinstance(payload, memoryview) and _MARK not in payload:
        return pickle.loads(payload, buffers=buffers)
    before = dict(NAMESPACE)
    value = pickle.loads(payload, buffers=buffers)
    for name, arrived in list(NAMESPACE.items()):
        if name in before and arrived is before[name]:
            continue  # it did not come with this payload
        digest = _digest(arrived)
        if name in before and digest is not None and digest == _SENT.get(name):
            NAMESPACE[name] = before[name]
        _SENT[name] = digest
    return value


def _digest(value: object) -> int | None:
    try:
        return hash(pickle.dumps(value))
    except Exception:  # noqa: BLE001 - functions and classes of the caller's __main__, above all
        return None
