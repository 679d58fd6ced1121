"""What a journal's records add up to: a success is final, and what began twice is known."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from exo.gpu.vocabulary.journal import (
    ChunkEnded,
    ItemBegun,
    ItemEnded,
    JobBegun,
    JobEnded,
    JobKind,
    JobResumed,
    JobTally,
    item_ranges,
)


def ended(item, ending="succeeded", *, attempt=1, final=True, digest=7):
    return ItemEnded(item, ending, "", "cuda:0", 0, attempt, final, 1.0, 3.0, 0, None, digest)


def tally_of(*records):
    tally = JobTally()
    for record in records:
        tally.add(record)
    return tally


def job(total=None):
    return JobBegun(
        job_id="j", kind=JobKind.COMMANDS, templates={"": "x"}, total=total, started_at=0.0, pid=1
    )


@given(st.lists(st.tuples(st.integers(0, 30), st.sampled_from(["begun", "succeeded", "failed"]))))
def test_a_success_is_final_and_nothing_else_is_one(events):
    """Rule: an item has succeeded exactly when a success of it is recorded, whatever follows."""
    records = [
        ItemBegun(item, 0.0) if what == "begun" else ended(item, what) for item, what in events
    ]
    tally = tally_of(*records)
    succeeded = {item for item, what in events if what == "succeeded"}
    failed = {item for item, what in events if what == "failed"} - succeeded
    last = {item: what for item, what in events if item in failed}
    assert {item for item in range(40) if tally.has_succeeded(item)} == succeeded
    assert tally.succeeded == len(succeeded)
    assert tally.failed == sum(what == "failed" for what in last.values())


def test_an_item_of_another_list_has_not_succeeded():
    """Rule: a success counts for the item whose checksum it carries, and for no other."""
    tally = tally_of(ended(3, digest=99))
    assert tally.has_succeeded(3, 99)
    assert not tally.has_succeeded(3, 98)
    assert not tally.has_succeeded(2)


def test_what_began_and_did_not_end_is_under_way():
    """Rule: an item under way is named, and once it begins again it counts as begun twice."""
    tally = tally_of(job(4), ItemBegun(0, 1.0), ItemBegun(2, 1.0), ended(0))
    assert tally.under_way == (2,)
    assert (tally.started_again, tally.left) == (0, 3)
    tally.add(JobResumed(2.0, 9))
    tally.add(ItemBegun(2, 2.0))
    assert (tally.started_again, tally.named_again) == (1, [2])


def test_a_try_after_the_first_counts_as_begun_again():
    """Rule: retries are named too, and the last try alone decides."""
    tally = tally_of(ItemBegun(1, 0.0), ended(1, "failed", final=False), ended(1, attempt=2))
    assert (tally.succeeded, tally.failed, tally.named_again) == (1, 0, [1])
    assert tally.devices == {"cuda:0": (2, 4.0)}


def test_a_chunk_names_its_items():
    """Rule: a chunk's items have ended, those that raised have failed."""
    chunk = ChunkEnded(item_ranges((0, 1, 2, 5)), (1,), "cuda:1", 0, 0.0, 2.0)
    tally = tally_of(chunk)
    assert [tally.has_succeeded(item) for item in range(6)] == [
        True,
        False,
        True,
        False,
        False,
        True,
    ]
    assert (tally.failed, tally.devices) == (1, {"cuda:1": (4, 2.0)})


@given(st.sets(st.integers(0, 200)))
def test_ranges_name_every_item_once(items):
    """Rule: runs of neighbours hold exactly the items, in order, and none touches the next."""
    ranges = item_ranges(tuple(items))
    assert [item for first, last in ranges for item in range(first, last + 1)] == sorted(items)
    assert all(after[0] - before[1] > 1 for before, after in pairwise(ranges))


def test_a_job_that_goes_on_has_not_ended():
    """Rule: an end counts until somebody goes on; how many are left is known where the total is."""
    end = JobEnded(at=5.0, complete=True, succeeded=1, failed=0, started_again=0, devices={})
    tally = tally_of(job(), ended(0), end)
    assert tally.left == 0
    tally.add(JobResumed(6.0, 1))
    assert tally.end is None
    assert tally.left is None
