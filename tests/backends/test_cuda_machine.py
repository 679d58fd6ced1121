"""Processes on NVIDIA GPUs, the ways between them, many of them, and their errors by number."""

from __future__ import annotations

import threading

import anyio
import pynvml
import pytest

from exo.gpu.backend import DeviceProcess, ProcessAbility, TopologyAbility
from exo.gpu.backends.nvml_events import Xid
from exo.gpu.vocabulary.errors import BackendError, DeviceLost
from exo.gpu.vocabulary.links import LinkKind
from tests.backends.nvml.fake_nvml import GIB, H100, T4, FakeNvml, cut, uuid
from tests.backends.nvml.opening import closed, ids, opened

__all__ = ["closed"]


def test_many_gpus_are_found_once_each(nvml: FakeNvml) -> None:
    """Rule: whatever their number, every GPU is listed once, in the order of the bus."""
    nvml.write(*[H100] * 40)
    devices = opened(nvml).list_devices()
    assert [device.device_id for device in devices] == [f"cuda:{index}" for index in range(40)]
    assert len({device.hardware_id for device in devices}) == 40


def test_a_uuid_that_two_gpus_share_names_neither(nvml: FakeNvml) -> None:
    """Rule: GPUs with one UUID are told apart by PCI address, read and pinned each for itself."""
    nvml.write(H100, T4 | {"uuid": uuid(0), "temperature": 40})
    backend = opened(nvml)
    first, second = backend.list_devices()
    assert (first.hardware_id, second.hardware_id) == ("0000:01:00.0", "0000:02:00.0")
    assert (first.memory_pool, second.memory_pool) == ("0000:01:00.0", "0000:02:00.0")
    assert "told apart by PCI address" in backend.remark
    assert backend.read("cuda:0").temperature_celsius == 55
    assert backend.read("cuda:1").temperature_celsius == 40
    assert backend.pinning([second], {})["CUDA_VISIBLE_DEVICES"] == "1"


# Processes


def test_processes_are_listed_once_each(nvml: FakeNvml) -> None:
    """Rule: compute and graphics together, a process that does both counted once, by its id."""
    nvml.write(H100 | {"processes": f"30:{GIB},20:-", "graphics": f"30:{GIB},10:4096"})
    backend = opened(nvml)
    assert isinstance(backend, ProcessAbility)
    assert backend.processes("cuda:0") == [
        DeviceProcess(pid=10, memory_bytes=4096),
        DeviceProcess(pid=20, memory_bytes=None),
        DeviceProcess(pid=30, memory_bytes=GIB),
    ]


@pytest.mark.parametrize("refusal", ["!3", "!6"])
def test_a_gpu_without_processes(nvml: FakeNvml, refusal: str) -> None:
    """Rule: nobody there is an empty list, also where one kind is not supported or not found."""
    nvml.write(H100 | {"processes": "", "graphics": refusal})
    assert opened(nvml).processes("cuda:0") == []


def test_processes_of_an_old_driver(nvml: FakeNvml, half_nvml_library: object) -> None:
    """Rule: without the third version of the question, the second is asked."""
    nvml.library = str(half_nvml_library)
    nvml.write(H100 | {"processes": "5:10", "graphics": ""})
    assert opened(nvml).processes("cuda:0") == [DeviceProcess(pid=5, memory_bytes=10)]


def test_processes_that_the_driver_hides(nvml: FakeNvml) -> None:
    """Rule: a refusal is an error with its reason, never an empty list."""
    nvml.write(H100 | {"processes": "!4", "graphics": "!4"})
    with pytest.raises(BackendError, match="denies it to this user"):
        opened(nvml).processes("cuda:0")


def test_a_list_that_keeps_growing_is_given_up(nvml: FakeNvml) -> None:
    """Rule: "too small" is asked again a few times, not for ever."""
    nvml.write(H100 | {"processes": "!7", "graphics": "!7"})
    with pytest.raises(BackendError, match="Insufficient Size"):
        opened(nvml).processes("cuda:0")


