"""A model described by hand, in JSON: equal layers in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from exo.gpu.vocabulary.errors import InvalidValue, ModelError
from exo.gpu.vocabulary.model import MOST_LAYERS, ModelLayer, ModelNeeds

_LONGEST_BYTES = 2**24


class _Repeated(ModelLayer, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """So many equal layers."""

    count: int = 1


class _Description(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The fields of :class:`~exo.gpu.vocabulary.model.ModelNeeds` that a person can know."""

    layers: list[_Repeated]
    name: str = ""
    embedding_bytes: int = 0
    output_bytes: int = 0
    tied_bytes: int = 0
    output_parameters: int | None = None
    activation_bytes_per_token: int = 0
    experts: int = 0
    experts_used: int = 0
    context_tokens: int | None = None
    architecture: str = ""
    layer_module: str = ""
    first_modules: tuple[str, ...] = ()
    last_modules: tuple[str, ...] = ()


def described_model(path: Path) -> ModelNeeds:
    """What a description says.

    Raises:
        ModelError: for no JSON of this form, an unknown field, or a value that cannot be.

    """
    try:
        if path.stat().st_size > _LONGEST_BYTES:
            raise ModelError(f"{path} has more than {_LONGEST_BYTES} bytes: is it a description?")
        found = msgspec.json.decode(path.read_bytes(), type=_Description)
        return _needs(found, path)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, InvalidValue) as error:
        raise ModelError(f"{path}: {error}") from error


def _needs(found: _Description, path: Path) -> ModelNeeds:
    total = sum(one.count for one in found.layers)
    if any(one.count < 0 for one in found.layers) or total > MOST_LAYERS:
        raise ModelError(f"{path} describes {total} layers, and {MOST_LAYERS} are allowed")
    fields: dict[str, Any] = {
        name: getattr(found, name) for name in _Description.__struct_fields__ if name != "layers"
    }
    fields["name"] = found.name or path.stem
    layers = tuple(_single(one) for one in found.layers for _ in range(one.count))
    return ModelNeeds(layers=layers, form="json", **fields)


def _single(one: _Repeated) -> ModelLayer:
    return ModelLayer(**{name: getattr(one, name) for name in ModelLayer.__struct_fields__})
