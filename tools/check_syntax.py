"""Parses every Python file of the project as the oldest supported Python reads it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST = (3, 11)
FOLDERS = ("src", "tests", "tools", "benchmarks", "examples", "docs")


def python_files() -> list[Path]:
    """The tracked and new files of a clone; where there is no clone, those of the known folders."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode == 0 and listed.stdout:
        paths = (ROOT / line for line in listed.stdout.splitlines())
        return sorted(path for path in paths if path.exists())
    return sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def main() -> int:
    """Print each file that does not parse; 1 if there is one."""
    files, broken = python_files(), 0
    for path in files:
        try:
            ast.parse(path.read_bytes(), filename=str(path), feature_version=OLDEST)
        except (SyntaxError, ValueError) as error:
            print(f"{path.relative_to(ROOT)}: {error}", file=sys.stderr)
            broken += 1
    print(f"syntax: {len(files)} files, {broken} broken")
    return 1 if broken or not files else 0


if __name__ == "__main__":
    sys.exit(main())
