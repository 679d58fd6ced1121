"""Whatever is sent, the collector's memory has a bound, is told, and holds every value exactly."""

from __future__ import annotations

import tracemalloc

import anyio
import anyio.lowlevel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo.gpu.telemetry.collector import TelemetryCollector
from exo.gpu.telemetry.table import remarks, turns
from exo.gpu.telemetry.table.packed import PackedColumn
from exo.gpu.telemetry.table.remarks import Remarks
from exo.gpu.vocabulary.metrics import SERIES, GPUMetrics

FORMS = st.one_of(
    st.integers(-40_000, 40_000).map(float),
    st.integers(-(2**31), 2**31).map(lambda value: value / 1000),
    st.integers(0, 2**40).map(lambda value: value * 1024.0),
    st.floats(allow_infinity=False),
)


@given(st.lists(st.lists(FORMS, min_size=1, max_size=4), min_size=1, max_size=6))
def test_a_packed_column_gives_back_what_was_put(lines):
    """Rule: however a column widens, earlier cells keep their values to the last bit."""
    column = PackedColumn(len(lines), 4)
    held = np.zeros((len(lines), 4), np.bool_)
    for row, line in enumerate(lines):
        places = row * 4 + np.arange(len(line))
        column.put(places, np.array(line), held.copy)
        held.reshape(-1)[places] = True
    for row, line in enumerate(lines):
        np.testing.assert_array_equal(column.take(row * 4 + np.arange(len(line))), np.array(line))


def test_a_value_wider_than_the_rest_widens_its_own_column_only():
    """Rule: whole percents take two bytes until something else comes."""
    column = PackedColumn(1000, 4)
    everything = np.arange(4000)

    def nothing():
        return np.zeros((1000, 4), np.bool_)

    column.put(everything, np.full(4000, 37.0), nothing)
    assert column.memory_bytes == 8000
    column.put(everything, np.full(4000, 37.125), nothing)
    assert column.memory_bytes == 16000
    column.put(everything, np.full(4000, 1 / 3), nothing)
    assert column.memory_bytes == 32000


def full(count, devices=2):
    """Samples with every reading, none of which fits a narrow form."""
    values = dict.fromkeys(SERIES, 1 / 3) | dict.fromkeys(
        ("memory_used_bytes", "memory_total_bytes", "memory_reserved_bytes"), 2**40 + 1
    )
    values |= {"corrected_errors": 2**40 + 1, "uncorrected_errors": 1}
    values |= {"pcie_generation": 5, "pcie_width": 16, "performance_state": 2}
    for number in range(count):
        yield GPUMetrics(f"cuda:{number % devices}", float(number), **values)


def test_many_samples_of_few_devices_take_no_more_than_their_history():
    """Rule: once the rings are full, nothing grows, and what is reported is what is there."""
    collector = TelemetryCollector(max_history=50)
    for sample in full(3000):
        collector.observe(sample)
    collector.get_metrics_history("cuda:0")
    before = collector.memory_bytes
    for sample in full(6000):
        collector.observe(sample)
    collector.get_metrics_history("cuda:0")
    assert collector.memory_bytes == before
    assert before < 1_000_000


def test_reported_memory_is_what_was_allocated():
    """Rule: the report is within a fifth of what the interpreter counts."""
    ids = [f"cuda:{number}" for number in range(2000)]
    shares = np.linspace(0, 100, len(ids))
    TelemetryCollector().record_batch(ids, shares, {})  # modules load before it counts
    tracemalloc.start()
    collector = TelemetryCollector(max_history=32, max_devices=2000)
    for step in range(32):
        readings = {"compute_utilization_percent": shares, "power_watts": shares}
        collector.record_batch(ids, np.full(len(ids), step / 3), readings)
    counted, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert collector.memory_bytes == pytest.approx(counted, rel=0.2)


def test_ten_thousand_devices_with_every_reading_of_a_card_fit():
    """Rule: 10,000 devices with 100 samples of 22 readings, as drivers give them: 100 MB."""
    count = 10_000
    chance = np.random.default_rng(7)
    collector = TelemetryCollector(max_history=100)
    rows = collector.rows([f"rig{number // 8}/cuda:{number % 8}" for number in range(count)])
    for step in range(101):
        readings = {name: chance.integers(0, 100, count).astype(float) for name in SERIES}
        for name in ("power_watts", "temperature_celsius", "memory_temperature_celsius"):
            readings[name] = chance.integers(0, 700_000, count) / 1000
        readings["energy_joules"] = 1e7 + chance.integers(0, 2**40, count) / 1000
        for name, most in (("memory_used_bytes", 2**24), ("memory_total_bytes", 2**25)):
            readings[name] = (2**24 * (most > 2**24) + chance.integers(0, 2**24, count)) * 4096.0
        result = collector.record_batch(rows, np.full(count, 1.7e9 + step), readings)
        assert result.refused_reading_count == 0
    assert collector.memory_bytes <= 100e6


