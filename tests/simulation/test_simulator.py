"""Jobs over unlike devices: the deciding code as it runs live, in virtual time."""

import json
import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exo.gpu.scheduling.machines import Demand, Machine
from exo.gpu.simulation.jobs import Job
from exo.gpu.simulation.replay import replay
from exo.gpu.simulation.report import draw, means, policies_of, run_all
from exo.gpu.simulation.simulator import Simulator
from exo.gpu.simulation.study import Kind, Study
from exo.gpu.simulation.traces.openb import Pod
from exo.gpu.simulation.weather import Weather
from exo.gpu.vocabulary.device import DeviceClass, GPUDevice
from exo.gpu.vocabulary.errors import InvalidValue, UnknownName
from exo.gpu.vocabulary.metrics import GPUMetrics
from exo.gpu.vocabulary.snapshot import DeviceState

GIB = 2**30


def device(name, gib=16, gflops=None, watts=None, node="n", model="Card"):
    return DeviceState(
        device=GPUDevice(
            device_id=name,
            name=model,
            vendor="v",
            backend="cuda",
            node=node,
            memory_bytes=gib * GIB,
        ),
        sample=GPUMetrics(name, 0.0, 0, gib * GIB, power_limit_watts=watts),
        sample_age_seconds=0.0,
        measured_gflops=gflops,
    )


def host(cores, node="n"):
    return DeviceState(
        device=GPUDevice(
            device_id=f"{node}/cpu:0",
            name="Host",
            vendor="v",
            backend="cpu",
            node=node,
            slots=cores,
            memory_bytes=64 * GIB,
            device_class=DeviceClass.HOST,
        ),
        sample=GPUMetrics(f"{node}/cpu:0", 0.0, 0, 64 * GIB),
        sample_age_seconds=0.0,
    )


def job(seconds=10.0, at=0.0, **asked):
    return Job(name=asked.pop("name", "job"), arrived_seconds=at, run_seconds=seconds, **asked)


some_jobs = st.lists(
    st.builds(
        job,
        st.integers(0, 60).map(float),
        st.integers(0, 60).map(float),
        gpus=st.integers(1, 2),
        memory_bytes=st.sampled_from([None, 4 * GIB, 12 * GIB]),
        share=st.sampled_from([None, None, 0.5]),
    ),
    max_size=8,
)
weathers = st.sampled_from(
    [
        Weather(),
        Weather(failure_seconds=200.0, repair_seconds=20.0),
        Weather(telemetry_delay_seconds=15.0, noise_ratio=0.2),
    ]
)


class Watched(Simulator):
    """Looks at what is leased after every moment."""

    most_bytes = 0.0
    most_share = 0.0
    crowded = False

    def _serve(self):
        super()._serve()
        for state in self.snapshot().devices:
            total = state.device.memory_bytes
            held = sum(lease.memory_bytes or 0 for lease in state.leases)
            share = sum(lease.share or 0 for lease in state.leases)
            self.most_bytes = max(self.most_bytes, held / total)
            self.most_share = max(self.most_share, share)
            alone = any(lease.exclusive for lease in state.leases)
            self.crowded |= alone and len(state.leases) > 1


@settings(max_examples=40)
@given(some_jobs, weathers, st.sampled_from(["balanced", "pack", "spread"]))
def test_every_job_ends_and_no_device_is_over_committed(some, weather, policy):
    """Rule: whatever fails, each job runs to its end once; memory and shares are never exceeded."""
    cluster = [device("cuda:0"), device("cuda:1")]
    run = Watched(cluster, some, policy, seed=3, weather=weather)
    summary, outcomes = run.run()
    assert summary.completed == len(some) == len(outcomes)
    assert run.most_bytes <= 1
    assert run.most_share <= 1 + 1e-9
    assert not run.crowded
    for one, asked in zip(outcomes, sorted(some, key=lambda j: j.arrived_seconds), strict=True):
        assert len(set(one.devices)) == asked.gpus
        assert one.ended_seconds == pytest.approx(one.began_seconds + asked.run_seconds)
        assert one.began_seconds >= one.arrived_seconds


