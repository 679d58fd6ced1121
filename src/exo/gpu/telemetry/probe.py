"""Measured speed: what a device really does in two seconds, with the spread of its runs."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

import msgspec

from exo.gpu.vocabulary.errors import BackendError
from exo.gpu.vocabulary.probe import Measure, ProbeResult

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from exo.gpu.vocabulary.device import GPUDevice

PROBE_SECONDS = 2.0
"""Opening a device and all measuring on it; starting the process comes on top."""

FIGURES = (
    "memory_gbps",
    "fp32_gflops",
    "host_to_device_gbps",
    "device_to_host_gbps",
    "launch_seconds",
)
"""The fields of a :class:`~exo.gpu.vocabulary.probe.ProbeResult` that are measured."""

# Shorter runs would measure the clock and the call; so does a launch, which is one.
_SHORTEST_SECONDS = 0.01
# A run grows towards the shortest length by so much at most: 2 would waste time, 16 overshoot.
_GROWTH = 4
# A device that is slow to open is measured all the same, if shortly.
_LEAST_SECONDS = 0.5
# Enough for a median that one disturbed run does not move much.
_MOST_RUNS = 30
# Units of an operation in a run: beyond that, commands alone would fill the driver's memory.
_LARGEST_AMOUNT = 2**20


class Speed(Protocol):
    """Operations of one open device that can be timed."""

    @property
    def reasons(self) -> Mapping[str, str]:
        """Why a figure cannot be measured here at all, by its name."""
        ...

    def operations(self) -> dict[str, Callable[[int], float]]:
        """Name of a figure -> what does ``amount`` units and returns the work done.

        The work is in bytes, floating-point operations or launches; the call returns when it is
        done. It may raise :class:`~exo.gpu.vocabulary.errors.BackendError`.
        """
        ...

    def close(self) -> None:
        """Let go of what was taken."""
        ...


@runtime_checkable
class SpeedAbility(Protocol):
    """A backend whose devices can be measured from a process that is pinned to them."""

    def speed(self, device: GPUDevice) -> Speed:
        """Open a device for measuring.

        Raises:
            BackendError: with the driver's reason.

        """
        ...


class Run(NamedTuple):
    """Work done, in the operation's unit, and the seconds that it took."""

    work: float
    seconds: float


def time_runs(
    operation: Callable[[int], float], *, seconds: float, clock: Callable[[], float]
) -> list[Run]:
    """Runs of one length, as many as end within ``seconds``, at least one.

    The first run warms up and is never counted, unless the time is over after it. Runs grow
    until they are long enough to be timed.
    """
    ends = clock() + seconds
    amount = 1
    warm = run = _timed(operation, amount, clock)
    while run.seconds < _SHORTEST_SECONDS and amount < _LARGEST_AMOUNT and clock() < ends:
        wanted = _SHORTEST_SECONDS / run.seconds if run.seconds > 0 else _GROWTH
        amount = min(_LARGEST_AMOUNT, amount * max(2, min(_GROWTH, round(wanted))))
        run = _timed(operation, amount, clock)
    runs = [] if run is warm else [run]
    while len(runs) < _MOST_RUNS and clock() + run.seconds < ends:
        runs.append(_timed(operation, amount, clock))
    return runs or [run]


def _timed(operation: Callable[[int], float], amount: int, clock: Callable[[], float]) -> Run:
    started = clock()
    work = operation(amount)
    return Run(work, clock() - started)


def measure(runs: list[Run], *, seconds_each: bool = False) -> Measure | None:
    """Units of 10**9 a second, or with ``seconds_each`` seconds a unit; None without a time."""
    figures = [
        run.seconds / run.work if seconds_each else run.work / run.seconds / 1e9
        for run in runs
        if run.seconds > 0 and run.work > 0
    ]
    if not figures:
        return None
    return Measure(
        median=statistics.median(figures),
        lowest=min(figures),
        highest=max(figures),
        runs=len(figures),
    )


