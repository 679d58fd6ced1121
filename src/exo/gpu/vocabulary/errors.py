"""Every exception that exo.gpu raises on purpose.

::

    ExoGpuError
    ├── InvalidValue (ValueError)           a value that cannot be: names the field and the value
    │   ├── UnknownName                     a name nobody knows, with the near spelling
    │   └── DuplicateDevice                 a device named or registered twice
    ├── ConfigurationError (ValueError)     a setting that cannot be: names file, key and value
    ├── NoSuchDevice (LookupError)          an id that is not registered here
    ├── NoSuchLease (LookupError)           an id that no lease and nobody in the line has
    ├── NoSuchJob (LookupError)            a name that no job of this user has
    ├── LeaseKept (RuntimeError)            a lease that may not be ended: another's, or in use
    ├── ManagerClosed (RuntimeError)        a call after shutdown()
    ├── NoDevice (RuntimeError)             the answer to a request is "no"; carries the decision
    │   ├── NeverAvailable                  no device here can ever satisfy it
    │   └── NotNow                          a device could, but it is taken at the moment
    ├── BackendError (RuntimeError)         a driver or device refused
    │   ├── BackendUnavailable              the whole backend is absent; carries what to install
    │   ├── AbilityMissing                  this backend does not offer that
    │   ├── OutOfDeviceMemory (MemoryError) the device or its pool holds no more
    │   ├── InvalidHandle                   freed twice, or of another backend
    │   ├── ReadingMissing                  one value that the driver does not give now
    │   └── DeviceLost                      the device is gone until it is reset
    ├── ProtocolError (ValueError)          bytes that are no message of ours
    │   └── UnsupportedVersion              a message of another major version
    ├── TraceError (ValueError)             a recorded workload that cannot be read: names the place
    ├── StoreError (RuntimeError)           a database of ours cannot be used here
    │   ├── StoreDamaged                    its file is broken, or is no database
    │   └── StoreTooNew                     its file was written by a later release
    ├── JournalError (RuntimeError)         a job's journal that cannot be used: names it and why
    ├── ClusterError (RuntimeError)         a cluster that cannot be reached or joined, and why
    │   └── NodeLost                        one of its nodes does not answer any more
    ├── ModelError (ValueError)             a model's file that cannot be used: names it and why
    └── ExecutionError (RuntimeError)       work that did not end as it should
        ├── WorkerDied                      its process died, as often as retries allow
        ├── TimedOut (TimeoutError)         it ran for longer than it was given
        ├── NotTransferable                 a function, argument or result that cannot be pickled
        └── ExecutorClosed                  submit() after shutdown()
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable


class ExoGpuError(Exception):
    """Base of every exception that exo.gpu raises on purpose."""


class InvalidValue(ExoGpuError, ValueError):
    """A value that cannot be; ``field`` and ``value`` say which."""

    def __init__(self, field: str, value: object, expected: str) -> None:
        super().__init__(f"{field}: {value!r} is not {expected}")
        self.field = field
        self.value = value
        self.expected = expected

    def __reduce__(self) -> tuple[type[InvalidValue], tuple[str, object, str]]:
        """Pickle by what it was made of, since the message alone cannot rebuild it."""
        return type(self), (self.field, self.value, self.expected)


class UnknownName(InvalidValue):
    """A name that nobody here knows; the message suggests the near spelling."""

    def __init__(self, field: str, value: object, known: Iterable[str] | str) -> None:
        if isinstance(known, str):
            expected = known
        else:
            import difflib

            names = sorted(known)
            near = difflib.get_close_matches(str(value), names, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            expected = f"one of {', '.join(names) or 'nothing'}{hint}"
        super().__init__(field, value, expected)


class DuplicateDevice(InvalidValue):
    """A device that is named twice, or that is registered already with other facts."""


class ConfigurationError(ExoGpuError, ValueError):
    """A configuration file or variable that cannot be used; names it, the key and the value."""


class NoSuchDevice(ExoGpuError, LookupError):
    """A device id that is not known here."""


class NoSuchLease(ExoGpuError, LookupError):
    """An id that no lease and nobody in the line has."""


class NoSuchJob(ExoGpuError, LookupError):
    """A name that no job of this user has, or that means more than one."""


class LeaseKept(ExoGpuError, RuntimeError):
    """A lease that may not be ended: another user's, or ``pids`` still work under it."""

    def __init__(self, message: str, pids: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.pids = pids


class ManagerClosed(ExoGpuError, RuntimeError):
    """A call on a manager, node or service after its shutdown."""


class NoDevice(ExoGpuError, RuntimeError):
    """A request was answered with "no"; ``decision`` holds every refusal with its reason.

    It is a ``Decision`` of ``vocabulary.decision``, whose words stand above this file.
    """

    def __init__(self, message: str, decision: Any = None) -> None:
        super().__init__(message)
        self.decision = decision


class NeverAvailable(NoDevice):
    """No device here can ever satisfy the request (exit status 69)."""


class NotNow(NoDevice):
    """A device here could satisfy the request, but not at the moment (exit status 75)."""


class BackendError(ExoGpuError, RuntimeError):
    """A driver or device refused an operation."""


class BackendUnavailable(BackendError):
    """A backend does not work on this machine; ``hint`` says what to install or change."""

    def __init__(self, reason: str, hint: str = "") -> None:
        super().__init__(reason, hint)
        self.reason = reason
        self.hint = hint

    def __str__(self) -> str:
        """Reason and hint in one line."""
        return f"{self.reason} ({self.hint})" if self.hint else self.reason


class AbilityMissing(BackendError):
    """The backend does not offer this operation."""


class OutOfDeviceMemory(BackendError, MemoryError):
    """The device, or the pool that it shares, holds no more."""


class InvalidHandle(BackendError):
    """A memory handle that was freed before, or that another backend made."""


class ReadingMissing(BackendError):
    """One value that the driver does not give at the moment; the message is the reason."""


class DeviceLost(BackendError):
    """The device stopped answering and needs a reset."""


class ProtocolError(ExoGpuError, ValueError):
    """Bytes that are no message of this protocol."""


class UnsupportedVersion(ProtocolError):
    """A message of a major version that this release does not speak."""


class TraceError(ExoGpuError, ValueError):
    """A recorded cluster or workload that cannot be read; names file, line and column."""


class StoreError(ExoGpuError, RuntimeError):
    """A database of ours cannot be used here; the message names it."""


class StoreDamaged(StoreError):
    """The file of a database of ours is broken, or is no database at all."""


class StoreTooNew(StoreError):
    """A database of ours that a later release has written; it is left as it is."""


class JournalError(ExoGpuError, RuntimeError):
    """A job's journal is in use, damaged at its head, of another job, or cannot be written."""


class ClusterError(ExoGpuError, RuntimeError):
    """A cluster cannot be reached, joined or used; the message says what to do."""


class NodeLost(ClusterError):
    """A node of a cluster is gone, does not answer, or has forgotten us."""


class ModelError(ExoGpuError, ValueError):
    """A model's header is truncated, claims what cannot be, or lacks a shard."""


class ExecutionError(ExoGpuError, RuntimeError):
    """Work that did not end as it should."""


class WorkerDied(ExecutionError):
    """The process that ran the work died, as often as retries allow."""


class TimedOut(ExecutionError, TimeoutError):
    """An item ran for longer than it was given, and was ended."""


class NotTransferable(ExecutionError):
    """A function, an argument or a result that cannot be sent between processes."""


class ExecutorClosed(ExecutionError):
    """Work was submitted to an executor that was shut down."""
