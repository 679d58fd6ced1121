"""Who is on a device, as values that travel."""

import pytest

from exo.gpu.vocabulary.errors import InvalidValue
from exo.gpu.vocabulary.process import DeviceUser, Occupancy, ProcessList, RunningProcess

PROCESS = RunningProcess(
    pid=7,
    memory_bytes=0,
    user="alice",
    command="python train.py",
    since=1.5,
    lease_ids=("a",),
    ancestry=((7, 1.5), (3, 1.0)),
)


@pytest.mark.parametrize(
    "value",
    [
        PROCESS,
        ProcessList(device_id="cuda:0", processes=(PROCESS,)),
        DeviceUser(device_id="cuda:0", share=0.5),
        Occupancy(users=(DeviceUser(device_id="cuda:0"),), untold={"cpu:0": "nobody knows"}),
    ],
)
def test_a_value_comes_back_as_it_was(value):
    """Rule: what crosses from a node is the same on the other side."""
    assert type(value).from_json(value.to_json()) == value


def test_unknown_is_none_and_stays_it():
    """Rule: what nobody told is null on the wire, and no zero."""
    fields = DeviceUser(device_id="cuda:0").to_dict()
    assert {fields[name] for name in ("pid", "user", "command", "since", "memory_bytes")} == {None}


@pytest.mark.parametrize(
    "fields",
    [{"pid": -1}, {"memory_bytes": -1}, {"since": float("nan")}, {"share": 1.5}, {"device_id": ""}],
)
def test_what_cannot_be_is_refused(fields):
    """Rule: a number that cannot be, and a device without a name, are refused."""
    with pytest.raises(InvalidValue):
        DeviceUser(**{"device_id": "cuda:0"} | fields)
