"""This machine's devices as a split sees them: free memory, speed, and how that is known."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import msgspec

from exo.gpu.backends.datasheets import card_of
from exo.gpu.coordination.slots import refusal
from exo.gpu.nodes.local import LocalNode
from exo.gpu.scheduling.filters import names_of, unknown_names
from exo.gpu.scheduling.ledger import free_memory, total_memory
from exo.gpu.scheduling.selector import select
from exo.gpu.telemetry.probe_cache import PairCache, ProbeCache, cache_path, pairs_path
from exo.gpu.vocabulary.device import HOST_POOL, DeviceClass
from exo.gpu.vocabulary.errors import InvalidValue, NeverAvailable, StoreError
from exo.gpu.vocabulary.health import Health
from exo.gpu.vocabulary.request import Request
from exo.gpu.vocabulary.split import ASSUMED_LINKS, LeftOut, SplitDevice, SplitLink
from exo.gpu.vocabulary.units import check_number, parse_size

if TYPE_CHECKING:
    from exo.gpu.nodes.transport import Node
    from exo.gpu.vocabulary.device import GPUDevice
    from exo.gpu.vocabulary.snapshot import DeviceState, Snapshot

logger = logging.getLogger("exo.gpu.coordination.split_devices")

BUFFER_BYTES = 2**30
"""What an engine takes beside weights and cache: its context on the device and room for compute.
Measured with llama.cpp and vLLM at 0.6 to 1.5 GB."""


HOST_GBPS = 19.2
"""The machine's memory where nobody measured it: one channel of DDR4-2400 (JEDEC JESD79-4)."""


class SplitWishes(msgspec.Struct, frozen=True, kw_only=True):
    """Which devices may be used, and what is known better than by us."""

    devices: tuple[str, ...] = ()
    runtime: str | None = None
    runtimes: frozenset[str] | None = None
    """Those that the engine can use; None: all."""
    one_runtime: bool = False
    """Whether the engine can use one of them at a time: the one with the most room, then."""
    all_devices: bool = False
    use_host: bool = False
    """Whether the machine's own memory takes layers, too."""
    reserve: str | int = 0
    buffer: str | int | None = None
    bandwidths: Mapping[str, float] | None = None
    """GB/s by device id, over what was measured."""
    node: Node | None = None


class Offer(msgspec.Struct, frozen=True):
    """Devices that take part, how they are joined, those left out, and where the rest could go."""

    devices: tuple[SplitDevice, ...]
    links: tuple[SplitLink, ...]
    left_out: tuple[LeftOut, ...]
    host: SplitDevice | None


def offered_devices(wishes: SplitWishes) -> Offer:
    """The devices of this machine that may take layers.

    Raises:
        NeverAvailable: for a name that no device here has, or where none is left.
        InvalidValue: for a device whose bandwidth nobody knows.

    """
    if wishes.node is None:
        with LocalNode() as opened:
            return offered_devices(msgspec.structs.replace(wishes, node=opened))
    try:
        snapshot = wishes.node.snapshot()
    except StoreError as error:
        logger.warning("leases do not count, only what is in use: %s", error)
        snapshot = wishes.node.snapshot(leases=False)
    request = Request(devices=wishes.devices)
    if unknown_names(snapshot, request.devices):
        raise refusal(select(snapshot, request))
    left_out: list[LeftOut] = []
    chosen = list(_chosen(snapshot, wishes, left_out))
    figures = _Figures(snapshot, wishes)
    devices = tuple(figures.device(state) for state in chosen)
    if wishes.one_runtime:
        devices = _of_one_runtime(devices, left_out)
    if not devices:
        raise NeverAvailable(_nobody(left_out))
    host = next((one for one in snapshot.devices if _is_host(one) and one not in chosen), None)
    return Offer(
        devices,
        tuple(_measured_links(chosen)),
        tuple(left_out),
        None if host is None else figures.spare(host),
    )


