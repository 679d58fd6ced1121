"""How fast devices are found: many, beside a driver that hangs, and listed beside nvitop."""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from statistics import median

from results import Result, report

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]  # the tests' fake driver and sysfs trees

from tests.backends.nvml.fake_nvml import H100, VARIABLE, FakeNvml, build  # noqa: E402
from tests.backends.sysfs import ARC, RX, at, card  # noqa: E402

NVIDIA, AMD, INTEL = 16, 4, 2
LISTED = 8
WEDGE_SECONDS = 60

# One discovery in a process of its own; what it prints: seconds, devices and failures.
SEARCH = textwrap.dedent(
    """
    import json, sys, time
    from exo.gpu.backends.cpu import CPUBackend
    from exo.gpu.backends.cuda import CudaBackend
    from exo.gpu.backends.level_zero import LevelZeroBackend
    from exo.gpu.backends.rocm import RocmBackend
    from exo.gpu.backends.vulkan import VulkanGPUBackend
    from exo.gpu.discovery import GPUDiscoveryService

    library, root, wedge = sys.argv[1:]
    backends = {
        "cuda": CudaBackend(library=library),
        "rocm": RocmBackend(root=root),
        "level_zero": LevelZeroBackend(root=root),
        "vulkan": VulkanGPUBackend(),
        "cpu": CPUBackend(),
    }
    if float(wedge):
        backends["rocm"].find = lambda: time.sleep(float(wedge))
    started = time.perf_counter()
    report = GPUDiscoveryService(backends=backends).discover(
        deadline_seconds=1.5 if float(wedge) else None
    )
    print(json.dumps({
        "seconds": time.perf_counter() - started,
        "found": [[one.backend, one.hardware_id, one.pci_address] for one in report.devices],
        "vulkan": sum(len(f.devices) for f in report.findings if f.backend == "vulkan"),
        "failed": {f.backend: f.reason for f in report.findings if f.failed},
    }))
    """
)
# What the console script `exo-gpu` does, without depending on where it was installed.
COMMAND = "import sys; from exo.gpu.cli.main import main; sys.argv = ['exo-gpu', 'devices']; main()"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=15, help="of each (%(default)s)")
    parser.add_argument("--nvitop", default="nvitop", help="the peer's command (%(default)s)")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    options = parser.parse_args()
    peer = shutil.which(options.nvitop)
    if peer is None:
        print(f"bench_discovery: no {options.nvitop} here: pip install nvitop", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as name:
        machine = Machine(Path(name))
        results = [
            *machine.everything(options.runs),
            *machine.beside_a_wedge(options.runs),
            *machine.command(options.runs, peer),
        ]
    return report("discovery", results, as_json=options.json)


class Machine:
    """A fake NVIDIA driver, AMD and Intel cards in a sysfs root, and a registry of its own."""

    def __init__(self, folder: Path) -> None:
        self.library = build(folder)
        self.nvml = FakeNvml(self.library, folder / "nvml.txt")
        self.cards = folder / "drm"
        for number in range(AMD):
            place = at(f"0000:a{number}:00.0", "1002:744C", "amdgpu")
            card(self.cards, number, RX, place, {"device/unique_id": f"a{number}c8ee2f5e6e3b2a"})
        for number in range(INTEL):
            place = at(f"0000:b{number}:00.0", "8086:E20B", "xe")
            card(self.cards, AMD + number, ARC, place)
        self.environ = {
            **os.environ,
            "EXO_GPU_REGISTRY": str(folder / "registry.json"),
            "EXO_GPU_STATE": str(folder / "state"),
            "LD_LIBRARY_PATH": str(folder),
            VARIABLE: str(self.nvml.description),
        }
        # Both commands are measured with their byte code written, as an installed one has it.
        self.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        self.environ.setdefault("PYTHONPYCACHEPREFIX", str(folder / "bytecode"))

    def search(self, wedge: float = 0.0) -> dict:
        words = [sys.executable, "-c", SEARCH, str(self.library), str(self.cards), str(wedge)]
        done = subprocess.run(
            words, check=True, stdout=subprocess.PIPE, env=self.environ, timeout=WEDGE_SECONDS / 2
        )
        return json.loads(done.stdout)

    def everything(self, runs: int) -> list[Result]:
        """All devices at once; Vulkan drivers are asked, since nothing is remembered."""
        self.nvml.write(*[H100] * NVIDIA)
        self.search()
        answers = [self.search() for _ in range(runs)]
        complete = min(share_found(answer) for answer in answers)
        seconds = median(answer["seconds"] for answer in answers)
        expected = NVIDIA + AMD + INTEL + answers[0]["vulkan"] + 1
        return [
            limit("16 + 4 + 2 + Vulkan, seconds", seconds, 1.0, runs),
            Result(
                metric=f"share of {expected} found, none twice",
                ours=complete,
                peer=1.0,
                peer_name="what the fakes hold",
                peer_version="",
                value=complete,
                target=1.0,
                better="higher",
                n=runs,
            ),
        ]

    def beside_a_wedge(self, runs: int) -> list[Result]:
        """One driver sleeps for a minute: when the others are there, and when the process ends."""
        seconds: list[float] = []
        ends: list[float] = []
        for _ in range(runs):
            started = time.perf_counter()
            answer = self.search(WEDGE_SECONDS)
            ends.append(time.perf_counter() - started)
            whole = len(answer["found"]) == NVIDIA + INTEL + answer["vulkan"] + 1
            named = "no answer" in answer["failed"].get("rocm", "")
            seconds.append(answer["seconds"] if whole and named else WEDGE_SECONDS)
        return [
            limit("others beside a hang, seconds", median(seconds), 2.0, runs),
            limit("end of that process, seconds", median(ends), 3.0, runs),
        ]

    def command(self, runs: int, peer: str) -> list[Result]:
        """``exo-gpu devices`` with its registry warm, against ``nvitop -1`` on the same library.

        Beside the time on the wall, that of the processor, which other work disturbs less.
        """
        self.nvml.write(*[H100] * LISTED)
        ours = [sys.executable, "-c", COMMAND]
        theirs = [peer, "-1"]
        for words in (ours, theirs):  # byte code, file cache and registry are warm from here on
            self.check(words)
        pairs = [(self.check(ours), self.check(theirs)) for _ in range(runs)]
        version = version_of(peer)
        results: list[Result] = []
        for place, metric in enumerate(("seconds", "CPU seconds")):
            mine, its = (median(one[place] for one in side) for side in zip(*pairs, strict=True))
            what = f"devices, 8 fake NVIDIA, {metric}"
            results.append(
                Result(what, mine, its, "nvitop -1", version, mine / its, 1.0, "lower", runs)
            )
        return results

    def check(self, words: list[str]) -> tuple[float, float]:
        """Seconds and CPU seconds that a command took; it must have listed every fake card."""
        worked = cpu_seconds_of_children()
        started = time.perf_counter()
        done = subprocess.run(
            words, check=True, capture_output=True, text=True, env=self.environ, timeout=60
        )
        seconds = time.perf_counter() - started
        if done.stdout.count("H100") < LISTED:
            raise RuntimeError(f"{words[0]} listed {done.stdout.count('H100')} of {LISTED} cards")
        return seconds, cpu_seconds_of_children() - worked


def cpu_seconds_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def share_found(answer: dict) -> float:
    """Found / expected; 0 where a device is there twice."""
    found = [tuple(one) for one in answer["found"]]
    names = [name for one in found for name in {one[1], one[2]} - {None}]
    if len(names) != len(set(names)):
        return 0.0
    count = {backend: sum(one[0] == backend for one in found) for backend in ("cuda", "rocm")}
    intel = sum(one[0] == "level_zero" for one in found)
    vulkan = sum(one[0] == "vulkan" for one in found)
    right = min(count["cuda"], NVIDIA) + min(count["rocm"], AMD) + min(intel, INTEL) + vulkan
    return right / (NVIDIA + AMD + INTEL + answer["vulkan"])


def limit(metric: str, seconds: float, most: float, runs: int) -> Result:
    """Seconds held against a limit of the specification, which stands in the peer's column."""
    return Result(metric, seconds, most, "the limit", "", seconds, most, "lower", runs)


def version_of(peer: str) -> str:
    done = subprocess.run([peer, "--version"], capture_output=True, text=True, check=False)
    return done.stdout.split()[-1] if done.stdout.split() else "unknown"


if __name__ == "__main__":
    sys.exit(main())