@settings(max_examples=20)
@given(some_jobs, weathers)
def test_the_same_seed_gives_the_same_run(some, weather):
    """Rule: all that is drawn comes from the seed."""
    runs = [
        Simulator([device("cuda:0"), device("cuda:1")], some, "balanced", seed=1, weather=weather)
        for _ in range(2)
    ]
    assert runs[0].run() == runs[1].run()


def test_the_line_by_counts_stands_for_the_line_as_it_runs_live():
    """Rule: where devices are all alike, both come to about the same, here within a tenth."""
    ratios = []
    for seed in range(20):
        chance = random.Random(seed)
        some = []
        for number in range(40):
            seconds = chance.choice((60, 300, 1800, 7200, 40_000)) * chance.uniform(0.5, 2)
            at = float(number * chance.randint(0, 400))
            gpus = chance.choice((1, 1, 1, 2, 3, 4))
            some.append(job(seconds, at, gpus=gpus, expected_seconds=seconds))
        live, _ = Simulator([device(f"cuda:{n}") for n in range(4)], some, "balanced").run()
        counted = replay(some, 4, "line")
        ratios.append(live.completion_mean_seconds / counted.completion_mean_seconds)
    assert statistics.fmean(ratios) == pytest.approx(1, abs=0.1)


def test_the_policy_fragmentation_keeps_room_for_what_is_asked_for():
    """Rule: on memory in halves, thirds and wholes, work waits less than under the default."""
    waits = dict.fromkeys(("balanced", "fragmentation"), 0.0)
    for seed in range(4):
        chance = random.Random(seed)
        some = [
            job(
                chance.uniform(200, 2000),
                number * 180.0,
                memory_bytes=chance.choice((8, 8, 12, 24)) * GIB,
            )
            for number in range(60)
        ]
        for policy in waits:
            cards = [device(f"cuda:{n}", 24) for n in range(4)]
            waits[policy] += Simulator(cards, some, policy).run()[0].waiting_mean_seconds
    assert waits["fragmentation"] < waits["balanced"]


def test_the_faster_device_is_done_sooner():
    """Rule: run times are those of the fastest device, longer by measured speed on others."""
    cluster = [device("cuda:0", gflops=1000.0), device("cuda:1", gflops=500.0)]
    _, (first, second) = Simulator(cluster, [job(), job()], "fastest").run()
    assert (first.devices, first.ended_seconds) == (("cuda:0",), 10.0)
    assert (second.devices, second.ended_seconds) == (("cuda:1",), 20.0)


def test_what_was_measured_of_a_model_goes_before_its_speed():
    """Rule: a job's own time on a model is used where the trace has it; a gang has the slowest."""
    cluster = [device("a", model="k80"), device("b", model="v100")]
    times = {"k80": 40.0, "v100": 10.0}
    _, (one,) = Simulator(cluster, [job(gpus=2, seconds_by_model=times)], "balanced").run()
    assert one.ended_seconds == 40.0


def test_halves_share_a_device_and_wholes_do_not():
    """Rule: two shares of a half run at once, and work that asks for nothing has it alone."""
    halves = Simulator([device("a")], [job(share=0.5), job(share=0.5)], "balanced").run()[0]
    wholes = Simulator([device("a")], [job(), job()], "balanced").run()[0]
    assert (halves.makespan_seconds, wholes.makespan_seconds) == (10.0, 20.0)
    assert halves.utilization_ratio == 1.0


def test_cores_of_the_machine_are_counted():
    """Rule: work waits for cores beside its device as it does live."""
    cluster = [device("a"), device("b"), host(4)]
    some = [job(memory_bytes=GIB, host_cpus=3), job(memory_bytes=GIB, host_cpus=3)]
    assert Simulator(cluster, some, "balanced").run()[0].makespan_seconds == 20.0


