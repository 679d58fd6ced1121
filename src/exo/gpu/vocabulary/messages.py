"""The form that every value takes on the wire: plain builtins and one JSON object."""

from __future__ import annotations

from typing import Any, Self

import msgspec


class WireValue(msgspec.Struct, frozen=True):
    """A value that travels: an unknown field is skipped, every known one is checked."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as they come back from JSON: a tuple is a list."""
        return msgspec.json.decode(msgspec.json.encode(self))

    def to_json(self) -> str:
        """One JSON object."""
        return msgspec.json.encode(self).decode()

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Check and convert plain values.

        Raises:
            ValueError: for a missing field, a wrong type or an impossible value.

        """
        return msgspec.convert(values, type=cls)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Decode and check one JSON object.

        Raises:
            ValueError: for malformed JSON, a missing field, a wrong type or an impossible value.

        """
        return msgspec.json.decode(text, type=cls)
