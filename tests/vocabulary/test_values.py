"""The values: what cannot be is refused by field when made and when decoded; all else round-trips."""

from __future__ import annotations

import math
import pickle

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo.gpu.vocabulary.decision import Decision, Refusal, Score, ScoreTerm
from exo.gpu.vocabulary.device import (
    HOST_POOL,
    DeviceCapabilities,
    DeviceClass,
    DeviceType,
    GPUDevice,
)
from exo.gpu.vocabulary.errors import InvalidValue, UnknownName
from exo.gpu.vocabulary.job import Attempt, Ending
from exo.gpu.vocabulary.lease import Lease
from exo.gpu.vocabulary.metrics import READINGS, GPUMetrics
from exo.gpu.vocabulary.request import Request
from exo.gpu.vocabulary.snapshot import Health

GIB = 2**30


class TestMetrics:
    def test_the_fields_come_in_the_order_that_callers_use(self):
        one = GPUMetrics("cuda:0", 1.0, 2, 3, 4.0, 5.0, 6.0, 7)
        assert [getattr(one, name) for name in READINGS] == [2, 3, 4.0, 5.0, 6.0, 7]

    def test_readings_may_be_unknown_and_say_why(self):
        """D12: None is no error and no 0."""
        one = GPUMetrics("metal:0", 1.0, missing_reasons={"power_watts": "not offered"})
        assert one.power_watts is None
        assert one.memory_free_bytes is None
        assert GPUMetrics.from_json(one.to_json()).missing_reasons == one.missing_reasons

    def test_free_is_total_less_used_less_reserved(self):
        assert GPUMetrics("a", 1.0, 20, 24).memory_free_bytes == 4
        assert GPUMetrics("a", 1.0, 20, 24, memory_reserved_bytes=3).memory_free_bytes == 1

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("device_id", ""),
            ("device_id", None),
            ("timestamp", "2024"),
            ("timestamp", math.nan),
            ("timestamp", None),
            ("memory_used_bytes", -1),
            ("memory_used_bytes", 25),
            ("memory_used_bytes", 1.5),
            ("memory_total_bytes", math.nan),
            ("memory_reserved_bytes", -1),
            ("compute_utilization_percent", -0.1),
            ("compute_utilization_percent", 100.1),
            ("power_watts", math.nan),
            ("power_watts", -5),
            ("temperature_celsius", math.nan),
            ("temperature_celsius", -300),
            ("clock_rate_mhz", -1),
            ("clock_rate_mhz", math.inf),
        ],
    )
    def test_an_impossible_reading_is_refused_by_field_and_value(self, field, value):
        """D11: NaN, negatives and text used to pass, and made the aggregates NaN."""
        good = {"device_id": "cuda:0", "timestamp": 1.0, "memory_total_bytes": 24}
        with pytest.raises(ValueError, match=field) as caught:
            GPUMetrics(**good | {field: value})
        assert repr(value) in str(caught.value)

    @pytest.mark.parametrize(
        ("text", "named"),
        [
            ('{"device_id": "a"}', "timestamp"),
            ('{"device_id": "a", "timestamp": 1, "power_watts": -1}', "power_watts"),
            ('{"device_id": "a", "timestamp": 1, "power_watts": "5"}', "power_watts"),
            ('{"device_id": "", "timestamp": 1}', "device_id"),
            ('{"device_id": "a", "timestamp": NaN}', "JSON|invalid"),
            ("[]", "object"),
        ],
    )
    def test_decoding_checks_the_same(self, text, named):
        with pytest.raises(ValueError, match=named):
            GPUMetrics.from_json(text)

    def test_an_unknown_field_is_skipped(self):
        assert GPUMetrics.from_json('{"device_id": "a", "timestamp": 1, "fan": 3}').timestamp == 1


