"""Health over time: nothing flaps, the worst wins, events tell of changes only, memory is bounded."""

from __future__ import annotations

import logging
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo.gpu.telemetry.health.book import MAX_FAULTS, HealthBook, log_event
from exo.gpu.telemetry.health.rules import DEFAULT_RULES, SEVERITY, Rule
from exo.gpu.vocabulary.device import GPUDevice
from exo.gpu.vocabulary.errors import InvalidValue
from exo.gpu.vocabulary.health import DeviceFault, FaultAction, HealthEvent, ThrottleKind
from exo.gpu.vocabulary.metrics import GPUMetrics
from exo.gpu.vocabulary.snapshot import Health

CARD = GPUDevice("cuda:0", "Card", "NVIDIA", "cuda", warn_celsius=87.0, critical_celsius=92.0)
NAME = CARD.device_id


class Bench:
    """A book on a clock that tests turn, and all events that it gave."""

    def __init__(self, *, watch: bool = True, **options) -> None:
        self.now = 1000.0
        self.book = HealthBook(clock=lambda: self.now, wall_clock=lambda: 1e9 + self.now, **options)
        self.events: list[HealthEvent] = []
        if watch:
            self.book.watch(CARD)

    def sample(self, seconds: float = 1.0, device_id: str = NAME, **readings) -> Health:
        self.now += seconds
        sample = GPUMetrics(device_id, 1.0, **readings)
        self.events += self.book.observe(sample, self.now)
        return self.book.verdict(device_id).health

    def fail(self, reason: str, seconds: float = 1.0, *, hanging: bool = False) -> Health:
        self.now += seconds
        self.events += self.book.fail(NAME, reason, self.now, hanging=hanging)
        return self.book.verdict(NAME).health

    def fault(self, action: FaultAction, code: int = 79) -> Health:
        fault = DeviceFault(device_id=NAME, code=code, what=f"XID {code}", action=action, at=1.0)
        self.events += self.book.fault(fault)
        return self.book.verdict(NAME).health

    def wait(self, seconds: float) -> Health:
        self.now += seconds
        self.events += self.book.check()
        return self.book.verdict(NAME).health

    @property
    def reasons(self) -> tuple[str, ...]:
        return self.book.verdict(NAME).reasons


@pytest.fixture
def bench() -> Bench:
    return Bench()


# Temperature


def test_a_device_leaves_a_temperature_two_degrees_below_where_it_entered(bench):
    """Rule: above the limit degraded, until two degrees below it."""
    told = [bench.sample(temperature_celsius=celsius) for celsius in (87, 87.1, 86, 85.1, 85, 87)]
    hot = Health.DEGRADED
    assert told == [Health.OK, hot, hot, hot, Health.OK, Health.OK]
    assert [(event.before, event.after) for event in bench.events] == [
        (Health.OK, hot),
        (hot, Health.OK),
    ]


@given(st.lists(st.floats(85.01, 87.0), max_size=50), st.booleans())
def test_within_the_band_nothing_ever_changes(celsius, hot):
    """Rule: between leaving and entering, a device stays what it was."""
    bench = Bench()
    bench.sample(temperature_celsius=90.0 if hot else 20.0)
    before = list(bench.events)
    for value in celsius:
        bench.sample(temperature_celsius=value)
    assert bench.events == before


def test_a_device_without_limits_is_judged_by_the_usual_ones():
    """Rule: 80 C warns where the device states nothing, and 90 C keeps no work away."""
    bench = Bench(watch=False)
    assert bench.sample(temperature_celsius=81.0) is Health.DEGRADED
    assert bench.reasons == ("hot: above 80 C (the usual limit)",)
    assert bench.sample(temperature_celsius=120.0) is Health.DEGRADED


def test_a_powered_down_device_is_no_longer_hot(bench):
    """Rule: sleep ends what is known of heat and throttling."""
    bench.sample(temperature_celsius=99.0)
    assert bench.sample(sleeping=True) is Health.SLEEPING
    assert bench.sample(temperature_celsius=86.0) is Health.OK


# Throttling


def test_throttling_counts_when_it_lasts_and_ends_when_it_stays_away(bench):
    """Rule: ten seconds of it degrade, ten seconds without it restore."""
    hot = {"throttle_kinds": (ThrottleKind.THERMAL,)}
    assert {bench.sample(**hot) for _ in range(10)} == {Health.OK}
    assert bench.sample(**hot) is Health.DEGRADED
    assert {bench.sample(throttle_kinds=()) for _ in range(9)} == {Health.DEGRADED}
    assert bench.sample(**hot) is Health.DEGRADED  # and the time away counts anew
    assert {bench.sample(throttle_kinds=()) for _ in range(10)} == {Health.DEGRADED}
    assert bench.sample(throttle_kinds=()) is Health.OK
    assert len(bench.events) == 2


