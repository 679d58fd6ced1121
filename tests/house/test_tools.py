"""The project's scripts: what they say where something is missing, and what they do where it is not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import vulkan_drivers

ROOT = Path(__file__).resolve().parents[2]


def tool(name: str, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable] if name.endswith(".py") else ["sh"]
    command = [*program, ROOT / "tools" / name, *arguments]
    return subprocess.run(
        command, env=os.environ | environ, capture_output=True, text=True, check=False
    )


def fake_program(folder: Path, name: str, script: str) -> Path:
    """A program that stands where the system's would: ``name`` in ``folder``."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_old_python_is_refused_in_one_line(tmp_path: Path) -> None:
    """Rule: an interpreter that is too old is named, in one line, before anything is made."""
    old = fake_program(tmp_path, "python3.9", "exit 1")
    done = tool("environment", PYTHON=str(old))
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        f"exo-gpu: PYTHON={old} is missing or older than 3.11, the oldest Python that works here"
    ]


def test_missing_venv_module_is_named_in_one_line(tmp_path: Path) -> None:
    """Rule: a Python without venv (Debian splits it off) is answered by the package to install."""
    script = f'case "$2" in *ensurepip*) exit 1 ;; esac; exec {sys.executable} "$@"'
    bare = fake_program(tmp_path, "python3", script)
    done = tool("environment", PYTHON=str(bare))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "apt install python3-venv" in line


@pytest.fixture
def bare_system(tmp_path: Path) -> dict[str, str]:
    """A system without Vulkan drivers and compilers, where apt-get writes down what it is asked."""
    programs = tmp_path / "programs"
    fake_program(programs, "python", 'echo "/usr/share/vulkan/icd.d/radeon_icd.json"')
    fake_program(programs, "apt-get", f'echo "$@" >> {tmp_path}/asked')
    fake_program(programs, "id", "echo ${FAKE_USER:-0}")
    fake_program(programs, "sudo", "exit 1")
    for name in ("sh", "env", "dirname"):
        (programs / name).symlink_to(f"/usr/bin/{name}")
    return {"PATH": str(programs), "PYTHON": str(programs / "python")}


def test_root_installs_what_is_missing_and_says_so(
    tmp_path: Path, bare_system: dict[str, str]
) -> None:
    """Rule: where apt may be used, what it installs is announced first; drivers, browser, compiler."""
    done = tool("system_packages", "test", **bare_system)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert line.startswith("exo-gpu: installing on this system with apt: mesa-vulkan-drivers (")
    asked = (tmp_path / "asked").read_text().splitlines()
    assert [line.split()[-1] for line in asked] == [
        "update",
        "mesa-vulkan-drivers",
        "chromium",
        "gcc",
        "libc6-dev",
    ]


def test_demo_asks_for_the_driver_alone(tmp_path: Path, bare_system: dict[str, str]) -> None:
    """Rule: the demo installs no browser and no compiler."""
    tool("system_packages", "demo", **bare_system)
    assert "chromium" not in (tmp_path / "asked").read_text()


@pytest.mark.parametrize("why", [{"FAKE_USER": "1000"}, {"EXO_GPU_APT": "no"}])
def test_without_apt_one_line_says_what_is_missing(
    tmp_path: Path, bare_system: dict[str, str], why: dict[str, str]
) -> None:
    """Rule: who may not install, or does not want it, is told what is missing, and work goes on."""
    done = tool("system_packages", "test", **bare_system, **why)
    assert done.returncode == 0
    (line,) = done.stdout.splitlines()
    assert line.startswith("exo-gpu: missing on this system, going on without: mesa-vulkan-drivers")
    assert not (tmp_path / "asked").exists()


def test_failed_installation_stops_nothing(tmp_path: Path, bare_system: dict[str, str]) -> None:
    """Rule: a package that apt cannot install is named, and work goes on."""
    fake_program(tmp_path / "programs", "apt-get", "exit 100")
    done = tool("system_packages", "demo", **bare_system)
    assert done.returncode == 0
    assert "apt could not install mesa-vulkan-drivers" in done.stdout


