"""Prometheus text: parsed by prometheus-client, one series for each known figure and no other."""

from __future__ import annotations

import json
import re
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given
from prometheus_client.parser import text_string_to_metric_families

from exo.gpu.telemetry.exporters import series as table
from exo.gpu.telemetry.exporters.prometheus import LONGEST_LABEL, prometheus_text
from exo.gpu.vocabulary.device import GPUDevice
from exo.gpu.vocabulary.health import Cordon, Health, ThrottleKind
from exo.gpu.vocabulary.inventory import MissingDevice
from exo.gpu.vocabulary.lease import Lease
from exo.gpu.vocabulary.metrics import BOUNDS, SERIES, GPUMetrics
from exo.gpu.vocabulary.snapshot import DeviceState, Snapshot

ROOT = Path(__file__).resolve().parents[3]
CARD = GPUDevice("cuda:0", "RTX 4090", "NVIDIA", "cuda", hardware_id="GPU-1", driver_version="570")


def state(device=CARD, age=1.0, **readings) -> DeviceState:
    sample = GPUMetrics(device.device_id, 1.0, **readings)
    return DeviceState(device=device, sample=sample, sample_age_seconds=age)


def parsed(*states: DeviceState, **more) -> dict[str, dict[frozenset, float]]:
    """Sample name -> label pairs -> value, as a scraper reads it."""
    text = prometheus_text(Snapshot(states), **more)
    found: dict[str, dict[frozenset, float]] = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation, family.name
        assert family.type in {"gauge", "counter"}, family.name
        for sample in family.samples:
            series = found.setdefault(sample.name, {})
            labels = frozenset(sample.labels.items())
            assert labels not in series, f"{sample.name}{sample.labels} is there twice"
            series[labels] = sample.value
    return found


def value(found, name, **labels) -> float | None:
    return found.get(f"exo_gpu_{name}", {}).get(frozenset(labels.items()))


def test_readings_are_in_base_units():
    """Rule: ratios within 0..1, hertz, bytes, joules, whatever unit the reading had."""
    found = parsed(
        state(
            memory_used_bytes=6 * 2**30,
            compute_utilization_percent=7.0,
            clock_rate_mhz=2520.0,
            energy_joules=12.5,
            temperature_celsius=61.0,
            hotspot_temperature_celsius=74.5,
            uncorrected_errors=3,
        )
    )
    assert value(found, "memory_used_bytes", uuid="GPU-1") == 6 * 2**30
    assert value(found, "utilization_ratio", uuid="GPU-1") == 0.07
    assert value(found, "clock_hertz", uuid="GPU-1") == 2.52e9
    assert value(found, "energy_joules_total", uuid="GPU-1") == 12.5
    assert value(found, "temperature_celsius", uuid="GPU-1", sensor="device") == 61
    assert value(found, "temperature_celsius", uuid="GPU-1", sensor="hotspot") == 74.5
    assert value(found, "memory_errors_total", uuid="GPU-1", type="uncorrected") == 3


def test_what_is_unknown_has_no_series():
    """Rule: an unknown reading is no series, never 0; a measured 0 is one."""
    found = parsed(state(power_watts=0.0))
    assert value(found, "power_watts", uuid="GPU-1") == 0
    assert "exo_gpu_temperature_celsius" not in found
    assert "exo_gpu_utilization_ratio" not in found
    assert "exo_gpu_measured_flops" not in found


def test_a_stale_sample_is_told_by_its_time_alone():
    """Rule: old figures are not scraped as new ones; the device stays visible as not read."""
    found = parsed(state(age=31.0, power_watts=100.0, throttle_reasons=("idle",)))
    assert value(found, "up", uuid="GPU-1") == 0
    assert value(found, "sample_timestamp_seconds", uuid="GPU-1") == 1.0
    assert "exo_gpu_power_watts" not in found
    assert "exo_gpu_throttle_reason" not in found


def test_a_device_never_sampled_is_there():
    found = parsed(DeviceState(device=CARD))
    assert value(found, "up", uuid="GPU-1") == 0
    assert "exo_gpu_sample_timestamp_seconds" not in found


def test_info_joins_by_uuid():
    """Rule: names and versions stand in the info series only, under the uuid of all others."""
    found = parsed(state(power_watts=1.0), version="9.9")
    (labels,) = found["exo_gpu_device_info"]
    told = dict(labels)
    assert told["uuid"] == "GPU-1"
    assert (told["device"], told["name"], told["driver_version"]) == ("cuda:0", "RTX 4090", "570")
    assert "pci_address" not in told
    assert value(found, "build_info", version="9.9") == 1


def test_the_node_is_told_where_there_is_one():
    """Rule: software drivers have the same id on every machine, so the node is part of identity."""
    first, second = (
        GPUDevice("vulkan:0", "llvmpipe", "Mesa", "vulkan", hardware_id="lvp", node=node)
        for node in ("rig1", "rig2")
    )
    found = parsed(state(first, power_watts=1.0), state(second, power_watts=2.0))
    assert value(found, "power_watts", uuid="lvp", node="rig1") == 1
    assert value(found, "power_watts", uuid="lvp", node="rig2") == 2