def test_what_can_never_run_is_refused_with_its_reason():
    """Rule: never is not waited for."""
    summary, (one,) = Simulator([device("a", 4)], [job(memory_bytes=8 * GIB)], "balanced").run()
    assert (summary.refused, summary.completed, summary.makespan_seconds) == (1, 0, None)
    assert "8" in one.refused


def test_a_failure_starts_the_work_again():
    """Rule: what ran on the device begins anew, and nothing is lost."""
    weather = Weather(failure_seconds=30.0, repair_seconds=5.0)
    some = [job(20.0) for _ in range(10)]
    summary, outcomes = Simulator([device("a")], some, "balanced", seed=2, weather=weather).run()
    assert summary.completed == 10
    assert max(one.starts for one in outcomes) > 1
    assert summary.makespan_seconds > 200


def test_energy_is_known_where_the_limits_are():
    """Rule: joules at the limits while held; None where a device that was used states none."""
    known = Simulator([device("a", watts=100.0)], [job()], "balanced").run()[0]
    unknown = Simulator([device("a")], [job()], "balanced").run()[0]
    assert (known.energy_joules, unknown.energy_joules) == (1000.0, None)


def test_bad_weather_and_policies_are_refused():
    """Rule: before anything runs."""
    with pytest.raises(InvalidValue):
        Weather(repair_seconds=-1.0)
    with pytest.raises(UnknownName, match="balanced"):
        Simulator([device("a")], [], "blanced")
    with pytest.raises(InvalidValue):
        job(-1.0)


def test_a_study_runs_in_processes_as_in_one(tmp_path):
    """Rule: as many processes as may be, the answer is the same, policy by policy, seed by seed."""
    study = Study(kind=Kind.DEVICES, devices=(device("a"), device("b")), jobs=(job(), job(), job()))
    alone = run_all(study, ["pack", "spread"], [1, 2])
    assert alone == run_all(study, ["pack", "spread"], [1, 2], processes=2)
    assert [(one.policy, one.seed) for one in alone] == [
        ("pack", 1),
        ("pack", 2),
        ("spread", 1),
        ("spread", 2),
    ]
    assert set(policies_of(study)) >= {"balanced", "pack", "spread"}
    found = means(alone)
    assert found["pack"]["makespan_seconds"] == 20.0
    assert found["pack"]["allocation_ratio"] is None
    assert json.dumps(found)
    with pytest.raises(UnknownName):
        run_all(study, ["fgd"], [1])


def test_a_cluster_that_fills_up_is_told_by_what_it_holds():
    """Rule: of 2 GPUs one and a half are taken; the half that is left is of no use to wholes."""
    node = Machine(name="n", cpu_milli=8000, memory_bytes=GIB, gpus=2, model="")
    half, whole = (
        Demand(cpu_milli=1000, memory_bytes=1, gpus=1, gpu_milli=milli) for milli in (500, 1000)
    )
    study = Study(
        kind=Kind.PLACEMENT,
        machines=(node,),
        pods=(Pod("a", half), Pod("b", whole)),
        inflation=0.75,
    )
    (summary,) = run_all(study, ["best-fit"], [1])
    assert (summary.jobs, summary.refused, summary.allocation_ratio) == (2, 0, 0.75)
    assert summary.fragmentation_ratio == pytest.approx(0.5 * 500 / 2000)


def test_the_picture_is_drawn(tmp_path):
    """Rule: a file of the kind that its name says."""
    pytest.importorskip("matplotlib")
    study = Study(kind=Kind.COUNT, count=2, jobs=(job(), job(), job()))
    draw(run_all(study, ["fifo", "line"], [1]), tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="xyz"):
        draw(run_all(study, ["fifo"], [1]), tmp_path / "p.xyz")