# Errors of memory


def test_an_uncorrected_error_degrades_for_an_hour(bench):
    """Rule: the first value is no error, a rise is, and an hour later it is over."""
    assert bench.sample(uncorrected_errors=5) is Health.OK
    assert bench.sample(uncorrected_errors=6) is Health.DEGRADED
    assert bench.sample(3500, uncorrected_errors=6) is Health.DEGRADED
    assert bench.sample(101, uncorrected_errors=6) is Health.OK


def test_many_uncorrected_errors_are_a_failure(bench):
    """Rule: ten within an hour."""
    bench.sample(uncorrected_errors=0)
    told = [bench.sample(uncorrected_errors=count) for count in (4, 9, 10)]
    assert told == [Health.DEGRADED, Health.DEGRADED, Health.FAILED]


def test_corrected_errors_count_by_their_rate(bench):
    """Rule: more than ten a minute."""
    for count in range(0, 100, 10):
        assert bench.sample(61, corrected_errors=count) is Health.OK
    assert bench.sample(corrected_errors=101) is Health.DEGRADED
    assert bench.sample(61, corrected_errors=101) is Health.OK


def test_a_counter_that_steps_back_is_a_reset(bench):
    """Rule: a reset forgets the errors and the faults before it, and is no error itself."""
    bench.sample(uncorrected_errors=5)
    bench.sample(uncorrected_errors=7)
    assert bench.fault(FaultAction.RESET_DEVICE) is Health.FAILED
    assert bench.sample(uncorrected_errors=0) is Health.OK
    assert bench.sample(uncorrected_errors=1) is Health.DEGRADED


def test_one_low_reading_of_a_counter_is_no_error_when_it_is_back(bench):
    """Rule: a counter that returns to its very value has not risen."""
    bench.sample(uncorrected_errors=5)
    bench.sample(uncorrected_errors=0)
    assert bench.sample(uncorrected_errors=5) is Health.OK


def test_the_energy_counter_shows_a_reset_too(bench):
    """Rule: it counts since the driver was loaded."""
    bench.sample(energy_joules=100.0)
    bench.fault(FaultAction.RESET_DEVICE)
    assert bench.sample(energy_joules=101.0) is Health.FAILED
    assert bench.sample(energy_joules=1.0) is Health.OK


# Faults


@pytest.mark.parametrize(
    ("action", "health", "reasons"),
    [
        (FaultAction.IGNORE, Health.OK, ()),
        (FaultAction.RESTART_APPLICATION, Health.OK, ()),
        (FaultAction.CHECK, Health.DEGRADED, ("XID 79: somebody has to look",)),
        (FaultAction.RESET_DEVICE, Health.FAILED, ("XID 79: it needs a reset",)),
        (
            FaultAction.RESTART_MACHINE,
            Health.FAILED,
            ("XID 79: the machine needs a restart",),
        ),
    ],
)
def test_a_fault_means_what_it_asks_for(bench, action, health, reasons):
    """Rule: what concerns the program alone changes nothing; what needs a reset is a failure."""
    bench.sample()
    assert bench.fault(action) is health
    assert bench.reasons == reasons
    assert bench.sample(temperature_celsius=20.0) is health


def test_faults_stand_until_they_are_cleared(bench):
    """Rule: neither time nor good readings clear a fault; a probe, an uncordon or a reset does."""
    bench.sample()
    bench.fault(FaultAction.RESET_DEVICE, 62)
    assert bench.fault(FaultAction.RESET_DEVICE, 119) is Health.FAILED
    assert bench.reasons == ("XID 62; XID 119: it needs a reset",)
    assert [fault.code for fault in bench.book.verdict(NAME).faults] == [62, 119]
    assert bench.sample(86400) is Health.FAILED
    bench.events += bench.book.clear_faults(NAME)
    assert bench.book.verdict(NAME).health is Health.OK
    assert bench.book.clear_faults("cuda:9") == []


def test_of_many_faults_the_newest_are_kept(bench):
    """Rule: a GPU that fails in ever new ways fills no memory."""
    for code in range(40):
        bench.fault(FaultAction.CHECK, code)
    kept = [fault.code for fault in bench.book.verdict(NAME).faults]
    assert kept == list(range(40 - MAX_FAULTS, 40))


