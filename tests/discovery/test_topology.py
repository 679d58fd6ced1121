"""How devices are joined: drivers are believed first, the bus completes, unknown stays None."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from exo.gpu import discovery
from exo.gpu.discovery import GPUDiscoveryService
from exo.gpu.vocabulary.inventory import DiscoveryReport, topology_matrix
from exo.gpu.vocabulary.links import Link, LinkKind
from tests.discovery.scripted import Scripted, device

UUID = "01234567-89ab-cdef-0123-456789abcdef"


class Joined(Scripted):
    """Two cards on one bus, and what the driver says of them."""

    def __init__(self, links: Any, *, turned: bool = False) -> None:
        cards = [
            device("cuda:0", hardware_id=f"GPU-{UUID}", pci_address="0000:01:00.0"),
            device("cuda:1", hardware_id="b", pci_address="0000:02:00.0"),
        ]
        if turned:
            places = zip(reversed(cards), ("cuda:0", "cuda:1"), strict=True)
            cards = [
                device(name, hardware_id=card.hardware_id, pci_address=card.pci_address)
                for card, name in places
            ]
        super().__init__("cuda", lambda: cards)
        self.say = links

    def links(self) -> list[Link]:
        return self.say()


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    """Two cards below one host bridge; the first one shows the boot messages."""
    (tmp_path / "bus/pci/devices").mkdir(parents=True)
    for address, vga in (("0000:01:00.0", "1"), ("0000:02:00.0", "0")):
        folder = tmp_path / "devices/pci0000:00" / address
        folder.mkdir(parents=True)
        (folder / "numa_node").write_text("0")
        (folder / "boot_vga").write_text(vga)
        (tmp_path / "bus/pci/devices" / address).symlink_to(folder)
    return tmp_path


def look(sysfs: Path, backend: Joined, *others: Scripted, **options: Any) -> DiscoveryReport:
    backends = {backend.name: backend, **{other.name: other for other in others}}
    return GPUDiscoveryService(backends=backends, sysfs=sysfs, environ={}, **options).discover()


def test_the_bus_says_what_the_driver_does_not(sysfs: Path) -> None:
    """Rule: kinds come from the driver, else from the bus; peer access from the driver alone."""
    told = [
        Link(source="cuda:0", target="cuda:1", kind=LinkKind.NVLINK, peer_access=True),
        Link(source="cuda:1", target="cuda:0", peer_access=False),
        Link(source="cuda:0", target="cuda:9", peer_access=True),
    ]
    report = look(sysfs, Joined(lambda: told))
    assert [(link.kind, link.peer_access) for link in report.links] == [
        (LinkKind.NVLINK, True),
        (LinkKind.HOST_BRIDGE, False),
    ]
    assert [card.numa_node for card in report.devices] == [0, 0]
    assert [card.drives_display for card in report.devices] == [True, None]


def test_the_matrix_has_every_pair_and_none_for_what_is_unknown(sysfs: Path) -> None:
    """Rule: one row and column per device; None on the diagonal and where nothing is known."""
    report = look(sysfs, Joined(list), Scripted("cpu", lambda: [device("cpu:0")]))
    kinds = [[link and link.kind for link in row] for row in topology_matrix(report)]
    bridge = LinkKind.HOST_BRIDGE
    assert kinds == [[None, bridge, None], [bridge, None, None], [None, None, None]]


def test_links_go_by_label_and_by_the_merged_device(sysfs: Path, tmp_path: Path) -> None:
    """Rule: links name devices as the report does, after a re-ordering too."""
    registry = tmp_path / "registry.json"
    told = [Link(source="cuda:0", target="cuda:1", peer_access=True)]
    look(sysfs, Joined(list), registry_path=registry)
    report = look(sysfs, Joined(lambda: told, turned=True), registry_path=registry)
    (peers,) = [link for link in report.links if link.peer_access]
    assert (peers.source, peers.target) == ("cuda:1", "cuda:0")
    alias = [Link(source="vulkan:0", target="cuda:1", peer_access=True)]
    twin = Scripted("vulkan", lambda: [device("vulkan:0", hardware_id=UUID)])
    (peers,) = [one for one in look(sysfs, Joined(lambda: alias), twin).links if one.peer_access]
    assert (peers.source, peers.target) == ("cuda:0", "cuda:1")


def test_links_are_not_asked_for_by_those_who_do_not_want_them(sysfs: Path, tmp_path: Path) -> None:
    """Rule: without links no driver and no bus is asked how devices are joined."""
    asked: list[str] = []
    joined = Joined(lambda: asked.append("links") or [])
    service = GPUDiscoveryService(backends={"cuda": joined}, sysfs=sysfs)
    report = service.discover(links=False)
    assert (len(report.devices), report.links, asked) == (2, (), [])
    assert service.discover().links
    assert asked == ["links"]


def test_a_driver_that_breaks_over_links_costs_only_them(
    sysfs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Rule: devices without links are devices."""

    def fail() -> list[Link]:
        raise OSError("no")

    report = look(sysfs, Joined(fail))
    assert len(report.devices) == 2
    assert {link.kind for link in report.links} == {LinkKind.HOST_BRIDGE}
    assert "asking for links failed" in caplog.text


def test_a_driver_that_hangs_over_links_is_left_behind_once(
    sysfs: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Rule: devices are found anew while an older question about links hangs; one thread hangs."""
    monkeypatch.setattr(discovery, "LINK_SECONDS", 0.05)
    release = threading.Event()
    calls: list[int] = []

    def hang() -> list[Link]:
        calls.append(1)
        release.wait(30)
        return [Link(source="cuda:0", target="cuda:1", peer_access=True)]

    made = GPUDiscoveryService(backends={"cuda": Joined(hang)}, sysfs=sysfs, environ={})
    for _ in range(4):
        assert len(made.discover().devices) == 2
    assert len(calls) == 1
    assert "did not tell in time" in caplog.text
    (thread,) = [one for one in threading.enumerate() if one.name == "exo-gpu-find-cuda"]
    release.set()
    thread.join()
    assert any(link.peer_access for link in made.discover().links)
    assert len(calls) == 2


def test_scripted_devices_are_not_looked_up_on_the_bus(sysfs: Path) -> None:
    """Rule: what a script describes has nothing to do with this machine's bus."""
    made = GPUDiscoveryService(
        backends={"cuda": Joined(list)}, sysfs=sysfs, environ={"EXO_GPU_FAKE": "script"}
    )
    assert made.discover().links == ()
    assert made.report.devices[0].numa_node is None
