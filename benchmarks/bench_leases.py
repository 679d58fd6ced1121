"""What a lease costs, beside what home-made scripts do: a lock around a JSON file."""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from results import Result, report

GIB = 2**30
DEVICES = 8
DEVICE_BYTES = 8 * GIB
# What one asks for, in turn: up to eight on a device, and never a whole one's worth of gaps.
ASKED_BYTES = (GIB, 2 * GIB, GIB, 4 * GIB)
HELD_BESIDE = 8
PEER = "flock + JSON file"


class Ours:
    """The product: the store, and the choice that `run` makes."""

    def __init__(self, folder: Path) -> None:
        from exo.gpu.execution.lease_store import LeaseStore
        from exo.gpu.execution.state_directory import StorePlace
        from exo.gpu.scheduling.selector import leases_of, select
        from exo.gpu.vocabulary.request import Request

        self._store = LeaseStore(StorePlace(folder, "the benchmark", "the benchmark"))
        self._states = machine()
        self._select, self._leases_of, self._request = select, leases_of, Request

    def take(self, size_bytes: int, log: Log | None = None) -> object | None:
        """A lease, or None where no device has that much left."""
        request = self._request(memory_bytes=size_bytes)
        asked = time.perf_counter()
        with self._store.transaction() as book:
            if log is not None:
                log.waited(time.perf_counter() - asked)
            chosen, snapshot = self._choose(book.leases, request)
            if not chosen and book.prune():
                chosen, snapshot = self._choose(book.leases, request)
            if not chosen:
                return None
            held = book.add(self._leases_of(snapshot, chosen, request)[0])
            if log is not None:
                log.took(held.lease.lease_id, chosen[0], size_bytes)
        return held

    def release(self, held: object, log: Log | None = None) -> None:
        if log is not None:
            log.released(held.lease.lease_id)
        held.release()

    def left(self) -> int:
        """How many leases are on record."""
        return len(self._store.live())

    def _choose(self, leases: tuple, request: object) -> tuple:
        from msgspec.structs import replace

        from exo.gpu.vocabulary.snapshot import Snapshot

        by_device: dict[str, list] = {}
        for lease in leases:
            by_device.setdefault(lease.hardware_id, []).append(lease)
        snapshot = Snapshot(
            tuple(
                replace(state, leases=tuple(by_device.get(state.device.hardware_id, ())))
                for state in self._states
            )
        )
        return self._select(snapshot, request).chosen, snapshot


class HomeMade:
    """What a script of one's own does: a lock, a list in a file, and process ids for liveness."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "leases.json"
        self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o666)
        self._count = 0

    def take(self, size_bytes: int, log: Log | None = None) -> object | None:
        asked = time.perf_counter()
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            if log is not None:
                log.waited(time.perf_counter() - asked)
            leases = self._read()
            used = dict.fromkeys((f"cuda:{index}" for index in range(DEVICES)), 0)
            for lease in leases:
                used[lease["device"]] += lease["bytes"]
            best = min(used, key=used.__getitem__)
            if used[best] + size_bytes > DEVICE_BYTES:
                return None
            self._count += 1
            name = f"{os.getpid()}-{self._count}"
            leases.append({"id": name, "pid": os.getpid(), "device": best, "bytes": size_bytes})
            self._write(leases)
            if log is not None:
                log.took(name, best, size_bytes)
            return name
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def release(self, held: object, log: Log | None = None) -> None:
        if log is not None:
            log.released(str(held))
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._write([lease for lease in self._read() if lease["id"] != held])
        fcntl.flock(self._lock, fcntl.LOCK_UN)

    def left(self) -> int:
        return len(self._read())

    def _read(self) -> list[dict]:
        try:
            leases = json.loads(self._path.read_text())
        except FileNotFoundError:
            return []
        return [lease for lease in leases if _alive(lease["pid"])]

    def _write(self, leases: list[dict]) -> None:
        fresh = self._path.with_suffix(".new")
        fresh.write_text(json.dumps(leases))
        fresh.replace(self._path)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


WAYS = {"ours": Ours, "home-made": HomeMade}


class Log:
    """Events of one process, appended to one file that all share: its order is what happened."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self.waits: list[float] = []

    def waited(self, seconds: float) -> None:
        self.waits.append(seconds)

    def took(self, name: str, device: str, size_bytes: int) -> None:
        """Within the transaction, so that no later one can be logged before."""
        os.write(self._file, f"took {name} {device} {size_bytes}\n".encode())

    def released(self, name: str) -> None:
        """Before the release, so that nobody takes the place before it is logged."""
        os.write(self._file, f"released {name}\n".encode())


def overcommitments(log: Path) -> tuple[int, int]:
    """How often a device held more than it has, and how many leases were taken, by the log."""
    used = dict.fromkeys((f"cuda:{index}" for index in range(DEVICES)), 0)
    held: dict[str, tuple[str, int]] = {}
    taken = wrong = 0
    for line in log.read_text().splitlines():
        event, name, *rest = line.split()
        if event == "took":
            device, size_bytes = rest[0], int(rest[1])
            held[name] = (device, size_bytes)
            used[device] += size_bytes
            taken += 1
            wrong += used[device] > DEVICE_BYTES
        else:
            device, size_bytes = held.pop(name)
            used[device] -= size_bytes
    return wrong, taken