def test_the_same_fault_again_is_no_news(bench):
    """Rule: a GPU that repeats its fault is told of once."""
    bench.sample()
    for _ in range(5):
        bench.fault(FaultAction.RESET_DEVICE)
    assert len(bench.events) == 1


# Silence, failure, absence


def test_silence_makes_lost_and_a_word_ends_it(bench):
    """Rule: after thirty seconds without a word; time alone shows it."""
    bench.sample()
    assert bench.wait(30.0) is Health.OK
    assert bench.wait(0.5) is Health.LOST
    assert bench.reasons == ("no sample for more than 30 s",)
    assert bench.sample() is Health.OK


def test_a_longer_cadence_makes_silence_longer():
    """Rule: three cadences, where they are longer than thirty seconds."""
    bench = Bench(watch=False)
    bench.book.watch(CARD, cadence_seconds=60.0)
    bench.sample()
    assert bench.wait(170.0) is Health.OK
    assert bench.wait(11.0) is Health.LOST
    assert bench.reasons == ("no sample for more than 180 s",)


def test_one_failed_read_is_nothing_and_five_seconds_of_them_are(bench):
    """Rule: transient errors pass; what goes on is a failure, with the first reason."""
    bench.sample()
    assert bench.fail("unknown error") is Health.OK
    assert bench.sample() is Health.OK
    assert bench.fail("GPU is lost") is Health.OK
    assert bench.fail("GPU is lost", 4.0) is Health.OK
    assert bench.wait(1.0) is Health.FAILED
    assert bench.reasons == ("it cannot be read: GPU is lost",)
    assert bench.fail("GPU is lost", 60.0) is Health.FAILED  # it answers, if only with an error


def test_a_hanging_call_degrades_and_then_loses_the_device(bench):
    """Rule: degraded at once; lost after so much silence as anybody; well with the next sample."""
    bench.sample()
    assert bench.fail("no answer", 2.0, hanging=True) is Health.DEGRADED
    assert bench.reasons == ("a call to its driver hangs",)
    assert bench.fail("no answer", 29.0, hanging=True) is Health.LOST
    assert bench.sample() is Health.OK


def test_a_device_that_the_inventory_misses_is_lost_until_it_is_found(bench):
    """Rule: though its last sample is fresh; and its own limits are taken anew."""
    other = GPUDevice("cuda:1", "Card", "NVIDIA", "cuda")
    bench.sample()
    bench.events += bench.book.inventory([other])
    assert bench.reasons == ("missing since the last inventory",)
    assert bench.sample() is Health.LOST
    bench.events += bench.book.inventory([CARD, other])
    assert bench.book.verdict(NAME).health is Health.OK
    assert bench.book.verdict("cuda:1").reasons == ("no sample yet",)


def test_a_device_never_heard_of_is_sound():
    """Rule: it is eligible on its capabilities, with the reason."""
    bench = Bench()
    assert bench.wait(1e6) is Health.OK
    assert bench.reasons == ("no sample yet",)
    assert bench.book.verdict("nobody").reasons == ("no sample yet",)
    assert bench.events == []


# Always


READING = st.fixed_dictionaries(
    {
        "temperature_celsius": st.none() | st.floats(20, 110),
        "throttle_kinds": st.none() | st.lists(st.sampled_from(ThrottleKind)).map(tuple),
        "corrected_errors": st.none() | st.integers(0, 50),
        "uncorrected_errors": st.none() | st.integers(0, 20),
        "energy_joules": st.none() | st.floats(0, 1e6),
        "sleeping": st.booleans(),
    }
)
STEP = st.one_of(
    st.tuples(st.just("sample"), READING),
    st.tuples(st.just("fail"), st.booleans()),
    st.tuples(st.just("fault"), st.tuples(st.sampled_from(FaultAction), st.integers(1, 99))),
    st.tuples(st.just("inventory"), st.booleans()),
    st.tuples(st.just("clear"), st.none()),
    st.tuples(st.just("wait"), st.floats(0, 100)),
)


def play(bench: Bench, steps) -> None:
    for kind, value in steps:
        if kind == "sample":
            bench.sample(**value)
        elif kind == "fail":
            bench.fail("no", hanging=value)
        elif kind == "fault":
            bench.fault(*value)
        elif kind == "inventory":
            bench.events += bench.book.inventory([CARD] if value else [])
        elif kind == "clear":
            bench.events += bench.book.clear_faults(NAME)
        else:
            bench.wait(value)


