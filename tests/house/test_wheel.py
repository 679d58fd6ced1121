"""The wheel, installed as users install it: alone, and beside an ``exo`` that is a regular package."""

import email
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.xdist_group("wheel")  # so that one worker builds it, once


def run(*command: str | Path, **environ: str) -> str:
    """The command's output, run in the root folder with nothing of the checkout on the path."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("COVERAGE", "PYTHON"))}
    done = subprocess.run(
        command, cwd="/", env=clean | environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree."""
    folder = tmp_path_factory.mktemp("wheel")
    command = ("-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT)
    run(sys.executable, *command)
    (built,) = folder.glob("*.whl")
    return built


class Environment:
    """A fresh environment that sees the dependencies of this one, but not the checkout."""

    def __init__(self, folder: Path) -> None:
        run(sys.executable, "-m", "venv", "--without-pip", folder)
        self.python = folder / "bin" / "python"
        self.programs = folder / "bin"
        self.packages = Path(
            run(
                self.python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"
            ).strip()
        )
        # A path named in a .pth file is searched, but its own .pth files (the checkout) are not.
        dependencies = sysconfig.get_paths()["purelib"]
        (self.packages / "dependencies.pth").write_text(dependencies + "\n")

    def uv(self, command: str, *arguments: str | Path) -> None:
        program = Path(sys.executable).with_name("uv")
        run(program, "pip", command, "--quiet", "--offline", "--python", self.python, *arguments)

    def evaluate(self, statement: str) -> str:
        return run(self.python, "-c", statement).strip()


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path / "environment")


def test_wheel_holds_exo_gpu_alone(wheel: Path) -> None:
    """Rule: ``exo`` stays a namespace: the wheel has no ``exo/__init__.py``, nor anything beside exo/gpu."""
    names = zipfile.ZipFile(wheel).namelist()
    assert "exo/__init__.py" not in names
    assert {"exo/gpu/__init__.py", "exo/gpu/py.typed"} <= set(names)
    assert all(name.startswith(("exo/gpu/", "exo_gpu-")) for name in names)


def test_wheel_holds_every_data_file(wheel: Path) -> None:
    """Rule: what lies beside the code is shipped with it."""
    names = set(zipfile.ZipFile(wheel).namelist())
    source = ROOT / "src"
    ours = (path for path in source.rglob("*") if path.is_file() and path.suffix != ".pyc")
    assert {str(path.relative_to(source)) for path in ours} <= names


def test_metadata_names_license_and_extras(wheel: Path) -> None:
    """Rule: the metadata say the licence, the Pythons and each extra; ``all`` asks for all the others."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        metadata = email.message_from_bytes(archive.read(name))
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    extras = set(metadata.get_all("Provides-Extra"))
    assert extras == {"all", "cuda", "plot", "ray", "serve", "solver", "tui", "vulkan"}
    whole = [line for line in metadata.get_all("Requires-Dist") if "extra == 'all'" in line]
    for extra in extras - {"all"}:
        own = [line for line in metadata.get_all("Requires-Dist") if f"extra == '{extra}'" in line]
        assert {line.partition(";")[0] for line in own} <= {
            line.partition(";")[0] for line in whole
        }


def test_wheel_works_alone(wheel: Path, environment: Environment) -> None:
    """Rule: installed alone, ``exo.gpu`` imports from the wheel and the command answers."""
    environment.uv("install", "--no-deps", wheel)
    where = environment.evaluate("import exo.gpu; print(exo.gpu.__file__)")
    assert Path(where).is_relative_to(environment.packages)
    assert environment.evaluate("import exo; print(exo.__spec__.origin)") == "None"
    help_text = run(environment.programs / "exo-gpu", "--help")
    assert "devices" in help_text
    version = environment.evaluate("import exo.gpu; print(exo.gpu.__version__)")
    assert wheel.name.startswith(f"exo_gpu-{version}-")


def test_wheel_works_beside_a_regular_exo(wheel: Path, environment: Environment) -> None:
    """Rule: in the same site-packages as exo itself both import, and removing ours leaves theirs."""
    theirs = environment.packages / "exo"
    theirs.mkdir()
    (theirs / "__init__.py").write_text('MARKER = "the regular package"\n')
    environment.uv("install", "--no-deps", wheel)
    statement = "import exo, exo.gpu; print(exo.MARKER); print(exo.gpu.__file__)"
    marker, where = environment.evaluate(statement).splitlines()
    assert marker == "the regular package"
    assert Path(where).is_relative_to(environment.packages)
    assert "devices" in run(environment.programs / "exo-gpu", "--help")
    environment.uv("uninstall", "exo-gpu")
    assert environment.evaluate("import exo; print(exo.MARKER)") == "the regular package"
    assert not (theirs / "gpu").exists()
