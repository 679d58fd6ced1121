"""The demo, started as a reader starts it, in small."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from demo import status
from kernel import Rendering, render_in_numpy
from report import Phase
from view import Canvas, View

FOLDER = Path(__file__).parents[2] / "examples" / "mandelbrot"
SMALL = ["--size", "192x128", "--tiles", "24", "--limit", "300"]
WITHOUT_MATPLOTLIB = f"""
import sys
sys.modules["matplotlib"] = None
sys.path.insert(0, {str(FOLDER)!r})
import demo
sys.exit(demo.main(sys.argv[1:]))
"""
# In a process of its own: the drivers are chosen once in the life of a process.
COMPARED = f"""
import sys
sys.path.insert(0, {str(FOLDER)!r})
import numpy as np
from exo.gpu import GPUBackendFactory
from kernel import ShaderRenderer, render_in_numpy
from view import View
backend = GPUBackendFactory.make("vulkan")
(device,) = backend.find()
tile = View(120, 80, 60, 600).tiles()[0]
for pair in zip(ShaderRenderer(backend, device.device_id)(tile), render_in_numpy(tile)):
    print(np.array_equal(*pair))
"""


def run(*options, program=(str(FOLDER / "demo.py"),)):
    """The finished process."""
    command = [sys.executable, *program, *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=100)


def test_every_device_draws_and_all_agree(vulkan_environment, tmp_path):
    """Two drivers and the host draw all tiles in both phases, and their seams are the same."""
    done = run("--all-devices", "--json", "--output", str(tmp_path / "out"), *SMALL)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["tiles"] >= 24
    for phase in found["phases"]:
        devices = phase["devices"]
        assert {device["device_id"].partition(":")[0] for device in devices} == {"vulkan", "cpu"}
        assert len(devices) == 3
        assert sum(device["tiles"] for device in devices) == phase["tiles"] == found["tiles"]
        assert phase["agreement"]["ratio"] == 1.0
        assert phase["agreement"]["compared"] > 0
    equal = [device["tiles"] for device in found["phases"][0]["devices"]]
    assert max(equal) - min(equal) <= 1
    assert [Path(file).is_file() for file in found["files"]] == [True, True]


def test_one_device_alone_works_and_says_so(tmp_path):
    """On the host alone: no seam to compare, and no failure."""
    done = run("--devices", "cpu:0", "--json", "--output", str(tmp_path), *SMALL)
    assert done.returncode == 0, done.stderr
    assert "One device only" in done.stdout
    phases = json.loads(done.stdout.splitlines()[-1])["phases"]
    assert [phase["agreement"]["ratio"] for phase in phases] == [None, None]
    assert [len(phase["devices"]) for phase in phases] == [1, 1]


def test_without_matplotlib_only_the_pictures_are_missing(tmp_path):
    """One line says what to install; the figures are all there."""
    options = ["--devices", "cpu:0", "--json", "--output", str(tmp_path / "out"), *SMALL]
    done = run(*options, program=("-c", WITHOUT_MATPLOTLIB))
    assert done.returncode == 0, done.stderr
    assert "the pictures need matplotlib: pip install 'exo-gpu[plot]'" in done.stdout
    assert json.loads(done.stdout.splitlines()[-1])["files"] == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options",
    [
        ("--tiles", "0"),
        ("--size", "banana"),
        ("--size", "10x-3"),
        ("--all-devices", "--devices", "cpu:0"),
    ],
)
def test_bad_options_are_refused(options):
    """Status 2 and what is wrong, before any device is opened."""
    done = run(*options)
    assert done.returncode == 2
    assert "demo.py: error:" in done.stderr


def test_an_unknown_device_is_one_line():
    """Status 1 and no traceback."""
    done = run("--devices", "cuda:99", *SMALL)
    assert done.returncode == 1
    assert done.stderr.startswith("demo.py: ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("driver", ["llvmpipe_manifest", "swiftshader_manifest"])
def test_a_driver_and_numpy_return_the_same_bits(driver, request):
    """The shader rounds after every operation, as NumPy does: counts and norms are identical."""
    manifest = str(request.getfixturevalue(driver))
    environ = {**os.environ, "VK_DRIVER_FILES": manifest, "VK_ICD_FILENAMES": manifest}
    command = [sys.executable, "-c", COMPARED]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["True", "True"], done.stderr


def test_disagreement_fails_the_demo():
    """Below 99.9 % of equal pixels on the seams the status is 1."""
    view = View(8, 4, 4, 30)
    renderings = {
        tile.index: Rendering(tile.index, *render_in_numpy(tile), 0) for tile in view.tiles()
    }
    canvas = Canvas(view, renderings)
    owners = {0: "a", 1: "b"}

    def phase():
        return Phase("equal split", 0.0, [], canvas, None, canvas.agreement(owners))

    assert status([phase()]) == 0
    renderings[1].counts[0, 0] += 1
    assert status([phase()]) == 1


def test_only_the_best_class_draws_unless_asked(vulkan_environment, tmp_path):
    """Without --all-devices the host stays out beside software drivers, and the output says so."""
    done = run("--json", "--output", str(tmp_path), *SMALL)
    assert done.returncode == 0, done.stderr
    assert "left out cpu:0: not of class software, see --all-devices" in done.stdout
    (phase, _) = json.loads(done.stdout.splitlines()[-1])["phases"]
    assert all(device["device_id"].startswith("vulkan:") for device in phase["devices"])


def test_devices_without_compute_shaders_are_left_out(monkeypatch):
    """The scripted cards cannot draw: the reason for each, and status 1."""
    monkeypatch.setenv("EXO_GPU_FAKE", str(FOLDER.parent / "devices.json"))
    done = run("--all-devices", *SMALL)
    assert done.returncode == 1
    assert "left out cuda:0: fake runs no compute shaders here" in done.stdout
    assert done.stderr == "demo.py: none of the devices found can draw\n"