def test_processes_of_a_lost_gpu(nvml: FakeNvml) -> None:
    """Rule: a lost GPU has no empty list of processes either."""
    nvml.write(H100 | {"processes": "", "graphics": ""})
    backend = opened(nvml)
    nvml.change("0.processes", "!15")
    with pytest.raises(DeviceLost):
        backend.processes("cuda:0")


# Links


def joined(nvml: FakeNvml, **fields: object) -> dict[tuple[str, str], tuple[object, object]]:
    """Kind and peer access of each pair, of three GPUs described by "0.ancestor.1" and the like."""
    gpus = [dict(H100), dict(H100), dict(H100)]
    for name, value in fields.items():
        index, _, field = name.partition(".")
        gpus[int(index)][field] = value
    nvml.write(*gpus)
    backend = opened(nvml)
    assert isinstance(backend, TopologyAbility)
    return {(link.source, link.target): (link.kind, link.peer_access) for link in backend.links()}


@pytest.mark.parametrize(
    ("level", "kind"),
    [
        (0, LinkKind.BOARD),
        (10, LinkKind.SWITCH),
        (20, LinkKind.SWITCH),
        (30, LinkKind.HOST_BRIDGE),
        (40, LinkKind.NUMA_NODE),
        (50, LinkKind.SYSTEM),
    ],
)
def test_the_common_ancestor_is_the_kind(nvml: FakeNvml, level: int, kind: LinkKind) -> None:
    """Rule: each level of the PCIe tree has its word, and a pair that is not told is left out."""
    found = joined(nvml, **{"0.ancestor.1": level})
    assert found == {("cuda:0", "cuda:1"): (kind, None)}


def test_nvlink_beats_the_ancestor(nvml: FakeNvml) -> None:
    """Rule: an active NVLink to the other GPU is the way; an inactive one is none."""
    found = joined(
        nvml,
        **{
            "0.ancestor.1": 50,
            "0.ancestor.2": 50,
            "0.nvlink.0": "down",
            "0.nvlink.3": "0000:02:00.0",
            "2.nvlink.0": "!2",
            "2.nvlink.1": "0000:01:00.0",
        },
    )
    assert found[("cuda:0", "cuda:1")] == (LinkKind.NVLINK, None)
    assert found[("cuda:0", "cuda:2")] == (LinkKind.SYSTEM, None)


def test_nvlink_through_switches(nvml: FakeNvml) -> None:
    """Rule: GPUs that all reach the NVLink switches reach one another."""
    found = joined(nvml, **{"0.nvlink.0": "switch", "2.nvlink.0": "switch"})
    nvlink = (LinkKind.NVLINK, None)
    assert found == {("cuda:0", "cuda:2"): nvlink, ("cuda:2", "cuda:0"): nvlink}


@pytest.mark.parametrize(("status", "peer"), [(0, True), (3, False), (6, None)])
def test_peer_access_is_told_by_direction(nvml: FakeNvml, status: int, peer: bool | None) -> None:
    """Rule: can, cannot and unknown differ, for each ordered pair by itself."""
    found = joined(nvml, **{"0.p2p.1": status, "0.ancestor.1": 10, "1.p2p.0": 0})
    assert found[("cuda:0", "cuda:1")] == (LinkKind.SWITCH, peer)
    assert found[("cuda:1", "cuda:0")] == (None, True)


def test_links_beside_a_lost_gpu(nvml: FakeNvml) -> None:
    """Rule: a GPU that is gone takes its own pairs with it and no other's."""
    found = joined(nvml, **{"0.ancestor.1": "!15", "1.nvlink.0": "!15", "2.ancestor.0": 30})
    assert found == {("cuda:2", "cuda:0"): (LinkKind.HOST_BRIDGE, None)}
    nvml.change("0.ancestor.2", "!15")
    backend = opened(nvml)
    nvml.change("1.handle", "!15")
    pairs = [(link.source, link.target) for link in backend.links()]
    assert pairs == [("cuda:2", "cuda:0")]


