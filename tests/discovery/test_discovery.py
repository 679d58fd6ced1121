"""The union of all backends: each card once, and no backend hides another."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo.gpu.discovery import (
    DiscoveryReport,
    GPUDiscoveryService,
    discover_gpu_devices,
)
from exo.gpu.vocabulary.device import DeviceClass, GPUDevice
from exo.gpu.vocabulary.errors import BackendUnavailable
from tests.discovery.scripted import device, service

UUID = "01234567-89ab-cdef-0123-456789abcdef"


def ids(report: DiscoveryReport) -> list[str]:
    return [found.device_id for found in report.devices]


@pytest.fixture
def wedged() -> Iterator[threading.Event]:
    """A hanging driver returns when this is set."""
    release = threading.Event()
    yield release
    release.set()


# The union


def test_devices_are_ordered_by_class_then_backend_then_index() -> None:
    """Rule: hardware first, then software, then the host; within a class as the backends come."""
    software = device("vulkan:1", device_class=DeviceClass.SOFTWARE)
    report = service(
        ("cpu", [device("cpu:0")]),
        ("vulkan", [software, device("vulkan:0")]),
        ("cuda", [device("cuda:0"), device("cuda:1")]),
    ).discover()
    assert ids(report) == ["vulkan:0", "cuda:0", "cuda:1", "vulkan:1", "cpu:0"]
    assert [finding.backend for finding in report.findings] == ["cpu", "vulkan", "cuda"]


def test_one_card_under_two_backends_is_one_device() -> None:
    """Rule: the same UUID, however it is written, is the same card; the twin's id is an alias."""
    report = service(
        ("cuda", [device("cuda:0", hardware_id=f"GPU-{UUID}")]),
        ("vulkan", [device("vulkan:0", hardware_id=UUID.upper(), max_threads_per_block=1024)]),
    ).discover()
    (card,) = report.devices
    assert (card.device_id, card.aliases) == ("cuda:0", ("vulkan:0",))
    assert card.hardware_id == f"GPU-{UUID}"
    assert card.max_threads_per_block == 1024
    assert [len(finding.devices) for finding in report.findings] == [1, 1]


def test_the_place_on_the_bus_joins_what_has_no_common_uuid() -> None:
    """Rule: without a common UUID the same PCI address is the same card."""
    report = service(
        ("rocm", [device("rocm:0", hardware_id="GPU-b6c8", pci_address="0000:03:00.0")]),
        ("vulkan", [device("vulkan:0", hardware_id=UUID, pci_address="0000:03:00.0")]),
    ).discover()
    assert [(card.device_id, card.aliases) for card in report.devices] == [
        ("rocm:0", ("vulkan:0",))
    ]


def test_one_uuid_in_two_places_is_two_cards() -> None:
    """Rule: cards at different places differ, even where a driver gives them one UUID."""
    report = service(
        ("cuda", [device("cuda:0", hardware_id=UUID, pci_address="0000:01:00.0")]),
        ("vulkan", [device("vulkan:0", hardware_id=UUID, pci_address="0000:02:00.0")]),
    ).discover()
    assert ids(report) == ["cuda:0", "vulkan:0"]


def test_a_uuid_that_two_devices_share_joins_one_of_them() -> None:
    """Rule: a card has one twin per backend; what remains stays listed."""
    twins = [device("vulkan:0", hardware_id=UUID), device("vulkan:1", hardware_id=UUID)]
    one = service(("cuda", [device("cuda:0", hardware_id=UUID)]), ("vulkan", twins)).discover()
    assert ids(one) == ["cuda:0", "vulkan:1"]
    unclear = service(("vulkan", twins), ("cuda", [device("cuda:0", hardware_id=UUID)])).discover()
    assert ids(unclear) == ["vulkan:0", "vulkan:1", "cuda:0"]
    assert f"vulkan:0 and vulkan:1 bear the same identity {UUID}" in unclear.findings[0].reason
    assert not unclear.findings[0].failed


def test_devices_without_identity_are_never_joined() -> None:
    """Rule: ids of a driver's own making are no UUIDs and join nothing."""
    report = service(
        ("cuda", [device("cuda:0", hardware_id="same")]),
        ("vulkan", [device("vulkan:0", hardware_id="same")]),
    ).discover()
    assert ids(report) == ["cuda:0", "vulkan:0"]


