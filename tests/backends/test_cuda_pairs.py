"""Copies between two NVIDIA GPUs, through the real cuda-bindings on a fake CUDA driver."""

from __future__ import annotations

import pytest

from exo.gpu.telemetry.pairs import pair_through
from tests.backends.libcuda.opening import FAST, SLOW, cuda_library
from tests.backends.nvml.fake_nvml import FakeNvml
from tests.backends.nvml.opening import closed, opened

__all__ = ["closed", "cuda_library"]

pytest.importorskip("cuda.bindings.driver", reason="pip install 'exo-gpu[cuda]'")


@pytest.mark.parametrize("fabric", [True, False])
def test_cuda_says_whether_the_way_is_direct(
    nvml: FakeNvml, cuda_library: str, monkeypatch: pytest.MonkeyPatch, fabric: bool
) -> None:
    """Rule: with peer access the copy is direct, without it leads through the host."""
    nvml.write(SLOW, FAST)
    backend = opened(nvml, cuda_library=cuda_library)
    monkeypatch.setattr(backend._memory, "peer_access", lambda *_: fabric)
    for result in pair_through(backend, *backend.find(), seconds=0.2):
        assert result.gbps is not None
        assert result.through_host is not fabric
