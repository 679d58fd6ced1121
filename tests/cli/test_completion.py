"""Shell completion: scripts that shells accept, and answers from the table of commands."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from exo.gpu.cli.main import COMMANDS


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_for_every_shell(shell, exo_gpu):
    """Rule: the script names the program and the variable that asks it."""
    done = exo_gpu("completion", shell)
    assert done.returncode == 0
    assert "_EXO_GPU_COMPLETE" in done.stdout
    assert "exo-gpu" in done.stdout


def complete(exo_gpu, *words: str) -> list[str]:
    """What bash is offered behind these words."""
    done = exo_gpu(
        _EXO_GPU_COMPLETE="bash_complete",
        COMP_WORDS=" ".join(("exo-gpu", *words)),
        COMP_CWORD=str(len(words)),
    )
    return [line.partition(",")[2] for line in done.stdout.splitlines()]


def test_commands_options_and_runtimes_are_offered(exo_gpu):
    """Rule: commands from the table, the options of each, and the values that can be listed."""
    assert complete(exo_gpu, "") == list(COMMANDS)
    assert complete(exo_gpu, "de") == ["devices"]
    assert "--memory" in complete(exo_gpu, "select", "--m")
    assert complete(exo_gpu, "select", "--on", "cu") == ["cuda"]
    assert complete(exo_gpu, "select", "--format", "u") == ["uuid"]
    assert "--verbose" in complete(exo_gpu, "--verb")


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_accepts_its_script(exo_gpu):
    """Rule: bash takes the script and knows the command afterwards."""
    script = exo_gpu("completion", "bash").stdout
    done = subprocess.run(
        ["bash", "--norc", "-c", 'eval "$0" && complete -p exo-gpu', script],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "exo-gpu" in done.stdout
    assert done.stderr == ""
