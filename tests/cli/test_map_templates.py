"""Replacement strings, lists of items and ``--halt`` of ``map``, held against what GNU parallel does."""

from __future__ import annotations

import itertools
import os
import shlex

import pytest
from click import UsageError
from hypothesis import given
from hypothesis import strategies as st

from exo.gpu.cli.map.halt import parse_halt
from exo.gpu.cli.map.output import tagged
from exo.gpu.cli.map.replacements import Template
from exo.gpu.cli.map.sources import Items, split_words
from exo.gpu.cli.map.templates import digest_of, parse_templates
from exo.gpu.coordination.commands import Lane
from exo.gpu.vocabulary.device import GPUDevice
from exo.gpu.vocabulary.errors import InvalidValue

# Taken down from GNU parallel 20221122: item -> {.}, {/}, {//}, {/.}
FORMS = {
    "a/b.c.d": ("a/b.c", "b.c.d", "a", "b.c"),
    "a/b": ("a/b", "b", "a", "b"),
    "/a": ("/a", "a", "/", "a"),
    "a/": ("a/", "", ".", ""),
    ".bashrc": ("", ".bashrc", ".", ""),
    "a.b/c": ("a.b/c", "c", "a.b", "c"),
    "a.": ("a.", "a.", ".", "a."),
    "": ("", "", ".", ""),
    "a b.txt": ("a b", "a b.txt", ".", "a b"),
    "/": ("/", "", "/", ""),
    "a//b": ("a//b", "b", "a", "b"),
}
CUDA = Lane(3, GPUDevice("cuda:12", "a card", "NVIDIA", "cuda"))


def fill(template, *arguments, number=1, lane=CUDA):
    return Template(template).fill(arguments, number, lane)


@pytest.mark.parametrize(("item", "forms"), FORMS.items())
def test_the_forms_of_an_item(item, forms):
    """Rule: {.}, {/}, {//} and {/.} are what GNU parallel makes of an item, quoted for the shell."""
    for replacement, form in zip(("{.}", "{/}", "{//}", "{/.}"), forms, strict=True):
        assert shlex.split(fill(f"x {replacement}", item)) == ["x", form]


@pytest.mark.parametrize(
    ("template", "arguments", "expected"),
    [
        ("{1} {2} {}", ("a", "c d"), "a 'c d' a 'c d'"),
        ("{2.} {1//} {-1}", ("a/b", "c.x"), "c a c.x"),
        ("[{3}] {1}", ("a",), "[] a"),
        ("{#} {%}", ("a",), "7 3"),
        ("x {device} {device_index}", ("a",), "x cuda:12 12 a"),
        ("x {device} {}", ("a",), "x cuda:12 a"),
        ("{foo} {1x} {0} {{}} ${VAR} {}", ("a",), "{foo} {1x} {0} {a} ${VAR} a"),
        ("x", ("a", "b"), "x a b"),
        ("echo {}{}", ("{.}",), "echo '{.}''{.}'"),
    ],
)
def test_what_a_template_becomes(template, arguments, expected):
    """Rule: each replacement string once, an unknown one as it is, what an item holds untouched."""
    assert fill(template, *arguments, number=7) == expected


def test_without_a_device_its_replacement_strings_stay():
    """Rule: a dry run shows that it does not know who would run the command."""
    assert fill("x {device} {%} {#} {}", "a", lane=None) == "x {device} {%} 1 a"


def items_of(*words, null=False):
    told = split_words(words, null=null)
    items = Items(told.sources)
    listed = list(items)
    assert items.count() == len(listed)
    return told.template, listed


