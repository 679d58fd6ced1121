"""Words on the wire: what was sent comes back the same, and what cannot be is refused by name."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo.gpu import telemetry_protocol
from exo.gpu.scheduling import scorer
from exo.gpu.telemetry_protocol import (
    DeviceCapabilities,
    DeviceRegistration,
    DeviceScorer,
    DeviceType,
    GPUMetrics,
    Heartbeat,
    TelemetryProtocol,
)
from exo.gpu.vocabulary.errors import InvalidValue, ProtocolError, UnsupportedVersion


def metrics(device_id="cuda:0", **readings):
    return GPUMetrics(device_id, 1707043210.0, **readings)


def capabilities(device_id="cuda:0"):
    return DeviceCapabilities(
        device_id, DeviceType.ROCM, "MI250X", "amd", 220, 3276.8, 128 * 2**30, "6.2", True, False
    )


def registration():
    return DeviceRegistration("rig-1", 5000, "cuda:0", capabilities(), 1707043200.0)


def test_names_that_live_elsewhere_are_handed_on():
    assert telemetry_protocol.DeviceScorer is scorer.DeviceScorer is DeviceScorer
    assert set(telemetry_protocol.__all__) <= set(dir(telemetry_protocol))


class TestValues:
    def test_fields_come_in_the_order_that_callers_use(self):
        beat = Heartbeat("cuda:0", metrics(), 3.0, False, "hot")
        assert (beat.device_id, beat.timestamp, beat.is_available) == ("cuda:0", 3.0, False)
        assert beat.error_message == "hot"
        assert registration().port == 5000

    def test_the_time_is_now_unless_given(self):
        first = Heartbeat("cuda:0", metrics())
        assert first.timestamp <= Heartbeat("cuda:0", metrics()).timestamp
        assert first.is_available
        assert DeviceRegistration("h", 1, "cuda:0", capabilities()).timestamp >= first.timestamp

    def test_a_device_that_cannot_be_read_has_no_metrics(self):
        beat = Heartbeat("cuda:0", None, is_available=False, error_message="lost")
        assert Heartbeat.from_json(beat.to_json()) == beat

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("hostname", ""),
            ("port", -1),
            ("port", 65536),
            ("port", 80.5),
            ("port", True),
            ("device_id", ""),
            ("capabilities", None),
            ("capabilities", capabilities("cuda:1")),
            ("timestamp", float("nan")),
            ("timestamp", "now"),
        ],
    )
    def test_an_impossible_registration_is_refused_by_field(self, field, value):
        good = {
            "hostname": "h",
            "port": 1,
            "device_id": "cuda:0",
            "capabilities": capabilities(),
            "timestamp": 1.0,
        }
        with pytest.raises(InvalidValue, match=field):
            DeviceRegistration(**good | {field: value})

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("device_id", " "),
            ("metrics", {"device_id": "cuda:0"}),
            ("metrics", metrics("cuda:1")),
            ("timestamp", float("inf")),
            ("is_available", "no"),
            ("error_message", 7),
        ],
    )
    def test_an_impossible_heartbeat_is_refused_by_field(self, field, value):
        with pytest.raises(InvalidValue, match=field):
            Heartbeat(**{"device_id": "cuda:0", "metrics": metrics()} | {field: value})

    def test_dicts_are_plain(self):
        plain = registration().to_dict()
        assert plain["capabilities"]["device_type"] == "rocm"
        assert DeviceRegistration.from_dict(json.loads(json.dumps(plain))) == registration()


class TestMessages:
    def messages(self):
        create = TelemetryProtocol
        beat = Heartbeat("cuda:0", metrics(power_watts=12.5), 5.0, False, "hot")
        return [
            (create.create_registration_message(registration()), "device_registration",
             TelemetryProtocol.parse_registration, registration()),
            (create.create_heartbeat_message(beat), "heartbeat",
             TelemetryProtocol.parse_heartbeat, beat),
            (create.create_metrics_message(metrics()), "metrics",
             TelemetryProtocol.parse_metrics, metrics()),
        ]  # fmt: skip

    def test_every_kind_comes_back_the_same(self):
        for message, kind, parse, value in self.messages():
            assert set(message) == {"type", "version", "timestamp", "payload"}
            assert (message["type"], message["version"]) == (kind, "1.0")
            read = TelemetryProtocol.deserialize_message(
                TelemetryProtocol.serialize_message(message)
            )
            assert read == message
            assert parse(read["payload"]) == value

    def test_bytes_are_read_too(self):
        message = TelemetryProtocol.create_metrics_message(metrics())
        assert TelemetryProtocol.deserialize_message(json.dumps(message).encode()) == message

    def test_an_unknown_field_is_ignored(self):
        payload = metrics().to_dict() | {"fan_rpm": 900}
        assert TelemetryProtocol.parse_metrics(payload) == metrics()

    def test_an_absent_optional_field_takes_its_default(self):
        found = TelemetryProtocol.parse_metrics({"device_id": "cuda:0", "timestamp": 1.0})
        assert found.power_watts is None

    def test_a_newer_minor_version_is_read(self):
        message = TelemetryProtocol.create_metrics_message(metrics()) | {"version": "1.7"}
        assert TelemetryProtocol.deserialize_message(json.dumps(message)) == message

    @pytest.mark.parametrize("version", ["2.0", "0.9", "10.0"])
    def test_another_major_version_is_refused_by_name(self, version):
        message = TelemetryProtocol.create_metrics_message(metrics()) | {"version": version}
        with pytest.raises(UnsupportedVersion, match=version):
            TelemetryProtocol.deserialize_message(json.dumps(message))
        with pytest.raises(UnsupportedVersion, match=version):
            TelemetryProtocol.serialize_message(message)

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"version": None}, "version"),
            ({"version": "1"}, "version"),
            ({"version": 1.0}, "version"),
            ({"type": ""}, "type"),
            ({"type": 3}, "type"),
            ({"timestamp": "now"}, "timestamp"),
            ({"payload": []}, "payload"),
        ],
    )
    def test_a_broken_envelope_is_refused_by_field(self, change, named):
        message = TelemetryProtocol.create_metrics_message(metrics()) | change
        with pytest.raises(ProtocolError, match=named):
            TelemetryProtocol.deserialize_message(json.dumps(message))

    @pytest.mark.parametrize("text", ["", "{", "[]", "3", b"\xff\xfe", "[" * 100_000, None])
    def test_what_is_no_message_is_refused(self, text):
        with pytest.raises(ProtocolError):
            TelemetryProtocol.deserialize_message(text)

    @pytest.mark.parametrize("value", [float("nan"), object()])
    def test_what_json_cannot_say_is_refused(self, value):
        message = TelemetryProtocol.create_metrics_message(metrics())
        message["payload"]["power_watts"] = value
        with pytest.raises(ProtocolError, match="JSON"):
            TelemetryProtocol.serialize_message(message)

    @pytest.mark.parametrize(
        ("payload", "named"),
        [
            ({"device_id": "cuda:0"}, "timestamp"),
            ({"device_id": "", "timestamp": 1.0}, "device_id"),
            ({"device_id": "cuda:0", "timestamp": 1.0, "power_watts": -1}, "power_watts"),
            ({"device_id": "cuda:0", "timestamp": "1"}, "timestamp"),
            (None, "GPUMetrics"),
        ],
    )
    def test_an_impossible_payload_is_refused_by_field(self, payload, named):
        with pytest.raises(ProtocolError, match=named):
            TelemetryProtocol.parse_metrics(payload)

    def test_errors_of_the_protocol_are_value_errors(self):
        with pytest.raises(ValueError, match="capabilities"):
            TelemetryProtocol.parse_registration({"hostname": "h", "port": 1, "device_id": "x"})
        with pytest.raises(ValueError, match="metrics"):
            TelemetryProtocol.parse_heartbeat({"device_id": "x"})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)
envelopes = st.fixed_dictionaries(
    {},
    optional={
        "type": json_values | st.just("metrics"),
        "version": json_values | st.just("1.0"),
        "timestamp": json_values,
        "payload": json_values | st.just({}),
    },
)


@given(envelopes | json_values)
def test_anything_is_read_or_refused_never_worse(message):
    """No input raises anything but ProtocolError, and what is read can be written."""
    try:
        read = TelemetryProtocol.deserialize_message(json.dumps(message))
        TelemetryProtocol.serialize_message(read)
    except ProtocolError:
        return
    for parse in (
        TelemetryProtocol.parse_registration,
        TelemetryProtocol.parse_heartbeat,
        TelemetryProtocol.parse_metrics,
    ):
        with pytest.raises(ProtocolError):
            parse({**read["payload"], "timestamp": "never"})


@given(st.binary(max_size=40))
def test_no_bytes_crash_the_reader(data):
    try:
        TelemetryProtocol.deserialize_message(data)
    except ProtocolError:
        return