def test_command_sees_every_driver(swiftshader_manifest: Path) -> None:
    """Rule: both variables name SwiftShader and, beside it, all that the loader finds by itself."""
    script = "import json, os; print(json.dumps([os.environ[n] for n in ('VK_DRIVER_FILES', 'VK_ICD_FILENAMES')]))"
    environ = {k: v for k, v in os.environ.items() if k not in vulkan_drivers.VARIABLES}
    command = [sys.executable, ROOT / "tools" / "vulkan_drivers.py", sys.executable, "-c", script]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    named = json.loads(done.stdout)
    manifests = [*vulkan_drivers.loader_manifests(), swiftshader_manifest]
    assert named == [os.pathsep.join(map(str, manifests))] * 2


def test_callers_choice_of_drivers_stands() -> None:
    """Rule: a caller who names drivers is not overruled."""
    script = "import os; print(os.environ['VK_DRIVER_FILES'], 'VK_ICD_FILENAMES' in os.environ)"
    environ = {k: v for k, v in os.environ.items() if k not in vulkan_drivers.VARIABLES}
    command = [sys.executable, ROOT / "tools" / "vulkan_drivers.py", sys.executable, "-c", script]
    done = subprocess.run(
        command,
        env=environ | {"VK_DRIVER_FILES": "/x.json"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["/x.json", "False"]


def test_vulkan_drivers_without_a_command_is_wrong_usage() -> None:
    """Rule: wrong usage is status 2 and one line."""
    done = tool("vulkan_drivers.py")
    assert done.returncode == 2
    assert done.stderr.startswith("usage:")


def test_syntax_check_finds_a_broken_file(tmp_path: Path) -> None:
    """Rule: a file that does not parse, tracked or new, is named, and the check fails."""
    (tmp_path / "tools").mkdir()
    script = (ROOT / "tools" / "check_syntax.py").read_text()
    (tmp_path / "tools" / "check_syntax.py").write_text(script)
    (tmp_path / "tools" / "broken.py").write_text("def f(:\n")
    command = [sys.executable, tmp_path / "tools" / "check_syntax.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "tools/broken.py" in done.stderr
    assert "2 files, 1 broken" in done.stdout


def test_release_refuses_a_tag_of_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule: the tag of a release names the version of its archives."""
    import check_dist

    built = [Path("exo_gpu-1.2.3.tar.gz"), Path("exo_gpu-1.2.3-py3-none-any.whl")]
    tag = {"GITHUB_REF_TYPE": "tag", "GITHUB_REF_NAME": "v1.2.4"}
    assert check_dist.wrong_names("1.2.3", built, tag) == [
        "the tag is v1.2.4, the version of pyproject.toml 1.2.3"
    ]
    assert check_dist.wrong_names("1.2.3", built, {}) == []
    assert len(check_dist.wrong_names("1.2.3", built[:1], {})) == 1


TESTS = """
import pytest

@pytest.mark.shows("vulkan", "finding", "hardware")
def test_finding(): pass

@pytest.mark.shows("vulkan", "memory", "fake")
def test_memory(): pass

@pytest.mark.shows("vulkan", "memory", "fake")
def test_more_memory(): assert False

@pytest.mark.shows("vulkan", "compute", "hardware")
def test_compute(): pytest.skip("no device")
"""


@pytest.mark.parametrize("workers", ["0", "2"])
def test_record_holds_what_passed(tmp_path: Path, workers: str) -> None:
    """Rule: an ability counts as shown when its tests passed; failed or skipped, it was not."""
    (tmp_path / "tests").mkdir()
    conftest = (ROOT / "tests" / "conftest.py").read_text()
    (tmp_path / "tests" / "conftest.py").write_text(conftest)
    (tmp_path / "tests" / "test_it.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text(
        f"[pytest]\npythonpath = {ROOT / 'tools'}\nmarkers = shows(backend, ability, level)\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-n", workers, "tests"]
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("COVERAGE", "PYTEST"))}
    subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, check=False)
    rows = json.loads((tmp_path / ".build" / "shown.json").read_text())
    assert [(row["backend"], row["ability"], row["level"]) for row in rows] == [
        ("vulkan", "finding", "hardware")
    ]
