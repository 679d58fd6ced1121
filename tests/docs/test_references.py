"""The documents name what there is: links, paths, tests, public names, options and variables."""

import re
import subprocess
from pathlib import Path

import click
import pytest
from documents import DOCUMENTS, ROOT

from exo import gpu
from exo.gpu.cli.main import COMMANDS, root

GUIDE = (ROOT / "docs" / "GPU_CLUSTERING.md").read_text()
ARCHITECTURE = (ROOT / "docs" / "ARCHITECTURE.md").read_text()
PAGES = sorted({*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")})
SOURCES = sorted((ROOT / "src").rglob("*.py"))

FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
SCRIPT = re.compile(r"^```(?:sh|bash)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)
PLACE = re.compile(
    r"`((?:src|tests|docs|examples|benchmarks|tools|requirements)/[\w./-]*|\.ci/run)(?:::(\w+))?`"
)
VARIABLE = re.compile(r"\bEXO_GPU_[A-Z_]+[A-Z]\b")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def anchors(page: Path) -> set[str]:
    """The anchors that a page's headings get, by the rule of common renderers."""
    headings = HEADING.findall(FENCE.sub("", page.read_text()))
    kept = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in kept}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_relative_link_leads_somewhere(page):
    """Rule: a link names a file that exists, and where it has an anchor, a heading there."""
    for link in LINK.findall(FENCE.sub("", page.read_text())):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), f"{link} in {page.name}"
        assert not anchor or anchor in anchors(target), f"{link} in {page.name}"


@pytest.mark.parametrize("page", DOCUMENTS, ids=name_of)
def test_every_path_and_test_that_is_named_exists(page):
    """Rule: a path in backquotes is in the checkout, and a test named behind it is in that file."""
    for path, test in PLACE.findall(page.read_text()):
        assert (ROOT / path).exists(), f"{path} in {page.name}"
        if test:
            assert re.search(rf"\b(def|class) {test}\b", (ROOT / path).read_text()), test


@pytest.mark.parametrize("page", DOCUMENTS, ids=name_of)
def test_prose_stays_within_100_columns(page):
    """Rule: a line that can be broken has 100 columns at most; tables and outputs cannot."""
    lines = FENCE.sub("", page.read_text()).splitlines()
    assert [one for one in lines if len(one) > 100 and " " in one and one[0] != "|"] == []


@pytest.mark.parametrize("page", DOCUMENTS, ids=name_of)
def test_what_is_only_shown_can_be_read_by_a_shell(page):
    """Rule: a script that is not run, since it needs machines that are not here, has no slip."""
    for script in SCRIPT.findall(page.read_text()):
        read = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
        assert (read.returncode, read.stderr) == (0, ""), script


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_make_target_that_is_named_exists(page):
    """Rule: a document sends nobody to a make target that is not there."""
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z][\w-]*)", page.read_text(), re.MULTILINE))
    assert named <= targets


@pytest.mark.parametrize("name", gpu.__all__)
def test_every_public_name_is_in_the_guide(name):
    """Rule: what exo.gpu hands on is in the user guide."""
    assert re.search(rf"\b{name}\b", GUIDE)


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_every_file_is_in_the_table_of_rooms(source):
    """Rule: the architecture names each file of each room; vendors' parts and commands as a whole."""
    room = source.relative_to(ROOT / "src" / "exo" / "gpu").parts
    if source.stem.startswith("__") or room[0] == "backends" or "commands" in room[:-1]:
        return
    assert re.search(rf"`{source.stem}(\.py)?`", ARCHITECTURE)


def options_of(name: str, command: click.Command, context: click.Context) -> list[tuple[str, str]]:
    """The command's options, and those of the commands below it."""
    found = [
        (name, option)
        for parameter in command.get_params(context)
        if isinstance(parameter, click.Option)
        for option in parameter.opts
    ]
    below = command.commands if isinstance(command, click.Group) and command is not root else {}
    for word, one in below.items():
        found += options_of(f"{name} {word}", one, context)
    return found


def options() -> list[tuple[str, str]]:
    context = click.Context(root)
    commands = {name: root.get_command(context, name) for name in COMMANDS} | {"exo-gpu": root}
    return [
        pair for name, command in commands.items() for pair in options_of(name, command, context)
    ]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_in_the_guide(command):
    """Rule: the guide has every command of exo-gpu."""
    assert f"| `{command}" in GUIDE


@pytest.mark.parametrize(("command", "option"), options())
def test_every_option_is_in_the_guide(command, option):
    """Rule: the guide has every option of every command."""
    assert re.search(rf"`{option}[ `]", GUIDE), f"{option} of {command}"


def test_every_variable_of_ours_is_in_the_guide_and_the_reverse():
    """Rule: an EXO_GPU_ variable that the code reads is explained, and no other."""
    read = {name for path in SOURCES for name in VARIABLE.findall(path.read_text())}
    table = GUIDE[GUIDE.index("Read by exo.gpu:") :].split("`EXO_GPU_APT`")[0]
    assert set(VARIABLE.findall(table)) == read
