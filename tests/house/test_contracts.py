"""Each import contract holds on the tree, and breaks, alone, when a fault is planted against it."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONTRACTS = {
    contract["id"]: contract["name"]
    for contract in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"][
        "contracts"
    ]
}
# contract: (the file that gets a line, the line). A file that does not exist is made. An import to a
# floor above is planted where nothing leads back, since a circle would break a second contract.
FAULTS = {
    "floors": ("database.py", "from exo.gpu import backend"),
    "vendor-floors": ("backends/support.py", "from exo.gpu.backends import drm"),
    "vendors": ("backends/cuda.py", "from exo.gpu.backends import rocm"),
    "pure": ("scheduling/ledger.py", "import random"),
    "door-ray": ("coordination/manager.py", "import ray"),
    "door-nvml": ("backends/rocm.py", "import pynvml"),
    "door-cuda": ("backends/cuda_buffers.py", "from cuda.bindings import runtime"),
    "door-wgpu": ("backends/vulkan.py", "import wgpu"),
    "door-solver": ("scheduling/relaxation.py", "def solver():\n    import highspy"),
    "door-sqlite": ("execution/lease_store.py", "import sqlite3"),
    "door-web": ("cli/main.py", "import litestar"),
    "door-terminal": ("cli/main.py", "import textual"),
    "circles": ("vocabulary/units.py", "from exo.gpu.vocabulary import request"),
}
# Faults against the same contracts in the guises that a review overlooks.
GUISES = {
    "floors": [
        ("telemetry/guise.py", "from exo.gpu import discovery"),
        ("database.py", "def late():\n    from exo.gpu import telemetry_protocol"),
        ("database.py", "if TYPE_CHECKING:\n    import exo.gpu.backend"),
        ("utils.py", '"""A room that the design does not know."""'),
    ],
    "pure": [
        ("vocabulary/guise.py", "def now():\n    from time import monotonic as clock"),
        ("scheduling/guise.py", "import os.path"),
        ("scheduling/guise.py", "import logging"),
    ],
    "door-web": [("coordination/manager.py", "def serve():\n    import uvicorn")],
}


def verdicts(tree: Path) -> dict[str, str]:
    """What lint-imports says of each contract, by name: KEPT or BROKEN."""
    lint = Path(sys.executable).with_name("lint-imports")
    environ = os.environ | {"PYTHONPATH": str(tree / "src"), "NO_COLOR": "1", "COLUMNS": "200"}
    done = subprocess.run(
        [lint, "--no-cache", "--config", "pyproject.toml"],
        cwd=tree,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    found = dict(re.findall(r"^(.+?) (KEPT|BROKEN)\b", done.stdout, re.MULTILINE))
    assert set(found) == set(CONTRACTS.values()), done.stdout + done.stderr
    return found


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the sources and of the contracts."""
    clutter = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=clutter)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def plant(tree: Path, file: str, line: str) -> None:
    path = tree / "src" / "exo" / "gpu" / file
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as source:
        source.write(f"\n{line}\n")


def test_every_contract_has_a_planted_fault() -> None:
    """Rule: a contract that nobody has seen break is no contract."""
    assert set(FAULTS) == set(CONTRACTS)


def test_tree_keeps_every_contract(tree: Path) -> None:
    """Rule: the house as it stands keeps all its contracts."""
    assert set(verdicts(tree).values()) == {"KEPT"}


@pytest.mark.parametrize(
    ("contract", "file", "line"),
    [(contract, *fault) for contract, fault in FAULTS.items()]
    + [(contract, *fault) for contract, faults in GUISES.items() for fault in faults],
)
def test_planted_fault_breaks_its_contract_alone(
    tree: Path, contract: str, file: str, line: str
) -> None:
    """Rule: each contract fails on a fault of its kind, and no other contract fails with it."""
    plant(tree, file, line)
    broken = {name for name, verdict in verdicts(tree).items() if verdict == "BROKEN"}
    assert broken == {CONTRACTS[contract]}


BANNED = [
    ("import datetime\n\nNOW = datetime.datetime.now(datetime.UTC)", "datetime.datetime.now"),
    ("import numpy as np\n\nLOT = np.random.default_rng()", "numpy.random"),
    ('import importlib\n\nCLOCK = importlib.import_module("time")', "importlib.import_module"),
]


def ruff_findings(tree: Path, path: Path) -> str:
    """What the project's own rules say of the file."""
    ruff = Path(sys.executable).with_name("ruff")
    command = [ruff, "check", "--no-cache", "--output-format", "concise", path]
    return subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False).stdout


@pytest.mark.parametrize(("code", "name"), BANNED)
@pytest.mark.parametrize("room", ["vocabulary", "scheduling"])
def test_banned_calls_are_found_in_the_pure_rooms(
    tree: Path, room: str, code: str, name: str
) -> None:
    """Rule: what the import linter cannot see, ruff does: a clock, chance, a hidden import."""
    path = tree / "src" / "exo" / "gpu" / room / "planted.py"
    path.write_text(code + "\n")
    assert f"`{name}` is banned" in ruff_findings(tree, path)


def test_the_same_calls_are_free_elsewhere(tree: Path) -> None:
    """Rule: only the pure rooms are held to purity."""
    path = tree / "src" / "exo" / "gpu" / "backends" / "planted.py"
    path.write_text(BANNED[0][0] + "\n")
    assert "TID251" not in ruff_findings(tree, path)


def test_folder_without_init_is_found(tree: Path) -> None:
    """Rule: a room without ``__init__.py``, which the import linter would overlook, is found."""
    path = tree / "src" / "exo" / "gpu" / "attic" / "planted.py"
    path.parent.mkdir()
    path.write_text('"""A file."""\n')
    assert "INP001" in ruff_findings(tree, path)
