"""How long `exo-gpu --help` takes to start, against `python -c "import click"`."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from importlib.metadata import version
from statistics import median

from results import Result, report

# What the console script `exo-gpu` does, without depending on where it was installed.
OURS = "import sys; from exo.gpu.cli.main import main; sys.argv = ['exo-gpu', '--help']; main()"
PEER = "import click"
TARGET = 2.5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=30, help="of each, interleaved (%(default)s)")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    options = parser.parse_args()
    seconds(OURS), seconds(PEER)  # byte code and file cache are warm from here on
    pairs = [(seconds(OURS), seconds(PEER)) for _ in range(options.runs)]
    ours, peer = (median(side) for side in zip(*pairs, strict=True))
    result = Result(
        metric="start of --help, seconds",
        ours=ours,
        peer=peer,
        peer_name='python -c "import click"',
        peer_version=version("click"),
        value=ours / peer,
        target=TARGET,
        better="lower",
        n=options.runs,
    )
    return report("help", [result], as_json=options.json)


def seconds(program: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())
