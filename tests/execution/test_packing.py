"""Values to parcels, through frames and shared memory, and back: nothing changed, little copied."""

from __future__ import annotations

import gc
import os
import pickle
import socket
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exo.gpu.execution import segments
from exo.gpu.execution.frames import Frame, receive_with_blobs, send_frame
from exo.gpu.execution.packing import (
    OUT_OF_BAND_BYTES,
    flatten,
    pack,
    pack_all,
    raise_up,
    unpack,
    unpack_all,
)
from exo.gpu.vocabulary.parcel import Batch

PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(
    PLAIN | st.binary(max_size=200),
    lambda inner: st.lists(inner, max_size=4) | st.tuples(inner, inner),
    max_leaves=8,
)
BIG = 4 * OUT_OF_BAND_BYTES


def there_and_back(batch: Batch) -> list[object]:
    """What arrives at the other end of a socket."""
    ours, theirs = socket.socketpair()
    flat, beside = flatten(batch)
    words = (ours, Frame.WORK, pickle.dumps(flat), beside)
    sender = threading.Thread(target=send_frame, args=words)
    with ours, theirs:
        sender.start()
        frame = receive_with_blobs(theirs)
        sender.join()
    assert frame is not None
    kind, payload, blobs = frame
    assert kind is Frame.WORK
    return list(unpack_all(raise_up(pickle.loads(payload), iter(blobs))))


@settings(deadline=None)
@given(values=st.lists(VALUES, min_size=1, max_size=20))
def test_any_values_arrive_as_they_were(values):
    assert there_and_back(pack_all(values)) == values


@given(values=st.lists(PLAIN | st.tuples(PLAIN, PLAIN), min_size=1))
def test_a_batch_is_plain_only_where_no_value_can_be_changed_or_fail(values):
    batch = pack_all(values)
    alike = {isinstance(value, tuple) for value in values}
    assert (batch.plain is not None) == (len(alike) == 1)
    assert pack_all([*values, bytearray(1)]).plain is None


@pytest.mark.parametrize("available", [True, False])
def test_large_arrays_and_bytes_arrive_whole_with_and_without_shared_memory(available, monkeypatch):
    monkeypatch.setattr(segments, "AVAILABLE", available and segments.AVAILABLE)
    array = np.arange(BIG, dtype=np.uint8)
    values = [array, b"x" * BIG, {"a": array[::2], "b": [b"y" * BIG, 1]}, 3, np.float32(2)]
    first, second, third, fourth, fifth = there_and_back(pack_all(values))
    np.testing.assert_array_equal(first, array)
    assert second == values[1]
    np.testing.assert_array_equal(third["a"], array[::2])
    assert third["b"] == [b"y" * BIG, 1]
    assert (fourth, fifth) == (3, 2)


def test_an_array_that_arrived_can_be_written_and_is_nobody_elses():
    array = np.zeros(BIG)
    (arrived,) = there_and_back(pack_all([array]))
    arrived += 1
    assert not array.any()
    assert arrived.all()


def test_packing_copies_neither_arrays_nor_bytes():
    """What is large is referred to until it is sent."""
    array, data = np.zeros(BIG), b"z" * BIG
    parcel = pack([array, data])
    assert any(np.shares_memory(np.asarray(buffer), array) for buffer in parcel.buffers)
    assert any(piece is data for piece in parcel.pieces)


@pytest.mark.skipif(not segments.AVAILABLE, reason="there is no nameless shared memory here")
def test_the_memory_goes_back_with_the_last_array_and_no_descriptor_stays_open():
    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count("exo-gpu")

    before, descriptors = mapped(), len(os.listdir("/proc/self/fd"))
    arrays = [there_and_back(pack_all([np.zeros(BIG)]))[0] for _ in range(5)]
    assert mapped() == before + 5
    assert len(os.listdir("/proc/self/fd")) == descriptors
    view = arrays[0][3:5]
    del arrays
    gc.collect()
    assert mapped() == before + 1
    assert view.sum() == 0
    del view
    gc.collect()
    assert mapped() == before


def test_a_value_that_cannot_be_read_harms_no_other():
    parcels = pack_all([[1], [2]]).parcels
    broken = parcels[0]._replace(pieces=(b"no pickle",))
    batch = Batch(2, parcels=(broken, parcels[1]))
    with pytest.raises(pickle.UnpicklingError):
        unpack(batch.parcels[0])
    assert unpack(batch.parcels[1]) == [2]


def test_what_pickle_cannot_name_is_refused_without_a_way_by_value():
    with pytest.raises((pickle.PicklingError, AttributeError)):
        pack(lambda: None)


def test_a_frame_cut_short_is_the_end_of_the_connection():
    ours, theirs = socket.socketpair()
    with theirs:
        with ours:
            ours.sendall(b"\x03\x00")
        assert receive_with_blobs(theirs) is None
