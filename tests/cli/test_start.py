"""What a command may load: the start of a command is what people wait for most often."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

# Runs the command, then says which modules it loaded beyond those of a bare interpreter.
WATCH = """
import json, sys
before = set(sys.modules)
from exo.gpu.cli.main import main
status = main(sys.argv[2:])
with open(sys.argv[1], "w") as file:
    json.dump({"status": status, "modules": sorted(set(sys.modules) - before)}, file)
"""

# msgspec loads typing_extensions where something else installed it.
FAKE = {"click", "exo", "msgspec", "typing_extensions"}
REAL = FAKE | ({"pynvml"} if sys.platform == "linux" else {"psutil", "pynvml"})


@pytest.fixture
def loaded(tmp_path):
    def run(*arguments: str) -> set[str]:
        report = tmp_path / "modules.json"
        subprocess.run(
            [sys.executable, "-c", WATCH, str(report), *arguments], capture_output=True, check=True
        )
        found = json.loads(report.read_text())
        assert found["status"] == 0
        return set(found["modules"])

    return run


def packages(modules: set[str]) -> set[str]:
    """Whose modules these are, the standard library apart."""
    return {name.partition(".")[0] for name in modules} - sys.stdlib_module_names


def test_help_loads_click_and_the_table_alone(loaded):
    """Rule: ``--help`` loads click, and of ours the front door and the table of commands."""
    modules = loaded("--help")
    assert packages(modules) == {"click", "exo"}
    assert {name for name in modules if name.startswith("exo")} == {
        "exo",
        "exo.gpu",
        "exo.gpu.cli",
        "exo.gpu.cli.main",
    }
    assert modules.isdisjoint({"asyncio", "logging", "sqlite3", "subprocess", "json", "difflib"})


COMMANDS = [
    ["devices"],
    ["devices", "--json"],
    ["ps"],
    ["top", "--once"],
    ["select", "--explain"],
    ["run", "--", "true"],
]


@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda words: words[0])
def test_everyday_commands_load_what_is_allowed_on_scripted_devices(arguments, loaded, devices):
    """Rule: ``devices``, ``ps``, ``select`` and ``run`` load click and msgspec, and no other package."""
    modules = loaded(*arguments)
    assert packages(modules) <= FAKE
    assert "asyncio" not in modules


@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda words: words[0])
def test_everyday_commands_load_what_is_allowed_on_this_machine(arguments, loaded):
    """Rule: real devices cost the library that reads them, and still no NumPy or rich."""
    modules = loaded(*arguments)
    assert packages(modules) <= REAL
    assert "asyncio" not in modules


@pytest.mark.parametrize(("call", "frozen"), [("main()", True), ("main(['--version'])", False)])
def test_a_command_does_not_search_for_garbage_at_its_end(call, frozen):
    """Rule: what ends with the process is left to it; a program that calls main() goes on as it was."""
    code = f"import gc, sys; from exo.gpu.cli.main import main; {call}; print(gc.get_freeze_count() > 0)"
    done = subprocess.run(
        [sys.executable, "-c", code, "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[-1] == str(frozen)


def test_a_lease_loads_nothing_that_only_a_new_store_or_a_wait_needs(loaded, devices):
    """Rule: where the store is there, ``run`` takes its lease without what makes one."""
    loaded("run", "--", "true")
    modules = loaded("run", "--", "true")
    assert modules.isdisjoint({"secrets", "shutil", "tempfile", "socket", "exo.gpu.nodes.watching"})