def machine() -> tuple:
    """Eight idle cards of 8 GiB."""
    from exo.gpu.vocabulary.device import GPUDevice
    from exo.gpu.vocabulary.metrics import GPUMetrics
    from exo.gpu.vocabulary.snapshot import DeviceState

    devices = [
        GPUDevice(
            device_id=f"cuda:{index}",
            name="a card",
            vendor="NVIDIA",
            backend="cuda",
            runtime="cuda",
            hardware_id=f"GPU-{index}",
            memory_bytes=DEVICE_BYTES,
        )
        for index in range(DEVICES)
    ]
    return tuple(
        DeviceState(
            device=device,
            sample=GPUMetrics(
                device.device_id,
                timestamp=1.0,
                memory_total_bytes=DEVICE_BYTES,
                compute_utilization_percent=0.0,
                temperature_celsius=40.0,
            ),
            sample_age_seconds=0.1,
        )
        for device in devices
    )


def uncontended(way: str, folder: Path, runs: int) -> list[float]:
    """Seconds of each take with its release, beside leases that another process holds."""
    holder = start_worker(way, folder, "hold", HELD_BESIDE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    store = WAYS[way](folder)
    seconds = []
    for _ in range(runs):
        began = time.perf_counter()
        store.release(store.take(GIB))
        seconds.append(time.perf_counter() - began)
    holder.communicate("done\n")
    return seconds


def crowd(way: str, folder: Path, processes: int, leases: int) -> dict[str, float]:
    """Many processes that take, hold for a moment and release, until so many leases were taken."""
    each = leases // processes
    log = folder / "log"
    workers = [start_worker(way, folder, "crowd", each, log) for _ in range(processes)]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    began = time.perf_counter()
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    answers = [json.loads(worker.communicate()[0]) for worker in workers]
    seconds = max(answer["ended"] for answer in answers) - began
    wrong, taken = overcommitments(log)
    waits = sorted(wait for answer in answers for wait in answer["waits"])
    return {
        "rate": taken / seconds,
        "wait_p99": waits[int(0.99 * len(waits))],
        "wrong": wrong,
        "taken": taken,
        "left": WAYS[way](folder).left(),
    }


def start_worker(way: str, folder: Path, task: str, *words: object) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--worker", way, str(folder), task, *map(str, words)]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, close_fds=True
    )


def work(way: str, folder: str, task: str, count: str, log_path: str = "") -> None:
    """One worker process of this benchmark."""
    store = WAYS[way](Path(folder))
    if task == "hold":
        held = [store.take(GIB) for _ in range(int(count))]
        print("held", flush=True)
        sys.stdin.readline()
        for one in held:
            store.release(one)
        return
    log = Log(Path(log_path))
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(int(count)):
        while (one := store.take(ASKED_BYTES[number % len(ASKED_BYTES)], log)) is None:
            time.sleep(0.001)
        store.release(one, log)
    print(json.dumps({"ended": time.perf_counter(), "waits": log.waits}))


def cold_start(ours: list[str], runs: int, folder: Path) -> tuple[float, float]:
    """Median seconds of a whole `run -- true`, and of a home-made wrapper that does the least."""
    wrapper = [sys.executable, __file__, "--wrap", str(folder), "true"]
    pairs = [(_seconds(ours), _seconds(wrapper)) for _ in range(runs + 1)]
    return tuple(median(side) for side in zip(*pairs[1:], strict=True))  # the first one warms up


def _seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - began


def wrap(folder: str, *command: str) -> None:
    """The home-made wrapper: take, run, release."""
    store = HomeMade(Path(folder))
    held = store.take(GIB)
    subprocess.run(command, check=True)
    store.release(held)


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3000, help="uncontended (%(default)s)")
    parser.add_argument("--processes", type=int, default=64, help="in the crowd (%(default)s)")
    parser.add_argument("--leases", type=int, default=10_000, help="in the crowd (%(default)s)")
    parser.add_argument("--starts", type=int, default=11, help="of run -- true (%(default)s)")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    options = parser.parse_args()
    where = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=where) as name:
        results = measure(options, Path(name))
    return report("leases", results, as_json=options.json)


def measure(options: argparse.Namespace, folder: Path) -> list[Result]:
    def most(metric: str, pair: tuple[float, float], target: float, n: int) -> Result:
        return Result(metric, *pair, PEER, "", pair[0], target, "lower", n)

    alone = {way: uncontended(way, folder / way, options.runs) for way in WAYS}
    crowds = {
        way: crowd(way, folder / f"{way}-crowd", options.processes, options.leases) for way in WAYS
    }
    ours, peer = crowds["ours"], crowds["home-made"]
    os.environ["EXO_GPU_STATE"] = str(folder / "run")
    # As installed programs have it: byte code is at hand from the second start on.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = str(folder / "bytecode")
    start, peer_start = cold_start(
        [sys.executable, "-m", "exo.gpu", "run", "--", "true"], options.starts, folder / "wrap"
    )
    n, taken = options.runs, int(ours["taken"])
    halves, tails = (
        tuple(1000 * percentile(alone[way], share) for way in WAYS) for share in (0.5, 0.99)
    )
    waits = (1000 * ours["wait_p99"], 1000 * peer["wait_p99"])
    rates = (ours["rate"], peer["rate"])
    rate = ("crowd: leases a second", *rates, PEER, "", rates[0], 2000, "higher", taken)
    return [
        most("take + release, p50, ms", halves, 1.0, n),
        most("take + release, p99, ms", tails, 10.0, n),
        Result(*rate),
        most("crowd: p99 wait for the turn, ms", waits, 100, taken),
        most("crowd: over-commitments", (ours["wrong"], peer["wrong"]), 0, taken),
        most("crowd: leases left behind", (ours["left"], peer["left"]), 0, taken),
        most("run -- true from cold, s", (start, peer_start), 0.25, options.starts),
    ]


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(*sys.argv[2:])
    elif sys.argv[1:2] == ["--wrap"]:
        wrap(*sys.argv[2:])
    else:
        sys.exit(main())
