"""Values to text: 80 columns, unknown is a dash, and what goes to a shell is quoted."""

from __future__ import annotations

import os
import subprocess

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from exo.gpu.cli.render import (
    devices_table,
    doctor_report,
    memory,
    moment,
    paragraphs,
    progress_line,
    reading,
    shell_lines,
    support_words,
)
from exo.gpu.vocabulary.device import DeviceClass, GPUDevice
from exo.gpu.vocabulary.health import Cordon
from exo.gpu.vocabulary.lease import Lease
from exo.gpu.vocabulary.metrics import GPUMetrics
from exo.gpu.vocabulary.snapshot import DeviceState, Health

WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1)
# The kernel refuses a NUL in a variable; what a shell sets must survive as it is.
VALUES = st.text(st.characters(codec="utf-8", exclude_characters="\0"))


CORDON = Cordon(
    hardware_id="GPU-0", device_id="cuda:0", why="loud", by="ann", since=1.0, until=1_600_003_600.0
)


@st.composite
def states(draw: st.DrawFn) -> DeviceState:
    kind = draw(st.sampled_from(DeviceClass))
    total = draw(st.none() | st.integers(0, 2**50))
    used = draw(st.none() | st.integers(0, 2**50 if total is None else total))
    device = GPUDevice(
        device_id=f"{draw(st.sampled_from(['cuda', 'vulkan', 'level_zero']))}:{draw(st.integers(0, 99))}",
        name=" ".join(draw(st.lists(WORDS, min_size=1, max_size=20))),
        vendor="somebody",
        backend="fake",
        runtime="vulkan",
        device_class=kind,
        memory_bytes=draw(st.none() | st.integers(0, 2**50)),
        driver_version=draw(st.none() | WORDS),
    )
    sample = GPUMetrics(
        device_id=device.device_id,
        timestamp=0.0,
        memory_used_bytes=used,
        memory_total_bytes=total,
        compute_utilization_percent=draw(st.none() | st.floats(0, 100)),
        power_watts=draw(st.none() | st.floats(0, 9999)),
        temperature_celsius=draw(st.none() | st.floats(-50, 150)),
    )
    health = draw(st.sampled_from(Health))
    return DeviceState(
        device=device,
        sample=draw(st.none() | st.just(sample)),
        sample_age_seconds=0.0,
        health=health,
        health_reason=draw(st.just("") | WORDS),
        cordon=draw(st.none() | st.sampled_from((CORDON, replace(CORDON, draining=True)))),
    )


@given(st.lists(states(), max_size=5), WORDS)
def test_table_of_devices_never_exceeds_80_columns(devices, failure):
    """Rule: whatever the devices are called and report, a table is 80 columns wide at most."""
    failures = {state.device.device_id: failure for state in devices[:1]}
    text = devices_table(devices, failures=failures, support={})
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert sum(not line.startswith(" ") for line in lines) == len(devices) + 1


@given(st.lists(st.tuples(WORDS.map(lambda word: word[:20]), WORDS | st.just("")), max_size=5))
def test_paragraphs_keep_what_is_said_beside_its_term(rows):
    """Rule: every term begins a line, and an empty text is a dash."""
    lines = paragraphs(rows).splitlines()
    for term, text in rows:
        assert any(line.startswith(term) for line in lines)
        assert text or any(line.endswith("-") for line in lines)


def test_unknown_is_a_dash_and_zero_is_zero():
    """Rule: unknown is never shown as 0, nor 0 as unknown."""
    assert memory(None, None) == "-"
    assert memory(None, 24 * 2**30) == "-/24.0 GiB"
    assert memory(0, 24 * 2**30) == "0.0/24.0 GiB"
    assert memory(2**30, None) == "1.0 GiB used"
    assert memory(2**40, 2**30) == "1.0 TiB used"
    assert memory(0, 0) == "0.0/0 B"
    assert memory(2**29, 2**30) == "0.5/1.0 GiB"
    assert memory(2**20, 256 * 2**20) == "1.0/256.0 MiB"
    assert reading(None, "%") == "-"
    assert reading(0.0, "%") == "0%"
    assert reading(71.4, "C") == "71C"


def test_the_second_line_says_what_the_figures_do_not():
    """Rule: name, driver, support, leases and what is wrong stand below the figures."""
    device = GPUDevice("cuda:0", "RTX", "NVIDIA", "cuda", driver_version="550")
    lease = Lease(lease_id="1", device_id="cuda:0", hardware_id="cuda:0", memory_pool="cuda:0")
    state = DeviceState(
        device=device, health=Health.DEGRADED, health_reason="hot", leases=(lease, lease)
    )
    support = {"cuda": {"finding": {"level": "fake"}, "telemetry": {"level": "fake"}}}
    text = devices_table([state], failures={"cuda:0": "gone"}, support=support)
    assert text.splitlines()[2:] == [
        "    RTX; driver 550; cuda last shown on: fake (finding, telemetry); 2 leases;",
        "    hot; no sample: gone",
    ]


