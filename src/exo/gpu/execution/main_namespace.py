"""The caller's ``__main__`` in a worker: one namespace for its functions, as they have there.

Standard library only, since the child reads it.
"""

from __future__ import annotations

import pickle
from typing import Any

NAMESPACE: dict[str, Any] = {"__name__": "__main__"}
"""Globals of every function that came by value from the caller's ``__main__``."""

_SENT: dict[str, Any] = {}
_ABSENT = object()


class CallersMain(dict[str, Any]):
    """Stands for the globals of ``__main__`` in a pickle; in the worker it is the namespace."""

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        """By name: the worker's own namespace takes its place."""
        return namespace, ()


def namespace() -> dict[str, Any]:
    """The namespace of this process."""
    return NAMESPACE


_MARK = __name__.rpartition(".")[2].encode()


def load(payload: bytes | bytearray) -> Any:
    """Unpickle what the caller sent; names that code here has set since it came stay as they are.

    So a model that an initializer puts into a global is there for every item, while a function
    that the caller defined anew takes the place of the old one.
    """
    if _MARK not in payload:
        return pickle.loads(payload)
    before = dict(NAMESPACE)
    value = pickle.loads(payload)
    for name, arrived in list(NAMESPACE.items()):
        old = before.get(name, _ABSENT)
        if old is not _ABSENT and old is not _SENT.get(name, _ABSENT):
            NAMESPACE[name] = old
        elif old is not arrived:
            _SENT[name] = arrived
    return value
