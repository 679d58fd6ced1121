"""A cluster under watch: agents of scripted machines, called without a network between."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import pytest
from boxes import device
from cables import Cables

from exo.gpu.coordination.cluster_watch import UNLISTED, ClusterWatch
from exo.gpu.coordination.overview import Overseer
from exo.gpu.telemetry.sampling.observation import Observation
from exo.gpu.telemetry.store.reader import HistoryReader
from exo.gpu.vocabulary.health import Health, HealthEvent
from exo.gpu.vocabulary.inventory import ChangeKind, DeviceChange

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

WAIT_SECONDS = 60


@pytest.fixture
def cables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cables]:
    monkeypatch.setenv("EXO_GPU_HISTORY", str(tmp_path / "history.sqlite"))
    found = Cables(tmp_path)
    found.plug("rig1", device("cuda:0", "NVIDIA", "cuda"))
    found.plug("rig2", device("cuda:0", "NVIDIA", "cuda"), device("cuda:1", "NVIDIA", "cuda"))
    yield found
    found.pull_all()


@pytest.fixture
def watching(cables: Cables) -> Iterator[ClusterWatch]:
    watch = ClusterWatch(cables.join, history=True)
    yield watch
    watch.stop()


def until(heard: Any, wanted: Callable[[Any], bool]) -> Any:
    while (event := heard.get(WAIT_SECONDS)) is not None:
        if wanted(event):
            return event
    pytest.fail("it was never told")


def change_of(device_id: str) -> Callable[[Any], bool]:
    return lambda one: isinstance(one, DeviceChange) and one.device.device_id == device_id


def health_of(device_id: str) -> Callable[[Any], bool]:
    return lambda one: isinstance(one, HealthEvent) and one.device_id == device_id


def sample_of(device_id: str) -> Callable[[Any], bool]:
    return lambda one: isinstance(one, Observation) and one.device_id == device_id


def test_samples_of_all_nodes_are_told_and_kept(watching: ClusterWatch, tmp_path: Path) -> None:
    """Rule: every sample is told once, is in memory, and reaches the history by its node."""
    heard = watching.subscribe()
    watching.start()
    assert watching.recording.active
    for name in ("rig1/cuda:0", "rig2/cuda:0", "rig2/cuda:1"):
        first, second = until(heard, sample_of(name)), until(heard, sample_of(name))
        assert first.sample.timestamp < second.sample.timestamp
        assert len(watching.collector.get_metrics_history(name)) >= 2
    assert {one.node for one in watching.nodes if one.alive} == {"rig1", "rig2"}
    watching.stop()
    with HistoryReader(tmp_path / "history.sqlite") as reader:
        kept = {(one.device_id, one.hardware_id, one.node) for one in reader.devices()}
    assert kept == {
        ("rig1/cuda:0", "FAKE-cuda:0", "rig1"),
        ("rig2/cuda:0", "FAKE-cuda:0", "rig2"),
        ("rig2/cuda:1", "FAKE-cuda:1", "rig2"),
    }


def test_a_lost_node_takes_its_devices_along_until_it_is_back(
    watching: ClusterWatch, cables: Cables
) -> None:
    """Rule: they are told lost, with the reason of their node; those that come back, returned."""
    watching.start()
    heard = watching.subscribe()
    cables.pull("rig2")
    assert until(heard, change_of("rig2/cuda:1")).kind is ChangeKind.LOST
    lost = until(heard, health_of("rig2/cuda:1"))
    assert (lost.before, lost.after) == (Health.OK, Health.LOST)
    assert "its node is lost: " in lost.reasons[0]
    missing = {one.device.device_id: one for one in watching.missing}
    assert set(missing) == {"rig2/cuda:0", "rig2/cuda:1"}
    assert all(one.reason in lost.reasons for one in missing.values())
    assert all(0 < one.last_seen <= time.time() for one in missing.values())
    assert [one.device_id for one in watching.devices] == ["rig1/cuda:0"]
    cables.plug("rig2", device("cuda:0", "NVIDIA", "cuda"))
    assert until(heard, change_of("rig2/cuda:0")).kind is ChangeKind.RETURNED
    assert until(heard, health_of("rig2/cuda:0")).after is Health.OK
    until(heard, sample_of("rig2/cuda:0"))
    until(heard, lambda _: [one.reason for one in watching.missing] == [UNLISTED])
    cables.plug("rig3", device("cuda:0", "NVIDIA", "cuda"))
    assert until(heard, change_of("rig3/cuda:0")).kind is ChangeKind.ADDED


def test_a_device_that_gives_no_sample_says_why(cables: Cables) -> None:
    """Rule: what an agent says of a device that cannot be read is told, and shown."""
    cables.plug("rig3", device("cuda:0", "NVIDIA", "cuda", fail="the riser cable is loose"))
    with ClusterWatch(cables.join) as watch, Overseer(watch, os.environ) as overseer:
        heard = watch.subscribe()
        failed = until(heard, sample_of("rig3/cuda:0"))
        assert failed.sample is None
        assert "riser cable" in failed.failure
        while "rig3/cuda:0" not in overseer.overview.failures:
            until(heard, sample_of("rig1/cuda:0"))
        assert "riser cable" in overseer.overview.failures["rig3/cuda:0"]


def test_without_a_head_the_nodes_that_answer_are_still_told(cables: Cables) -> None:
    """Rule: a head that does not answer is said at once, and takes no sample away by that."""
    with ClusterWatch(cables.join) as watch, Overseer(watch, os.environ) as overseer:
        heard = watch.subscribe()
        cables.head_problem = "the head of the cluster does not answer"
        while cables.head_problem not in overseer.overview.notes:
            until(heard, sample_of("rig1/cuda:0"))
        until(heard, sample_of("rig2/cuda:1"))
        assert len(overseer.overview.snapshot.devices) == 3
        cables.head_problem = ""
        while overseer.overview.notes:
            until(heard, sample_of("rig1/cuda:0"))
