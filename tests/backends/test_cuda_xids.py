"""XIDs as faults: by NVIDIA's catalogue, and by the driver's own word where it gives one."""

from __future__ import annotations

import pytest

from exo.gpu.backend import FaultAbility
from exo.gpu.backends.nvml_xids import CATALOGUE
from exo.gpu.vocabulary.errors import BackendError
from exo.gpu.vocabulary.health import DeviceFault, FaultAction
from tests.backends.nvml.fake_nvml import GIB, H100, FakeNvml, cut
from tests.backends.nvml.opening import closed, opened

__all__ = ["closed"]  # a fixture

IGNORE, APPLICATION = FaultAction.IGNORE, FaultAction.RESTART_APPLICATION
RESET, RESTART, CHECK = FaultAction.RESET_DEVICE, FaultAction.RESTART_MACHINE, FaultAction.CHECK

# The driver's recovery actions by number (nvml.h, nvmlDeviceGpuRecoveryAction_t).
NONE, GPU_RESET, NODE_REBOOT, DRAIN_P2P = 0, 1, 2, 3


def first_fault(nvml: FakeNvml, code: int, **fields: object) -> DeviceFault:
    """The fault that one XID of one GPU becomes, where the driver tells so much."""
    nvml.write(H100 | {"xid": "none", **fields})
    backend = opened(nvml)
    assert isinstance(backend, FaultAbility)
    watch = backend.watch_faults()
    try:
        nvml.change("0.xid", f"first:{code}")
        return next(iter(watch.faults(timeout_seconds=30)))
    finally:
        watch.close()


@pytest.mark.parametrize(
    ("code", "action"),
    [
        *((code, IGNORE) for code in (43, 45, 63)),
        *((code, APPLICATION) for code in (13, 31, 32, 94)),
        *((code, RESET) for code in (46, 48, 62, 64, 74, 95, 119, 120, 140, 143, 158)),
        (79, RESTART),
        *((code, CHECK) for code in (54, 78, 154)),
    ],
)
def test_an_xid_asks_for_what_the_catalogue_says(
    nvml: FakeNvml, code: int, action: FaultAction
) -> None:
    """Rule: what concerns the program alone leaves the GPU usable; the others ask for more."""
    fault = first_fault(nvml, code)
    assert (fault.device_id, fault.code, fault.action) == ("cuda:0", code, action)
    assert fault.what == f"XID {code}: {CATALOGUE[code][0]}"
    assert fault.at > 1.6e9


@pytest.mark.shows("cuda", "faults", "fake")
def test_an_xid_that_nobody_knows_asks_for_a_look(nvml: FakeNvml) -> None:
    """Rule: a new number is no reason to take a GPU away, nor to pass it over."""
    fault = first_fault(nvml, 999)
    assert fault.action is CHECK
    assert "no action" in fault.what


@pytest.mark.parametrize(
    ("code", "recovery", "action"),
    [
        (13, NONE, APPLICATION),
        (13, GPU_RESET, RESET),
        (48, NONE, APPLICATION),
        (119, NODE_REBOOT, RESTART),
        (154, NONE, IGNORE),
        (154, GPU_RESET, RESET),
        (154, DRAIN_P2P, CHECK),
        (154, 99, CHECK),
        (79, "!15", RESTART),
        (54, NONE, CHECK),
    ],
)
def test_the_drivers_own_word_goes_before_the_catalogue(
    nvml: FakeNvml, code: int, recovery: object, action: FaultAction
) -> None:
    """Rule: where the driver tells its recovery action, that is what has to be done."""
    assert first_fault(nvml, code, recovery=recovery).action is action


@pytest.mark.parametrize(
    ("pending", "failed", "action", "words"),
    [
        (0, 0, IGNORE, "was replaced"),
        (1, 0, CHECK, "at the next reset"),
        (1, 1, RESET, "could not be replaced"),
        ("!15", 0, IGNORE, "is to be replaced"),
    ],
)
def test_a_replaced_memory_row_counts_by_its_flags(
    nvml: FakeNvml, pending: object, failed: int, action: FaultAction, words: str
) -> None:
    """Rule: XID 63 is no fault unless rows wait for a reset or could not be replaced."""
    flags = {"remapping.pending": pending, "remapping.failed": failed}
    fault = first_fault(nvml, 63, **flags)
    assert fault.action is action
    assert words in fault.what


@pytest.mark.parametrize("refusal", ["!13", "!15", "!1"])
def test_a_gpu_that_does_not_answer_is_judged_by_the_catalogue(
    nvml: FakeNvml, refusal: str
) -> None:
    """Rule: an old driver, a lost GPU and a driver that went away still have their fault told."""
    assert first_fault(nvml, 62, fields=refusal).action is RESET


def test_a_fault_of_a_gpu_is_one_of_each_of_its_instances(nvml: FakeNvml) -> None:
    """Rule: the driver reports XIDs for the whole GPU; MIG instances share its fate."""
    nvml.write(cut(H100, 0, {0: GIB, 1: GIB}) | {"xid": "a:62"})
    watch = opened(nvml).watch_faults()
    faults = watch.faults(timeout_seconds=30)
    assert [next(faults).device_id, next(faults).device_id] == ["cuda:0:0", "cuda:0:1"]
    watch.close()
    assert list(faults) == []
    watch.close()


def test_who_reports_nothing_is_named(nvml: FakeNvml) -> None:
    """Rule: a GPU without events has its reason, and a driver without any raises it."""
    nvml.write(H100 | {"xid": "none"}, H100)
    watch = opened(nvml).watch_faults()
    assert watch.refused == {"cuda:1": "not supported by this GPU"}
    nvml.change("0.xid", "!15")
    with pytest.raises(BackendError, match="stopped reporting"):
        list(watch.faults(timeout_seconds=30))
    watch.close()
    nvml.write(H100, events="!3")
    with pytest.raises(BackendError, match="reports no XIDs"):
        opened(nvml).watch_faults()
