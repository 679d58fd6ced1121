"""A slot is given out again once the memory of its last process is back, or will not come."""

from __future__ import annotations

import logging

import pytest

from exo.gpu.nodes import returning
from exo.gpu.nodes.returning import MemoryReturn
from exo.gpu.vocabulary.device import GPUDevice
from exo.gpu.vocabulary.lease import Lease
from exo.gpu.vocabulary.metrics import GPUMetrics

GIB = 2**30
DEVICE = GPUDevice("cuda:0", "Card", "NVIDIA", "cuda", hardware_id="GPU-1")


def lease(name: str, memory_bytes: int | None = 4 * GIB) -> Lease:
    return Lease(
        lease_id=name,
        device_id="cuda:0",
        hardware_id="GPU-1",
        memory_pool="GPU-1",
        memory_bytes=memory_bytes,
        used_before_bytes=GIB,
    )


class Card:
    """Gives one reading after the other; the last one again and again."""

    def __init__(self, *used: int | None) -> None:
        self.used = list(used)
        self.asked = 0

    def read(self) -> GPUMetrics:
        self.asked += 1
        used = self.used.pop(0) if len(self.used) > 1 else self.used[0]
        return GPUMetrics("cuda:0", timestamp=1.0, memory_used_bytes=used)


def wait(card: Card, *others: Lease, go_on=lambda: True) -> int:
    """How many readings it took."""
    own = lease("mine")
    MemoryReturn(own, DEVICE, card.read, lambda: (own, *others)).wait(go_on)
    return card.asked


def test_it_is_awaited_until_the_use_is_what_it_was():
    assert wait(Card(5 * GIB, 5 * GIB, GIB)) == 3


def test_what_others_declared_beside_it_is_no_reason_to_wait():
    assert wait(Card(5 * GIB), lease("theirs")) == 1


def test_where_nothing_can_be_told_nobody_waits():
    assert wait(Card(None)) == 1
    assert wait(Card(9 * GIB), lease("theirs", None)) == 1


def test_a_slot_that_ends_does_not_wait():
    answers = [True, False]
    assert wait(Card(5 * GIB), go_on=lambda: answers.pop(0)) == 2


def test_memory_that_does_not_come_back_is_told_and_not_awaited_for_ever(caplog, monkeypatch):
    monkeypatch.setattr(returning, "SETTLE_SECONDS", 0.05)
    with caplog.at_level(logging.WARNING):
        assert wait(Card(5 * GIB)) >= 2
    assert "its memory is not back: 5.0 GiB in use" in caplog.text


@pytest.mark.parametrize("used_before", [None, GIB])
def test_the_hosts_memory_is_back_with_the_process(used_before):
    import msgspec

    host = GPUDevice(
        "cpu:0", "Host", "Host", "cpu", hardware_id="H", memory_pool="host", device_class="host"
    )
    one = msgspec.structs.replace(lease("mine"), used_before_bytes=used_before)
    assert returning.memory_return(one, host, None, tuple) is None
