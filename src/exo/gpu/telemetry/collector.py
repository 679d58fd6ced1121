"""What we know now: the newest sample of each device and a bounded history behind it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, get_args

import msgspec

from exo.gpu.telemetry.table.intake import Intake
from exo.gpu.telemetry.table.roster import Grouping
from exo.gpu.vocabulary.errors import UnknownName
from exo.gpu.vocabulary.metrics import SERIES, GPUMetrics
from exo.gpu.vocabulary.units import check_number

if TYPE_CHECKING:
    from exo.gpu.telemetry.table.columns import Scope
    from exo.gpu.telemetry.table.figures import Aggregate, Statistics


class TelemetryCollector(Intake):
    """Keeps samples by device id; ids are taken as they are, so ``rig2/cuda:0`` is another device.

    Samples are ordered by their sender's timestamp: a late one finds its place in the history and
    does not replace a newer one. Age is judged by the time of receipt on ``clock``. Where nothing
    newer came for ``stale_after_seconds``, the next sample is taken as the newest whatever its
    timestamp, since the sender's clock was then set back; it stands behind the earlier ones in the
    history too. Calls from several threads are safe, and none waits for anything slower than
    another call.

    Samples wait as values until there are many, or until somebody asks for more than the newest;
    then they become columns, and NumPy is loaded.
    """

    def get_metrics(self, device_id: str) -> GPUMetrics | None:
        """The newest sample, however old, or None."""
        with self._lock:
            newest = self._find(device_id)
            if newest is None:
                return None
            if newest.sample is None and self._opened is not None:
                newest.sample = self._opened.sample(newest.row, device_id)
            return newest.sample

    def get_metrics_history(self, device_id: str) -> list[GPUMetrics]:
        """The samples kept, oldest first by their sender's timestamp."""
        with self._lock:
            row = self._roster.rows.get(device_id)
            return [] if row is None else list(self._columns().samples(row, device_id))

    def age_seconds(self, device_id: str) -> float | None:
        """Seconds since the newest sample was received, or None where there is none."""
        with self._lock:
            newest = self._find(device_id)
            return None if newest is None else max(0.0, self._clock() - newest.received_at)

    def get_aggregated_metrics(self) -> dict[str, Any]:
        """Sums and means over the newest sample of each device; empty where there is none.

        A device that does not give a reading takes no part in it, and a figure to which none
        contributed is None. ``reporting`` counts the devices that gave each reading;
        ``stale_count`` those whose newest sample says nothing about now, though they take part
        here. The memory of a pool that described devices share is counted once.
        """
        with self._lock:
            if not self._roster.rows:
                return {}
            found = self._columns().aggregates(self._clock(), None, with_stale=True)[""]
        if not found.device_count:
            return {}
        figures = msgspec.structs.asdict(found)
        del figures["maximum_temperature_celsius"]
        return {**figures, "timestamp": datetime.now(tz=UTC).isoformat()}

    def aggregate(self) -> Aggregate:
        """The newest samples of all devices, added up, without those that are stale."""
        with self._lock:
            return self._columns().aggregates(self._clock(), None)[""]

    def aggregate_by(self, by: Grouping, *, label: str = "") -> dict[str, Aggregate]:
        """The same for each node, each vendor, or each value of one label.

        Devices that were never described, or lack the label, are the group ``""``. The memory of
        a pool is counted in the group of the member that stands for it.

        Raises:
            UnknownName: for another grouping.

        """
        _check_grouping(by)
        with self._lock:
            return self._columns().aggregates(self._clock(), by, label)

    def statistics(
        self,
        device_id: str,
        metric: str,
        *,
        window_seconds: float | None = None,
        now: float | None = None,
        cadence_seconds: float | None = None,
    ) -> Statistics:
        """One reading of one device over the history kept, or over the last ``window_seconds``.

        Samples count by their time of receipt, up to ``now`` on the collector's clock. See
        :class:`~exo.gpu.telemetry.table.figures.Statistics` for what is told, and for gaps;
        ``cadence_seconds`` is the median distance of the values where it is not given.

        Raises:
            UnknownName: for a metric that no sample has.

        """
        scope = self._scope(metric, window_seconds, now, cadence_seconds)
        with self._lock:
            columns = self._columns()
            row = self._roster.rows.get(device_id)
            lines = columns.lines(scope, () if row is None else (row,))
        return scope.statistics(lines)

    def cluster_statistics(
        self,
        metric: str,
        *,
        window_seconds: float | None = None,
        now: float | None = None,
        cadence_seconds: float | None = None,
    ) -> Statistics:
        """The same of all devices together; of a memory pool one member counts.

        Raises:
            UnknownName: for a metric that no sample has.

        """
        scope = self._scope(metric, window_seconds, now, cadence_seconds)
        with self._lock:
            columns = self._columns()
            lines = columns.lines(scope, columns.members(scope)[""])
        return scope.statistics(lines)

    def statistics_by(
        self,
        by: Grouping,
        metric: str,
        *,
        label: str = "",
        window_seconds: float | None = None,
        now: float | None = None,
        cadence_seconds: float | None = None,
    ) -> dict[str, Statistics]:
        """The same of each group, as in :meth:`aggregate_by`.

        Raises:
            UnknownName: for a metric that no sample has, or another grouping.

        """
        _check_grouping(by)
        scope = self._scope(metric, window_seconds, now, cadence_seconds)
        with self._lock:
            columns = self._columns()
            members = columns.members(scope, by, label)
            groups = {name: columns.lines(scope, rows) for name, rows in members.items()}
        return {name: scope.statistics(lines) for name, lines in groups.items()}

    def _scope(
        self,
        metric: str,
        window_seconds: float | None,
        now: float | None,
        cadence_seconds: float | None,
    ) -> Scope:
        from exo.gpu.telemetry.table.columns import Scope

        if metric not in SERIES:
            raise UnknownName("metric", metric, SERIES)
        for field, value in (
            ("window_seconds", window_seconds),
            ("cadence_seconds", cadence_seconds),
        ):
            check_number(field, value, low=0, optional=True)
        check_number("now", now, optional=True)
        moment = self._clock() if now is None else now
        return Scope(metric, window_seconds, moment, cadence_seconds)


def _check_grouping(by: str) -> None:
    if by not in get_args(Grouping):
        raise UnknownName("by", by, get_args(Grouping))
