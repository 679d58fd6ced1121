"""``--kind``, ``--policy soonest`` and ``--memory auto``: what was learned, used where it is asked."""

from __future__ import annotations

import json
import os
import sys

import pytest

from exo.gpu.nodes.experience import Ended, Experience, experience_path
from tests.cli.conftest import CUDA, HOST

GIB = 2**30

# Asks, under a lease, what that lease is about.
INNER = (
    "sh",
    "-c",
    f"{sys.executable} -m exo.gpu why"
    f' $({sys.executable} -m exo.gpu leases --json | grep -o \'"lease_id": "[^"]*\' | cut -d\'"\' -f4)',
)


@pytest.fixture
def experience(tmp_path, monkeypatch):
    """This user's experience, empty, where the commands look for it."""
    monkeypatch.setenv("EXO_GPU_PROBES", str(tmp_path / "learned" / "probes.json"))
    return Experience(experience_path(os.environ))


def hardware_ids(exo_gpu):
    report = json.loads(exo_gpu("devices", "--json").stdout)
    return {one["device_id"]: one["hardware_id"] for one in report["devices"]}


def test_a_map_teaches_how_long_its_kind_takes(devices, exo_gpu, experience):
    """Rule: each device's own speed at the kind is known afterwards; failures teach none."""
    done = exo_gpu("map", "--kind", "sleep", "-j", "1", "sleep 0.05; true {}", ":::", *"12345678")
    assert done.returncode == 0
    learned = {one.device: one.track for one in experience.lessons() if one.kind == "sleep"}
    assert set(learned) <= set(hardware_ids(exo_gpu).values())
    assert sum(track.samples for track in learned.values()) == 8
    exo_gpu("map", "--kind", "broken", "false {}", ":::", "1")
    assert not [one for one in experience.lessons() if one.kind == "broken"]


def test_the_soonest_device_is_where_it_was_faster(script, exo_gpu, experience):
    """Rule: with what was learned, the choice and its reason change; without, it is said."""
    second = CUDA | {"device_id": "cuda:1", "hardware_id": "GPU-other"}
    script(CUDA, second, HOST)
    ids = hardware_ids(exo_gpu)
    words = ("--on", "cuda", "--policy", "soonest", "--kind", "train", "--explain")
    assert "nothing like it was seen" in " ".join(exo_gpu("select", *words).stdout.split())
    for device, seconds in (("cuda:0", 60.0), ("cuda:1", 5.0)):
        experience.learn(
            [Ended(kind="train", hardware_id=ids[device], seconds=seconds) for _ in range(5)]
        )
    chosen = exo_gpu("select", *words)
    assert chosen.stdout.startswith("cuda:1\n")
    assert "done in 5 s" in " ".join(chosen.stdout.split())
    ran = exo_gpu("run", *words[:-1], "--", "sh", "-c", "echo $EXO_GPU_FAKE_VISIBLE")
    assert ran.stdout.strip() == ids["cuda:1"]


def test_memory_auto_asks_for_what_was_seen_and_says_so(devices, exo_gpu, experience):
    """Rule: advice becomes the request only where it is asked for, with its number and its samples."""
    unknown = exo_gpu("select", "--memory", "auto", "--kind", "train")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert "nothing was seen yet of the kind 'train'" in unknown.stderr
    assert "--kind" in exo_gpu("select", "--memory", "auto").stderr
    experience.learn([Ended(kind="train", hardware_id="x", peak_bytes=10 * GIB) for _ in range(3)])
    told = exo_gpu("select", "--memory", "auto", "--kind", "train", "--explain").stdout
    words = " ".join(told.split())
    assert told.startswith("cuda:0\n")
    assert "memory 11.0 GiB (learned: 99 % of 3 runs took 10.0 GiB at most, and a margin)" in words
    assert (
        "learned"
        not in exo_gpu("select", "--memory", "1GiB", "--kind", "train", "--explain").stdout
    )


def test_why_shows_what_was_declared_beside_what_was_seen(devices, exo_gpu, experience):
    """Rule: who asks for far too much, or too little, can see it; before anything was seen, nothing."""
    words = ("run", "--memory", "16GiB", "--kind", "train", "--", *INNER)
    assert "memory: declared" not in exo_gpu(*words).stdout
    experience.learn([Ended(kind="train", hardware_id="x", peak_bytes=2 * GIB)])
    told = " ".join(exo_gpu(*words).stdout.split())
    assert "memory: declared 16.0 GiB; 99 % of 1 run of its kind took 2.0 GiB at most" in told
    assert "2.2 GiB with a margin" in told
