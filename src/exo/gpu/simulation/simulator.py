"""Jobs over devices that differ: the line, the selector and the ledger decide as they do live.

Only the clock and the hands differ. What goes wrong is drawn from the seed: devices fail and come
back, and what is known of them is late and inexact.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import msgspec

from exo.gpu.scheduling.filters import FILTERS
from exo.gpu.scheduling.job_queue import in_order, take_turn
from exo.gpu.scheduling.policies import policy_named
from exo.gpu.scheduling.selector import leases_of, select
from exo.gpu.simulation.events import EventQueue
from exo.gpu.simulation.jobs import Job
from exo.gpu.simulation.outcome import JobOutcome, Summary, summarize
from exo.gpu.simulation.weather import Weather
from exo.gpu.vocabulary.health import Health
from exo.gpu.vocabulary.lease import Lease, Waiter
from exo.gpu.vocabulary.snapshot import DeviceState, Snapshot


class _Arrival(msgspec.Struct, frozen=True):
    number: int


class _End(msgspec.Struct, frozen=True):
    number: int
    start: int


class _Failure(msgspec.Struct, frozen=True):
    device_id: str


class _Repair(msgspec.Struct, frozen=True):
    device_id: str


class _Sample(msgspec.Struct, frozen=True):
    device_id: str
    used_bytes: int


_Change = Callable[[tuple[Lease, ...]], tuple[Lease, ...]]

_Event = _Arrival | _End | _Failure | _Repair | _Sample


class _Place(msgspec.Struct):
    """One device: what is true of it, and what is known."""

    state: DeviceState
    base_bytes: int
    speed: float
    known_bytes: int
    held_seconds: float = 0.0
    held_since_seconds: float = 0.0


class _Progress(msgspec.Struct):
    """One job on its way; it waits, runs, or has come to its end."""

    job: Job
    waiter: Waiter
    starts: int = 0
    began_seconds: float | None = None
    ended_seconds: float | None = None
    devices: tuple[str, ...] = ()
    refused: str = ""


class Simulator:
    """One run over one cluster.

    Raises:
        UnknownName: for a policy that is not known, with the near spelling.

    """

    def __init__(
        self,
        cluster: Sequence[DeviceState],
        jobs: Sequence[Job],
        policy: str,
        *,
        seed: int = 0,
        weather: Weather | None = None,
    ) -> None:
        policy_named(policy)
        self._policy = policy
        self._seed = seed
        self._weather = weather or Weather()
        self._chance = random.Random(f"simulator {seed}")
        self._events: EventQueue[_Event] = EventQueue()
        fastest = max([one.measured_gflops or 0.0 for one in cluster], default=0.0)
        self._places = {one.device.device_id: _place(one, fastest) for one in cluster}
        ordered = sorted(jobs, key=lambda job: job.arrived_seconds)
        self._jobs = [_progress(job, policy, number) for number, job in enumerate(ordered)]
        self._line: dict[int, Waiter] = {}
        self._open = len(self._jobs)
        for number, job in enumerate(ordered):
            self._events.plan(job.arrived_seconds, _Arrival(number))
        for device_id in self._places:
            self._plan_failure(device_id)

    def run(self) -> tuple[Summary, tuple[JobOutcome, ...]]:
        """Until every job has ended or was refused: the figures, and what became of each."""
        while self._open and (events := self._events.next_moment()):
            for event in events:
                self._happen(event)
            self._serve()
        outcomes = tuple(_outcome(one) for one in self._jobs)
        summary = summarize(
            self._policy,
            self._seed,
            outcomes,
            devices=len(self._places),
            held_device_seconds=sum(one.held_seconds for one in self._places.values()),
            energy_joules=self._energy(),
        )
        return summary, outcomes

    def snapshot(self) -> Snapshot:
        """What the deciding code is shown now."""
        return Snapshot(tuple(_shown(place) for place in self._places.values()))

    def _happen(self, event: _Event) -> None:
        if isinstance(event, _Arrival):
            self._line[event.number] = self._jobs[event.number].waiter
        elif isinstance(event, _End):
            one = self._jobs[event.number]
            if one.starts == event.start and one.devices:  # else a failure came before
                self._finish(event.number)
        elif isinstance(event, _Failure):
            self._fail(event.device_id)
        elif isinstance(event, _Repair):
            place = self._places[event.device_id]
            place.state = msgspec.structs.replace(place.state, health=Health.OK)
            self._plan_failure(event.device_id)
        else:
            self._places[event.device_id].known_bytes = event.used_bytes

    def _serve(self) -> None:
        """Let everybody in the line ask in turn, as their processes do when something ends."""
        asked = True
        while asked and self._line:
            asked = False
            for waiter in in_order(self._line.values()):
                turn = take_turn(
                    self._line.values(), waiter, self.snapshot(), self._events.now_seconds
                )
                if turn.head is not None and turn.head.number in self._line:
                    self._line[turn.head.number] = turn.head
                if turn.decision.chosen:
                    self._begin(waiter.number, turn.decision.chosen)
                    asked = True
                    break
                if turn.decision.never:
                    self._refuse(waiter.number)

    def _begin(self, number: int, chosen: tuple[str, ...]) -> None:
        one, now = self._jobs[number], self._events.now_seconds
        del self._line[number]
        one.starts += 1
        one.began_seconds, one.devices = now, chosen
        for lease in leases_of(self.snapshot(), chosen, one.waiter.request):
            granted = msgspec.structs.replace(lease, lease_id=str(number), granted_seconds=now)
            self._set_leases(lease.device_id, lambda leases, new=granted: (*leases, new))
        # A gang goes at the pace of its slowest.
        seconds = max(
            one.job.seconds_on(place.state.device.name, place.speed)
            for place in (self._places[device_id] for device_id in chosen)
        )
        self._events.plan(now + seconds, _End(number, one.starts))

    def _finish(self, number: int) -> None:
        self._release(number)
        self._jobs[number].ended_seconds = self._events.now_seconds
        self._open -= 1

    def _refuse(self, number: int) -> None:
        one = self._jobs[number]
        decision = select(self.snapshot(), one.waiter.request, FILTERS)
        reasons = [refusal.reason for refusal in decision.refusals]
        one.refused = decision.never_reason or "; ".join(dict.fromkeys(reasons))
        del self._line[number]
        self._open -= 1

    def _fail(self, device_id: str) -> None:
        place = self._places[device_id]
        numbers = sorted(int(lease.lease_id) for lease in place.state.leases)
        place.state = msgspec.structs.replace(place.state, health=Health.FAILED)
        for number in numbers:
            self._release(number)
            one = self._jobs[number]
            one.began_seconds, one.devices = None, ()
            self._line[number] = one.waiter
        self._events.plan(
            self._events.now_seconds + self._weather.repair_seconds, _Repair(device_id)
        )

    def _release(self, number: int) -> None:
        one, lease_id = self._jobs[number], str(number)
        for device_id in one.devices:
            self._set_leases(
                device_id,
                lambda leases: tuple(lease for lease in leases if lease.lease_id != lease_id),
            )

    def _set_leases(self, device_id: str, change: _Change) -> None:
        """Change the leases of a device; its use of memory follows, and is told later."""
        place, now = self._places[device_id], self._events.now_seconds
        before, leases = place.state.leases, change(place.state.leases)
        place.state = msgspec.structs.replace(place.state, leases=leases)
        if leases and not before:
            place.held_since_seconds = now
        elif before and not leases:
            place.held_seconds += now - place.held_since_seconds
        used = place.base_bytes + sum(lease.memory_bytes or 0 for lease in leases)
        if self._weather.noise_ratio:
            used = round(used * max(0.0, self._chance.gauss(1.0, self._weather.noise_ratio)))
        total = place.state.sample.memory_total_bytes if place.state.sample else None
        used = used if total is None else min(used, total)
        if self._weather.telemetry_delay_seconds:
            at = now + self._weather.telemetry_delay_seconds
            self._events.plan(at, _Sample(device_id, used))
        else:
            place.known_bytes = used

    def _plan_failure(self, device_id: str) -> None:
        mean = self._weather.failure_seconds
        if mean is not None and self._open:
            after = self._chance.expovariate(1.0 / max(mean, 1.0))
            self._events.plan(self._events.now_seconds + after, _Failure(device_id))

    def _energy(self) -> float | None:
        """At the limits of the devices that were used; None where one of them states none."""
        total = 0.0
        for place in self._places.values():
            if not place.held_seconds:
                continue
            limit = place.state.sample.power_limit_watts if place.state.sample else None
            if limit is None:
                return None
            total += limit * place.held_seconds
        return total


def _place(state: DeviceState, fastest_gflops: float) -> _Place:
    """A device as the trace begins; its speed is relative to the fastest that was measured."""
    gflops = state.measured_gflops
    speed = gflops / fastest_gflops if gflops and fastest_gflops else 1.0
    used = state.sample.memory_used_bytes if state.sample else None
    state = msgspec.structs.replace(state, leases=())
    return _Place(state=state, base_bytes=used or 0, speed=speed, known_bytes=used or 0)


def _shown(place: _Place) -> DeviceState:
    """What is known of a device: its use of memory as it was last told."""
    sample = place.state.sample
    if sample is None or sample.memory_used_bytes is None:
        return place.state
    sample = msgspec.structs.replace(sample, memory_used_bytes=place.known_bytes)
    return msgspec.structs.replace(place.state, sample=sample)


def _progress(job: Job, policy: str, number: int) -> _Progress:
    waiter = Waiter(
        waiter_id=str(number),
        request=job.request(policy),
        number=number,
        arrived_seconds=job.arrived_seconds,
    )
    return _Progress(job=job, waiter=waiter)


def _outcome(one: _Progress) -> JobOutcome:
    return JobOutcome(
        name=one.job.name,
        gpus=one.job.gpus,
        arrived_seconds=one.job.arrived_seconds,
        began_seconds=one.began_seconds,
        ended_seconds=one.ended_seconds,
        devices=one.devices,
        starts=one.starts,
        refused=one.refused,
    )
