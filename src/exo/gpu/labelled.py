"""A backend under labels that stay: its devices' ids turned on the way in and on the way out."""

from __future__ import annotations

import inspect
import re
from functools import wraps
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import msgspec

from exo.gpu.backend import FaultWatch, GPUBackend
from exo.gpu.vocabulary.errors import BackendError
from exo.gpu.vocabulary.links import Link

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from exo.gpu.vocabulary.device import GPUDevice
    from exo.gpu.vocabulary.health import DeviceFault


class LabelledBackend(GPUBackend):
    """The same abilities as the backend within, for devices named by their labels.

    Needed where a driver numbers its devices otherwise than it did before: "cuda:1" then stays
    the card that it was. Whatever a public method of the backend takes or gives as a device id,
    device, memory handle, sample or link is turned. Ids are all that differs.
    """

    def __init__(self, backend: GPUBackend) -> None:
        super().__init__()
        self.name = backend.name
        self.remark = backend.remark
        self._backend = backend
        self._given: dict[str, str] = {}
        self._labels: dict[str, str] = {}
        for name, kind in inspect.getmembers(type(backend), inspect.isfunction):
            if not name.startswith("_"):
                setattr(self, name, self._turned(getattr(backend, name), kind))

    def rename(self, labels: Mapping[str, str]) -> None:
        """From now on, these are the labels, by the ids that the backend gave."""
        self._labels = dict(labels)
        self._given = {label: given for given, label in labels.items()}

    def find(self) -> list[GPUDevice]:
        """What the backend finds, under the labels."""
        return self._out(self._backend.find())

    def _turned(self, call: Callable[..., Any], kind: Callable[..., Any]) -> Callable[..., Any]:
        names = list(inspect.signature(call).parameters)

        def turn(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
            # Surplus arguments are the backend's to refuse.
            named = [*names[: len(args)], *[""] * (len(args) - len(names))]
            return (
                [self._in(name, value) for name, value in zip(named, args, strict=True)],
                {name: self._in(name, value) for name, value in kwargs.items()},
            )

        if inspect.iscoroutinefunction(kind):

            @wraps(call)
            async def later(*args: Any, **kwargs: Any) -> Any:
                given, by_name = turn(args, kwargs)
                try:
                    return self._out(await call(*given, **by_name))
                except BackendError as error:
                    self._reword(error)
                    raise

            return later

        @wraps(call)
        def now(*args: Any, **kwargs: Any) -> Any:
            given, by_name = turn(args, kwargs)
            try:
                return self._out(call(*given, **by_name))
            except BackendError as error:
                self._reword(error)
                raise

        return now

    def _in(self, name: str, value: Any) -> Any:
        """An argument as the backend knows it."""
        if name == "device_id":
            return self._given.get(value, value)
        return with_ids(value, self._given)

    def _out(self, value: Any) -> Any:
        """A result under the labels; what goes on to tell of devices tells it under them."""
        if isinstance(value, _TellsFaults):
            return _LabelledFaults(value, self._labels)
        return with_ids(value, self._labels)

    def _reword(self, error: BackendError) -> None:
        """Give the labels to the error's words too."""
        if self._labels and error.args and isinstance(error.args[0], str):
            names = "|".join(map(re.escape, sorted(self._labels, key=len, reverse=True)))
            whole = re.compile(rf"(?<![\w:])({names})(?!\w)")
            words = whole.sub(lambda match: self._labels[match[1]], error.args[0])
            error.args = (words, *error.args[1:])


@runtime_checkable
class _TellsFaults(FaultWatch, Protocol):
    """A watch for faults, known by its methods."""


class _LabelledFaults:
    """A watch for faults under the labels that held when it began."""

    def __init__(self, watch: FaultWatch, labels: Mapping[str, str]) -> None:
        self._watch = watch
        self._labels = labels

    @property
    def refused(self) -> Mapping[str, str]:
        return {self._labels.get(name, name): why for name, why in self._watch.refused.items()}

    def faults(self, *, timeout_seconds: float) -> Iterator[DeviceFault]:
        for fault in self._watch.faults(timeout_seconds=timeout_seconds):
            yield with_ids(fault, self._labels)

    def close(self) -> None:
        self._watch.close()


def with_ids(value: Any, ids: Mapping[str, str]) -> Any:
    """A value, or a list or tuple of values, with its device ids exchanged."""
    if isinstance(value, (list, tuple)):
        items: list[Any] = [with_ids(item, ids) for item in value]  # pyright: ignore[reportUnknownVariableType]
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, Link):
        source, target = ids.get(value.source, value.source), ids.get(value.target, value.target)
        return msgspec.structs.replace(value, source=source, target=target)
    own: Any = getattr(value, "device_id", None) if isinstance(value, msgspec.Struct) else None
    return msgspec.structs.replace(value, device_id=ids[own]) if own in ids else value
