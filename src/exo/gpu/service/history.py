"""What devices did: from memory where that reaches back far enough, else from the disk."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec

from exo.gpu.coordination.overview import RecentEvent, as_recent
from exo.gpu.service.answers import HistoryView, SeriesView
from exo.gpu.service.naming import missing_called, state_called
from exo.gpu.telemetry.store.series import KnownDevice
from exo.gpu.vocabulary.errors import NoSuchDevice, StoreError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from exo.gpu.coordination.overview import Overseer
    from exo.gpu.telemetry.store.reader import HistoryReader
    from exo.gpu.vocabulary.device import GPUDevice
    from exo.gpu.vocabulary.metrics import GPUMetrics


def past(
    overseer: Overseer,
    name: str,
    metrics: Sequence[str],
    span: tuple[float, float],
    points: int,
) -> HistoryView:
    """Readings of a device that is or was here, by either id, in a span of Unix seconds.

    Raises:
        NoSuchDevice: for one that is neither here nor in the history.

    """
    state, missing = state_called(overseer.overview, name), missing_called(overseer.overview, name)
    known = state or missing
    here = None if known is None else known.device
    samples = [] if here is None else overseer.watch.collector.get_metrics_history(here.device_id)
    if here is not None and samples and samples[0].timestamp <= span[0]:
        return _from_memory(here, samples, metrics, span, points)
    if here is not None and here.node:
        name = here.device_id  # this machine may keep a history of the same hardware by itself
    try:
        with open_reader(overseer) as reader:
            series = [
                reader.series(name, one, since=span[0], until=span[1], points=points)
                for one in metrics
            ]
    except (StoreError, NoSuchDevice) as error:
        if here is None:
            raise NoSuchDevice(f"there is no device {name!r} here, and no history of it") from error
        note = f"only what is in memory: {error}"
        found = _from_memory(here, samples, metrics, span, points)
        return msgspec.structs.replace(found, note=note)
    views = (
        SeriesView(
            metric=one.metric,
            since=one.since,
            step_seconds=one.step_seconds,
            source=one.source,
            minimum=_known(one.minimum.tolist()),
            mean=_known(one.mean.tolist()),
            maximum=_known(one.maximum.tolist()),
            count=one.count.tolist(),
        )
        for one in series
    )
    return HistoryView(device=series[0].device, series=tuple(views))


def past_events(
    overseer: Overseer, span: tuple[float, float], device_id: str | None
) -> tuple[list[RecentEvent], str]:
    """Events in a span of Unix seconds from disk and memory, and why some may be missing."""
    heard = [
        one
        for one in overseer.events()
        if span[0] <= one.at < span[1] and device_id in {None, one.device_id}
    ]
    try:
        with open_reader(overseer) as reader:
            kept = reader.events(since=span[0], until=span[1], device=device_id)
    except StoreError as error:
        return heard, f"only what was heard since the service began: {error}"
    found = [as_recent(one.kind, one.device_id, one.at, one.fields) for one in kept]
    known = {(one.kind, one.device_id, one.at) for one in found}
    return found + [one for one in heard if (one.kind, one.device_id, one.at) not in known], ""


def open_reader(overseer: Overseer) -> HistoryReader:
    """The history on disk.

    Raises:
        StoreError: when there is none, or it cannot be read.

    """
    from exo.gpu.telemetry.store.reader import HistoryReader
    from exo.gpu.telemetry.store.schema import history_path

    return HistoryReader(history_path(overseer.environ))


def _from_memory(
    device: GPUDevice,
    samples: Sequence[GPUMetrics],
    metrics: Sequence[str],
    span: tuple[float, float],
    points: int,
) -> HistoryView:
    inside = [one for one in samples if span[0] <= one.timestamp < span[1]]
    known = KnownDevice(
        hardware_id=device.hardware_id,
        node=device.node,
        device_id=device.device_id,
        name=device.name,
        first_seen=samples[0].timestamp if samples else None,
        last_seen=samples[-1].timestamp if samples else None,
    )
    series = tuple(_series(inside, metric, span, points) for metric in metrics)
    return HistoryView(device=known, series=series)


def _series(
    samples: Sequence[GPUMetrics], metric: str, span: tuple[float, float], points: int
) -> SeriesView:
    step_seconds = (span[1] - span[0]) / points
    values: list[list[float]] = [[] for _ in range(points)]
    for sample in samples:
        value: Any = getattr(sample, metric)
        if value is not None:
            place = min(points - 1, int((sample.timestamp - span[0]) / step_seconds))
            values[place].append(float(value))
    return SeriesView(
        metric=metric,
        since=span[0],
        step_seconds=step_seconds,
        source="memory",
        minimum=[min(one) if one else None for one in values],
        mean=[math.fsum(one) / len(one) if one else None for one in values],
        maximum=[max(one) if one else None for one in values],
        count=[len(one) for one in values],
    )


def _known(values: list[float]) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values]