class TestDevice:
    def test_the_fields_come_in_the_order_that_callers_use(self):
        device = GPUDevice(
            "cuda:0", "RTX 4090", "nvidia", "cuda", "8.9", 24 * GIB, 24 * GIB, 128, 512, 1024,
            2500, 936.0, "full", "550.90.07", "CUDABackend",
        )  # fmt: skip
        assert (device.driver_version, device.backend_name) == ("550.90.07", "CUDABackend")
        assert (device.hardware_id, device.memory_pool, device.runtime) == ("cuda:0",) * 2 + (
            "cuda",
        )

    @pytest.mark.parametrize(
        ("backend", "runtime", "kind"),
        [
            ("cuda", "cuda", DeviceType.CUDA),
            ("rocm", "rocm", DeviceType.ROCM),
            ("metal", "metal", DeviceType.METAL),
            ("level_zero", "xpu", DeviceType.INTEL_XE),
            ("vulkan", "vulkan", DeviceType.VULKAN_LINUX),
            ("cpu", "cpu", DeviceType.CPU),
        ],
    )
    def test_runtime_and_type_follow_from_the_backend(self, backend, runtime, kind):
        """D8: no vendor is taken for granted."""
        device = GPUDevice(f"{backend}:0", "n", "v", backend)
        assert (device.runtime, device.device_type) == (runtime, kind)
        assert device.backend_name == backend
        assert DeviceCapabilities.of(device).device_type is kind

    def test_a_backend_without_a_type_is_refused_where_the_type_is_asked(self):
        with pytest.raises(UnknownName, match="backend"):
            _ = GPUDevice("x:0", "n", "v", "nonesuch").device_type

    def test_the_host_and_software_drivers_share_the_hosts_memory(self):
        assert GPUDevice("cpu:0", "n", "v", "cpu").device_class is DeviceClass.HOST
        assert GPUDevice("cpu:0", "n", "v", "cpu").memory_pool == HOST_POOL
        driver = GPUDevice("vulkan:0", "n", "v", "vulkan", device_class=DeviceClass.SOFTWARE)
        assert driver.memory_pool == HOST_POOL

    def test_classes_rank_hardware_first(self):
        assert sorted(DeviceClass, key=lambda one: one.rank) == list(DeviceClass)
        assert DeviceClass.HARDWARE.rank == 0

    def test_it_is_immutable(self):
        with pytest.raises(AttributeError):
            GPUDevice("cuda:0", "n", "v", "cuda").name = "other"

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("device_id", ""),
            ("name", " "),
            ("vendor", None),
            ("backend", ""),
            ("memory_bytes", -1),
            ("memory_bytes", math.nan),
            ("memory_available", -1),
            ("compute_units", 1.5),
            ("tensor_core_count", -1),
            ("max_threads_per_block", "many"),
            ("clock_rate_mhz", math.inf),
            ("bandwidth_gbps", -1),
            ("slots", 0),
        ],
    )
    def test_an_impossible_fact_is_refused_by_field(self, field, value):
        good = {"device_id": "cuda:0", "name": "n", "vendor": "v", "backend": "cuda"}
        with pytest.raises(InvalidValue, match=field):
            GPUDevice(**good | {field: value})


class TestCapabilities:
    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("device_id", ""),
            ("device_type", "cuda"),
            ("device_name", None),
            ("vendor", 3),
            ("compute_units", -1),
            ("memory_bandwidth_gbps", math.nan),
            ("max_memory_bytes", -1),
        ],
    )
    def test_an_impossible_fact_is_refused_by_field(self, field, value):
        good = {
            "device_id": "cuda:0",
            "device_type": DeviceType.CUDA,
            "device_name": "n",
            "vendor": "v",
        }
        with pytest.raises(InvalidValue, match=field):
            DeviceCapabilities(**good | {field: value})

    def test_they_are_those_of_the_device(self):
        device = GPUDevice(
            "rocm:0", "MI250X", "amd", "rocm", memory_bytes=GIB, compute_units=220,
            tensor_core_count=4, bandwidth_gbps=3.0, driver_version="6",
        )  # fmt: skip
        assert DeviceCapabilities.of(device) == DeviceCapabilities(
            "rocm:0", DeviceType.ROCM, "MI250X", "amd", 220, 3.0, GIB, "6", True, True
        )

    def test_double_precision_is_not_claimed_where_nobody_guarantees_it(self):
        assert not DeviceCapabilities.of(GPUDevice("metal:0", "n", "v", "metal")).supports_fp64


class TestRequest:
    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("count", 0),
            ("count", 1.5),
            ("memory_bytes", -1),
            ("memory_bytes", math.nan),
            ("devices", ("",)),
            ("runtime", ""),
        ],
    )
    def test_an_impossible_request_is_refused_by_field(self, field, value):
        with pytest.raises(InvalidValue, match=field):
            Request(**{field: value})

    @pytest.mark.parametrize(
        "narrow", [{"runtime": "cuda"}, {"device_class": DeviceClass.HOST}, {"devices": ("a",)}]
    )
    def test_everything_and_only_some_contradict(self, narrow):
        with pytest.raises(InvalidValue, match="all_devices"):
            Request(all_devices=True, **narrow)


