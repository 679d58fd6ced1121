"""Answers that many ask for at once: made once for each overview, then handed out as bytes."""

from __future__ import annotations

import gzip
import threading
from typing import TYPE_CHECKING

from exo.gpu.service.answers import devices_json
from exo.gpu.telemetry.exporters.prometheus import prometheus_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from exo.gpu.coordination.overview import Overseer, Overview


GZIP = {"content-encoding": "gzip", "vary": "accept-encoding"}
"""What an answer says that is gzip."""


class Pictures:
    """The list of devices and the metrics of the newest overview; safe from several threads."""

    def __init__(self, overseer: Overseer, version: str) -> None:
        self._overseer = overseer
        self._devices = _Picture(devices_json)
        self._compressed = _Picture(
            lambda overview: pressed(self._devices.of(overview), quick=True)
        )
        self._metrics = _Picture(
            lambda overview: prometheus_text(
                overview.snapshot, missing=overview.missing, version=version
            ).encode()
        )

    def devices(self, *, compressed: bool = False) -> bytes:
        """The list of devices as JSON, or that as gzip."""
        picture = self._compressed if compressed else self._devices
        return picture.of(self._overseer.overview)

    def metrics(self) -> bytes:
        """Prometheus text."""
        return self._metrics.of(self._overseer.overview)


def takes_gzip(accepted: str) -> bool:
    """Whether a client's ``Accept-Encoding`` says that it reads gzip."""
    for one in accepted.split(","):
        name, _, quality = one.partition(";")
        if name.strip().lower() == "gzip":
            return quality.replace(" ", "") not in {"q=0", "q=0.0", "q=0.00", "q=0.000"}
    return False


def pressed(body: bytes, *, quick: bool = False) -> bytes:
    """The body as gzip; ``quick`` for what is made each second."""
    return gzip.compress(body, compresslevel=1 if quick else 9, mtime=0)


class _Picture:
    """One answer, kept until there is another overview."""

    def __init__(self, draw: Callable[[Overview], bytes]) -> None:
        self._draw = draw
        self._lock = threading.Lock()
        self._of: Overview | None = None
        self._bytes = b""

    def of(self, overview: Overview) -> bytes:
        with self._lock:
            if self._of is not overview:
                self._bytes = self._draw(overview)
                self._of = overview
            return self._bytes