@given(
    cards=st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=8)
)
def test_no_card_is_lost_or_doubled(cards: list[tuple[bool, bool, bool]]) -> None:
    """Rule: for cards seen by CUDA, by Vulkan or by both, each is listed once, none twice."""
    cuda, vulkan, expected = [], [], 0
    for place, (in_cuda, in_vulkan, by_uuid) in enumerate(cards):
        same = (
            {"hardware_id": f"GPU-{place:08x}-89ab-cdef-0123-456789abcdef"}
            if by_uuid
            else {"pci_address": f"0000:{place:02x}:00.0"}
        )
        expected += in_cuda or in_vulkan
        cuda += [device(f"cuda:{place}", **same)] if in_cuda else []
        vulkan += [device(f"vulkan:{place}", **same)] if in_vulkan else []
    report = service(("cuda", cuda), ("vulkan", vulkan)).discover()
    assert len(report.devices) == expected
    named = [name for card in report.devices for name in (card.device_id, *card.aliases)]
    assert sorted(named) == sorted(found.device_id for found in (*cuda, *vulkan))


# Faults


def test_an_absent_backend_is_quiet_and_says_what_to_install() -> None:
    """Rule: absence is no fault; reason and hint are kept."""
    absent = BackendUnavailable("no library", "install it")
    finding = service(("cuda", absent)).discover().findings[0]
    assert (finding.reason, finding.hint, finding.failed) == ("no library", "install it", False)
    assert service(("cuda", [])).discover().findings[0].reason == "its driver lists no device"


def test_what_a_search_left_out_is_told() -> None:
    """Rule: a backend's remark about hidden or broken devices reaches the finding."""
    made = service(("cuda", [device("cuda:0")]))
    made.backends["cuda"].remark = "GPU 1: GPU is lost"
    assert made.discover().findings[0].reason == "GPU 1: GPU is lost"


@pytest.mark.parametrize(
    "error", [KeyError("libamd_smi.so"), RuntimeError("driver"), SystemError()]
)
def test_a_broken_backend_hides_no_other(error: Exception) -> None:
    """Rule: whatever a driver raises is its own finding's reason."""
    report = service(("rocm", error), ("cpu", [device("cpu:0")])).discover()
    assert ids(report) == ["cpu:0"]
    assert report.findings[0].failed
    assert type(error).__name__ in report.findings[0].reason


def test_a_hanging_backend_hides_no_other_and_is_asked_once(wedged: threading.Event) -> None:
    """Rule: a hang ends at the deadline, is named, and never takes a second thread."""

    def hang() -> list[GPUDevice]:
        wedged.wait()
        return [device("rocm:0")]

    made = service(("rocm", hang), ("cpu", [device("cpu:0")]), deadline_seconds=0.05)
    report = made.discover()
    assert ids(report) == ["cpu:0"]
    assert report.findings[0].failed
    assert "no answer" in report.findings[0].reason
    made.discover()
    hanging = [thread for thread in threading.enumerate() if thread.name == "exo-gpu-find-rocm"]
    assert len(hanging) == 1
    wedged.set()
    hanging[0].join()
    assert ids(made.discover()) == ["rocm:0", "cpu:0"]


