"""Finds code of ``src`` that nothing uses, with vulture; tests, tools and examples count as use.

Arguments are left to ruff (ARG), which knows overridden methods; and what lies unused in a test,
such as a fixture asked for its effect, is no finding. ``[tool.vulture]`` of pyproject.toml names
what callers outside this repository use.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

from vulture import Vulture

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Print each finding; 1 if there is one."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["vulture"]
    names, decorators = settings["ignore_names"], settings["ignore_decorators"]
    search = Vulture(ignore_names=names, ignore_decorators=decorators)
    search.scavenge(
        [str(ROOT / folder) for folder in settings["paths"] if (ROOT / folder).exists()]
    )
    findings = [
        item
        for item in search.get_unused_code(min_confidence=settings["min_confidence"])
        if Path(item.filename).is_relative_to(ROOT / "src")
        and not (item.typ == "variable" and item.confidence == 100)
    ]
    for item in findings:
        place = Path(item.filename).relative_to(ROOT)
        print(f"{place}:{item.first_lineno}: unused {item.typ} {item.name!r}", file=sys.stderr)
    print(f"dead code: {len(findings)} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
