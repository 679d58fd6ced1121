"""Bells: a waiter is woken by whoever gives something back, and is never worse off without."""

from __future__ import annotations

import threading

import pytest

from exo.gpu.execution.bells import BellFolder


@pytest.fixture
def folder(tmp_path):
    bells = BellFolder(tmp_path)
    yield bells
    bells.close()
    bells.close()


def test_a_bell_wakes_its_owner(folder):
    bell = folder.hang("one")
    threading.Timer(0.05, folder.ring, [["one"]]).start()
    assert bell.wait(30)
    bell.close()
    assert folder.names() == []


def test_many_rings_before_it_woke_are_one(folder):
    """Rule: who is rung a thousand times is woken once, and the ringers are never held up."""
    bell = folder.hang("one")
    assert folder.ring(["one"] * 1000) == 1000
    assert bell.wait(30)
    assert not bell.wait(0)
    bell.close()


def test_who_is_gone_is_passed_over(folder, tmp_path):
    bell = folder.hang("two")
    (tmp_path / "file").touch()
    assert folder.ring(["nobody", "file", "two"]) == 1
    assert bell.wait(30)
    bell.close()
    assert folder.ring(["two"]) == 0


def test_a_long_path_has_a_short_address(tmp_path):
    """Rule: a Unix address has 107 bytes; a deep state directory may have more."""
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    folder = BellFolder(deep)
    bell = folder.hang("one")
    assert folder.ring(["one"]) == 1
    assert bell.wait(30)
    bell.close()
    folder.close()


def test_one_that_cannot_be_hung_is_deaf_and_no_error(tmp_path):
    """Rule: its owner polls."""
    folder = BellFolder(tmp_path)
    (tmp_path / "taken").touch()
    bell = folder.hang("taken")
    assert folder.ring(["taken"]) == 0
    assert not bell.wait(0.01)
    bell.close()
    folder.close()
