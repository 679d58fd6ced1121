"""The exceptions: one tree, drawn as it is, each telling what was asked and what to do."""

from __future__ import annotations

import inspect
import pickle

import pytest

from exo.gpu.vocabulary import errors
from exo.gpu.vocabulary.decision import Decision
from exo.gpu.vocabulary.request import Request

ALL = [
    value
    for _, value in inspect.getmembers(errors, inspect.isclass)
    if value.__module__ == errors.__name__
]


@pytest.mark.parametrize("kind", ALL)
def test_every_exception_hangs_on_one_root_and_is_in_the_drawing(kind):
    assert issubclass(kind, errors.ExoGpuError)
    assert kind.__name__ in errors.__doc__


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (errors.InvalidValue, ValueError),
        (errors.UnknownName, ValueError),
        (errors.DuplicateDevice, ValueError),
        (errors.NoSuchDevice, LookupError),
        (errors.ManagerClosed, RuntimeError),
        (errors.NeverAvailable, RuntimeError),
        (errors.NotNow, RuntimeError),
        (errors.BackendError, RuntimeError),
        (errors.OutOfDeviceMemory, MemoryError),
        (errors.ProtocolError, ValueError),
        (errors.UnsupportedVersion, ValueError),
        (errors.ExecutionError, RuntimeError),
    ],
)
def test_each_is_also_the_built_in_that_callers_catch(kind, builtin):
    assert issubclass(kind, builtin)


def test_a_value_error_names_field_and_value():
    error = errors.InvalidValue("port", -1, "a port")
    assert str(error) == "port: -1 is not a port"
    assert (error.field, error.value, error.expected) == ("port", -1, "a port")


def test_an_unknown_name_comes_with_the_near_spelling():
    assert "did you mean 'cuda'?" in str(errors.UnknownName("backend", "cudda", ["cuda", "rocm"]))
    assert "did you mean" not in str(errors.UnknownName("backend", "zzz", ["cuda"]))
    assert "nothing" in str(errors.UnknownName("backend", "x", []))
    assert str(errors.UnknownName("backend", "x", "one I know")).endswith("is not one I know")


@pytest.mark.parametrize(
    "error",
    [
        errors.InvalidValue("port", -1, "a port"),
        errors.UnknownName("backend", "cudda", "one of cuda"),
        errors.DuplicateDevice("device_id", "cuda:0", "free"),
        errors.BackendUnavailable("no driver", "install it"),
        errors.NotNow("busy"),
    ],
)
def test_they_travel_between_processes(error):
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy)) == (type(error), str(error))


def test_a_no_carries_its_decision():
    decision = Decision(request=Request())
    assert errors.NeverAvailable("no", decision).decision is decision
    assert errors.NotNow("no").decision is None


def test_an_absent_backend_says_what_to_install():
    assert str(errors.BackendUnavailable("no driver", "install it")) == "no driver (install it)"
    assert str(errors.BackendUnavailable("no driver")) == "no driver"
