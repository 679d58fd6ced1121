"""One line for the whole."""

from __future__ import annotations

import pytest

from exo.gpu.cli.top.totals import totals, totals_line
from exo.gpu.vocabulary.device import DeviceClass
from tests.cli.top.frames import CARDS, GIB, USERS, lease, state

HOST = {"device_class": DeviceClass.SOFTWARE}
FULL = {"memory_used_bytes": 2 * GIB, "memory_total_bytes": 8 * GIB}


def test_a_memory_pool_is_counted_once():
    """Rule: devices that share the machine's memory do not multiply it; nodes do."""
    shared = [
        state("cpu:0", readings=FULL, device={"device_class": DeviceClass.HOST}),
        state("vulkan:0", readings=FULL, device=HOST),
        state("b/vulkan:0", readings=FULL, device=HOST | {"node": "b"}),
        state("cuda:0", readings=FULL, device={"hardware_id": "GPU-1"}),
        state("cuda:0:1", readings=FULL, device={"hardware_id": "GPU-2", "memory_pool": "GPU-1"}),
    ]
    sums = totals(shared, ())
    assert (sums.host_used_bytes, sums.host_total_bytes) == (4 * GIB, 16 * GIB)
    assert (sums.memory_used_bytes, sums.memory_total_bytes) == (2 * GIB, 8 * GIB)


def test_only_what_is_told_counts():
    """Rule: a device that does not tell takes no part; where none tells it is unknown, not zero."""
    sums = totals(CARDS, USERS)
    assert (sums.power_watts, sums.power_devices) == (657.0, 3)
    assert sums.utilization_percent == pytest.approx((97 + 0 + 12) / 3)
    assert (sums.devices, sums.cordoned, sums.leases, sums.foreign) == (5, 1, 2, 2)
    assert sums.by_health == {"ok": 3, "degraded": 1, "failed": 1}
    silent = totals([state(readings=None)], ())
    assert (silent.power_watts, silent.utilization_percent, silent.memory_total_bytes) == (
        None,
        None,
        None,
    )
    assert totals_line(silent) == "1 device ok  util -  power -"


def test_the_line_in_words():
    """Rule: the same words whatever there is, and nothing that is zero without a meaning."""
    assert totals_line(totals((), ())) == "0 devices"
    leased = state(readings=FULL, leases=(lease("a", "cuda:0"),))
    assert totals_line(totals([leased], ())) == (
        "1 device ok  mem 2.0/8.0 GiB  util -  power -  1 lease"
    )


@pytest.mark.parametrize("width", [1, 20, 50, 80, 200])
def test_the_line_has_whole_parts_only(width):
    """Rule: what does not fit is left out, and never cut in the middle."""
    everything = totals_line(totals(CARDS, USERS), width=1000)
    parts = everything.split("  ")
    line = totals_line(totals(CARDS, USERS), width=width)
    assert set(line.split("  ")) <= set(parts)
    assert len(line) <= width or line == parts[0]
