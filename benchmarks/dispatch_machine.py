"""Two equal fake cards, and the peers that the dispatch benchmark needs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

GIB = 2**30
SLOTS = 2


def card(index: int) -> dict[str, object]:
    sample = {"memory_total_bytes": 8 * GIB, "memory_used_bytes": 0}
    return {
        "device_id": f"cuda:{index}",
        "name": "Fake card",
        "vendor": "NVIDIA",
        "backend": "fake",
        "runtime": "cuda",
        "hardware_id": f"FAKE-{index}",
        "memory_bytes": 8 * GIB,
        "sample": sample | {"compute_utilization_percent": 0},
    }


@contextmanager
def two_cards() -> Iterator[Path]:
    """This process and those it starts see two fake cards, with leases of their own."""
    before = dict(os.environ)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "box.json").write_text(json.dumps({"devices": [card(0), card(1)]}))
        state = folder / "state"
        state.mkdir()
        os.environ["EXO_GPU_FAKE"] = str(folder / "box.json")
        os.environ["EXO_GPU_STATE"] = str(state)
        try:
            yield folder
        finally:
            os.environ.clear()
            os.environ.update(before)


def peer_version(package: str) -> str:
    """Of an installed peer; a missing one is an error, not a pass."""
    try:
        return version(package)
    except PackageNotFoundError:
        sys.exit(f"the peer {package} is missing: benchmarks/README.md says how to install it")


def parallel_version() -> str:
    """Of GNU parallel, by its program."""
    program = shutil.which("parallel")
    words = [program or "", "--version"]
    done = program and subprocess.run(words, capture_output=True, text=True, check=False)
    if not done or "GNU parallel" not in done.stdout:
        sys.exit("the peer GNU parallel is missing: install Debian's package 'parallel'")
    return done.stdout.split("\n", 1)[0].split()[-1]


def start_ray() -> None:
    import ray

    ray.init(
        address="local",
        num_cpus=SLOTS,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
