"""Words on the wire: registrations, heartbeats and samples as versioned JSON messages."""

from __future__ import annotations

import json
import re
import time
from typing import Any, TypeVar, cast

import msgspec

from exo.gpu.scheduling.scorer import DeviceScorer
from exo.gpu.vocabulary.device import DeviceCapabilities, DeviceType
from exo.gpu.vocabulary.errors import InvalidValue, ProtocolError, UnsupportedVersion
from exo.gpu.vocabulary.messages import WireValue
from exo.gpu.vocabulary.metrics import GPUMetrics
from exo.gpu.vocabulary.units import check_number, check_text, check_whole

__all__ = [
    "DeviceCapabilities",
    "DeviceRegistration",
    "DeviceScorer",
    "DeviceType",
    "GPUMetrics",
    "Heartbeat",
    "TelemetryProtocol",
]

VERSION = "1.0"
_MAJOR = 1
_VERSION_FORM = re.compile(r"([0-9]{1,9})\.([0-9]{1,9})")
_HIGHEST_PORT = 65535

Value = TypeVar("Value", bound=WireValue)


class DeviceRegistration(WireValue, frozen=True):
    """A device joins: where its node can be reached and what it is.

    ``timestamp`` is Unix time in seconds on the sender's clock.

    Raises:
        InvalidValue: for an empty name, a port outside 0..65535, or capabilities of another device.

    """

    hostname: str
    port: int
    device_id: str
    capabilities: DeviceCapabilities
    timestamp: float = msgspec.field(default_factory=time.time)

    def __post_init__(self) -> None:
        """Check every field."""
        check_text("hostname", self.hostname)
        check_whole("port", self.port)
        if self.port > _HIGHEST_PORT:
            raise InvalidValue("port", self.port, f"a whole number within 0..{_HIGHEST_PORT}")
        check_text("device_id", self.device_id)
        _check_part("capabilities", self.capabilities, DeviceCapabilities, self.device_id)
        check_number("timestamp", self.timestamp)


class Heartbeat(WireValue, frozen=True):
    """A device lives, or says why it cannot be used.

    ``metrics`` may be None where the device could not be read. ``timestamp`` is Unix time in
    seconds on the sender's clock.

    Raises:
        InvalidValue: for an empty id, metrics of another device, or a flag that is no bool.

    """

    device_id: str
    metrics: GPUMetrics | None
    timestamp: float = msgspec.field(default_factory=time.time)
    is_available: bool = True
    error_message: str | None = None

    def __post_init__(self) -> None:
        """Check every field."""
        check_text("device_id", self.device_id)
        if self.metrics is not None:
            _check_part("metrics", self.metrics, GPUMetrics, self.device_id)
        check_number("timestamp", self.timestamp)
        if self.is_available not in (True, False):
            raise InvalidValue("is_available", self.is_available, "true or false")
        if self.error_message is not None:
            check_text("error_message", self.error_message, empty=True)


class TelemetryProtocol:
    """Wraps values in ``{type, version, timestamp, payload}`` and takes them out again.

    Within a major version new fields are added with defaults and unknown ones are ignored.
    """

    MSG_TYPE_REGISTRATION = "device_registration"
    MSG_TYPE_HEARTBEAT = "heartbeat"
    MSG_TYPE_METRICS = "metrics"

    @staticmethod
    def create_registration_message(registration: DeviceRegistration) -> dict[str, Any]:
        """A message that carries a registration."""
        return _message(TelemetryProtocol.MSG_TYPE_REGISTRATION, registration)

    @staticmethod
    def create_heartbeat_message(heartbeat: Heartbeat) -> dict[str, Any]:
        """A message that carries a heartbeat."""
        return _message(TelemetryProtocol.MSG_TYPE_HEARTBEAT, heartbeat)

    @staticmethod
    def create_metrics_message(metrics: GPUMetrics) -> dict[str, Any]:
        """A message that carries a sample."""
        return _message(TelemetryProtocol.MSG_TYPE_METRICS, metrics)

    @staticmethod
    def serialize_message(message: dict[str, Any]) -> str:
        """One JSON object.

        Raises:
            ProtocolError: for what is no message or holds what JSON cannot say (NaN, objects).
            UnsupportedVersion: for a message of another major version.

        """
        _check_message(message)
        try:
            return json.dumps(message, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise ProtocolError(f"message cannot be written as JSON: {error}") from error

    @staticmethod
    def deserialize_message(text: str | bytes) -> dict[str, Any]:
        """The message in ``text``; its payload is still to be parsed by its type.

        Raises:
            ProtocolError: for malformed JSON, a missing or wrong field of the envelope.
            UnsupportedVersion: for a message of another major version.

        """
        try:
            message = msgspec.json.decode(text)
        except (ValueError, TypeError, RecursionError) as error:
            raise ProtocolError(f"no JSON message: {error}") from error
        return _check_message(message)

    @staticmethod
    def parse_registration(payload: dict[str, Any]) -> DeviceRegistration:
        """The registration in a payload.

        Raises:
            ProtocolError: naming the field that is missing or impossible.

        """
        return _parse(payload, DeviceRegistration)

    @staticmethod
    def parse_heartbeat(payload: dict[str, Any]) -> Heartbeat:
        """The heartbeat in a payload.

        Raises:
            ProtocolError: naming the field that is missing or impossible.

        """
        return _parse(payload, Heartbeat)

    @staticmethod
    def parse_metrics(payload: dict[str, Any]) -> GPUMetrics:
        """The sample in a payload.

        Raises:
            ProtocolError: naming the field that is missing or impossible.

        """
        return _parse(payload, GPUMetrics)


def _message(kind: str, value: WireValue) -> dict[str, Any]:
    return {
        "type": kind,
        "version": VERSION,
        "timestamp": time.time(),
        "payload": value.to_dict(),
    }


def _parse(payload: dict[str, Any], kind: type[Value]) -> Value:
    try:
        return kind.from_dict(payload)
    except (ValueError, TypeError) as error:
        raise ProtocolError(f"{kind.__name__}: {error}") from error


def _check_message(message: Any) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise ProtocolError(f"a message is a JSON object, not {type(message).__name__}")
    fields = cast("dict[str, Any]", message)
    version = fields.get("version")
    match = _VERSION_FORM.fullmatch(version) if isinstance(version, str) else None
    if match is None:
        raise ProtocolError(f"version: {version!r} is not major.minor, such as {VERSION!r}")
    if int(match[1]) != _MAJOR:
        raise UnsupportedVersion(f"version: {version!r} is not spoken here, only {_MAJOR}.x is")
    try:
        check_text("type", fields.get("type"))
        check_number("timestamp", fields.get("timestamp"))
    except InvalidValue as error:
        raise ProtocolError(str(error)) from error
    if not isinstance(fields.get("payload"), dict):
        raise ProtocolError(f"payload: {fields.get('payload')!r} is not a JSON object")
    return fields


def _check_part(field: str, part: Any, kind: type[WireValue], device_id: str) -> None:
    if not isinstance(part, kind):
        raise InvalidValue(field, part, f"a {kind.__name__}")
    own_id = getattr(part, "device_id", None)
    if own_id != device_id:
        raise InvalidValue(f"{field}.device_id", own_id, f"the device_id beside it ({device_id!r})")
