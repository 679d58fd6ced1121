"""What NVML answers on a machine, written down: the fake that reads it is that machine again."""

from __future__ import annotations

from tests.backends.nvml.fake_nvml import GIB, H100, T4, FakeNvml, cut
from tests.backends.nvml.opening import opened


def samples(nvml: FakeNvml) -> list[dict[str, object]]:
    """Everything found and read, without the time of reading."""
    backend = opened(nvml)
    return [
        device.to_dict() | backend.read(device.device_id).to_dict() | {"timestamp": 0}
        for device in backend.list_devices()
    ]


def test_a_capture_is_a_description_of_the_same_machine(nvml: FakeNvml) -> None:
    """Rule: errors, MIG instances and half-silent GPUs come back as they were."""
    nvml.write(
        H100,
        T4 | {"fan": "!3", "power.average": "!4", "ecc.volatile.corrected": "!999"},
        cut(H100, 2, {0: 10 * GIB, 3: 20 * GIB}),
        driver="570.1",
    )
    before = samples(nvml)
    assert len(before) == 4
    text = opened(nvml).capture()
    copied = nvml.description.with_name("copied.txt")
    copied.write_text(text)
    copied.replace(nvml.description)
    assert samples(nvml) == before
    assert opened(nvml).capture() == text
    assert "1.fan=!3" in text.splitlines()
    assert "0.power=123456" in text.splitlines()


def test_a_driver_that_breaks_is_captured_too(nvml: FakeNvml) -> None:
    """Rule: what NVML refuses is an answer: a GPU without a handle, and a count that fails."""
    nvml.write(H100 | {"handle": "!15"}, H100)
    lines = opened(nvml).capture().splitlines()
    assert "0.handle=!15" in lines
    assert "1.name=NVIDIA H100 PCIe" in lines
    backend = opened(nvml)
    nvml.change("count", "!999")
    assert backend.capture() == "driver=570.86.15\ncount=!999\n"
