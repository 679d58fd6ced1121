"""How near the optimum items are assigned to unlike devices: HCSP, generated classes, noise."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, median

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # one core; read when NumPy is loaded

import numpy as np  # noqa: E402
from assignment_noise import noise_study  # noqa: E402
from instances import CLASSES, SOURCE, generate, read_folder  # noqa: E402
from results import Result, parsed_with_data, report  # noqa: E402

from exo.gpu.scheduling.assignment import assign  # noqa: E402
from exo.gpu.scheduling.constructive import HEURISTICS, loads_of  # noqa: E402
from exo.gpu.scheduling.exact import is_here  # noqa: E402

# The last step and what the caller does afterwards must also end within the second.
MARGIN_SECONDS = 0.1
SEED = 20240
HEURISTIC_RUNS = 5


def main() -> int:
    options = arguments()
    if not is_here():
        sys.exit("the benchmark compares with HiGHS: pip install 'exo-gpu[solver]'")
    published = read_folder(options.data)
    made = {f"{name} generated": generate(name, 512, 16, SEED) for name in CLASSES}
    assign(made["i_lolo generated"], seconds=0.2, clock=time.perf_counter)  # loads HiGHS
    results, solutions = [], {}
    for label, instances in (("HCSP", published), ("generated", made)):
        rows = {name: Measured(costs, options.seconds) for name, costs in instances.items()}
        solutions |= {name: row.places for name, row in rows.items()}
        results += of_group(label, rows, options)
        for name, row in rows.items():
            print(f"  {name:<20} bound {row.bound:<14.2f} gap {row.gap:6.3f} %  {row.text()}")
    results += of_large(options)
    results += noise_study(published | made, options.noise_runs)
    if options.solution:
        options.solution.write_text(json.dumps(solutions, indent=1) + "\n", encoding="utf-8")
    return report("assignment", results, as_json=options.json)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.0, help="an instance (%(default)s)")
    parser.add_argument("--large-seconds", type=float, default=5.0, help="1024 x 32 (%(default)s)")
    parser.add_argument("--large", type=int, default=12, help="such instances (%(default)s)")
    parser.add_argument("--noise-runs", type=int, default=1, help="for each instance (%(default)s)")
    parser.add_argument("--solution", type=Path, help="write the device number of each item here")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    return parsed_with_data(parser, "hcsp", SOURCE)


class Measured:
    """One instance: ours with and without the solver, and the peers, each as a gap in percent."""

    def __init__(self, costs: np.ndarray, seconds: float) -> None:
        room, ready = np.full(costs.shape[1], len(costs)), np.zeros(costs.shape[1])
        allowed = seconds - MARGIN_SECONDS
        self.makespans, self.seconds = {}, {}
        for name, solver in (("ours", True), ("ours without solver", False)):
            began = time.perf_counter()
            found = assign(costs, seconds=allowed, clock=time.perf_counter, solver=solver)
            self.seconds[name] = time.perf_counter() - began
            # Counted anew from the places alone, as anyone can.
            self.makespans[name] = float(loads_of(costs, found.places, ready).max())
            if solver:
                self.bound, self.places = found.bound, found.places.tolist()
            else:
                self.bound = max(self.bound, found.bound)
        for name, heuristic in HEURISTICS.items():
            runs = []
            for _ in range(HEURISTIC_RUNS):
                began = time.process_time()  # milliseconds, in which others on the core show
                places = heuristic(costs, room, ready)
                runs.append(time.process_time() - began)
            self.seconds[name] = median(runs)
            self.makespans[name] = float(loads_of(costs, places, ready).max())
        self.makespans["HiGHS"] = whole_milp(costs, seconds)

    @property
    def gap(self) -> float:
        return self.percent("ours")

    def percent(self, name: str) -> float:
        return 100 * (self.makespans[name] / self.bound - 1)

    def text(self) -> str:
        names = ("ours without solver", "min-min", "sufferage", "MCT", "HiGHS")
        return "  ".join(f"{name} {self.percent(name):.3f}" for name in names)


def whole_milp(costs: np.ndarray, seconds: float) -> float:
    """What HiGHS finds for the whole program, on one thread, in the same time; else infinity."""
    import highspy

    class Quiet(highspy.Highs):
        def enableCallbacks(self) -> None:  # noqa: N802 - HiGHS's name
            self.silent()
            super().enableCallbacks()

    items, devices = costs.shape
    count = items * devices
    scale = float(costs.min(axis=1).sum()) / devices
    program = highspy.HighsLp()
    program.num_col_, program.num_row_ = count + 1, items + devices
    program.col_cost_ = np.append(np.zeros(count), 1.0)
    program.col_lower_ = np.zeros(count + 1)
    program.col_upper_ = np.append(np.ones(count), highspy.kHighsInf)
    program.row_lower_ = np.append(np.ones(items), np.full(devices, -highspy.kHighsInf))
    program.row_upper_ = np.append(np.ones(items), np.zeros(devices))
    place = np.arange(count)
    rows = np.stack([place // devices, items + place % devices], axis=1).ravel()
    values = np.stack([np.ones(count), costs.ravel() / scale], axis=1).ravel()
    program.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    program.a_matrix_.start_ = np.append(2 * place, [2 * count, 2 * count + devices])
    program.a_matrix_.index_ = np.append(rows, items + np.arange(devices))
    program.a_matrix_.value_ = np.append(values, -np.ones(devices))
    whole, real = highspy.HighsVarType.kInteger, highspy.HighsVarType.kContinuous
    program.integrality_ = [whole] * count + [real]
    solver = Quiet()
    solver.setOptionValue("parallel", "off")
    solver.setOptionValue("time_limit", seconds)
    solver.passModel(program)
    solver.run()
    found = np.array(solver.getSolution().col_value[:count])
    if not found.size or solver.getInfo().primal_solution_status != 2:
        return float("inf")
    places = found.reshape(items, devices).argmax(axis=1)
    return float(loads_of(costs, places, np.zeros(devices)).max())


def of_group(label: str, rows: dict[str, Measured], options: argparse.Namespace) -> list[Result]:
    """The figures of one group of instances of 512 x 16."""
    count = len(rows)

    def mean(name: str) -> float:
        return fmean(row.percent(name) for row in rows.values())

    def against(peer: str, name: str, value: float, target: float) -> Result:
        peer_version = version("highspy") if peer == "HiGHS" else ""
        return Result(
            f"{label}: {name}", value, mean(peer), peer, peer_version, value, target, "lower", count
        )

    slowest = max(row.seconds[name] for row in rows.values() for name in HEURISTICS)
    worst = max(row.makespans["ours"] / row.makespans["min-min"] for row in rows.values())
    longest = max(
        row.seconds[name] for row in rows.values() for name in ("ours", "ours without solver")
    )
    return [
        *(
            against(peer, f"mean gap, %, and {peer}'s", mean("ours"), 0.40)
            for peer in ("HiGHS", "min-min", "sufferage", "MCT")
        ),
        against("HiGHS", "without solver, %", mean("ours without solver"), 1.0),
        Result(f"{label}: worst / min-min", worst, 1, "min-min", "", worst, 1, "lower", count),
        limit(f"{label}: longest, s", longest, options.seconds, count),
        limit(f"{label}: slowest heuristic, CPU s", slowest, 0.05, count),
    ]


def of_large(options: argparse.Namespace) -> list[Result]:
    """Generated instances of 1024 x 32."""
    gaps, peers, seconds = [], [], []
    ready = np.zeros(32)
    for name in CLASSES[: options.large]:
        costs = generate(name, 1024, 32, SEED)
        began = time.perf_counter()
        allowed = options.large_seconds - MARGIN_SECONDS
        found = assign(costs, seconds=allowed, clock=time.perf_counter)
        seconds.append(time.perf_counter() - began)
        peer = loads_of(costs, HEURISTICS["min-min"](costs, np.full(32, 1024), ready), ready).max()
        gaps.append(100 * (loads_of(costs, found.places, ready).max() / found.bound - 1))
        peers.append(100 * (peer / found.bound - 1))
    if not gaps:
        return []
    value, count = float(fmean(gaps)), len(gaps)
    peer = float(fmean(peers))
    return [
        Result("1024 x 32: mean gap, %", value, peer, "min-min", "", value, 0.8, "lower", count),
        limit("1024 x 32: longest, s", max(seconds), options.large_seconds, count),
    ]


def limit(metric: str, value: float, most: float, count: int) -> Result:
    return Result(metric, value, most, "the limit", "", value, most, "lower", count)


if __name__ == "__main__":
    sys.exit(main())