def probe_device(
    device: GPUDevice,
    speed: Speed,
    *,
    seconds: float = PROBE_SECONDS,
    clock: Callable[[], float] = time.perf_counter,
    now: Callable[[], float] = time.time,
) -> ProbeResult:
    """Measure every figure that ``speed`` offers, each within its share of ``seconds``.

    What the driver refuses is None with its reason, and costs no other figure.
    """
    reasons = dict.fromkeys(FIGURES, "its backend does not measure it") | dict(speed.reasons)
    figures: dict[str, Measure] = {}
    operations = speed.operations()
    ends = clock() + seconds
    for place, (name, operation) in enumerate(operations.items()):
        share = (ends - clock()) / (len(operations) - place)
        if share <= 0:
            reasons[name] = f"the {seconds:g} s of a probe were over"
            continue
        try:
            runs = time_runs(operation, seconds=share, clock=clock)
        except BackendError as error:
            reasons[name] = str(error)
            continue
        figure = measure(runs, seconds_each=name == "launch_seconds")
        if figure is None:
            reasons[name] = "it took no time that the clock could tell"
            continue
        figures[name] = figure
        del reasons[name]
    return _result(device, now(), reasons, figures)


def unmeasured(device: GPUDevice, reason: str, *, at: float) -> ProbeResult:
    """The result of a device on which nothing could be measured."""
    return _result(device, at, dict.fromkeys(FIGURES, reason), {})


def _result(
    device: GPUDevice, at: float, reasons: dict[str, str], figures: dict[str, Measure]
) -> ProbeResult:
    return ProbeResult(
        device_id=device.device_id,
        hardware_id=device.hardware_id,
        driver_version=device.driver_version,
        measured_at=at,
        reasons=reasons,
        **figures,
    )


def probe_here(device_json: str, seconds: float) -> str:
    """Measure a device from within a process that is pinned to it; runs in a worker.

    What its own backend does not measure, the Vulkan driver of the same card may: all of AMD's and
    Intel's cards, which compute through that driver only, and the arithmetic of NVIDIA's.
    """
    from exo.gpu.factory import GPUBackendFactory
    from exo.gpu.vocabulary.device import GPUDevice

    device = GPUDevice.from_json(device_json)
    ways = dict.fromkeys((device.backend, "vulkan" if device.driver_manifest else device.backend))
    known = [GPUBackendFactory.make(way) for way in ways if way in GPUBackendFactory.names()]
    able = [backend for backend in known if isinstance(backend, SpeedAbility)]
    if not able:
        return unmeasured(device, _no_way(device), at=time.time()).to_json()
    results = [_probe_through(backend, device, seconds / len(able)) for backend in able]
    return joined(results).to_json()


def joined(results: Sequence[ProbeResult]) -> ProbeResult:
    """One result of several of a device: each figure from the first that has it."""
    first = results[0]
    figures: dict[str, Measure] = {}
    for name in FIGURES:
        found = [getattr(result, name) for result in results]
        known = [figure for figure in found if figure is not None]
        if known:
            figures[name] = known[0]
    reasons = {name: why for name, why in results[-1].reasons.items() if name not in figures}
    reasons |= {name: why for name, why in first.reasons.items() if name not in figures}
    return msgspec.structs.replace(first, reasons=reasons, **figures)


def _probe_through(backend: SpeedAbility, device: GPUDevice, seconds: float) -> ProbeResult:
    began = time.perf_counter()
    try:
        speed = backend.speed(device)
    except (BackendError, ImportError) as error:
        return unmeasured(device, str(error), at=time.time())
    left = seconds - (time.perf_counter() - began)
    try:
        return probe_device(device, speed, seconds=max(_LEAST_SECONDS, left))
    finally:
        speed.close()


def _no_way(device: GPUDevice) -> str:
    return (
        f"the {device.backend} backend does not compute, and no Vulkan driver lists the same device"
    )
