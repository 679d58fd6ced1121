"""The sampler with real threads: faults of one device, of the sink and of clocks touch nothing else."""

from __future__ import annotations

import logging
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from exo.gpu.telemetry.sampling.observation import Observation
from exo.gpu.telemetry.sampling.readers import DeviceReader
from exo.gpu.telemetry.sampling.sampler import TelemetrySampler
from exo.gpu.vocabulary.errors import BackendError, DeviceLost, InvalidValue, ManagerClosed
from exo.gpu.vocabulary.metrics import GPUMetrics
from tests.backends.conftest import nvml, nvml_library
from tests.backends.nvml.fake_nvml import H100, FakeNvml
from tests.backends.nvml.opening import closed, opened

__all__ = ["closed", "nvml", "nvml_library"]

LONG_SECONDS = 30
FAST = {"cadence_seconds": 0.01, "slow_cadence_seconds": 0.05}


class Sink:
    """Keeps what it is told, and lets a test wait for more."""

    def __init__(self) -> None:
        self.told: list[Observation] = []
        self._changed = threading.Condition()

    def __call__(self, observation: Observation) -> None:
        with self._changed:
            self.told.append(observation)
            self._changed.notify_all()

    def of(self, device_id: str) -> list[Observation]:
        return [one for one in self.told if one.device_id == device_id]

    def wait(self, enough: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(enough, LONG_SECONDS)

    def wait_for(self, device_id: str, count: int) -> list[Observation]:
        """So many more observations of a device than there are."""
        before = len(self.of(device_id))
        self.wait(lambda: len(self.of(device_id)) >= before + count)
        return self.of(device_id)[before:]


@pytest.fixture
def sink() -> Sink:
    return Sink()


@pytest.fixture
def hang() -> Iterator[threading.Event]:
    """A hanging call returns when this is set."""
    release = threading.Event()
    yield release
    release.set()


def steady(device_id: str, **readings: float) -> Callable[[bool], GPUMetrics]:
    return lambda _dear: GPUMetrics(device_id, 1.0, **readings)  # pyright: ignore[reportArgumentType] - numbers of any kind


def test_devices_are_sampled_over_and_over(sink: Sink) -> None:
    """Rule: samples come in the order of time, on one thread, each with its time of receipt."""
    threads: set[str] = set()

    def tell(observation: Observation) -> None:
        threads.add(threading.current_thread().name)
        sink(observation)

    with TelemetrySampler(tell, **FAST) as sampler:
        sampler.start()  # harmless twice
        for name in ("cuda:0", "cpu:0"):
            sampler.watch(name, steady(name, temperature_celsius=50))
        for name in ("cuda:0", "cpu:0"):
            sink.wait_for(name, 5)
    for name in ("cuda:0", "cpu:0"):
        seen = sink.of(name)
        assert all(one.sample is not None and one.sample.device_id == name for one in seen)
        assert all(not one.failure and not one.hanging for one in seen)
        times = [one.received_at for one in seen]
        assert times == sorted(times)
    assert threads == {"exo-gpu-sampler"}


def test_dear_readings_are_asked_for_seldom(sink: Sink) -> None:
    """Rule: the reader is told when the slow tick has come, at first and then now and then."""
    wishes: list[bool] = []

    def read(dear: bool) -> GPUMetrics:
        wishes.append(dear)
        return GPUMetrics("cuda:0", 1.0)

    with TelemetrySampler(sink, cadence_seconds=0.01, slow_cadence_seconds=0.1) as sampler:
        sampler.watch("cuda:0", read)
        sink.wait(lambda: sum(wishes) >= 3)
    assert wishes[0]
    assert wishes.count(False) > wishes.count(True)


def test_a_device_lost_in_the_middle_touches_no_other(nvml: FakeNvml, sink: Sink) -> None:
    """Rule: a GPU that falls off the bus fails with its reason; the other is sampled as before."""
    nvml.write(H100, H100)
    backend = opened(nvml)
    with TelemetrySampler(sink, **FAST) as sampler:
        for name in ("cuda:0", "cuda:1"):
            sampler.watch(name, DeviceReader(backend, name))
        sink.wait_for("cuda:0", 3)
        nvml.change("0.lost_after", 5)
        sink.wait(lambda: any(one.failure for one in sink.of("cuda:0")))
        after = sink.wait_for("cuda:1", 3)
        nvml.change("0.lost_after", None)
        sink.wait(lambda: not sink.of("cuda:0")[-1].failure)
    failed = [one for one in sink.of("cuda:0") if one.failure]
    assert all(one.sample is None and "GPU is lost" in one.failure for one in failed)
    assert not any(one.hanging for one in failed)
    assert all(one.sample is not None for one in after)


def test_a_hanging_call_costs_one_thread_and_one_device(sink: Sink, hang: threading.Event) -> None:
    """Rule: it is reported once, never asked again while it hangs, and its late answer is dropped."""
    calls: list[bool] = []

    def read(dear: bool) -> GPUMetrics:
        calls.append(dear)
        if len(calls) == 2:
            hang.wait()
        return GPUMetrics("slow:0", float(len(calls)))

    with TelemetrySampler(sink, deadline_seconds=1, **FAST) as sampler:
        sampler.watch("slow:0", read)
        sampler.watch("cpu:0", steady("cpu:0"))
        sink.wait(lambda: any(one.hanging for one in sink.of("slow:0")))
        assert sampler.hanging == ("slow:0",)
        sink.wait_for("cpu:0", 20)
        assert len(calls) == 2
        names = [thread.name for thread in threading.enumerate()]
        assert names.count("exo-gpu-read-slow:0") == 1
        first, hung = sink.of("slow:0")
        assert first.sample is not None
        assert (hung.sample, hung.failure) == (None, "no answer within 1 s")
        hang.set()
        (back,) = sink.wait_for("slow:0", 1)[:1]
        assert back.sample is not None
        assert back.sample.timestamp == 3  # the second answer came too late
        assert sampler.hanging == ()


def test_watching_a_hanging_device_anew_starts_no_second_thread(
    sink: Sink, hang: threading.Event
) -> None:
    """Rule: while its old call hangs, a device forgotten and watched again has the same thread."""

    def read(_dear: bool) -> GPUMetrics:
        hang.wait()
        return GPUMetrics("slow:0", 1.0)

    with TelemetrySampler(sink, deadline_seconds=1, **FAST) as sampler:
        sampler.watch("slow:0", read)
        for _ in range(3):
            sink.wait_for("slow:0", 1)
            sampler.forget("slow:0")
            sampler.watch("slow:0", steady("slow:0"))
        names = [thread.name for thread in threading.enumerate()]
        assert names.count("exo-gpu-read-slow:0") == 1
        assert all(one.hanging for one in sink.of("slow:0"))
        hang.set()
        sink.wait(lambda: sink.of("slow:0")[-1].sample is not None)


def test_a_forgotten_device_gives_its_thread_back(sink: Sink, hang: threading.Event) -> None:
    """Rule: the thread of an idle device ends at once, that of a hanging one when it returns."""

    def read(_dear: bool) -> GPUMetrics:
        hang.wait()
        return GPUMetrics("slow:0", 1.0)

    def threads() -> set[str]:
        return {thread.name for thread in threading.enumerate()} & {
            "exo-gpu-read-slow:0",
            "exo-gpu-read-idle:0",
        }

    with TelemetrySampler(sink, deadline_seconds=1, **FAST) as sampler:
        sampler.watch("slow:0", read)
        sampler.watch("idle:0", steady("idle:0"))
        sampler.watch("cpu:0", steady("cpu:0"))
        sink.wait(lambda: any(one.hanging for one in sink.told))
        for name in ("slow:0", "idle:0", "never heard of"):
            sampler.forget(name)
        sink.wait(lambda: "exo-gpu-read-idle:0" not in threads())
        told = len(sink.of("slow:0"))
        sink.wait_for("cpu:0", 3)
        assert threads() == {"exo-gpu-read-slow:0"}
        hang.set()
        sink.wait(lambda: not threads())
        assert len(sink.of("slow:0")) == told


def test_stopping_ends_all_but_what_hangs(sink: Sink, hang: threading.Event) -> None:
    """Rule: stop() returns while a call hangs, tells nothing more, and is for good."""

    def read(_dear: bool) -> GPUMetrics:
        hang.wait()
        return GPUMetrics("slow:0", 1.0)

    sampler = TelemetrySampler(sink, deadline_seconds=1, **FAST)
    sampler.watch("slow:0", read)
    sampler.watch("cpu:0", steady("cpu:0"))
    sampler.start()
    sink.wait_for("cpu:0", 1)
    sampler.stop()
    told = len(sink.told)
    names = {thread.name for thread in threading.enumerate()}
    assert not names & {"exo-gpu-sampler", "exo-gpu-read-cpu:0"}
    hang.set()
    sampler.stop()
    sampler.forget("cpu:0")
    with pytest.raises(ManagerClosed, match="stopped"):
        sampler.watch("cpu:0", steady("cpu:0"))
    with pytest.raises(ManagerClosed, match="stopped"):
        sampler.start()
    assert len(sink.told) == told


def test_what_was_never_started_can_be_stopped(sink: Sink) -> None:
    """Rule: stop() before start() ends nothing and refuses the start."""
    sampler = TelemetrySampler(sink)
    sampler.stop()
    with pytest.raises(ManagerClosed):
        sampler.start()


def test_the_sink_may_stop_the_sampler() -> None:
    """Rule: stop() from within the sink does not wait for itself."""
    done = threading.Event()

    def tell(_observation: Observation) -> None:
        sampler.stop()
        done.set()

    sampler = TelemetrySampler(tell, **FAST)
    sampler.watch("cpu:0", steady("cpu:0"))
    sampler.start()
    assert done.wait(LONG_SECONDS)


def test_a_sink_that_hangs_does_not_hold_up_stopping(
    hang: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    """Rule: stop() waits for a sink only so long, and says so."""
    entered = threading.Event()

    def tell(_observation: Observation) -> None:
        entered.set()
        hang.wait()

    sampler = TelemetrySampler(tell, **FAST)
    sampler.watch("cpu:0", steady("cpu:0"))
    sampler.start()
    assert entered.wait(LONG_SECONDS)
    sampler.stop(timeout_seconds=0.05)
    assert "did not return within 0.05 s" in caplog.text


def test_a_sink_that_raises_is_logged_once(sink: Sink, caplog: pytest.LogCaptureFixture) -> None:
    """Rule: what listens cannot end what measures; a row of failures is one line of log."""

    def tell(observation: Observation) -> None:
        sink(observation)
        raise KeyError("no room")

    with caplog.at_level(logging.WARNING, "exo.gpu"), TelemetrySampler(tell, **FAST) as sampler:
        sampler.watch("cpu:0", steady("cpu:0"))
        sink.wait_for("cpu:0", 5)
    lines = [record.getMessage() for record in caplog.records]
    assert lines == ["the sink of samples failed; sampling goes on"]


def test_pausing_and_resuming(sink: Sink) -> None:
    """Rule: a paused sampler asks nobody, and goes on where it was."""
    asked = threading.Semaphore(0)

    def read(_dear: bool) -> GPUMetrics:
        asked.release()
        return GPUMetrics("cpu:0", 1.0)

    with TelemetrySampler(sink, **FAST) as sampler:
        sampler.watch("cpu:0", read)
        sink.wait_for("cpu:0", 2)
        sampler.pause()
        sampler.watch("mark:0", steady("mark:0"))
        while asked.acquire(timeout=0.1):  # until for ten cadences nothing is asked
            pass
        assert sink.of("mark:0") == []
        sampler.resume()
        sink.wait_for("cpu:0", 2)
        sink.wait(lambda: bool(sink.of("mark:0")))


def test_a_wall_clock_that_steps_back_changes_nothing(sink: Sink) -> None:
    """Rule: samples whose own time is an hour earlier come as before, with power from energy."""
    wall = iter([10_000.0, 10_001.0, *(6_400.0 + second for second in range(1000))])
    energy = iter(range(0, 100_000, 10))

    def read(_dear: bool) -> GPUMetrics:
        return GPUMetrics("cuda:0", next(wall), energy_joules=next(energy))

    with TelemetrySampler(sink, cadence_seconds=0.02) as sampler:
        sampler.watch("cuda:0", read)
        sink.wait_for("cuda:0", 6)
    samples = [one.sample for one in sink.of("cuda:0") if one.sample is not None]
    assert samples[2].timestamp < samples[1].timestamp
    assert all(sample.power_watts for sample in samples[1:])
    times = [one.received_at for one in sink.of("cuda:0")]
    assert times == sorted(times)


def test_a_sleeping_gpu_is_not_woken(nvml: FakeNvml, sink: Sink) -> None:
    """Rule: what sleeps is asked no driver, only whether it still sleeps."""
    nvml.write(H100, H100)
    power = nvml.description.parent / "sys/bus/pci/devices/0000:01:00.0/power"
    power.mkdir(parents=True)
    (power / "runtime_status").write_text("suspended\n")
    backend = opened(nvml)
    nvml.change("0.lost_after", 0)  # any question would end in DeviceLost
    with TelemetrySampler(sink, **FAST) as sampler:
        for name in ("cuda:0", "cuda:1"):
            sampler.watch(name, DeviceReader(backend, name))
        sink.wait_for("cuda:1", 20)
    asleep = sink.of("cuda:0")
    assert all(one.sample is not None and one.sample.sleeping for one in asleep)
    assert len(asleep) < len(sink.of("cuda:1"))


def test_a_failing_device_is_asked_less_and_less(
    sink: Sink, caplog: pytest.LogCaptureFixture
) -> None:
    """Rule: failures back off, and the log tells their beginning and end, not each of them."""
    tries: list[bool] = []

    def read(dear: bool) -> GPUMetrics:
        tries.append(dear)
        if len(tries) < 5:
            raise BackendError("no answer from the bus")
        return GPUMetrics("odd:0", 1.0)

    with caplog.at_level(logging.INFO, "exo.gpu"), TelemetrySampler(sink, **FAST) as sampler:
        sampler.watch("odd:0", read)
        sampler.watch("cpu:0", steady("cpu:0"))
        sink.wait(lambda: any(one.sample for one in sink.of("odd:0")))
    assert [one.failure for one in sink.of("odd:0")][:5] == ["no answer from the bus"] * 4 + [""]
    assert all(tries[:5])  # the dear readings stay due until they are taken
    assert len(sink.of("odd:0")) < len(sink.of("cpu:0"))
    lines = [record.getMessage() for record in caplog.records]
    assert lines == ["odd:0 cannot be read: no answer from the bus", "odd:0 is read again"]


@pytest.mark.parametrize(
    ("read", "reason"),
    [
        (lambda _dear: 1 / 0, "division by zero"),
        (lambda _dear: None, "NoneType, no sample"),
    ],
)
def test_whatever_a_driver_does_costs_its_own_device_only(
    sink: Sink, read: Callable[[bool], GPUMetrics], reason: str
) -> None:
    """Rule: any exception, or an answer that is no sample, becomes that device's reason."""
    with TelemetrySampler(sink, **FAST) as sampler:
        sampler.watch("odd:0", read)
        sampler.watch("cpu:0", steady("cpu:0"))
        sink.wait_for("cpu:0", 3)
        sink.wait(lambda: bool(sink.of("odd:0")))
    assert reason in sink.of("odd:0")[0].failure
    assert all(one.sample is not None for one in sink.of("cpu:0"))


def test_an_exception_without_words_has_its_name(sink: Sink) -> None:
    """Rule: a failure is never empty."""

    def read(_dear: bool) -> GPUMetrics:
        raise DeviceLost

    with TelemetrySampler(sink, **FAST) as sampler:
        sampler.watch("odd:0", read)
        sink.wait_for("odd:0", 1)
    assert sink.of("odd:0")[0].failure == "DeviceLost"


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_an_impossible_cadence_is_refused_at_once(sink: Sink, seconds: float) -> None:
    """Rule: the caller hears of it, not a thread."""
    with TelemetrySampler(sink) as sampler, pytest.raises(InvalidValue, match="cadence_seconds"):
        sampler.watch("cpu:0", steady("cpu:0"), cadence_seconds=seconds)
    with pytest.raises(InvalidValue, match="deadline_seconds"):
        TelemetrySampler(sink, deadline_seconds=seconds)


PROGRAM = textwrap.dedent(
    """
    import threading
    from exo.gpu.telemetry.sampling.sampler import TelemetrySampler
    from exo.gpu.vocabulary.metrics import GPUMetrics

    hung, sampled = threading.Event(), threading.Event()

    def tell(observation):
        (hung if observation.hanging else sampled).set()

    def hang(dear):
        threading.Event().wait()

    sampler = TelemetrySampler(tell, cadence_seconds=0.01, deadline_seconds=1)
    sampler.watch("slow:0", hang)
    sampler.watch("cpu:0", lambda dear: GPUMetrics("cpu:0", 1.0))
    sampler.start()
    assert hung.wait(30) and sampled.wait(30)
    print(*sampler.hanging)
    {ending}
    """
)


@pytest.mark.parametrize("ending", ["", "sampler.stop()"])
def test_a_call_that_hangs_for_ever_does_not_keep_the_program_from_exiting(ending: str) -> None:
    """Rule: a program with a hanging driver call ends by itself, stopped or not."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(ending=ending)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "slow:0")
    assert done.stderr == "slow:0 cannot be read: no answer within 1 s\n"


def test_a_wedged_driver_library_does_not_keep_the_program_from_exiting(
    nvml: FakeNvml, tmp_path: Path
) -> None:
    """Rule: the same holds where the call hangs inside the vendor's library."""
    nvml.write(H100, H100)
    program = textwrap.dedent(
        f"""
        import os, sys, threading
        from pathlib import Path
        from exo.gpu.backends.cuda import CudaBackend
        from exo.gpu.telemetry.sampling.readers import DeviceReader
        from exo.gpu.telemetry.sampling.sampler import TelemetrySampler

        description, fifo = Path({str(nvml.description)!r}), {str(tmp_path / "fifo")!r}
        backend = CudaBackend(environ={{}}, library={nvml.library!r}, sysfs=Path("/nonexistent"))
        backend.find()
        os.mkfifo(fifo)
        hung, after = threading.Event(), threading.Event()

        def tell(observation):
            if observation.hanging:
                hung.set()
            elif hung.is_set() and observation.sample is not None:
                after.set()

        sampler = TelemetrySampler(tell, cadence_seconds=0.01, deadline_seconds=1)
        for name in ("cuda:0", "cuda:1"):
            sampler.watch(name, DeviceReader(backend, name))
        sampler.start()
        description.write_text(description.read_text() + f"0.block={{fifo}}\\n")
        assert hung.wait(30) and after.wait(30)
        print(*sampler.hanging)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout.strip()) == (0, "cuda:0"), done.stderr
