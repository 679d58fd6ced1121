"""The columns agree with a plain collector of objects, whatever comes in whatever order."""

from __future__ import annotations

import math

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from exo.gpu.telemetry.collector import TelemetryCollector
from exo.gpu.telemetry.table.remarks import Remark
from exo.gpu.vocabulary.metrics import BOUNDS, SERIES, GPUMetrics
from tests.telemetry.collector_model import Model, cleaned, near, same, totals

IDS = ("cuda:0", "rig2/cuda:0", "cpu:0")
STALE_SECONDS = 30.0

ids = st.sampled_from(IDS)
timestamps = st.one_of(st.integers(0, 9).map(float), st.floats(-1e9, 1e12))
# Whole, thousandths, KiB and what fits no narrow form; all exact as a float.
amounts = st.one_of(
    st.integers(0, 100).map(float),
    st.integers(0, 99_999).map(lambda value: value / 1000),
    st.floats(0, 100),
)
sizes = st.one_of(
    st.integers(0, 9), st.integers(0, 2**40).map(lambda k: 1024 * k), st.integers(0, 2**53)
)
texts = st.sampled_from(("", "not supported", "asleep"))
odd = st.one_of(
    amounts,
    sizes.map(float),
    st.sampled_from((math.nan, math.inf, -math.inf, -1.0, 1.5, 101.0, 1e308)),
)


@st.composite
def samples(draw):
    values = {}
    for name in draw(st.sets(st.sampled_from(SERIES), max_size=5)):
        values[name] = draw(sizes if BOUNDS[name].whole else amounts)
    used, total = values.get("memory_used_bytes"), values.get("memory_total_bytes")
    if used is not None and total is not None and used > total:
        del values["memory_used_bytes"]
    return GPUMetrics(
        draw(ids),
        draw(timestamps),
        sleeping=draw(st.booleans()),
        utilization_is_lower_bound=draw(st.booleans()),
        throttle_reasons=draw(st.none() | st.lists(texts, max_size=2).map(tuple)),
        missing_reasons=draw(st.dictionaries(st.sampled_from(SERIES), texts, max_size=2)),
        **values,
    )


lines = st.lists(st.tuples(ids, timestamps), max_size=8)


class Agreement(RuleBasedStateMachine):
    @initialize(history=st.integers(1, 6), devices=st.integers(1, 3))
    def start(self, history, devices):
        self.now = 1000.0
        self.collector = TelemetryCollector(
            history, clock=lambda: self.now, max_devices=devices, stale_after_seconds=STALE_SECONDS
        )
        self.model = Model(history, devices, STALE_SECONDS)
        self.held = None

    @rule(sample=samples())
    def observe(self, sample):
        before = self.collector.version
        self.collector.observe(sample)
        self.model.observe(sample, self.now)
        assert self.collector.version > before

    @rule(seconds=st.sampled_from((0.5, 31.0)))
    def time_passes(self, seconds):
        self.now += seconds

    @rule(device_id=ids)
    def forget(self, device_id):
        self.collector.forget(device_id)
        self.model.records.pop(device_id, None)

    @rule(lines=lines, data=st.data())
    def batch_by_id(self, lines, data):
        self.batch([one for one, _ in lines], lines, data, self.model.place)

    @rule(wanted=st.lists(ids, min_size=1, max_size=4))
    def take_rows(self, wanted):
        if len(set(wanted)) <= self.model.max_devices:
            self.held = self.collector.rows(wanted), wanted
            self.model.place(wanted)
            self.owners = [self.model.records[one] for one in wanted]

    @precondition(lambda self: self.held is not None)
    @rule(data=st.data())
    def batch_by_row(self, data):
        rows, named = self.held
        times = data.draw(st.lists(timestamps, min_size=len(named), max_size=len(named)))
        lines = list(zip(named, times, strict=True))
        self.batch(rows, lines, data, lambda _: None, self.owners)

    def batch(self, devices, lines, data, place, owners=None):
        names = data.draw(st.sets(st.sampled_from(SERIES), max_size=3))
        count = len(lines)
        columns = {n: data.draw(st.lists(odd, min_size=count, max_size=count)) for n in names}
        receipts = data.draw(
            st.none()
            | st.lists(st.floats(self.now - 40, self.now + 5), min_size=count, max_size=count)
        )
        result = self.collector.record_batch(
            devices, [time for _, time in lines], columns, received_at=receipts
        )
        place([one for one, _ in lines])
        kept = refused = 0
        for index, (device_id, timestamp) in enumerate(lines):
            record = self.model.records.get(device_id)
            sample = cleaned(device_id, timestamp, {n: v[index] for n, v in columns.items()})
            refused += len(sample.missing_reasons)
            if record is not None and (owners is None or record is owners[index]):
                received_at = self.now if receipts is None else min(self.now, receipts[index])
                self.model.keep(sample, received_at)
                kept += 1
        assert (result.sample_count, result.refused_sample_count) == (kept, count - kept)
        assert result.refused_reading_count == refused

    def teardown(self):
        self.histories_agree()

    @invariant()
    def newest_samples_and_ages_agree(self):
        for device_id in IDS:
            record = self.model.records.get(device_id)
            latest = None if record is None else record.latest
            assert same(self.collector.get_metrics(device_id), latest)
            age = None if latest is None else self.now - record.received_at
            assert self.collector.age_seconds(device_id) == age

    @rule()
    def histories_agree(self):
        for device_id in IDS:
            record = self.model.records.get(device_id)
            theirs = [] if record is None else [one[-1] for one in record.history]
            ours = self.collector.get_metrics_history(device_id)
            assert len(ours) == len(theirs)
            assert all(map(same, ours, theirs))

    @rule()
    def aggregates_agree(self):
        told = [
            (record.latest, self.now - record.received_at > STALE_SECONDS)
            for record in self.model.sampled().values()
        ]
        assert near(self.collector.aggregate().to_dict(), totals(told))


TestAgreement = Agreement.TestCase
TestAgreement.settings = settings(max_examples=150, stateful_step_count=30)


def test_a_remark_of_a_batch_is_kept_with_its_sample():
    """Rule: flags and reasons travel with a columnar batch as they do with a sample."""
    collector = TelemetryCollector(clock=lambda: 0.0)
    remark = Remark(
        sleeping=True,
        utilization_is_lower_bound=True,
        throttle_reasons=("power",),
        missing_reasons={"fan_percent": "no fan"},
    )
    collector.record_batch(
        ["a:0", "a:1"], [1.0, 1.0], {"power_watts": [-1.0, 5.0]}, remarks=[remark, None]
    )
    reasons = {"fan_percent": "no fan", "power_watts": "refused: not a number of at least 0"}
    assert collector.get_metrics("a:0") == GPUMetrics(
        "a:0",
        1.0,
        sleeping=True,
        utilization_is_lower_bound=True,
        throttle_reasons=("power",),
        missing_reasons=reasons,
    )
    assert collector.get_metrics("a:1") == GPUMetrics("a:1", 1.0, power_watts=5.0)
