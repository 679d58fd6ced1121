"""A runtime's workers run under the interpreter that was set for it."""

from __future__ import annotations

import os
import shlex
import sys

import pytest
from boxes import device, host

from exo.gpu.coordination.executor import GPUExecutor
from exo.gpu.vocabulary.errors import WorkerDied


def interpreter_variable() -> str | None:
    return os.environ.get("INTERPRETER")


@pytest.fixture
def use_python(use_box, tmp_path, monkeypatch):
    """Two kinds of cards, and for one of them an interpreter: a script of these lines."""

    def use(*lines: str) -> None:
        use_box(device("cuda:0", "NVIDIA", "cuda"), device("rocm:0", "AMD", "rocm"), host())
        python = tmp_path / "python"
        python.write_text("\n".join(("#!/bin/sh", *lines, "")))
        python.chmod(0o755)
        config = tmp_path / "config.toml"
        config.write_text(f'[runtime.rocm]\npython = "{python}"\n')
        monkeypatch.setenv("EXO_GPU_CONFIG", str(config))

    return use


def test_each_runtime_has_the_interpreter_set_for_it(use_python):
    """Rule: what is set for one runtime is used there, and nowhere else."""
    use_python("export INTERPRETER=rocm", f'exec {shlex.quote(sys.executable)} "$@"')
    for runtime, expected in (("rocm", "rocm"), ("cuda", None)):
        with GPUExecutor(runtime=runtime) as pool:
            assert pool.submit(interpreter_variable).result() == expected


def test_another_version_is_refused_before_it_gets_a_function(use_python):
    """Rule: byte code of another Python crashes or lies, so the item fails with both versions."""
    pretend = (
        "import runpy, sys; sys.version_info = (2, 7, 18, 'final', 0); del sys.argv[0]; "
        "sys.argv = sys.argv or ['']; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    use_python(f'exec {shlex.quote(sys.executable)} -c {shlex.quote(pretend)} "$@"')
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    with GPUExecutor(runtime="rocm") as pool:
        future = pool.submit(interpreter_variable)
        with pytest.raises(WorkerDied, match=rf"is Python 2\.7, .* Python {here} do not run there"):
            future.result()
