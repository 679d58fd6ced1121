"""What sampling costs: a full sample beside nvitop's and gpustat's, and a sampler that runs."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import textwrap
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

from results import Result, report

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]  # the tests' fake driver

from tests.backends.nvml.fake_nvml import H100, VARIABLE, FakeNvml, build  # noqa: E402

SAMPLED, WATCHED = 8, 16
# What the fake needs besides so that the peers find all that they ask for.
ASKED_BY_PEERS = {
    "persistence": 1,
    "compute_mode": 0,
    "display": 0,
    "mig": 0,
    "pcie.throughput": 100,
    "processes": "",
    "graphics": "",
}

# One process for both, through one library. Each reading of the peer's must be in our sample with
# the same value (the peer's power is of another call, so only its presence counts). Left out on
# both sides is PCIe throughput, which blocks for 20 ms a direction on a real driver. What is a fact
# or a setting (name, largest clocks, modes) the peer asks for again each time; we do not.
SNAPSHOTS = textwrap.dedent(
    """
    import json, sys, time
    from exo.gpu.backends.cuda import CudaBackend
    from nvitop import Device

    backend = CudaBackend(environ={})
    ours = [device.device_id for device in backend.find()]
    theirs = Device.all()
    Device.SNAPSHOT_KEYS = [key for key in Device.SNAPSHOT_KEYS if "pcie" not in key]

    def mine():
        return [backend.read(name) for name in ours]

    def its():
        return [device.as_snapshot() for device in theirs]

    for sample, snapshot in zip(mine(), its(), strict=True):
        pairs = {
            "memory_used_bytes": snapshot.memory_used,
            "memory_total_bytes": snapshot.memory_total,
            "memory_free_bytes": snapshot.memory_free,
            "compute_utilization_percent": snapshot.gpu_utilization,
            "memory_utilization_percent": snapshot.memory_utilization,
            "encoder_percent": snapshot.encoder_utilization,
            "decoder_percent": snapshot.decoder_utilization,
            "clock_rate_mhz": snapshot.sm_clock,
            "memory_clock_mhz": snapshot.memory_clock,
            "fan_percent": snapshot.fan_speed,
            "temperature_celsius": snapshot.temperature,
            "power_limit_watts": snapshot.power_limit / 1000,
            "uncorrected_errors": snapshot.total_volatile_uncorrected_ecc_errors,
        }
        wrong = [name for name, value in pairs.items() if getattr(sample, name) != value]
        if wrong or sample.power_watts is None:
            sys.exit(f"not the peer's readings: {wrong}")
        if f"P{sample.performance_state}" != snapshot.performance_state:
            sys.exit("not the peer's performance state")

    def seconds(work):
        began = time.process_time()
        work()
        return time.process_time() - began

    print(json.dumps([[seconds(mine), seconds(its)] for _ in range(int(sys.argv[1]))]))
    """
)
# gpustat lists who works on each GPU, so we do too.
QUERIES = textwrap.dedent(
    """
    import json, sys, time
    from exo.gpu.backends.cuda import CudaBackend
    from gpustat import new_query

    backend = CudaBackend(environ={})
    ours = [device.device_id for device in backend.find()]

    def mine():
        return [(backend.read(name), backend.processes(name)) for name in ours]

    def seconds(work):
        began = time.perf_counter()
        found = work()
        if len(found) != len(ours):
            sys.exit(f"{len(found)} of {len(ours)} devices")
        return time.perf_counter() - began

    mine(), new_query()
    print(json.dumps([[seconds(mine), seconds(new_query)] for _ in range(int(sys.argv[1]))]))
    """
)
# CPU time of the whole process while a sampler runs, from the first samples on.
RUNNING = textwrap.dedent(
    """
    import json, sys, threading, time
    from exo.gpu.backends.cuda import CudaBackend
    from exo.gpu.telemetry.sampling.readers import DeviceReader
    from exo.gpu.telemetry.sampling.sampler import TelemetrySampler

    backend = CudaBackend(environ={})
    ours = [device.device_id for device in backend.find()]
    told = []
    sampler = TelemetrySampler(told.append)
    for name in ours:
        sampler.watch(name, DeviceReader(backend, name))
    sampler.start()
    time.sleep(1.5)
    before, cpu, wall = len(told), time.process_time(), time.perf_counter()
    time.sleep(float(sys.argv[1]))
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    samples = len(told) - before
    sampler.stop()
    if any(one.sample is None for one in told):
        sys.exit("not every reading was a sample")
    if samples < 0.9 * wall * len(ours):
        sys.exit(f"{samples} samples of {len(ours)} devices in {wall:.1f} s")
    print(json.dumps([100 * cpu / wall, samples]))
    """
)


def results(quick: bool = False) -> list[Result]:
    """All comparisons, each in a process of its own; ``quick`` measures less.

    Raises:
        RuntimeError: when a peer is missing, or does not read the same.

    """
    nvitop, gpustat = installed("nvitop"), installed("gpustat")
    with tempfile.TemporaryDirectory() as name:
        machine = Machine(Path(name))
        return [
            beside(
                f"CPU of {SAMPLED} full samples, seconds",
                machine.ask(SAMPLED, SNAPSHOTS, 20 if quick else 300),
                ("nvitop as_snapshot", nvitop),
                target=0.7,
            ),
            beside(
                f"{SAMPLED} samples, processes, seconds",
                machine.ask(SAMPLED, QUERIES, 1 if quick else 7),
                ("gpustat new_query", gpustat),
                target=100,
            ),
            running(machine.ask(WATCHED, RUNNING, 2 if quick else 30)),
        ]


def beside(
    metric: str, pairs: list[list[float]], peer: tuple[str, str], *, target: float
) -> Result:
    """The median of the ratios, ours to the peer's; above 1, how many times less ours is."""
    ours, theirs = (median(side) for side in zip(*pairs, strict=True))
    ratio = median(mine / its for mine, its in pairs)
    higher = target > 1
    return Result(
        metric=metric,
        ours=ours,
        peer=theirs,
        peer_name=peer[0],
        peer_version=peer[1],
        value=1 / ratio if higher else ratio,
        target=target,
        better="higher" if higher else "lower",
        n=len(pairs),
    )


