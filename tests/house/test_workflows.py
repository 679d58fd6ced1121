"""The workflows: sound by their schema, made of make targets alone, and the same as ``.ci/run``."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
WORKFLOWS = {path.stem: yaml.safe_load(path.read_text()) for path in FILES}
ON = True  # YAML 1.1 reads the bare key ``on`` as a truth value


def steps(workflow: dict) -> list[dict]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def commands(workflow: dict) -> list[str]:
    """Every line that a workflow's shell runs."""
    return [
        line
        for step in steps(workflow)
        for line in step.get("run", "").splitlines()
        if line.strip()
    ]


def makefile_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def ci_targets() -> list[str]:
    return re.findall(r"^make (\S+)$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)


def test_the_three_workflows_exist() -> None:
    """Rule: tests, lint and release, and no other."""
    assert set(WORKFLOWS) == {"python-tests", "python-lint", "release"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_workflow_follows_the_schema(path: Path) -> None:
    """Rule: each workflow is one by GitHub's schema."""
    checker = Path(sys.executable).with_name("check-jsonschema")
    command = [checker, "--builtin-schema", "vendor.github-workflows", path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_workflows_only_call_make_targets_that_exist() -> None:
    """Rule: what CI does, anyone can do at home by the same word."""
    for workflow in WORKFLOWS.values():
        assert commands(workflow)
        for line in commands(workflow):
            assert line.startswith("make ")
            assert set(line.split()[1:]) <= makefile_targets()


def test_ci_run_runs_what_the_workflows_name() -> None:
    """Rule: ``.ci/run`` runs every target of the workflows, and the tests last."""
    named = {word for w in WORKFLOWS.values() for line in commands(w) for word in line.split()[1:]}
    assert set(ci_targets()) == named
    assert ci_targets()[-1] == "test"


def test_tests_run_on_every_python() -> None:
    """Rule: each Python that the classifiers name is tested, on pushes and on pull requests."""
    workflow = WORKFLOWS["python-tests"]
    matrix = workflow["jobs"]["test"]["strategy"]["matrix"]["python"]
    named = re.findall(r"Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text())
    assert matrix == named == ["3.11", "3.12", "3.13", "3.14"]
    assert workflow[ON]["push"]["branches"] == ["main", "develop"]
    assert "pull_request" in workflow[ON]
    uploads = [step for step in steps(workflow) if "upload-artifact" in step.get("uses", "")]
    assert [step["with"]["path"] for step in uploads] == ["coverage.xml"]


def test_release_is_made_from_version_tags() -> None:
    """Rule: a tag v* builds, checks and publishes the archives."""
    workflow = WORKFLOWS["release"]
    assert workflow[ON] == {"push": {"tags": ["v*"]}}
    assert commands(workflow) == ["make dist"]
    (release,) = [step for step in steps(workflow) if "gh-release" in step.get("uses", "")]
    assert release["with"]["files"] == "dist/*"


def test_every_phony_target_has_a_line_of_help() -> None:
    """Rule: ``make help`` lists every command of the Makefile."""
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = set(re.findall(r"^make ([a-z-]+) ", done.stdout, re.MULTILINE))
    assert listed == makefile_targets()
