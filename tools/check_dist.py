"""Checks what ``make dist`` built: what the archives hold, and that the wheel works by itself.

The wheel is installed with its locked dependencies, and nothing else, into a fresh environment
under ``.build``, whose ``exo-gpu`` must then list this machine's devices. In a release the tag must
name the version.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = ROOT / ".build" / "dist-check"
UV = Path(sys.executable).with_name("uv")


def project_version() -> str:
    """The version that pyproject.toml names."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def wrong_names(version: str, built: list[Path], environ: dict[str, str]) -> list[str]:
    """What is wrong with the files' names, and with the tag where a release is made."""
    expected = {f"exo_gpu-{version}.tar.gz", f"exo_gpu-{version}-py3-none-any.whl"}
    found = {path.name for path in built}
    wrong = [] if found == expected else [f"dist holds {sorted(found)}, not {sorted(expected)}"]
    tag = environ.get("GITHUB_REF_NAME", "")
    if environ.get("GITHUB_REF_TYPE") == "tag" and tag != f"v{version}":
        wrong.append(f"the tag is {tag}, the version of pyproject.toml {version}")
    return wrong


def wrong_members(wheel: Path, sdist: Path) -> list[str]:
    """What lies in the archives and should not, and what should and does not."""
    wheel_names = set(zipfile.ZipFile(wheel).namelist())
    strangers = {n for n in wheel_names if not n.startswith("exo/gpu/") and ".dist-info/" not in n}
    wrong = [f"the wheel holds {name}" for name in sorted(strangers)]
    source = ROOT / "src"
    ours = (path for path in (source / "exo" / "gpu").rglob("*") if path.is_file())
    shipped = {str(path.relative_to(source)) for path in ours if "__pycache__" not in path.parts}
    wrong += [f"the wheel lacks {name}" for name in sorted(shipped - wheel_names)]
    with tarfile.open(sdist) as archive:
        sdist_names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {"LICENSE", "README.md", "pyproject.toml", "Makefile", "requirements/dev.txt"}
    wrong += [f"the sdist lacks {name}" for name in sorted(needed - sdist_names)]
    return wrong


def try_wheel(wheel: Path) -> str:
    """Install the wheel into a fresh environment and list the devices; the first line for people.

    Raises:
        subprocess.CalledProcessError: when the installation or the command fails.
    """
    venv.create(ENVIRONMENT, clear=True, symlinks=True)
    programs = ENVIRONMENT / "bin"
    lock = ROOT / "requirements" / "dev.txt"
    install = [UV, "pip", "install", "--quiet", "--python", programs / "python"]
    subprocess.run([*install, "--constraint", lock, wheel], check=True)
    command = [programs / "exo-gpu", "devices", "--json"]
    environ = os.environ | {"EXO_GPU_STATE": str(ENVIRONMENT / "state")}
    listed = subprocess.run(command, env=environ, check=True, stdout=subprocess.PIPE, text=True)
    json.loads(listed.stdout)
    return f"{wheel.name} works by itself: exo-gpu devices answers"


def main() -> int:
    """Print what is wrong, one a line; 1 if anything is."""
    version, built = project_version(), sorted((ROOT / "dist").iterdir())
    wrong = wrong_names(version, built, dict(os.environ))
    if not wrong:
        sdist, wheel = sorted(built, key=lambda path: path.suffix)
        wrong = wrong_members(wheel, sdist)
    for line in wrong:
        print(f"dist: {line}", file=sys.stderr)
    if wrong:
        return 1
    print(f"dist: {try_wheel(wheel)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