def test_a_hanging_driver_does_not_keep_the_program_from_exiting() -> None:
    """Rule: a program whose driver hangs while devices are found ends by itself."""
    program = (
        "import threading\n"
        "from exo.gpu.backends.cpu import CPUBackend\n"
        "from exo.gpu.discovery import GPUDiscoveryService\n"
        "class Hangs(CPUBackend):\n"
        "    def find(self):\n"
        "        threading.Event().wait()\n"
        "backends = {'hangs': Hangs(), 'cpu': CPUBackend()}\n"
        "report = GPUDiscoveryService(backends=backends, deadline_seconds=1).discover()\n"
        "print(*[device.device_id for device in report.devices])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "cpu:0"


# The service


def test_a_device_is_known_by_each_of_its_names() -> None:
    """Rule: id, alias and hardware id lead to the device and to the backend that owns it."""
    made = service(
        ("cuda", [device("cuda:0", hardware_id=f"GPU-{UUID}")]),
        ("vulkan", [device("vulkan:0", hardware_id=UUID)]),
    )
    assert made.get_device_by_id("cuda:0") is None
    made.discover()
    for name in ("cuda:0", "vulkan:0", f"GPU-{UUID}"):
        found = made.get_device_by_id(name)
        assert found is not None
        assert found.device_id == "cuda:0"
        assert made.backend_of(name) is made.backends["cuda"]
    assert made.get_device_by_id("cuda:9") is None
    assert made.backend_of("cuda:9") is None


@pytest.mark.parametrize(
    ("answers", "status", "name"),
    [
        ([("cuda", [device("cuda:0")])], "success", "cuda"),
        ([("rocm", KeyError("x")), ("cpu", [device("cpu:0")])], "partial", "cpu"),
        ([("cuda", BackendUnavailable("none")), ("cpu", [device("cpu:0")])], "success", "cpu"),
        ([("cuda", BackendUnavailable("none"))], "failed", None),
    ],
)
def test_the_form_that_older_callers_know(
    answers: list[tuple[str, Any]], status: str, name: str | None
) -> None:
    """Rule: absence is success, a broken backend is partial, no device at all is failed."""
    made = service(*answers)

    async def run() -> dict[str, Any]:
        result = await made.discover_all_devices()
        await made.shutdown()
        await made.shutdown()
        return result

    result = anyio.run(run)
    assert (result["discovery_status"], result["backend_name"]) == (status, name)
    assert all(isinstance(found, GPUDevice) for found in result["devices"])
    assert result["timestamp"].endswith("+00:00")
    assert len(result["findings"]) == len(answers)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_discovery_on_either_event_loop(backend: str, tmp_path: Path) -> None:
    """Rule: the machine itself is found on asyncio and trio alike, and the registry written."""
    registry = tmp_path / "state" / "devices.json"
    result = anyio.run(discover_gpu_devices, registry, backend=backend)
    assert result["devices"][-1].device_id == "cpu:0"
    report = DiscoveryReport.from_json(registry.read_text())
    assert [found.device_id for found in report.devices] == [
        found.device_id for found in result["devices"]
    ]
    assert list(registry.parent.iterdir()) == [registry]


def test_a_registry_that_cannot_be_written_costs_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Rule: devices are found although their file cannot be written; a warning says so."""
    (tmp_path / "file").write_text("")
    made = service(("cpu", [device("cpu:0")]))
    blocked = GPUDiscoveryService(tmp_path / "file" / "devices.json", backends=made.backends)
    assert ids(blocked.discover()) == ["cpu:0"]
    assert "was not written" in caplog.text


def test_a_report_travels() -> None:
    """Rule: findings and devices survive the wire unchanged."""
    report = service(("cuda", [device("cuda:0")]), ("rocm", BackendUnavailable("x"))).discover()
    assert DiscoveryReport.from_json(report.to_json()) == report
    assert json.loads(report.to_json())["findings"][1]["reason"] == "x"


def test_fakes_are_found_through_the_real_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: a script named in the environment is the whole machine."""
    script = tmp_path / "box.json"
    card = {"device_id": "cuda:0", "name": "Card", "vendor": "NVIDIA", "backend": "fake"}
    script.write_text(json.dumps({"devices": [card]}))
    monkeypatch.setenv("EXO_GPU_FAKE", str(script))
    made = GPUDiscoveryService()
    assert ids(made.discover()) == ["cuda:0"]
    assert made.backend_of("cuda:0") is made.backends["fake"]


def test_a_card_that_the_environment_hides_does_not_come_back_through_vulkan() -> None:
    """Rule: an inherited restriction is the universe, under whatever driver."""
    asked = service(
        ("cuda", [device("cuda:0", hardware_id=f"GPU-{UUID}")]),
        (
            "vulkan",
            [
                device("vulkan:0", hardware_id=UUID),
                device("vulkan:1", hardware_id=UUID[::-1].replace("-", "")),
                device("vulkan:2", hardware_id="other"),
            ],
        ),
    )
    hidden = UUID[::-1].replace("-", "")
    asked.backends["cuda"].hidden = (device("cuda:1", hardware_id=f"GPU-{hidden}"),)
    report = asked.discover()
    assert ids(report) == ["cuda:0", "vulkan:2"]
    assert "cuda:1, which the environment hides" in report.findings[1].reason