def test_two_devices_of_one_uuid_do_not_break_the_scrape():
    twin = GPUDevice("cuda:1", "RTX 4090", "NVIDIA", "cuda", hardware_id="GPU-1")
    found = parsed(state(power_watts=1.0), state(twin, power_watts=2.0))
    assert value(found, "power_watts", uuid="GPU-1") in {1.0, 2.0}


def test_health_is_a_set_of_states():
    sick = DeviceState(device=CARD, health=Health.DEGRADED)
    found = parsed(sick)
    told = {dict(labels)["state"]: one for labels, one in found["exo_gpu_health"].items()}
    assert told == {one.value: float(one is Health.DEGRADED) for one in Health}


def test_cordons_leases_and_throttling():
    lease = Lease(
        lease_id="a", device_id="cuda:0", hardware_id="GPU-1", memory_pool="GPU-1", memory_bytes=5
    )
    cordon = Cordon(hardware_id="GPU-1", device_id="cuda:0", why="fan", by="ann", since=1.0)
    sample = GPUMetrics(
        "cuda:0",
        1.0,
        throttle_reasons=("idle", "hardware power brake"),
        throttle_kinds=(ThrottleKind.POWER_BRAKE,),
    )
    found = parsed(
        DeviceState(
            device=CARD,
            sample=sample,
            sample_age_seconds=0.0,
            leases=(lease, lease),
            cordon=cordon,
            measured_gflops=1.5,
        )
    )
    assert value(found, "cordoned", uuid="GPU-1") == 1
    assert value(found, "leases", uuid="GPU-1") == 2
    assert value(found, "leased_memory_bytes", uuid="GPU-1") == 10
    assert value(found, "throttle_reason", uuid="GPU-1", reason="hardware power brake") == 1
    assert value(found, "throttled", uuid="GPU-1", kind="power_brake") == 1
    assert value(found, "measured_flops", uuid="GPU-1") == 1.5e9


def test_a_lower_bound_says_so():
    found = parsed(state(compute_utilization_percent=5.0, utilization_is_lower_bound=True))
    assert value(found, "utilization_ratio", uuid="GPU-1", bound="lower") == 0.05
    assert value(found, "utilization_ratio", uuid="GPU-1") is None


def test_missing_devices_are_told():
    gone = MissingDevice(device=CARD, last_seen=1.0, reason="not found")
    (labels,) = parsed(missing=(gone,))["exo_gpu_device_missing"]
    assert dict(labels)["uuid"] == "GPU-1"


@given(st.text(min_size=1).filter(str.strip))
def test_any_name_survives_quoting(name):
    """Rule: whatever a driver calls its device, the text parses and says the same, cut to a bound."""
    device = GPUDevice("cuda:0", name, "NVIDIA", "cuda")
    text = prometheus_text(Snapshot((state(device),)))
    # The parser splits at "\n" only when given a file in that mode, so feed it line by line.
    (line,) = (one for one in text.split("\n") if one.startswith("exo_gpu_device_info{"))
    quoted = re.search(r',name="((?:[^"\\]|\\.)*)",vendor=', line, re.DOTALL)
    assert quoted is not None
    plain = re.sub(r"\\(.)", lambda m: {"n": "\n"}.get(m[1], m[1]), quoted[1], flags=re.DOTALL)
    assert plain == name[:LONGEST_LABEL]


@given(
    st.fixed_dictionaries(
        {},
        optional={
            name: st.integers(0, 2**53) if BOUNDS[name].whole else st.floats(0, 100)
            for name in SERIES
            if name != "memory_total_bytes"
        },
    )
)
def test_exactly_the_known_readings_are_told(readings):
    """Rule: every numeric field of a sample has a series, and exactly the known ones appear."""
    found = parsed(state(**readings))
    sampled = {table.PREFIX + one.name for one in table.SAMPLED}
    told = sum(len(found.get(name, {})) for name in sampled)
    assert told == len(readings)
    assert {one.field for one in table.SAMPLED} == set(SERIES)


class TestDashboard:
    """docs/grafana/exo-gpu.json asks for series that exist."""

    board = json.loads((ROOT / "docs" / "grafana" / "exo-gpu.json").read_text())
    expressions = [one["expr"] for panel in board["panels"] for one in panel["targets"]]

    @pytest.mark.parametrize("expression", expressions)
    def test_it_uses_names_that_are_written(self, expression):
        used = set(re.findall(r"\bexo_gpu_\w+", expression))
        assert used
        assert used <= set(table.names())

    def test_its_panels_have_places_of_their_own(self):
        taken: set[tuple[int, int]] = set()
        for panel in self.board["panels"]:
            place = panel["gridPos"]
            cells = {
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            }
            assert not cells & taken, panel["title"]
            assert max(x for x, _ in cells) < 24
            taken |= cells
        numbers = [panel["id"] for panel in self.board["panels"]]
        assert len(set(numbers)) == len(numbers)