def test_links_after_a_driver_reload(nvml: FakeNvml) -> None:
    """Rule: an answer of "uninitialised" anywhere costs one re-opening and no link."""
    import pynvml

    nvml.write(H100 | {"ancestor.1": 10}, H100 | {"ancestor.0": 10})
    backend = opened(nvml)
    pynvml.nvmlShutdown()
    assert len(backend.links()) == 2
    pynvml.nvmlShutdown()
    assert len(backend.links()) == 2
    nvml.change("0.ancestor.1", "!1")
    with pytest.raises(BackendError, match="Uninitialized"):
        backend.links()
    nvml.change("0.nvlink.0", "!1")
    with pytest.raises(BackendError, match="Uninitialized"):
        backend.links()


def test_instances_have_no_links(nvml: FakeNvml) -> None:
    """Rule: MIG instances reach no other device directly."""
    nvml.write(cut(H100, 0, {0: GIB, 1: GIB}), H100 | {"ancestor.0": 10})
    assert opened(nvml).links() == []


# XIDs


def test_xids_are_told_as_they_happen(nvml: FakeNvml) -> None:
    """Rule: an error by number arrives with its device while somebody waits, and only once."""
    nvml.write(H100 | {"xid": "none"}, H100 | {"xid": "none"}, T4)
    backend = opened(nvml)
    watch = backend.watch_xids()
    assert watch.refused == {"cuda:2": "not supported by this GPU"}
    assert list(watch.xids(timeout_seconds=0)) == []
    change = threading.Thread(target=nvml.change, args=("1.xid", "first:79"))
    change.start()
    first = next(watch.xids(timeout_seconds=30))
    assert (first.device_id, first.xid) == ("cuda:1", 79)
    change.join()
    nvml.change("0.xid", "second:13")
    nvml.change("1.xid", "third:48")
    both = watch.xids(timeout_seconds=30)
    assert {next(both), next(both)} == {Xid("cuda:0", 13), Xid("cuda:1", 48)}
    watch.close()
    assert list(watch.xids(timeout_seconds=30)) == []
    watch.close()


def test_a_search_for_devices_ends_no_watch(nvml: FakeNvml) -> None:
    """Rule: the driver is opened anew for each search, and XIDs go on arriving meanwhile."""
    nvml.write(H100 | {"xid": "none"}, H100)
    backend = opened(nvml)
    watch = backend.watch_xids()
    backend.find()
    nvml.change("0.xid", "first:79")
    assert next(watch.xids(timeout_seconds=30)) == Xid("cuda:0", 79)
    watch.close()
    anyio.run(backend.shutdown)
    with pytest.raises(pynvml.NVMLError, match="Uninitialized"):  # nobody is left who opened it
        pynvml.nvmlDeviceGetCount()


def test_xids_of_instances_come_under_their_gpu(nvml: FakeNvml) -> None:
    """Rule: the driver reports them for the whole GPU, and so do we, once."""
    nvml.write(cut(H100, 0, {0: GIB, 1: GIB}) | {"xid": "a:94"})
    backend = opened(nvml)
    assert ids(backend) == ["cuda:0:0", "cuda:0:1"]
    watch = backend.watch_xids()
    events = watch.xids(timeout_seconds=30)
    assert next(events) == Xid("cuda:0", 94)
    watch.close()
    assert list(events) == []


def test_a_driver_that_stops_reporting(nvml: FakeNvml) -> None:
    """Rule: the end of reporting is an error for who waits, after what came before."""
    nvml.write(H100 | {"xid": "none"})
    watch = opened(nvml).watch_xids()
    nvml.change("0.xid", "!15")
    with pytest.raises(BackendError, match="stopped reporting XIDs: GPU is lost"):
        list(watch.xids(timeout_seconds=30))
    watch.close()


def test_a_driver_without_events(nvml: FakeNvml) -> None:
    """Rule: where no set of events can be made, the reason says so."""
    nvml.write(H100, events="!3")
    with pytest.raises(BackendError, match="reports no XIDs"):
        opened(nvml).watch_xids()