class TestDecision:
    def refusal(self, permanent):
        return Refusal(device_id="a", rule="r", reason="x", permanent=permanent)

    def test_never_is_when_too_few_could_ever_serve(self):
        request = Request()
        assert Decision(request=request).never
        assert Decision(request=request, refusals=(self.refusal(permanent=True),)).never
        assert not Decision(request=request, refusals=(self.refusal(permanent=False),)).never
        assert not Decision(request=request, chosen=("a",)).never

    def test_several_need_several(self):
        one = Score(device_id="a", total=1.0)
        assert Decision(request=Request(count=2), ranking=(one,)).never
        later = (self.refusal(permanent=False),)
        assert not Decision(request=Request(count=2), ranking=(one,), refusals=later).never

    def test_a_stated_reason_is_never(self):
        one = Score(device_id="a", total=1.0)
        assert Decision(request=Request(), ranking=(one,), never_reason="too few").never


def test_a_try_knows_how_long_it_took():
    tried = Attempt(device_id="a", slot=0, ending=Ending.SUCCEEDED, started_at=2.0, ended_at=5.0)
    assert tried.seconds == 3.0


ids = st.text(min_size=1, max_size=8).filter(str.strip)
amounts = st.none() | st.integers(0, 2**50)
figures = st.none() | st.floats(0, 1e12)
# A surrogate alone is no text that UTF-8 can carry.
safe_ids = ids.filter(lambda text: text.isprintable())
samples = st.builds(
    GPUMetrics,
    safe_ids,
    st.floats(-1e12, 1e12),
    st.none() | st.integers(0, 2**40),
    st.none() | st.integers(2**40, 2**50),
    st.none() | st.floats(0, 100),
    figures,
    st.none() | st.floats(-273.15, 1e6),
    figures,
    st.dictionaries(st.sampled_from(READINGS), safe_ids),
    st.booleans(),
)
devices = st.builds(
    GPUDevice,
    safe_ids,
    safe_ids,
    safe_ids,
    st.sampled_from(["cuda", "rocm", "metal", "vulkan", "cpu", "fake"]),
    st.none() | safe_ids,
    amounts,
    amounts,
    amounts,
    amounts,
    amounts,
    figures,
    figures,
    device_class=st.sampled_from(DeviceClass),
    aliases=st.lists(safe_ids, max_size=2).map(tuple),
    slots=st.integers(1, 64),
)
requests = st.builds(
    Request,
    memory_bytes=st.none() | st.integers(1, 2**50),
    count=st.integers(1, 9),
    exclusive=st.booleans(),
    runtime=st.none() | safe_ids,
    device_class=st.none() | st.sampled_from(DeviceClass),
)
refusals = st.builds(
    Refusal, device_id=safe_ids, rule=safe_ids, reason=safe_ids, permanent=st.booleans()
)
scores = st.builds(
    Score,
    device_id=safe_ids,
    total=st.floats(0, 1),
    terms=st.lists(st.builds(ScoreTerm, safe_ids, figures, st.floats(0, 1)), max_size=2).map(tuple),
)
values = st.one_of(
    samples,
    devices,
    devices.filter(lambda device: device.backend != "fake").map(DeviceCapabilities.of),
    requests,
    st.builds(
        Decision,
        request=requests,
        ranking=st.lists(scores, max_size=2).map(tuple),
        refusals=st.lists(refusals, max_size=2).map(tuple),
    ),
    st.builds(
        Lease,
        lease_id=safe_ids,
        device_id=safe_ids,
        hardware_id=safe_ids,
        memory_pool=safe_ids,
        memory_bytes=st.none() | st.integers(1, 2**50),
    ),
)


@given(values)
def test_every_value_comes_back_the_same_from_json_dict_and_pickle(value):
    assert type(value).from_json(value.to_json()) == value
    assert type(value).from_json(value.to_json().encode()) == value
    assert type(value).from_dict(value.to_dict()) == value
    assert pickle.loads(pickle.dumps(value)) == value


@given(values)
def test_a_field_that_a_newer_release_adds_is_skipped(value):
    plain = value.to_dict() | {"added_in_a_newer_release": [1]}
    assert type(value).from_dict(plain) == value


@given(st.sampled_from(Health))
def test_health_is_told_by_its_word(health):
    assert msgspec.json.decode(msgspec.json.encode(health), type=Health) is health
