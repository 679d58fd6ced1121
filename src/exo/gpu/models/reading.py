"""Any model: a file, a folder, an index or a description, told apart by what is in it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from exo.gpu.models.description import described_model
from exo.gpu.models.gguf import MAGIC
from exo.gpu.models.gguf_model import gguf_model
from exo.gpu.models.header_file import HeaderFile
from exo.gpu.models.safetensors_model import INDEX_SUFFIX, safetensors_model
from exo.gpu.vocabulary.errors import ModelError

if TYPE_CHECKING:
    import os

    from exo.gpu.vocabulary.model import ModelNeeds


def read_model(path: str | os.PathLike[str]) -> ModelNeeds:
    """What the model at this path needs, by its headers alone.

    A GGUF or safetensors file, one of its shards, an index of shards, the folder they lie in, or
    a JSON description.

    Raises:
        ModelError: for a path that is none of these, a header that cannot be, a missing shard.

    """
    place = Path(path)
    if place.is_dir():
        place = _in_folder(place)
    if place.name.endswith(INDEX_SUFFIX):
        return safetensors_model(place)
    with HeaderFile(place) as file:
        if not file.size:
            raise ModelError(f"{place} is empty")
        begin = file.take(min(9, file.size), "the first bytes")
    if begin.startswith(MAGIC) or place.suffix == ".gguf":
        return gguf_model(place)
    if place.suffix == ".safetensors" or begin[8:] == b"{":
        return safetensors_model(place)
    if begin.lstrip()[:1] == b"{":
        return described_model(place)
    raise ModelError(
        f"{place} is no model that is known here: GGUF, safetensors, an index of shards, "
        "or a description in JSON"
    )


def _in_folder(folder: Path) -> Path:
    """The one model in a folder."""
    for pattern in (f"*{INDEX_SUFFIX}", "*.safetensors", "*.gguf"):
        found = sorted(folder.glob(pattern))
        shards = [one for one in found if "-of-" not in one.name] or found[:1]
        if len(shards) == 1:
            return shards[0]
        if shards:
            names = ", ".join(one.name for one in shards[:3])
            raise ModelError(f"{folder} has {len(shards)} models ({names} ...): name one of them")
    raise ModelError(f"{folder} has no model: no .gguf and no .safetensors")
