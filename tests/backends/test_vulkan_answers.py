"""What Vulkan drivers said before is believed only while nothing that it rests on has changed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from exo.gpu.backends.vulkan import VulkanGPUBackend
from exo.gpu.backends.vulkan_answers import MOST, recall_or_ask


class Machine:
    """A root with one driver, which counts how often it is asked."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        self.library = folder / "lib" / "libdriver.so"
        self.manifest = folder / "icd.d" / "driver.json"
        for path in (self.library, self.manifest, self.root / "dev/dri/renderD128"):
            path.parent.mkdir(parents=True)
        self.library.write_text("code")
        self.write({"ICD": {"library_path": "../lib/libdriver.so"}})
        (self.root / "dev/dri/renderD128").write_text("")
        self.environ = {"PATH": "/bin", "VK_LOADER_DEBUG": ""}
        self.answer: list[dict[str, Any]] = [{"manifest": "m", "devices": [{"name": "Card"}]}]
        self.answers: dict[str, str] | None = {}
        self.asked = 0

    def write(self, manifest: Any) -> None:
        self.manifest.write_text(json.dumps(manifest))

    def text(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def ask(self) -> list[dict[str, Any]]:
        self.asked += 1
        return self.answer

    def recall(self) -> list[dict[str, Any]]:
        return recall_or_ask(
            self.answers, [str(self.manifest)], self.environ, self.ask, root=self.root
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_an_answer_is_given_again_while_nothing_changed(machine: Machine) -> None:
    """Rule: the drivers are asked once, and variables that are nothing to them do not matter."""
    assert machine.recall() == machine.recall() == machine.answer
    machine.environ["EDITOR"] = "vi"
    machine.recall()
    assert machine.asked == 1


CHANGES: dict[str, Callable[[Machine], Any]] = {
    "another manifest": lambda m: m.write({"ICD": {"library_path": "/other"}}),
    "a newer manifest": lambda m: os.utime(m.manifest, (1, 1)),
    "no manifest": lambda m: m.manifest.unlink(),
    "another library": lambda m: m.library.write_text("newer code"),
    "a newer library": lambda m: os.utime(m.library, (1, 1)),
    "another card": lambda m: m.text("dev/dri/renderD129", ""),
    "an NVIDIA card": lambda m: m.text("dev/nvidia0", ""),
    "another kernel driver": lambda m: m.text("proc/driver/nvidia/version", "580"),
    "another boot": lambda m: m.text("proc/sys/kernel/random/boot_id", "b"),
    "an installed library": lambda m: m.text("etc/ld.so.cache", "cache"),
    "a variable of the loader": lambda m: m.environ.update(VK_LOADER_DEBUG="all"),
    "a variable of a driver": lambda m: m.environ.update(MESA_VK_DEVICE_SELECT="1002:744c"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_drivers_are_asked_again_after_a_change(machine: Machine, change: str) -> None:
    """Rule: whatever an answer rests on, a change of it makes it void."""
    machine.recall()
    CHANGES[change](machine)
    machine.recall()
    assert machine.asked == 2
    machine.recall()
    assert machine.asked == 2


def test_a_driver_that_was_found_elsewhere_is_watched_there(machine: Machine) -> None:
    """Rule: a library named without a path counts by the file that was really loaded."""
    machine.write({"ICD": {"library_path": "libdriver.so"}})
    machine.answer = [{"manifest": "m", "devices": [], "library": str(machine.library)}]
    machine.recall()
    machine.library.write_text("newer code")
    machine.recall()
    assert machine.asked == 2


def test_a_failure_is_never_kept(machine: Machine) -> None:
    """Rule: a driver that crashed or hung is asked again each time, and so are those beside it."""
    machine.answer = [{"manifest": "m", "devices": []}, {"manifest": "n", "reason": "died"}]
    machine.recall()
    machine.recall()
    assert (machine.asked, machine.answers) == (2, {})


def test_garbage_in_the_memory_is_no_answer(machine: Machine) -> None:
    """Rule: an answer that cannot be understood is asked for anew."""
    machine.recall()
    assert machine.answers
    machine.answers = dict.fromkeys(machine.answers, "{]")
    assert machine.recall() == machine.answer
    assert machine.asked == 2


def test_each_environment_has_its_answer_and_the_oldest_goes(machine: Machine) -> None:
    """Rule: work pinned to one driver does not push out what the others know; there is a bound."""
    for number in range(MOST + 1):
        machine.environ["VK_DRIVER_FILES"] = str(number)
        machine.recall()
    machine.recall()
    assert machine.asked == MOST + 1
    assert machine.answers is not None
    assert len(machine.answers) == MOST


def test_without_a_memory_the_drivers_are_asked_each_time(machine: Machine) -> None:
    """Rule: nothing is kept unless somebody keeps it."""
    machine.answers = None
    machine.recall()
    machine.recall()
    assert machine.asked == 2


def test_a_real_driver_is_recognised_from_its_earlier_answer(
    llvmpipe_manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: a second search starts no process and finds the same device, ready for use."""
    environ = {**os.environ, "VK_DRIVER_FILES": str(llvmpipe_manifest)}
    environ["VK_ICD_FILENAMES"] = str(llvmpipe_manifest)
    first = VulkanGPUBackend(environ=environ)
    first.answers = {}
    (found,) = first.find()
    monkeypatch.setattr("exo.gpu.backends.vulkan_drivers.ask", None)
    second = VulkanGPUBackend(environ=environ)
    second.answers = first.answers
    (again,) = second.find()
    assert (again.name, again.hardware_id) == (found.name, found.hardware_id)
    assert second.read(again.device_id).memory_total_bytes
