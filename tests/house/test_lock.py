"""The lock: every version hashed, every dependency of the project in it, no address recorded."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FILES = ["dev.txt", "uv.txt"]


def lock(name: str) -> str:
    return (ROOT / "requirements" / name).read_text()


def locked_names(name: str) -> set[str]:
    return set(re.findall(r"^([a-z0-9.-]+)==", lock(name), re.MULTILINE))


def wanted_names() -> set[str]:
    """What the core, the extras of the lock and the groups ask for."""
    lines = list(PROJECT["project"]["dependencies"])
    for extra in ("vulkan", "cuda", "plot"):
        lines += PROJECT["project"]["optional-dependencies"][extra]
    for group in PROJECT["dependency-groups"].values():
        lines += [line for line in group if isinstance(line, str)]
    return {re.match(r"[A-Za-z0-9-]+", line).group().lower() for line in lines}


@pytest.mark.parametrize("name", FILES)
def test_lock_records_no_address(name: str) -> None:
    """Rule: the same lock serves everybody: no index, no link, no path is written into it."""
    for trace in (
        "://",
        "--index",
        "--extra-index",
        "--find-links",
        "file:",
        "@ ",
        "/home",
        "/root",
    ):
        assert trace not in lock(name)


@pytest.mark.parametrize("name", FILES)
def test_every_locked_version_has_a_hash(name: str) -> None:
    """Rule: nothing is installed that was not hashed when it was chosen."""
    entries = re.split(r"^(?=[a-z0-9])", lock(name), flags=re.MULTILINE)[1:]
    assert entries
    for entry in entries:
        assert "==" in entry
        assert "--hash=sha256:" in entry


def test_every_dependency_is_locked() -> None:
    """Rule: a dependency that is added is locked with it (``make lock``)."""
    assert wanted_names() <= locked_names("dev.txt")
    assert locked_names("uv.txt") == {"uv"}
