"""A machine under watch: everything is told once, in turn, and nobody's trouble is another's."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import textwrap
import threading
from typing import Any

import pytest
from boxes import GIB, device, host, write_box

from exo.gpu.coordination.cordons import uncordon
from exo.gpu.coordination.monitor import Monitor, Subscription
from exo.gpu.nodes.local import LocalNode
from exo.gpu.telemetry.sampling.observation import Observation
from exo.gpu.telemetry.store.reader import HistoryReader
from exo.gpu.vocabulary.errors import InvalidValue
from exo.gpu.vocabulary.health import DeviceFault, FaultAction, Health, HealthEvent
from exo.gpu.vocabulary.inventory import ChangeKind, DeviceChange

WAIT_SECONDS = 30

CARDS = (device("cuda:0", "NVIDIA", "cuda"), device("cuda:1", "NVIDIA", "cuda"), host())


@pytest.fixture
def watching(use_box, tmp_path, monkeypatch):
    """Opens a monitor on a scripted machine; its history is a file of the test's."""
    monkeypatch.setenv("EXO_GPU_HISTORY", str(tmp_path / "history.sqlite"))
    opened: list[Monitor] = []

    def watch(*devices: dict[str, Any], **options: Any) -> Monitor:
        use_box(*(devices or CARDS))
        opened.append(Monitor(cadence_seconds=0.1, **options))
        return opened[-1]

    yield watch
    for monitor in opened:
        monitor.stop()


def until(subscription: Subscription, wanted) -> Any:
    """The first event that is wanted."""
    while (event := subscription.get(WAIT_SECONDS)) is not None:
        if wanted(event):
            return event
    pytest.fail("it was never told")


def is_sample_of(device_id: str):
    return lambda event: isinstance(event, Observation) and event.device_id == device_id


def test_every_device_is_sampled_and_told(watching):
    """Rule: each sample is kept, and every subscriber hears of it."""
    monitor = watching()
    first, second = monitor.subscribe(), monitor.subscribe()
    monitor.start()
    for name in ("cuda:0", "cuda:1", "cpu:0"):
        event = until(first, is_sample_of(name))
        assert event.sample.memory_total_bytes == 8 * GIB
        until(second, lambda other, event=event: other == event)
        assert monitor.collector.get_metrics(name) is not None
    assert {state.device.device_id for state in monitor.snapshot().devices} == {
        "cuda:0",
        "cuda:1",
        "cpu:0",
    }


def test_a_snapshot_asks_no_driver(watching, tmp_path):
    """Rule: who looks at a watched machine costs its drivers nothing, and waits for none."""
    monitor = watching(search_seconds=3600)
    heard = monitor.subscribe()
    monitor.start()
    until(heard, is_sample_of("cuda:0"))
    write_box(tmp_path, device("cuda:0", "NVIDIA", "cuda", delay_seconds=3600))
    until(heard, lambda event: isinstance(event, Observation) and event.hanging)
    (state, *_) = monitor.snapshot().devices
    assert state.sample is not None
    assert state.health is Health.DEGRADED
    assert "hangs" in state.health_reason
    assert state.health_since is not None


def test_one_device_that_fails_touches_no_other(watching):
    """Rule: its failures are told with their reason, and the others' samples go on."""
    broken = device("cuda:0", "NVIDIA", "cuda", fail="the riser cable is loose")
    monitor = watching(broken, CARDS[1], host())
    heard = monitor.subscribe()
    monitor.start()
    failed = until(heard, is_sample_of("cuda:0"))
    assert failed.sample is None
    assert "riser cable" in failed.failure
    until(heard, is_sample_of("cuda:1"))
    until(heard, is_sample_of("cuda:1"))
    event = until(heard, lambda one: isinstance(one, HealthEvent) and one.device_id == "cuda:0")
    assert event.after is not Health.OK
    states = {state.device.device_id: state for state in monitor.snapshot().devices}
    assert "riser cable" in states["cuda:0"].health_reason
    assert states["cuda:1"].health is Health.OK


def test_a_card_that_is_pulled_is_lost_and_comes_back(watching, tmp_path):
    """Rule: hot-plug is told, a lost card is not chosen, and a returned one is watched again."""
    monitor = watching(search_seconds=0.05)
    heard = monitor.subscribe()
    monitor.start()
    until(heard, is_sample_of("cuda:1"))
    write_box(tmp_path, CARDS[0], host())
    change = until(heard, lambda event: isinstance(event, DeviceChange))
    assert (change.kind, change.device.device_id) == (ChangeKind.LOST, "cuda:1")
    lost = until(heard, lambda event: isinstance(event, HealthEvent))
    assert (lost.device_id, lost.after) == ("cuda:1", Health.LOST)
    write_box(tmp_path, *CARDS)
    change = until(heard, lambda event: isinstance(event, DeviceChange))
    assert change.kind in {ChangeKind.RETURNED, ChangeKind.ADDED}
    until(heard, is_sample_of("cuda:1"))


def test_who_never_reads_loses_the_oldest_and_holds_up_nobody(watching):
    """Rule: a subscriber's backlog is bounded and what it lost is counted."""
    monitor = watching()
    sleepy, awake = monitor.subscribe(most=4), monitor.subscribe()
    monitor.start()
    seen = [until(awake, is_sample_of("cuda:0")) for _ in range(5)]
    assert sleepy.lost > 0
    kept = [sleepy.get(0) for _ in range(4)]
    assert None not in kept
    assert kept[0] != seen[0]