def _nobody(left_out: list[LeftOut]) -> str:
    reasons = "; ".join(f"{one.device_id}: {one.reason}" for one in left_out)
    return f"no device here can take layers{f': {reasons}' if reasons else ''}"


def _is_host(state: DeviceState) -> bool:
    return state.device.device_class is DeviceClass.HOST


def _chosen(
    snapshot: Snapshot, wishes: SplitWishes, left_out: list[LeftOut]
) -> Iterator[DeviceState]:
    """Those that may take part: of the best class unless they are named, and of one pool one."""
    named = [
        state
        for state in snapshot.devices
        if not wishes.devices or set(names_of(state.device)).intersection(wishes.devices)
    ]
    sound: list[DeviceState] = []
    for state in named:
        reason = _refused(state, wishes)
        if reason:
            left_out.append(LeftOut(device_id=state.device.device_id, reason=reason))
        else:
            sound.append(state)
    ranks = [state.device.device_class.rank for state in sound]
    free_choice = bool(wishes.devices) or wishes.all_devices
    pools: dict[tuple[str, str], str] = {}
    for state in sorted(sound, key=lambda one: one.device.device_class.rank):
        device = state.device
        wanted = _is_host(state) and wishes.use_host
        if not free_choice and not wanted and device.device_class.rank != min(ranks):
            option = "--host" if _is_host(state) else "--device"
            reason = f"of another class ({option} takes it)"
            left_out.append(LeftOut(device_id=device.device_id, reason=reason))
            continue
        sharer = pools.setdefault((device.node, device.memory_pool), device.device_id)
        if sharer != device.device_id:
            reason = f"it shares its memory with {sharer}, whose bytes would count twice"
            left_out.append(LeftOut(device_id=device.device_id, reason=reason))
            continue
        yield state


def _of_one_runtime(
    devices: tuple[SplitDevice, ...], left_out: list[LeftOut]
) -> tuple[SplitDevice, ...]:
    """The devices of the runtime with the most room, and the host."""
    room: dict[str, int] = {}
    for device in devices:
        if not device.host:
            room[device.runtime] = room.get(device.runtime, 0) + device.usable_bytes
    if len(room) < 2:
        return devices
    kept = max(sorted(room), key=room.__getitem__)
    for device in devices:
        if not device.host and device.runtime != kept:
            reason = f"of runtime {device.runtime}: the engine uses one, and {kept} has more room"
            left_out.append(LeftOut(device_id=device.device_id, reason=reason))
    return tuple(device for device in devices if device.host or device.runtime == kept)


def _refused(state: DeviceState, wishes: SplitWishes) -> str:
    """Why a device takes nothing now; empty where it may."""
    device = state.device
    if state.cordon is not None:
        return f"it is cordoned: {state.cordon.why}"
    if state.health in {Health.FAILED, Health.LOST}:
        return f"it is {state.health.value}: {state.health_reason}"
    if wishes.runtimes is not None and device.runtime not in wishes.runtimes:
        return f"the engine has no word for runtime {device.runtime}"
    wanted = wishes.use_host and _is_host(state)
    if wishes.runtime is not None and device.runtime != wishes.runtime and not wanted:
        return f"it belongs to runtime {device.runtime}, not {wishes.runtime}"
    return ""