def test_a_cordoned_device_that_is_not_well_says_both():
    """Rule: the table says that it is kept out, and the line below why, and what else is wrong."""
    device = GPUDevice("cuda:0", "RTX", "NVIDIA", "cuda")
    state = DeviceState(
        device=device,
        health=Health.DEGRADED,
        health_reason="hot",
        cordon=replace(CORDON, until=None),
    )
    text = devices_table([state], failures={}, support={})
    assert text.splitlines()[1].split()[3] == "cordoned"
    assert "cordoned by ann: loud; degraded: hot" in " ".join(text.split())


def test_support_is_said_by_level():
    """Rule: abilities shown on the same level are named together; nothing shown is said so."""
    showings = {
        "finding": {"level": "hardware"},
        "pinning": {"level": "fake"},
        "compute": {"level": "hardware"},
    }
    words = support_words("rocm", showings)
    assert words == "rocm last shown on: hardware (finding, compute), fake (pinning)"
    assert support_words("rocm", {}) == "rocm never shown to work"


@settings(max_examples=25)  # a shell process each
@given(st.dictionaries(st.from_regex(r"X_[A-Z0-9_]{0,8}", fullmatch=True), st.none() | VALUES))
def test_shell_lines_set_exactly_these_variables(changes):
    """Rule: eval of the lines sets each variable to its value, whatever is in it, or removes it."""
    names = sorted(changes)
    show = "".join(f'printf "%s\\0" "${{{name}-unset}}"; ' for name in names)
    done = subprocess.run(
        ["/bin/sh", "-c", f'eval "$LINES"\n{show}'],
        env={"LINES": shell_lines(changes), "X_": "inherited", "PATH": os.environ["PATH"]},
        capture_output=True,
        check=True,
    )
    seen = dict(zip(names, done.stdout.decode().split("\0")[:-1], strict=True))
    assert seen == {name: "unset" if value is None else value for name, value in changes.items()}


def test_progress_line_counts_and_is_cut():
    """Rule: done, failed and the share of each device, within the width of the terminal."""
    assert progress_line(12, 0, 200, {}, 80) == "12/200 done"
    assert progress_line(12, 1, None, {"a:0": 8, "a:1": 4}, 80) == "12 done, 1 failed  a:0 8  a:1 4"
    assert progress_line(12, 1, 200, {"a:0": 12}, 10) == "12/200 don"


def test_doctor_says_what_is_missing_and_what_to_do():
    """Rule: per backend what was found or why not and what to do; then store, extras, variables."""
    report = doctor_report(
        {
            "exo_gpu": "1.0",
            "python": "3.11.7",
            "backends": [
                {
                    "backend": "cuda",
                    "devices": {"cuda:0": "RTX", "cuda:1": "GTX"},
                    "reason": "CUDA_VISIBLE_DEVICES hides 1 of 3",
                    "hint": "",
                    "support": {"finding": {"level": "fake"}},
                },
                {
                    "backend": "rocm",
                    "devices": {},
                    "reason": "no kernel driver",
                    "hint": "load amdgpu",
                    "support": {},
                },
                {"backend": "cpu", "devices": {}, "reason": "", "hint": "", "support": {}},
            ],
            "software_drivers": [{"name": "llvmpipe", "manifest": None, "device_id": "vulkan:0"}],
            "missing": [
                {
                    "device": {"device_id": "cuda:7", "name": "Old card"},
                    "last_seen": 1_600_000_000.0,
                    "reason": "gone",
                }
            ],
            "registry": {"path": "/home/devices.json", "problem": "read-only"},
            "history": {"path": "/data/history.sqlite", "size_bytes": None},
            "lease_store": {
                "path": "/dev/shm/exo-gpu",
                "shared_by": "all users",
                "reason": "in memory",
                "problem": "it is full",
            },
            "cordons": {"in_force": (CORDON,), "problem": None},
            "extras": [
                {"extra": "ray", "missing": ["ray"], "install": "pip install 'exo-gpu[ray]'"},
                {"extra": "tui", "missing": [], "install": "pip install 'exo-gpu[tui]'"},
            ],
            "variables": {"CUDA_VISIBLE_DEVICES": "0,1"},
            "warnings": ["be warned"],
        }
    )
    assert report.splitlines() == [
        "exo-gpu   1.0 on Python 3.11.7",
        "cuda      cuda:0: RTX",
        "          cuda:1: GTX",
        "          CUDA_VISIBLE_DEVICES hides 1 of 3",
        "          cuda last shown on: fake (finding)",
        "rocm      no kernel driver",
        "          to do: load amdgpu",
        "cpu       works, and has no device",
        f"missing   cuda:7 (Old card), last seen {moment(1_600_000_000.0)}: gone",
        "          to drop it: exo-gpu devices --forget cuda:7",
        "software  llvmpipe: manifest not known",
        "leases    /dev/shm/exo-gpu (in memory), shared by all users",
        "          it is full",
        f"cordon    cuda:0: cordoned by ann until {moment(CORDON.until)}: loud",
        "registry  /home/devices.json",
        "          read-only",
        "history   /data/history.sqlite (none yet; 'exo-gpu watch' keeps one)",
        "extra     ray: not installed (ray): pip install 'exo-gpu[ray]'",
        "extra     tui: installed",
        "variable  CUDA_VISIBLE_DEVICES=0,1",
        "warning   be warned",
    ]
