"""The documents run: every example does what is written beside it."""

import importlib.util
import subprocess

import documents
import pytest

ALONE = [path for path in documents.DOCUMENTS if path != documents.CLUSTER]


def assert_every_example_prints_what_is_shown(path, environ, folder):
    differences = list(documents.check(path, environ, folder))
    assert not differences, "\n\n".join(map(str, differences))


@pytest.mark.parametrize(
    "path", ALONE, ids=lambda path: path.relative_to(documents.ROOT).as_posix()
)
def test_every_example_prints_what_is_shown(path, tmp_path):
    """Rule: a Python block or command in a document, run in order, gives the output beside it."""
    with documents.scripted_process(tmp_path) as environ:
        assert_every_example_prints_what_is_shown(path, environ, tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="a cluster needs the extra ray")
@pytest.mark.xdist_group("cluster")
@pytest.mark.timeout(300)
def test_every_example_of_a_cluster_prints_what_is_shown(tmp_path):
    """Rule: the same on a real Ray cluster of one node, which is ended whatever happens."""
    environ = documents.scripted_environment(tmp_path)
    try:
        assert_every_example_prints_what_is_shown(documents.CLUSTER, environ, tmp_path)
    finally:
        subprocess.run(["exo-gpu", "cluster", "stop"], env=environ, capture_output=True)


@pytest.fixture
def check_text(tmp_path):
    """The differences in a document with this text."""

    def check(text):
        path = tmp_path / "document.md"
        path.write_text(text)
        with documents.scripted_process(tmp_path) as environ:
            return list(documents.check(path, environ, tmp_path))

    return check


@pytest.mark.parametrize(
    ("text", "actual"),
    [
        ("```python\nprint(6 * 7)\n```\n\n```output\n41\n```\n", "42\n"),
        ("```python\nprint('unseen')\n```\n", "unseen\n"),
        (
            "```console\n$ echo a\nb\n$ false; echo $?\n1\n```\n",
            "$ echo a\na\n$ false; echo $?\n1\n",
        ),
    ],
)
def test_an_output_that_is_not_the_one_shown_is_found(check_text, text, actual):
    """Rule: the comparison itself can fail, and says what came out."""
    assert [one.actual for one in check_text(text)] == [actual]


def test_what_varies_may_be_left_open(check_text):
    """Rule: ``...`` in an output stands for anything, and names live on to the next block."""
    text = (
        "```python\nname = 'x'\n```\n```python\nprint(name, id(name))\n```\n```output\nx ...\n```\n"
    )
    assert check_text(text) == []


def test_an_example_that_fails_is_found(check_text):
    """Rule: an exception in an example is not passed over."""
    with pytest.raises(ZeroDivisionError):
        check_text("```python\n1 / 0\n```\n")


def test_the_configuration_shown_is_the_one_that_runs():
    """Rule: the example of a configuration in the guide is the file that its commands read."""
    guide = (documents.ROOT / "docs" / "GPU_CLUSTERING.md").read_text()
    assert f"```toml\n{documents.CONFIG.read_text()}```" in guide
