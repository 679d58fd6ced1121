"""The command as a whole: one line and one status for whatever stops it."""

from __future__ import annotations

import os
import subprocess

import click
import pytest

from exo.gpu.cli.main import COMMANDS, main, root

BAD_INPUT = [
    (["select", "--memory", "banana"], 2, "banana"),
    (["select", "--memory", "-1"], 2, "-1"),
    (["select", "--memory", "8 GiBi"], 2, "8 GiBi"),
    (["select", "--memory", "99999999999TiB"], 2, "99999999999TiB"),
    (["select", "--memory"], 2, "--memory"),
    (["select", "--count", "0"], 2, "0"),
    (["select", "--count", "two"], 2, "two"),
    (["select", "--on", "cudaa"], 2, "did you mean 'cuda'"),
    (["select", "--format", "xml"], 2, "xml"),
    (["select", "--all-devices", "--on", "cuda"], 2, "--all-devices"),
    (["select", "--device", ""], 2, "devices"),
    (["select", "unexpected"], 2, "unexpected"),
    (["select", "--memroy", "1GiB"], 2, "--memory"),
    (["devices", "--jsn"], 2, "--json"),
    (["selct"], 2, "did you mean 'select'"),
    (["xyzzy"], 2, "devices, top"),
    (["--", "-x"], 2, "-x"),
    (["--verison"], 2, "--version"),
    (["run"], 2, "run"),
    (["run", "--"], 2, "run"),
    (["run", "--memory", "banana", "--", "true"], 2, "banana"),
    (["completion", "tcsh"], 2, "tcsh"),
    (["map"], 255, "template"),
    (["map", ""], 255, "template"),
    (["map", "  ", ":::", "a"], 255, "template"),
    (["map", ":::", "a"], 255, "template"),
    (["map", "true", "::::", "no-such-file"], 255, "no-such-file"),
    (["map", "--halt", "later", "true", ":::", "a"], 255, "now,fail=1"),
    (["map", "--timeout", "0", "true", ":::", "a"], 255, "--timeout"),
    (["jobs", "show", "no-such-job"], 1, "no-such-job"),
    (["map", "--memory", "banana", "true", ":::", "a"], 255, "banana"),
    (["map", "--slots", "0", "true", ":::", "a"], 255, "0"),
    (["map", "--unknown", "true", ":::", "a"], 255, "--unknown"),
]


@pytest.mark.parametrize(("arguments", "status", "named"), BAD_INPUT)
def test_bad_input_is_one_line_and_starts_nothing(
    arguments, status, named, devices, exo_gpu, state_folder
):
    """Rule: bad input gives one line that names it, the right status, and nothing is begun."""
    done = exo_gpu(*arguments)
    assert done.returncode == status
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("exo-gpu: ")
    assert named in done.stderr
    assert list(state_folder.iterdir()) == []


def test_without_a_command_the_help_is_a_usage_error(exo_gpu):
    """Rule: nothing asked is a usage error that shows what can be asked."""
    done = exo_gpu()
    assert done.returncode == 2
    assert done.stdout == ""
    assert all(name in done.stderr for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command_fits_80_columns(name, exo_gpu):
    """Rule: every command of the table exists and says in 80 columns what it does."""
    done = exo_gpu(name, "--help")
    assert done.returncode == 0
    assert done.stderr == ""
    assert max(len(line) for line in done.stdout.splitlines()) <= 80


def test_help_shows_the_table_and_the_statuses(exo_gpu):
    """Rule: --help lists every command with its line."""
    done = exo_gpu("--help")
    assert done.returncode == 0
    for name, text in COMMANDS.items():
        assert f"{name} " in done.stdout
        assert text in done.stdout
    assert "69" in done.stdout


def test_the_table_stands_for_the_commands():
    """Rule: what the table says is what --help prints, and every name in it can be loaded."""
    ctx, formatter = click.Context(root), click.HelpFormatter()
    root.format_commands(ctx, formatter)
    for name, text in COMMANDS.items():
        assert text in formatter.getvalue()
        command = root.get_command(ctx, name)
        assert command is not None
        assert command.help
        assert command.help.startswith(text)


def test_version_names_the_program(exo_gpu):
    """Rule: --version prints the name and the version, and nothing else."""
    done = exo_gpu("--version")
    assert done.returncode == 0
    assert done.stdout.startswith("exo-gpu ")
    assert len(done.stdout.split()) == 2


def test_never_and_not_now_have_their_own_statuses(script, exo_gpu):
    """Rule: 69 when no device here can ever do it, 75 when one could but not at the moment."""
    full = {"memory_used_bytes": 2**30, "memory_total_bytes": 2**30}
    device = {"device_id": "cuda:0", "name": "Full", "vendor": "NVIDIA", "backend": "fake"}
    script(device | {"runtime": "cuda", "memory_bytes": 2**30, "sample": full})
    never = exo_gpu("select", "--memory", "99TiB")
    assert never.returncode == 69
    assert "cuda:0" in never.stderr
    assert never.stderr.count("\n") == 1
    not_now = exo_gpu("select", "--memory", "512MiB")
    assert not_now.returncode == 75
    assert not_now.stderr.startswith("exo-gpu: not now")
    assert not_now.stderr.count("\n") == 1


def test_our_own_failure_is_status_1(devices, exo_gpu, tmp_path):
    """Rule: what is neither the user's mistake nor an answer is status 1, in one line."""
    (tmp_path / "a file").touch()
    done = exo_gpu("run", "--", "true", EXO_GPU_STATE=str(tmp_path / "a file" / "state"))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "EXO_GPU_STATE" in done.stderr


def test_verbose_logs_on_standard_error_alone(devices, exo_gpu):
    """Rule: -v never touches standard output; twice, an error says where it came from."""
    plain, verbose = exo_gpu("select"), exo_gpu("-vv", "select")
    assert verbose.stdout == plain.stdout == "cuda:0\n"
    failed = exo_gpu("-vv", "select", "--memory", "99TiB")
    assert failed.returncode == 69
    assert "Traceback" in failed.stderr
    assert failed.stdout == ""


def test_a_reader_that_goes_away_is_no_error(devices, command_line):
    """Rule: a closed pipe ends the command quietly, with the status of a death by SIGPIPE."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as closed:
        done = subprocess.run(
            command_line("devices"), stdout=closed, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == 141
    assert done.stderr == b""


@pytest.mark.parametrize("words", [["devices"], ["map", "echo", ":::", "a"]])
def test_closed_and_full_outputs_are_no_tracebacks(words, devices, command_line):
    """Rule: a caller that closed standard output gets the status, a full disk one line."""
    closed = subprocess.run(
        ["/bin/sh", "-c", 'exec 2>&1; "$@" >&-', "sh", *command_line(*words)],
        capture_output=True,
        check=False,
    )
    assert closed.returncode == 0
    mute = subprocess.run(
        ["/bin/sh", "-c", '"$@" 2>&- >&-', "sh", *command_line(*words)], check=False
    )
    assert mute.returncode == 0
    assert b"Traceback" not in closed.stdout
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            command_line(*words), stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == (255 if words[0] == "map" else 1)
    assert done.stderr.splitlines()[-1].startswith(b"exo-gpu: ")
    assert b"Traceback" not in done.stderr


def test_main_returns_the_status_to_whoever_calls_it(capsys):
    """Rule: ``main`` is a function: it returns the status and leaves the process alone."""
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("exo-gpu ")
    assert main(["--nonsense"]) == 2
    assert main(["nonsense"]) == 2
    assert "nonsense" in capsys.readouterr().err