def test_ids_that_somebody_invents_fill_nothing():
    """Rule: devices are bounded in columns as they are one by one."""
    collector = TelemetryCollector(max_history=2, max_devices=10)
    for start in range(0, 3000, 30):
        ids = [f"stranger:{start + number}" for number in range(30)]
        result = collector.record_batch(ids, np.ones(30), {})
        assert (result.sample_count, result.refused_sample_count) == (10, 20)
        collector.observe(GPUMetrics(f"another:{start}", 1.0))
    assert collector.get_aggregated_metrics()["device_count"] == 10
    assert collector.memory_bytes < 200_000


def test_reasons_that_somebody_invents_fill_nothing():
    """Rule: beyond a bound of different texts a history keeps the flags; the newest keeps all."""
    collector = TelemetryCollector(max_history=10_000, max_devices=2)
    count = remarks.MAX_REMARKS + 2000
    for number in range(count):
        why = {"power_watts": f"error {number}"}
        collector.observe(GPUMetrics("cuda:0", float(number), sleeping=True, missing_reasons=why))
    kept = collector.get_metrics_history("cuda:0")
    assert len(kept) == count
    assert all(sample.sleeping for sample in kept)
    told = [sample for sample in kept if sample.missing_reasons]
    assert len(told) < remarks.MAX_REMARKS
    assert collector.get_metrics("cuda:0").missing_reasons == why


def test_reasons_that_left_the_history_make_room_for_others():
    """Rule: only texts that a sample still holds count."""
    collector = TelemetryCollector(max_history=100)
    for number in range(3 * remarks.MAX_REMARKS):
        why = {"power_watts": f"error {number}"}
        collector.observe(GPUMetrics("cuda:0", float(number), missing_reasons=why))
    kept = collector.get_metrics_history("cuda:0")
    assert [sample.missing_reasons["power_watts"] for sample in kept] == [
        f"error {number}" for number in range(number - 99, number + 1)
    ]


def test_a_reason_without_an_end_is_not_kept():
    """Rule: a text beyond its bound leaves the flags."""
    book = Remarks()
    before = book.memory_bytes
    code = book.code(True, False, ("power",), {"power_watts": "x" * remarks.MAX_CHARACTERS})
    assert (book[code].sleeping, book[code].throttle_reasons) == (True, None)
    assert book.memory_bytes == before


def test_a_number_beyond_all_floats_spoils_no_other_sample():
    """Rule: what a column cannot hold is unknown in the history; the newest sample keeps it."""
    collector = TelemetryCollector()
    collector.observe(GPUMetrics("cuda:0", 1.0, corrected_errors=10**400))
    collector.observe(GPUMetrics("cuda:1", 1.0, corrected_errors=3))
    assert collector.get_metrics_history("cuda:0") == [GPUMetrics("cuda:0", 1.0)]
    assert collector.get_metrics_history("cuda:1") == [
        GPUMetrics("cuda:1", 1.0, corrected_errors=3)
    ]
    assert collector.get_metrics("cuda:0").corrected_errors == 10**400


@pytest.mark.anyio
async def test_a_loop_of_calls_lets_others_work():
    """Rule: between two turns of another task lie no more calls than fit into the bound."""
    collector = TelemetryCollector(max_history=1)
    sample = GPUMetrics("cuda:0", 1.0)
    seen = 0

    async def other(*, task_status):
        nonlocal seen
        task_status.started()
        while seen < 5:
            seen += 1
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as group:
        await group.start(other)
        with anyio.fail_after(60):
            while seen < 5:
                await collector.record_metrics(sample)


@pytest.mark.anyio
async def test_a_call_that_comes_alone_gives_a_turn_and_is_cancelled_before_it_keeps():
    """Rule: a cancellation arrives at a call that gives a turn, and its sample is not kept."""
    collector = TelemetryCollector()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await collector.record_metrics(GPUMetrics("cuda:0", 1.0))
    assert scope.cancelled_caught
    assert collector.get_metrics("cuda:0") is None


def test_a_turn_is_due_once_per_thread_and_stretch_of_time(monkeypatch):
    """Rule: due at first, not at once again, and due again when the bound has passed."""
    now = [5.0]
    monkeypatch.setattr(turns.time, "perf_counter", lambda: now[0])
    pace = turns.Turns()
    assert pace.due()
    anyio.run(pace.give)
    assert not pace.due()
    now[0] += 2 * turns.TURN_SECONDS
    assert pace.due()