class _Figures:
    """What is known of each device, measured before stated before assumed."""

    def __init__(self, snapshot: Snapshot, wishes: SplitWishes) -> None:
        self._snapshot, self._wishes = snapshot, wishes
        self._probes = ProbeCache(cache_path(os.environ))
        self._probes.refresh()
        self._reserve = parse_size(wishes.reserve, "reserve")
        given = wishes.buffer
        self._buffer = BUFFER_BYTES if given is None else parse_size(given, "buffer")
        self._stated = dict(wishes.bandwidths or {})
        known = {name for state in snapshot.devices for name in names_of(state.device)}
        for name, gbps in self._stated.items():
            check_number("bandwidths", gbps, low=0)
            if name not in known:
                raise InvalidValue("bandwidths", name, "the id of a device here")

    def device(self, state: DeviceState) -> SplitDevice:
        """What a device offers.

        Raises:
            InvalidValue: where nobody knows its bandwidth or its memory.

        """
        device = state.device
        said: list[str] = []
        bandwidth = self._bandwidth(device, said)
        if bandwidth is None:
            raise InvalidValue(
                f"bandwidth of {device.device_id}",
                None,
                "known: run 'exo-gpu probe', give --bandwidth "
                f"{device.device_id}=GBPS, or name other devices",
            )
        free = free_memory(state, self._snapshot)
        if free.free_bytes is None:
            raise InvalidValue(f"memory of {device.device_id}", None, f"known: {free.note}")
        if free.assumed:
            said.append("what is in use is not told: only leases were subtracted")
        if self._wishes.buffer is None:
            said.append("1 GiB for the engine's context and compute buffers")
        return SplitDevice(
            device_id=device.device_id,
            free_bytes=free.free_bytes,
            bandwidth_gbps=bandwidth,
            compute_gflops=self._compute(device, said),
            reserve_bytes=self._reserve,
            buffer_bytes=self._buffer,
            total_bytes=total_memory(state, self._snapshot),
            name=device.name,
            node=device.node,
            runtime=device.runtime,
            hardware_id=device.hardware_id,
            host=_is_host(state),
            assumptions=tuple(said),
        )

    def spare(self, state: DeviceState) -> SplitDevice | None:
        """The machine's memory as a place for what does not fit; its speed does not matter then."""
        free = free_memory(state, self._snapshot).free_bytes
        if free is None:
            return None
        known = self._bandwidth(state.device, [])
        return SplitDevice(
            device_id=state.device.device_id,
            free_bytes=free,
            bandwidth_gbps=known or 1.0,
            reserve_bytes=self._reserve,
            host=True,
        )

    def _bandwidth(self, device: GPUDevice, said: list[str]) -> float | None:
        for name in names_of(device):
            if self._stated.get(name):
                return self._stated[name]
        probed = self._probes.find(device)
        if probed is not None and probed.memory_gbps is not None and probed.memory_gbps.median > 0:
            return probed.memory_gbps.median
        if device.bandwidth_gbps:
            said.append(f"{device.bandwidth_gbps:.0f} GB/s as its driver states, not measured")
            return device.bandwidth_gbps
        card = card_of(device.name, device.memory_bytes)
        if card is None and device.memory_pool == HOST_POOL:
            said.append(f"{HOST_GBPS} GB/s, one channel of DDR4-2400; 'exo-gpu probe' measures it")
            return HOST_GBPS
        if card is None:
            return None
        said.append(f"{card.bandwidth_gbps:.0f} GB/s as in the datasheet of the {card.name}")
        return card.bandwidth_gbps

    def _compute(self, device: GPUDevice, said: list[str]) -> float | None:
        card = card_of(device.name, device.memory_bytes)
        if card is not None:
            said.append(f"{card.fp16_tflops:g} TFLOP/s as in the datasheet of the {card.name}")
            return card.fp16_tflops * 1000
        probed = self._probes.find(device)
        if probed is not None and probed.fp32_gflops is not None and probed.fp32_gflops.median > 0:
            said.append("its compute is FP32 as measured; units for matrices may be faster")
            return probed.fp32_gflops.median
        return None


def _measured_links(states: list[DeviceState]) -> Iterator[SplitLink]:
    """The ways that a probe measured, with the latency that is assumed within a machine."""
    pairs = PairCache(pairs_path(os.environ))
    pairs.refresh()
    for one in states:
        for other in states:
            found = None if one is other else pairs.find(one.device, other.device)
            if found is not None and found.gbps is not None and found.gbps.median > 0:
                yield SplitLink(
                    source=one.device.device_id,
                    target=other.device.device_id,
                    bandwidth_gbps=found.gbps.median,
                    latency_seconds=ASSUMED_LINKS[0].latency_seconds,
                )
