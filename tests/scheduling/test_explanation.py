"""Words: every device, every term, every refusal, within 80 columns; one line for an error."""

from __future__ import annotations

import pytest

from exo.gpu.scheduling.filters import FILTERS
from exo.gpu.scheduling.selector import explain, refusal_message, select
from exo.gpu.vocabulary.decision import Refusal
from exo.gpu.vocabulary.device import DeviceClass
from exo.gpu.vocabulary.request import Request
from exo.gpu.vocabulary.snapshot import Health
from tests.scheduling.states import GIB, lease, snapshot, state

TIB = 1024 * GIB


def told(*states, **asked):
    table = snapshot(*states)
    return explain(select(table, Request(**asked)), table)


def message(*states, **asked):
    return refusal_message(select(snapshot(*states), Request(**asked)))


def test_it_tells_the_request_the_choice_and_every_term():
    text = told(state("cuda:0", 24, 6, percent=50, celsius=90), memory_bytes=8 * GIB)
    assert "Request: memory 8.0 GiB, 1 device" in text
    assert "Chosen:  cuda:0 (Card cuda:0)" in text
    assert "1. cuda:0 (hardware, cuda): score 0.487" in text
    assert "memory   0.750 x 0.60 = 0.450" in text
    assert "compute  0.500 x 0.40 = 0.200" in text
    assert "heat     times 0.750  90 C: penalty above 80 C" in text


def test_it_tells_what_was_missing_and_what_was_assumed():
    text = told(state("metal:0", 24, None, percent=10, celsius=None))
    assert "memory   -  use or total not reported: term dropped" in text
    assert "weight scaled up" in text
    assert "temperature not reported: no penalty" in text
    assert "(assumed)" in text


def test_it_tells_refusals_with_their_rule_and_whether_a_wait_helps():
    text = told(
        state("cuda:0"), state("cuda:1", age=77), state("cuda:2", 2, 0), memory_bytes=8 * GIB
    )
    assert "cuda:1 [stale, not now] was last sampled 77 s ago" in text
    assert "cuda:2 [memory, never] holds 2.0 GiB in all" in text


def test_it_tells_what_was_left_out():
    text = told(state("cuda:0", 24, 1), state("rocm:0"))
    assert "Left out:" in text
    assert "rocm:0 [runtime] belongs to runtime rocm" in text


def test_without_a_choice_it_tells_why():
    text = told(state("cuda:0"), memory_bytes=99 * TIB)
    assert "Chosen:  none; no device here can hold 99.0 TiB" in text
    assert "Eligible" not in text


def test_it_tells_everything_that_was_asked():
    text = told(
        state("cuda:0"),
        count=2,
        exclusive=True,
        devices=("cuda:0",),
        device_class=DeviceClass.HARDWARE,
        runtime="cuda",
    )
    first = " ".join(text.split("Chosen")[0].split())
    assert first == (
        "Request: memory not declared, 2 devices, alone on it, only cuda:0, class hardware, "
        "runtime cuda"
    )
    assert "every class and runtime" in told(state("cuda:0"), all_devices=True)


def test_it_fits_80_columns_and_has_no_blank_ends():
    states = [
        state(f"cuda:{index}", 24, index % 24, name="NVIDIA GeForce RTX 3090 Ti Founders Edition")
        for index in range(12)
    ]
    why = "Xid 79: GPU has fallen off the bus, see the kernel's log for the slot and the cause"
    text = told(*states, state("rocm:0"), state("cuda:99", health=Health.LOST, why=why), count=3)
    for line in text.splitlines():
        assert len(line) <= 80
        assert line == line.rstrip()


class TestMessage:
    def test_a_choice_needs_none(self):
        assert message(state("cuda:0")) == ""

    def test_too_much_memory_names_the_largest(self):
        said = message(state("cuda:0"), state("cpu:0", 23.4, 1), memory_bytes=99 * TIB)
        assert said == "no device here can hold 99.0 TiB: the largest is cuda:0 with 24.0 GiB"

    def test_it_says_which_kind_was_asked(self):
        driver = state("vulkan:0", 4, 0, device_class=DeviceClass.SOFTWARE)
        said = message(state("cuda:0"), driver, memory_bytes=9 * GIB, device_class="software")
        assert said.startswith("no software device here can hold 9.0 GiB: the largest is vulkan:0")
        said = message(state("cuda:0"), memory_bytes=99 * GIB, devices=("cuda:0",))
        assert said.startswith("none of the devices named can hold 99.0 GiB")

    def test_unknown_memory_is_told_as_such(self):
        assert "reports no memory total" in message(state("x:0", None, None), memory_bytes=1)

    def test_nothing_here(self):
        assert message() == "no device was found here"

    def test_an_unknown_name(self):
        said = message(state("cuda:0"), devices=("cuda:9", "cuda:8"))
        assert "no device here is called 'cuda:9'" in said
        assert "'cuda:8'" in said

    def test_an_unknown_runtime_and_class(self):
        assert message(state("cuda:0"), runtime="metal").startswith(
            "no device here belongs to runtime 'metal': cuda:0 belongs to runtime cuda"
        )
        assert message(state("cuda:0"), device_class=DeviceClass.HOST).startswith(
            "no device here is of class host"
        )

    def test_too_few(self):
        said = message(state("cuda:0"), state("rocm:0"), count=2)
        assert said.startswith("2 devices of one class and runtime asked for")

    def test_not_now_tells_each_reason_up_to_three(self):
        busy = [state(f"cuda:{one}", leases=(lease(f"cuda:{one}"),)) for one in range(5)]
        said = message(*busy)
        assert said.startswith("not now: cuda:0 has 1 of 1 slots taken; cuda:1")
        assert said.endswith("; and 2 more")

    def test_not_now_tells_how_many_were_asked(self):
        said = message(state("cuda:0"), state("cuda:1", 24, 20), count=2, memory_bytes=8 * GIB)
        assert said.startswith("not now: 2 devices are asked for; cuda:1 has 4.0 GiB free")

    def test_one_line_always(self):
        assert "\n" not in message(state("cuda:0", age=99), memory_bytes=GIB)

    @pytest.mark.parametrize("asked", [{}, {"memory_bytes": GIB}])
    def test_a_policys_own_rule_is_told_in_its_own_words(self, asked):
        def no_blue_ones(one, table, request):
            return Refusal(
                device_id=one.device.device_id, rule="colour", reason="is blue", permanent=True
            )

        table = snapshot(state("cuda:0"))
        decision = select(table, Request(**asked), (no_blue_ones, *FILTERS))
        assert refusal_message(decision) == "no device here will do: cuda:0 is blue"
