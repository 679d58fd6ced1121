"""A backend under labels: what goes in and comes out is turned, and nothing else differs."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from exo.gpu.backend import (
    MemoryHandle,
    PinningAbility,
    ProcessAbility,
    TelemetryAbility,
    TopologyAbility,
)
from exo.gpu.labelled import LabelledBackend
from exo.gpu.vocabulary.errors import BackendError
from exo.gpu.vocabulary.links import Link
from tests.discovery.scripted import Reading, device


@pytest.fixture
def turned() -> Any:
    """Two cards that the driver numbers the other way round."""
    found = [device("cuda:0", name="20"), device("cuda:1", name="10")]
    backend = LabelledBackend(Reading("cuda", lambda: found))
    backend.rename({"cuda:0": "cuda:1", "cuda:1": "cuda:0"})
    backend.find()
    return backend


def test_it_offers_what_the_backend_offers(turned: Any) -> None:
    """Rule: abilities are neither won nor lost."""
    for ability in (TelemetryAbility, PinningAbility, TopologyAbility):
        assert isinstance(turned, ability)
    assert not isinstance(turned, ProcessAbility)
    assert (turned.name, turned.remark) == ("cuda", "")


def test_ids_are_turned_both_ways(turned: Any) -> None:
    """Rule: by label a caller reads, lists, pins and allocates on the card that bears it."""
    assert turned.read("cuda:0").power_watts == 10
    assert turned.read(device_id="cuda:1").device_id == "cuda:1"
    assert [found.device_id for found in turned.list_devices()] == ["cuda:1", "cuda:0"]
    assert turned.get_device("cuda:0").name == "10"
    assert turned.get_device("cuda:7") is None
    assert turned.pinning((turned.require("cuda:0"),), {}) == {"PINNED": "cuda:1"}
    assert turned.links() == [Link(source="cuda:1", target="cuda:0")]
    assert turned.hiding() == {"HIDES_ALL": ""}


def test_memory_goes_by_label(turned: Any) -> None:
    """Rule: a handle bears the label, and leads back to the same card."""
    handle: MemoryHandle = anyio.run(turned.allocate, "cuda:0", 5)
    assert (handle.device_id, handle.size_bytes) == ("cuda:0", 5)
    with pytest.raises(BackendError, match=r"^cuda:0 refuses$"):
        anyio.run(turned.copy_to_device, b"x", handle)


def test_errors_speak_of_labels() -> None:
    """Rule: an error names the card by the label that the caller used, and no other is touched."""
    found = [device("cuda:0", name="Broken")]
    backend: Any = LabelledBackend(Reading("cuda", lambda: found))
    backend.rename({"cuda:0": "cuda:1"})
    backend.find()
    with pytest.raises(BackendError, match=r"^cuda:1: gone, unlike cuda:10$"):
        backend.read("cuda:1")
    with pytest.raises(TypeError):
        backend.read("cuda:1", "surplus")
