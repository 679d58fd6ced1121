"""The documents as programs: their Python blocks, their shell commands, and the output beside them.

``python tests/docs/documents.py`` writes the outputs anew where they changed.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sybil import Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sybil import Example

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
MACHINE = ROOT / "docs" / "example-machine.json"
CONFIG = ROOT / "docs" / "example-config.toml"

# Ray keeps what it learned of a process's token for ever: its examples run in programs of their own.
CLUSTER = ROOT / "docs" / "CLUSTER.md"

PROMPT = "$ "
BETWEEN = "\x1e"  # ASCII record separator: between the outputs of two commands

LANGUAGES = ("python", "output", "console")
_SYBIL = Sybil([CodeBlockParser(language, lambda _: None) for language in LANGUAGES])


class Difference(NamedTuple):
    """An output that is not the one shown; ``start`` and ``end`` are places in the document."""

    place: str
    start: int
    end: int
    shown: str
    actual: str

    def __str__(self) -> str:
        return f"{self.place} shows\n{self.shown}\nbut it is\n{self.actual}"


def scripted_environment(folder: Path) -> dict[str, str]:
    """What a reader has who follows along: the scripted machine, and ``exo-gpu`` on the path.

    ``folder`` gets the programs, the lease store and the example of a configuration.
    """
    shutil.copy(CONFIG, folder / "config.toml")
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    python = shlex.quote(sys.executable)
    for name, line in (("exo-gpu", f"{python} -m exo.gpu"), ("python", python)):
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec {line} "$@"\n')
        program.chmod(0o755)
    ours = ("EXO_GPU_", "RAY_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {
        **kept,
        "COLUMNS": "80",
        "LC_ALL": "C.UTF-8",
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "EXO_GPU_CONFIG": os.devnull,
        "EXO_GPU_FAKE": str(MACHINE),
        "EXO_GPU_STATE": str(folder / "state"),
        "EXO_GPU_HISTORY": str(folder / "history.sqlite"),
        "EXO_GPU_JOBS": str(folder / "jobs"),
        "EXO_GPU_CLUSTER": str(folder / "cluster"),
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
    }


def check(path: Path, environ: Mapping[str, str], folder: Path) -> Iterator[Difference]:
    """Run every block of a document in order, in one namespace; yield what came out otherwise.

    ``environ`` is that of the commands; Python blocks run in this process, those of a cluster as a
    program each. ``...`` in an output stands for anything.
    """
    document = _SYBIL.parse(path)
    namespace = document.namespace
    namespace["__name__"] = "__main__"
    printed = ""
    for example, following in pairwise([*document.examples(), None]):
        assert example is not None
        language = example.region.lexemes["arguments"]
        if language == "console":
            yield from _check_console(example, environ, folder)
        elif language == "python":
            if Path(example.path) == CLUSTER:
                printed = _run_program(example.parsed, environ, folder)
            else:
                printed = _run_python(example)
            shown = following is not None and following.region.lexemes["arguments"] == "output"
            if printed and not shown:
                yield _difference(example, "nothing", printed)
        elif not _same(example.parsed, printed):
            yield _difference(example, example.parsed, printed)


def _run_python(example: Example) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        PythonEvaluator()(example)
    return printed.getvalue()


def _run_program(source: str, environ: Mapping[str, str], folder: Path) -> str:
    run = subprocess.run(
        [sys.executable, "-c", source], env=environ, cwd=folder, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def _check_console(
    example: Example, environ: Mapping[str, str], folder: Path
) -> Iterator[Difference]:
    commands: list[str] = []
    shown: list[str] = []
    for line in example.parsed.splitlines(keepends=True):
        if line.startswith(PROMPT):
            commands.append(line.removeprefix(PROMPT))
            shown.append("")
        else:
            shown[-1] += line
    outputs = _run_shell(commands, environ, folder)
    if not all(map(_same, shown, outputs)):
        actual = "".join(
            f"{PROMPT}{command}{text if _same(text, output) else output}"
            for command, text, output in zip(commands, shown, outputs, strict=True)
        )
        yield _difference(example, example.parsed, actual)


def _run_shell(commands: list[str], environ: Mapping[str, str], folder: Path) -> list[str]:
    """What each command writes, errors included; all run in one shell, so that ``$?`` is kept."""
    mark = f"_status=$?; printf '{BETWEEN}'; (exit $_status)\n"
    script = "".join(command + mark for command in commands)
    run = subprocess.run(
        ["sh", "-c", script],
        env=environ,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    outputs = run.stdout.split(BETWEEN)[:-1]
    assert len(outputs) == len(commands), run.stdout
    return outputs


def _same(shown: str, actual: str) -> bool:
    return doctest.OutputChecker().check_output(shown, actual, doctest.ELLIPSIS)


def _difference(example: Example, shown: str, actual: str) -> Difference:
    start = example.region.start
    place = f"{Path(example.path).name}:{example.line}"
    return Difference(place, start, example.region.end, str(shown), actual)


@contextlib.contextmanager
def scripted_process(folder: Path) -> Iterator[dict[str, str]]:
    """This process in the scripted environment, as Python blocks need it."""
    before = dict(os.environ)
    environ = scripted_environment(folder)
    os.environ.clear()
    os.environ.update(environ)
    try:
        yield environ
    finally:
        os.environ.clear()
        os.environ.update(before)


def _record(path: Path) -> int:
    """Write the outputs that changed into a document; how many did."""
    folder = Path(tempfile.mkdtemp())
    with scripted_process(folder) as environ:
        differences = list(check(path, environ, folder))
    text = path.read_text()
    for one in reversed(differences):
        block = text[one.start : one.end]
        fence = re.match(r"\s*(`{3,}\w+\n)", block)
        assert fence is not None, block
        if fence[1].endswith("python\n"):
            print(one)
            continue
        text = text[: one.start] + fence[0] + one.actual + "```" + text[one.end :]
    path.write_text(text)
    shutil.rmtree(folder)
    return len(differences)


if __name__ == "__main__":
    for name in sys.argv[1:] or DOCUMENTS:
        print(name, _record(Path(name).resolve()))