@given(st.lists(STEP, max_size=40))
def test_events_tell_every_change_and_only_changes(steps):
    """Rule: each event goes on from the one before, changes something, and ends in the verdict."""
    bench = Bench()
    play(bench, steps)
    told = [(Health.OK, ()), *((event.after, event.reasons) for event in bench.events)]
    assert all(before != after for before, after in pairwise(told))
    assert [event.before for event in bench.events] == [health for health, _ in told[:-1]]
    verdict = bench.book.verdict(NAME)
    shown = () if verdict.reasons == ("no sample yet",) else verdict.reasons
    assert (verdict.health, shown) == told[-1]


THREE = {
    "fan_percent": Health.DEGRADED,
    "memory_utilization_percent": Health.FAILED,
    "compute_utilization_percent": Health.LOST,
}


@given(st.fixed_dictionaries({name: st.none() | st.integers(0, 100) for name in THREE}))
def test_the_worst_wins(readings):
    """Rule: the verdict is the worst that holds, all that hold are its reasons, the worst first."""
    rules = [
        Rule(name=name, looks_at=name, above=50, until=50, health=health, message=health)
        for name, health in THREE.items()
    ]
    bench = Bench(rules=rules)
    bench.sample(**readings)
    holding = [health for name, health in THREE.items() if (readings[name] or 0) > 50]
    worst_first = sorted(holding, key=SEVERITY.index, reverse=True)
    verdict = bench.book.verdict(NAME)
    assert verdict.reasons == tuple(worst_first)
    assert verdict.health == next(iter(worst_first), Health.OK)


@given(st.lists(STEP, max_size=60))
def test_what_is_kept_of_a_device_is_bounded(steps):
    """Rule: whatever happens, no more than so many faults and one reason a rule."""
    bench = Bench()
    play(bench, steps)
    verdict = bench.book.verdict(NAME)
    assert len(verdict.faults) <= MAX_FAULTS
    assert len(verdict.reasons) <= len(DEFAULT_RULES)


@given(st.lists(STEP, max_size=20), st.integers(1, 5))
def test_an_unknown_reading_changes_nothing(steps, count):
    """Rule: None neither worsens nor improves; only the sample's coming and going of sleep does."""
    bench = Bench()
    play(bench, steps)
    bench.sample(0.0)
    before = bench.book.verdict(NAME)
    for _ in range(count):
        bench.sample(0.0)
    assert bench.book.verdict(NAME) == before


def test_since_is_when_the_health_began_not_its_reasons(bench):
    """Rule: another reason is an event, and no other beginning."""
    bench.sample(temperature_celsius=20.0)
    began = bench.book.verdict(NAME).since
    assert began == 1e9 + bench.now
    bench.sample(temperature_celsius=88.0)
    since = bench.book.verdict(NAME).since
    assert since == 1e9 + bench.now
    bench.fault(FaultAction.CHECK)
    assert len(bench.events) == 2
    assert bench.book.verdict(NAME).since == since


def test_a_sender_that_invents_devices_cannot_fill_the_memory():
    """Rule: the one not heard of for longest goes first."""
    bench = Bench(watch=False, max_devices=3)
    for number in range(10):
        bench.sample(device_id=f"cuda:{number}", temperature_celsius=99.0)
    assert bench.book.verdict("cuda:6").reasons == ("no sample yet",)
    assert bench.book.verdict("cuda:7").health is Health.DEGRADED
    bench.book.forget("cuda:7")
    bench.book.forget("cuda:7")
    assert bench.book.verdict("cuda:7").reasons == ("no sample yet",)


def test_rules_of_one_name_are_refused():
    """Rule: two rules that could not be told apart are a mistake."""
    with pytest.raises(InvalidValue, match="different names"):
        HealthBook([DEFAULT_RULES[0], DEFAULT_RULES[0]])
    with pytest.raises(InvalidValue, match="max_devices"):
        HealthBook(max_devices=0)


def test_the_log_warns_of_what_became_worse(caplog):
    """Rule: one line an event; a warning where it became worse, else information."""
    caplog.set_level(logging.INFO, logger="exo.gpu.telemetry.health")
    worse = HealthEvent(
        device_id=NAME, before=Health.OK, after=Health.FAILED, reasons=("a", "b"), at=1.0
    )
    log_event(worse)
    log_event(HealthEvent(device_id=NAME, before=Health.FAILED, after=Health.OK, at=2.0))
    assert [(one.levelname, one.message) for one in caplog.records] == [
        ("WARNING", "cuda:0 is failed, and was ok: a; b"),
        ("INFO", "cuda:0 is ok, and was failed"),
    ]
