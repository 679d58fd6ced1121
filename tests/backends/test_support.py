"""The record of what was shown: honest levels, and a document that equals it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import support as tool

from exo.gpu.backends import support
from exo.gpu.factory import GPUBackendFactory

ROOT = Path(__file__).resolve().parents[2]


def row(
    level: str, *, backend: str = "cuda", ability: str = "finding", **more: str
) -> dict[str, Any]:
    return {"backend": backend, "ability": ability, "level": level, **more}


def test_the_document_equals_the_record() -> None:
    """Rule: docs/SUPPORT.md is what support.json renders to; `make support` writes both."""
    assert (ROOT / "docs/SUPPORT.md").read_text() == tool.render(support.record())


def test_every_backend_and_ability_has_a_level() -> None:
    """Rule: nothing that a backend offers is missing from the record, and nothing is added."""
    for name in GPUBackendFactory.names():
        assert list(support.shown(name)) == tool.offered(GPUBackendFactory.make(name))
        for showing in support.shown(name).values():
            assert showing["level"] in support.LEVELS


def test_marks_in_the_tests_are_known_levels() -> None:
    """Rule: a mark with an unknown backend, ability or level would silently show nothing."""
    for path in (ROOT / "tests").rglob("test_*.py"):
        for line in path.read_text().splitlines():
            if line.startswith("@pytest.mark.shows("):
                backend, ability, level = json.loads(f"[{line.split('(', 1)[1].rstrip(')')}]")
                assert backend in GPUBackendFactory.names(), path
                assert ability in support.ABILITIES, path
                assert level in support.LEVELS, path


def test_a_lesser_showing_never_replaces_a_better_one() -> None:
    """Rule: what was shown on hardware stays, with its date, until hardware shows it again."""
    once = tool.updated({}, [row("hardware", model="H200", driver="570")], "2026-01-01")
    later = tool.updated(once, [row("fake", model="script")], "2026-02-02")
    assert later["cuda"]["finding"] == {
        "level": "hardware",
        "model": "H200",
        "driver": "570",
        "date": "2026-01-01",
    }
    again = tool.updated(later, [row("hardware", model="T4", driver="580")], "2026-03-03")
    assert again["cuda"]["finding"]["date"] == "2026-03-03"


def test_the_best_of_several_showings_counts() -> None:
    """Rule: of one run's tests the best level is kept, with everything that it ran on."""
    rows = [
        row("fake", model="script"),
        row("captured", model="rx580", driver="amdgpu"),
        row("captured", model="vega56", driver="amdgpu"),
    ]
    fresh = tool.updated({}, rows, "2026-01-01")
    assert fresh["cuda"]["finding"]["model"] == "rx580; vega56"
    assert fresh["cuda"]["finding"]["driver"] == "amdgpu"
    assert fresh["cuda"]["pinning"] == {"level": "never run"}
    assert "| cuda | pinning | never run | - | - | - |" in tool.render(fresh)


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        (["hardware", "hardware"], "full"),
        (["hardware", "fake"], "partial"),
        (["software driver", "never run"], "partial"),
        (["captured", "fake"], "experimental"),
        ([], "experimental"),
    ],
)
def test_a_devices_support_level_follows_from_the_record(
    monkeypatch: pytest.MonkeyPatch, levels: list[str], expected: str
) -> None:
    """Rule: "full" needs hardware for everything, "partial" a real driver for something."""
    shown = {str(place): {"level": level} for place, level in enumerate(levels)}
    monkeypatch.setattr(support, "record", lambda: {"cuda": shown})
    assert support.support_level("cuda") == expected
    assert support.support_level("unheard") == "experimental"


def test_the_tool_needs_a_record(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rule: without a test run there is nothing to write down, said in one line."""
    monkeypatch.setattr(tool, "SHOWN", ROOT / ".build" / "absent.json")
    assert tool.main() == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_the_tool_writes_both_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Rule: one call brings the record up to date and renders the document from it."""
    for name in ("SHOWN", "RECORD", "TABLE"):
        monkeypatch.setattr(tool, name, tmp_path / name)
    (tmp_path / "SHOWN").write_text(json.dumps([row("fake", model="script")]))
    (tmp_path / "RECORD").write_text("{}")
    assert tool.main() == 0
    record = json.loads((tmp_path / "RECORD").read_text())
    assert record["cuda"]["finding"]["level"] == "fake"
    assert (tmp_path / "TABLE").read_text() == tool.render(record)