def test_after_the_end_a_reader_gets_what_is_left_and_no_more(watching):
    monitor = watching()
    heard = monitor.subscribe()
    monitor.start()
    until(heard, is_sample_of("cuda:0"))
    monitor.stop()
    monitor.stop()
    assert isinstance(list(heard), list)  # it ends
    assert heard.get(None) is None


def test_a_closed_subscription_hears_nothing_more(watching):
    monitor = watching()
    closed, open_ = monitor.subscribe(), monitor.subscribe()
    closed.close()
    closed.close()
    monitor.start()
    until(open_, is_sample_of("cuda:0"))
    assert closed.get(0) is None


def test_it_leaves_no_thread_behind(watching):
    """Rule: a stop ends every thread that no driver holds."""
    before = set(threading.enumerate())
    monitor = watching(history=True)
    heard = monitor.subscribe()
    monitor.start()
    until(heard, is_sample_of("cuda:0"))
    started = [thread for thread in threading.enumerate() if thread not in before]
    assert started
    monitor.stop(timeout_seconds=WAIT_SECONDS)
    for thread in started:
        thread.join(WAIT_SECONDS)
        assert not thread.is_alive(), thread.name


def test_the_history_is_kept(watching, tmp_path):
    """Rule: what was sampled can be read from the file after the end."""
    monitor = watching(history=True)
    heard = monitor.subscribe()
    monitor.start()
    assert monitor.recording.active
    last = [until(heard, is_sample_of("cuda:0")) for _ in range(3)][-1]
    monitor.stop(timeout_seconds=WAIT_SECONDS)
    with HistoryReader(tmp_path / "history.sqlite") as reader:
        series = reader.series(
            "cuda:0", "memory_total_bytes", since=0.0, until=last.sample.timestamp + 1, points=10
        )
        kept = {value for value in series.maximum if not math.isnan(value)}
        assert kept == {float(8 * GIB)}


def test_a_second_writer_is_told_who_writes(watching):
    """Rule: one process keeps the history; the others watch all the same, and can say why."""
    first, second = watching(history=True), watching(history=True)
    first.start()
    heard = second.subscribe()
    second.start()
    assert not second.recording.active
    assert f"process {os.getpid()}" in second.recording.reason
    until(heard, is_sample_of("cuda:0"))


def test_without_a_place_for_the_history_it_watches_all_the_same(watching, tmp_path, monkeypatch):
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("EXO_GPU_HISTORY", str(tmp_path / "a file" / "history.sqlite"))
    monitor = watching(history=True)
    heard = monitor.subscribe()
    monitor.start()
    assert not monitor.recording.active
    assert "a file" in monitor.recording.reason
    until(heard, is_sample_of("cuda:0"))


def test_scripted_devices_leave_no_history_of_their_own_accord(watching, monkeypatch):
    """Rule: a demo's cards do not appear in the history of the user's own."""
    monkeypatch.delenv("EXO_GPU_HISTORY")
    monitor = watching(history=True)
    monitor.start()
    assert not monitor.recording.active
    assert "scripted" in monitor.recording.reason


def test_bad_values_are_named(watching):
    with pytest.raises(InvalidValue, match="most"):
        watching().subscribe(most=0)
    with pytest.raises(InvalidValue, match="cadence"):
        Monitor(LocalNode(), cadence_seconds=0.0).start()


def test_a_program_ends_though_a_driver_hangs(tmp_path):
    """Rule: nothing that hangs keeps a program from exiting by itself."""
    box = write_box(tmp_path, device("cuda:0", "NVIDIA", "cuda", delay_seconds=3600), host())
    program = """
        from exo.gpu.coordination.monitor import Monitor
        from exo.gpu.telemetry.sampling.observation import Observation

        with Monitor(cadence_seconds=0.1) as monitor:
            for event in monitor.subscribe():
                if isinstance(event, Observation) and event.hanging:
                    break
        print("over", monitor.snapshot(leases=False).devices[0].device.device_id)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=os.environ | {"EXO_GPU_FAKE": str(box)},
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
    )
    assert done.stdout == "over cuda:0\n", done.stderr
    assert json.loads(box.read_text())["devices"][0]["delay_seconds"] == 3600


class TestGuard:
    """A fault that needs a reset keeps a device out, until somebody takes it back."""

    XID_79 = DeviceFault(
        device_id="cuda:0",
        code=79,
        what="the GPU has fallen off the bus",
        action=FaultAction.RESET_DEVICE,
        at=1.0,
    )

    def test_it_is_cordoned_and_after_an_uncordon_sound_again(self, watching):
        """Rule: cordoned by health with the cause; lifting the cordon forgets the fault."""
        monitor = watching()
        heard = monitor.subscribe()
        monitor.start()
        until(heard, is_sample_of("cuda:0"))
        monitor.node.report_fault(self.XID_79)
        failed = until(
            heard, lambda one: isinstance(one, HealthEvent) and one.device_id == "cuda:0"
        )
        assert failed.after is Health.FAILED
        while not (cordons := monitor.node.cordons()):
            until(heard, is_sample_of("cuda:1"))
        assert (cordons[0].device_id, cordons[0].by) == ("cuda:0", "health")
        assert "bus" in cordons[0].why
        uncordon("cuda:0", node=monitor.node)
        back = until(heard, lambda one: isinstance(one, HealthEvent) and one.device_id == "cuda:0")
        assert back.after is Health.OK