def running(answer: list[float]) -> Result:
    percent, samples = answer
    return Result(
        metric=f"{WATCHED} devices at 1 Hz, % of a core",
        ours=percent,
        peer=1.0,
        peer_name="the limit",
        peer_version="",
        value=percent,
        target=1.0,
        better="lower",
        n=int(samples),
    )


class Machine:
    """A fake NVIDIA driver, for programs that find it where the real one would be."""

    def __init__(self, folder: Path) -> None:
        self.nvml = FakeNvml(build(folder), folder / "nvml.txt")
        self.environ = {
            **os.environ,
            "LD_LIBRARY_PATH": str(folder),
            VARIABLE: str(self.nvml.description),
        }

    def ask(self, devices: int, program: str, amount: float) -> list:
        """What a program printed about so many devices.

        Raises:
            RuntimeError: with its own words, when it failed.

        """
        self.nvml.write(*[H100 | ASKED_BY_PEERS] * devices)
        words = [sys.executable, "-c", program, str(amount)]
        done = subprocess.run(
            words,
            check=False,
            capture_output=True,
            text=True,
            env=self.environ,
            timeout=amount + 120,
        )
        if done.returncode:
            raise RuntimeError(done.stderr.strip() or f"a benchmark ended with {done.returncode}")
        return json.loads(done.stdout.splitlines()[-1])


def installed(peer: str) -> str:
    """The version of a peer.

    Raises:
        RuntimeError: saying what to install, when it is missing.

    """
    try:
        return version(peer)
    except PackageNotFoundError:
        raise RuntimeError(f"no {peer} here: pip install {peer}") from None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="measure less, for a first look")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    options = parser.parse_args()
    try:
        found = results(quick=options.quick)
    except RuntimeError as error:
        print(f"telemetry_sampling: {error}", file=sys.stderr)
        return 1
    return report("telemetry_sampling", found, as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
