"""The command on the drivers of this machine: a real Vulkan driver and the real host."""

from __future__ import annotations

import json


def test_both_vulkan_drivers_and_the_host_are_listed(vulkan_environment, exo_gpu):
    """Rule: every driver that is named is there, each device once, and the host always."""
    report = json.loads(exo_gpu("devices", "--refresh", "--json", **vulkan_environment).stdout)
    found = {device["device_id"]: device for device in report["devices"]}
    vulkan = [device for device in found.values() if device["runtime"] == "vulkan"]
    assert {device["device_class"] for device in vulkan} == {"software"}
    assert len({device["driver_manifest"] for device in vulkan}) == len(vulkan) == 2
    assert found["cpu:0"]["device_class"] == "host"
    assert found["cpu:0"]["sample"]["memory_total_bytes"] > 0
    assert len(found) == len(report["devices"])


def test_a_command_sees_its_driver_alone(llvmpipe_manifest, exo_gpu):
    """Rule: what runs on a Vulkan device is left with that device's driver."""
    words = ["sh", "-c", 'echo "$VK_DRIVER_FILES"; echo "$CUDA_VISIBLE_DEVICES"']
    done = exo_gpu("run", "--on", "vulkan", "--memory", "64MiB", "--", *words)
    assert done.returncode == 0, done.stderr
    manifest, nvidia = done.stdout.splitlines()
    assert manifest.endswith(".json")
    assert nvidia == "-1"


def test_a_variable_that_combines_is_warned_of(llvmpipe_manifest, exo_gpu, monkeypatch):
    """Rule: the doctor names a variable that works on beside the one that pins."""
    named = {"VK_ADD_DRIVER_FILES": str(llvmpipe_manifest)}
    for inherited in ("VK_DRIVER_FILES", "VK_ICD_FILENAMES"):
        monkeypatch.delenv(inherited, raising=False)
    report = json.loads(exo_gpu("doctor", "--json", **named).stdout)
    assert report["variables"] == named
    assert any("VK_ADD_DRIVER_FILES" in warning for warning in report["warnings"])


def test_compressing_files_is_work_for_the_host(exo_gpu, tmp_path):
    """Rule: any command is work: gzip over files, each item once, status 0."""
    for number in range(6):
        (tmp_path / f"file {number}").write_text(str(number) * 1000)
    names = [f"file {number}" for number in range(6)]
    done = exo_gpu("map", "--device", "cpu:0", "gzip -9 -k -c {} | gunzip -c", ":::", *names)
    assert done.returncode == 0
    assert len(done.stdout) == 6000
    assert {done.stdout.count(str(number)) for number in range(6)} == {1000}