@pytest.mark.parametrize(
    ("words", "listed"),
    [
        ("::: a b ::: c d", ["a c", "a d", "b c", "b d"]),
        ("::: a b :::+ c d e ::: x y", ["a c x", "a c y", "b d x", "b d y"]),
        ("::: a b ::: c :::+ d", ["a c d", "b c d"]),
        ("::: a :::", []),
        (":::", []),
        ("::: a b :::: lines", ["a 1", "a 2", "b 1", "b 2"]),
        (":::: lines lines", ["1 1", "1 2", "2 1", "2 2"]),
        (":::: lines ::::+ lines", ["1 1", "2 2"]),
    ],
)
def test_lists_are_combined_as_gnu_parallel_does(words, listed, tmp_path, monkeypatch):
    """Rule: the last list turns fastest, a linked one goes along, the shorter one ends both."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lines").write_text("1\n2\n")
    template, items = items_of("echo", *words.split())
    assert template == ("echo",)
    assert [" ".join(item) for item in items] == listed


@given(st.lists(st.lists(st.text("ab", max_size=2), max_size=4), min_size=1, max_size=3))
def test_the_number_of_items_is_that_of_the_product(lists):
    """Rule: unlinked lists give every combination, in order."""
    words = itertools.chain.from_iterable([":::", *one] for one in lists)
    assert items_of(*words)[1] == list(itertools.product(*lists))


def test_a_file_of_items_ends_them_in_nul_on_request(tmp_path):
    """Rule: with -0 a line end belongs to the item; a last item needs no end."""
    path = tmp_path / "items"
    path.write_bytes(b"a\nb\0c\xff\0last")
    assert items_of("::::", str(path), null=True)[1] == [
        ("a\nb",),
        (os.fsdecode(b"c\xff"),),
        ("last",),
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("::::",), "names of files"),
        (("::::", "missing"), "missing"),
        (("::::", "-", "::::", "-"), "one list only"),
    ],
)
def test_lists_that_cannot_be(words, message):
    """Rule: the wrong list is named before anything starts."""
    with pytest.raises(UsageError, match=message):
        Items(split_words(words, null=False).sources)


@pytest.mark.parametrize(
    ("runtimes", "words", "expected"),
    [
        ((), ("echo", "{}"), {"": "echo {}"}),
        (("cuda",), ("A {}",), {"": "A {}"}),
        (("cuda",), ("A {}", "--on", "rocm", "B {}"), {"cuda": "A {}", "rocm": "B {}"}),
        (("cuda", "xpu"), ("A", "--on", "cpu", "B"), {"cuda": "A", "xpu": "A", "cpu": "B"}),
        ((), ("prog", "--on", "cuda", "x"), {"": "prog --on cuda x"}),
        (("cuda",), ("prog", "--on", "x"), {"": "prog --on x"}),
    ],
)
def test_a_template_for_each_runtime(runtimes, words, expected):
    """Rule: pairs of --on and template, the first of which click has read, are told apart."""
    assert parse_templates(runtimes, words).texts == expected


@pytest.mark.parametrize(
    ("runtimes", "words", "message"),
    [
        ((), ("",), "empty"),
        ((), (), "empty"),
        (("cuda",), ("A", "--on", "rocm", " "), "empty"),
        (("cuda",), ("A", "-k", "--on", "rocm", "B"), "quote each template"),
        (("cuda",), ("A", "--on", "rocm", "B", "C"), "followed by one quoted"),
        (("cuda",), ("A", "--on", "rock", "B"), "did you mean 'rocm'"),
        (("cuda",), ("A", "--on", "cuda", "B"), "twice"),
    ],
)
def test_templates_that_cannot_be(runtimes, words, message):
    """Rule: a pair that does not come out is a usage error, not a strange command."""
    with pytest.raises(UsageError, match=message):
        parse_templates(runtimes, words)


@pytest.mark.parametrize(
    ("text", "failed", "succeeded", "total", "reached"),
    [
        ("now,fail=1", 1, 0, None, True),
        ("now,fail=1", 0, 9, None, False),
        ("soon,fail=3", 2, 9, None, False),
        ("soon,fail=3", 3, 9, None, True),
        ("soon,success=2", 5, 2, None, True),
        ("soon,done=4", 2, 2, None, True),
        ("now,fail=50%", 2, 0, 4, True),
        ("now,fail=50%", 1, 0, 4, False),
        ("now,fail=10%", 1, 0, None, False),
        ("now,fail=10%", 1, 2, None, True),
        ("now,fail=10%", 0, 0, 0, False),
        ("2", 1, 0, None, True),
    ],
)
def test_when_to_halt(text, failed, succeeded, total, reached):
    """Rule: a number counts, a share is of all, or of what ended where nobody knows how many."""
    halt = parse_halt(text)
    assert halt is not None
    assert halt.reached(failed=failed, succeeded=succeeded, total=total) is reached


def test_never_is_no_halt():
    """Rule: the default can be said."""
    assert parse_halt("never") is None
    assert parse_halt("0") is None


@pytest.mark.parametrize(
    "text", ["now", "fail=1", "later,fail=1", "now,fail=0", "now,fail=101%", "3"]
)
def test_a_halt_that_cannot_be(text):
    """Rule: what is not understood is refused with an example."""
    with pytest.raises(InvalidValue, match="now,fail=1"):
        parse_halt(text)


@given(st.binary(max_size=60), st.lists(st.integers(0, 60), max_size=5))
def test_every_line_is_tagged_once(text, cuts):
    """Rule: however an output comes in pieces, each line has one tag, and the last one an end."""
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    blocks = [text[start:end] for start, end in itertools.pairwise(places)]
    lines = text.removesuffix(b"\n").split(b"\n") if text else []
    expected = b"".join(b"T\t" + line + b"\n" for line in lines)
    assert b"".join(tagged(iter(blocks), b"T\t")) == expected


@given(st.lists(st.text(max_size=3), max_size=3), st.lists(st.text(max_size=3), max_size=3))
def test_unlike_items_have_unlike_checksums(one, other):
    """Rule: the checksum tells a list's parts from one another."""
    if [part for part in (*one, *other) if "\0" in part] or one == other or not (one and other):
        return
    assert digest_of(one) != digest_of(other)
