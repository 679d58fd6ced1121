"""The stream and the snapshot as JSON: one object a line, nothing lost, unknown is null."""

from __future__ import annotations

import json

from exo.gpu.telemetry.exporters import json_lines
from exo.gpu.vocabulary.device import GPUDevice
from exo.gpu.vocabulary.health import Health, HealthEvent
from exo.gpu.vocabulary.inventory import ChangeKind, DeviceChange
from exo.gpu.vocabulary.metrics import GPUMetrics
from exo.gpu.vocabulary.snapshot import DeviceState, Snapshot

CARD = GPUDevice("cuda:0", 'a "quoted"\nname', "NVIDIA", "cuda")
SAMPLE = GPUMetrics("cuda:0", 12.5, power_watts=7.0, missing_reasons={"fan_percent": "no fan"})


def test_every_line_is_one_object_with_its_type():
    """Rule: a reader splits at line ends and looks at the type first."""
    event = HealthEvent(device_id="cuda:0", before=Health.OK, after=Health.LOST, at=3.0)
    change = DeviceChange(kind=ChangeKind.LOST, device=CARD)
    lines = [
        json_lines.device_line(CARD),
        json_lines.sample_line(SAMPLE),
        json_lines.failure_line("cuda:0", "it hangs", at=2.0),
        json_lines.health_line(event),
        json_lines.change_line(change, at=4.0),
    ]
    assert all(line.count(b"\n") == 1 and line.endswith(b"\n") for line in lines)
    told = [json.loads(line) for line in lines]
    assert [one["type"] for one in told] == ["device", "sample", "failure", "health", "change"]
    assert told[0]["name"] == CARD.name
    assert told[2] == {
        "type": "failure",
        "device_id": "cuda:0",
        "timestamp": 2.0,
        "reason": "it hangs",
    }
    assert (told[3]["before"], told[3]["after"]) == ("ok", "lost")
    assert (told[4]["kind"], told[4]["device"]["device_id"]) == ("lost", "cuda:0")


def test_a_sample_comes_back_whole():
    """Rule: what a line says of a sample is the sample; unknown is null, with its reason."""
    line = json_lines.sample_line(SAMPLE)
    assert GPUMetrics.from_json(line) == SAMPLE
    told = json.loads(line)
    assert told["temperature_celsius"] is None
    assert told["missing_reasons"] == {"fan_percent": "no fan"}


def test_a_snapshot_is_builtins_only():
    states = (
        DeviceState(device=CARD, sample=SAMPLE, sample_age_seconds=1.0),
        DeviceState(device=GPUDevice("cpu:0", "host", "x", "cpu"), health=Health.FAILED),
    )
    told = json.loads(json.dumps(json_lines.snapshot_object(Snapshot(states, version=4), at=9.0)))
    assert (told["at"], told["version"]) == (9.0, 4)
    first, second = told["devices"]
    assert (first["sample"]["power_watts"], first["cordon"]) == (7.0, None)
    assert (second["sample"], second["health"]) == (None, "failed")
