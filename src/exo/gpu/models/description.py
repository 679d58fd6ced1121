"""A model described by hand, in JSON: equal layers in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from exo.gpu.vocabulary.errors import InvalidValue, ModelError, UnknownName
from exo.gpu.vocabulary.model import MOST_LAYERS, ModelLayer, ModelNeeds

_LONGEST_BYTES = 2**24
_KNOWN = frozenset(ModelNeeds.__struct_fields__) - {"form", "notes"}


class _Repeated(ModelLayer, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """So many equal layers."""

    count: int = 1


def described_model(path: Path) -> ModelNeeds:
    """What a description says: the fields of ``ModelNeeds``, and a ``count`` for equal layers.

    Raises:
        ModelError: for no JSON of this form, an unknown field, or a value that cannot be.

    """
    try:
        if path.stat().st_size > _LONGEST_BYTES:
            raise ModelError(f"{path} has more than {_LONGEST_BYTES} bytes: is it a description?")
        return _needs(msgspec.json.decode(path.read_bytes(), type=dict[str, Any]), path)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, InvalidValue) as error:
        raise ModelError(f"{path}: {error}") from error


def _needs(values: dict[str, Any], path: Path) -> ModelNeeds:
    for name in values:
        if name not in _KNOWN:
            raise UnknownName("field", name, _KNOWN)
    if "layers" not in values:
        raise InvalidValue("layers", None, "a list of layers")
    repeated = msgspec.convert(values["layers"], type=list[_Repeated])
    total = sum(one.count for one in repeated)
    if any(one.count < 0 for one in repeated) or total > MOST_LAYERS:
        raise ModelError(f"{path} describes {total} layers, and {MOST_LAYERS} are allowed")
    layers = [msgspec.to_builtins(one) for one in repeated for _ in range(one.count)]
    return msgspec.convert({"name": path.stem, **values, "layers": layers}, type=ModelNeeds)
