"""The listing of drivers, run in this process on the real loader."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from exo.gpu.backends import vulkan_listing


def test_a_driver_is_described(vulkan_environment: dict[str, str], llvmpipe_manifest: Path) -> None:
    """Rule: kind, ids, heaps, UUID, the driver's words and its library's real path are listed."""
    import vulkan

    answer = vulkan_listing._list_driver(vulkan, str(llvmpipe_manifest))
    named = json.loads(llvmpipe_manifest.read_text())["ICD"]["library_path"]
    assert Path(answer["library"]).name == Path(named).resolve().name
    llvmpipe = next(facts for facts in answer["devices"] if "llvmpipe" in facts["name"])
    assert (llvmpipe["kind"], llvmpipe["vendor_id"]) == (
        vulkan.VK_PHYSICAL_DEVICE_TYPE_CPU,
        0x10005,
    )
    assert llvmpipe["device_local_bytes"] > 0
    assert len(llvmpipe["uuid"]) == 36
    assert "Mesa" in llvmpipe["driver"]


# The child forks before it has any thread; this process may have some, which Python 3.12 warns of.
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_the_answer_is_one_json_object(
    llvmpipe_manifest: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Rule: standard output carries the answer alone; what drivers print goes elsewhere."""
    assert vulkan_listing.main(["5", str(llvmpipe_manifest)]) == 0
    os.write(1, b"noise of a driver\n")
    out, err = capfd.readouterr()
    (driver,) = json.loads(out)["drivers"]
    assert driver["manifest"] == str(llvmpipe_manifest)
    assert "noise" in err


def test_a_library_that_is_not_loaded_keeps_its_name() -> None:
    """Rule: without a mapping to look at, the manifest's own word stands."""
    assert vulkan_listing._loaded_library("libno_such_driver.so") == "libno_such_driver.so"
