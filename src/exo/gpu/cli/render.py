"""Values to text for people: 80 columns, plain, the same through a pipe as on a terminal."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from exo.gpu.vocabulary.snapshot import Health
from exo.gpu.vocabulary.units import format_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from exo.gpu.vocabulary.health import Cordon
    from exo.gpu.vocabulary.inventory import MissingDevice
    from exo.gpu.vocabulary.metrics import GPUMetrics
    from exo.gpu.vocabulary.snapshot import DeviceState

Support = Mapping[str, Mapping[str, str]]
"""Ability of a backend -> how it was last shown; its ``level`` is what people are told."""

WIDTH = 80
UNKNOWN = "-"

_HEADER = ("ID", "CLASS", "RUNTIME", "HEALTH", "MEMORY", "UTIL", "TEMP", "POWER")
_FIRST_RIGHT_ALIGNED = _HEADER.index("MEMORY")


def devices_table(
    states: Sequence[DeviceState],
    *,
    failures: Mapping[str, str],
    support: Mapping[str, Support],
    width: int = WIDTH,
) -> str:
    """Two lines a device: its figures, and below them its name and what else there is to say.

    ``failures`` says by device id why there is no sample, ``support`` by backend how it was last
    shown to work. Unknown is ``-``.
    """
    rows = [_HEADER, *(_figures(state) for state in states)]
    lines = _columns(rows, right=range(_FIRST_RIGHT_ALIGNED, len(_HEADER)), width=width)
    indent = " " * 4
    text = [lines[0]]
    for state, line in zip(states, lines[1:], strict=True):
        text.append(line)
        failure = failures.get(state.device.device_id)
        details = "; ".join(_details(state, failure, support.get(state.device.backend, {})))
        text += textwrap.wrap(details, width, initial_indent=indent, subsequent_indent=indent)
    return "\n".join(text)


def missing_lines(missing: Iterable[MissingDevice], *, width: int = WIDTH) -> str:
    """A paragraph for each device that was here before: what it was, when, and why it is not."""
    indent = " " * 4
    return "\n".join(
        textwrap.fill(
            f"Missing: {one.device.device_id} ({one.device.name}), last seen "
            f"{moment(one.last_seen)}: {one.reason}",
            width,
            subsequent_indent=indent,
        )
        for one in missing
    )


def moment(unix_seconds: float) -> str:
    """A time in the reader's own zone: ``"2026-03-01 14:05"``."""
    local = datetime.fromtimestamp(unix_seconds, tz=UTC).astimezone()
    return local.strftime("%Y-%m-%d %H:%M")


def memory(used_bytes: int | None, total_bytes: int | None) -> str:
    """Used and total in the total's unit: ``"1.5/24.0 GiB"``; ``"-"`` for what is unknown.

    A total of which more is used than there is, is none.
    """
    if total_bytes is None or (used_bytes or 0) > total_bytes:
        return UNKNOWN if used_bytes is None else f"{format_size(used_bytes)} used"
    total = format_size(total_bytes)
    if used_bytes is None:
        return f"{UNKNOWN}/{total}"
    number, unit = total.split()
    factor = float(number) / total_bytes if total_bytes else 0.0
    return f"{used_bytes * factor:.1f}/{number} {unit}"


def cordon_words(cordon: Cordon) -> str:
    """``"cordoned by alice until 2026-03-01 14:05: its fan is loud"``."""
    state = "draining, cordoned" if cordon.draining else "cordoned"
    until = "" if cordon.until is None else f" until {moment(cordon.until)}"
    return f"{state} by {cordon.by}{until}: {cordon.why}"


def reading(value: float | None, unit: str) -> str:
    """A rounded reading with its unit, ``"71C"``; ``"-"`` for unknown."""
    return UNKNOWN if value is None else f"{value:.0f}{unit}"


def clock_time(unix_seconds: float) -> str:
    """A moment of today in the reader's own zone: ``"14:05:31"``."""
    return datetime.fromtimestamp(unix_seconds, tz=UTC).astimezone().strftime("%H:%M:%S")


def sample_line(sample: GPUMetrics) -> str:
    """One sample in one line; unknown is ``-``."""
    if sample.sleeping:
        return f"{clock_time(sample.timestamp)}  {sample.device_id:<10}  asleep, and not woken"
    figures = (
        memory(sample.memory_used_bytes, sample.memory_total_bytes).rjust(16),
        reading(sample.compute_utilization_percent, "%").rjust(5),
        reading(sample.temperature_celsius, "C").rjust(5),
        reading(sample.power_watts, "W").rjust(6),
        reading(sample.clock_rate_mhz, "MHz").rjust(8),
    )
    return f"{clock_time(sample.timestamp)}  {sample.device_id:<10}{'  '.join(figures)}"


def said_line(unix_seconds: float, device_id: str, words: str) -> str:
    """Something that is no figure, in one line like those of samples."""
    return f"{clock_time(unix_seconds)}  {device_id:<10}  {words}"


def support_words(backend: str, support: Support) -> str:
    """How a backend was last shown to work: ``"cuda last shown on: fake (finding)"``."""
    by_level: dict[str, list[str]] = {}
    for ability, showing in support.items():
        by_level.setdefault(showing["level"], []).append(ability)
    if backend == "fake":
        return "a script's device: no hardware"
    if not by_level:
        return f"{backend} never shown to work"
    parts = (f"{level} ({', '.join(abilities)})" for level, abilities in by_level.items())
    return f"{backend} last shown on: {', '.join(parts)}"


def paragraphs(rows: Iterable[tuple[str, str]], *, width: int = WIDTH) -> str:
    """A term and what is said of it, wrapped beside it; an empty term goes on with the last."""
    rows = list(rows)
    margin = max((len(term) for term, _ in rows), default=0) + 2
    lines: list[str] = []
    for term, text in rows:
        lines += textwrap.wrap(
            text or UNKNOWN,
            max(width, margin + 20),
            initial_indent=term.ljust(margin),
            subsequent_indent=" " * margin,
            break_long_words=False,
            break_on_hyphens=False,
        )
    return "\n".join(lines)


def shell_lines(changes: Mapping[str, str | None]) -> str:
    """Lines for a POSIX shell's ``eval`` that set the variables, or remove those that are None."""
    return "\n".join(
        f"unset {name}" if value is None else f"export {name}={shlex.quote(value)}"
        for name, value in sorted(changes.items())
    )


def progress_line(
    done: int, failed: int, total: int | None, by_device: Mapping[str, int], width: int
) -> str:
    """How far ``map`` is, cut to ``width``: ``"12/200 done, 1 failed  cuda:0 8  cpu:0 4"``."""
    text = f"{done}/{total} done" if total is not None else f"{done} done"
    if failed:
        text += f", {failed} failed"
    for device_id, count in by_device.items():
        text += f"  {device_id} {count}"
    return text[:width]


def _figures(state: DeviceState) -> tuple[str, ...]:
    device, sample = state.device, state.sample
    total = device.memory_bytes
    if sample is not None and sample.memory_total_bytes is not None:
        total = sample.memory_total_bytes
    return (
        device.device_id,
        device.device_class.value,
        device.runtime,
        _health(state),
        memory(sample.memory_used_bytes if sample else None, total),
        reading(sample.compute_utilization_percent if sample else None, "%"),
        reading(sample.temperature_celsius if sample else None, "C"),
        reading(sample.power_watts if sample else None, "W"),
    )


def _health(state: DeviceState) -> str:
    """The health, or that it is kept out; what else is wrong then stands in the second line."""
    if state.cordon is None:
        return state.health.value
    kept_out = "draining" if state.cordon.draining else "cordoned"
    return f"ok, {kept_out}" if state.health is Health.OK else kept_out


def _details(state: DeviceState, failure: str | None, support: Support) -> Iterable[str]:
    yield state.device.name
    if state.device.driver_version:
        yield f"driver {state.device.driver_version}"
    yield support_words(state.device.backend, support)
    if state.leases:
        yield f"{len(state.leases)} lease{'s' if len(state.leases) > 1 else ''}"
    if state.cordon is not None:
        yield cordon_words(state.cordon)
    if state.health is not Health.OK and state.health_reason:
        lead = "" if state.cordon is None else f"{state.health.value}: "
        yield f"{lead}{state.health_reason}"
    if failure and failure not in state.health_reason:
        yield f"no sample: {failure}"


def _columns(rows: Sequence[Sequence[str]], *, right: range, width: int) -> list[str]:
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    gap = "  " if sum(widths) + 2 * (len(widths) - 1) <= width else " "
    return [
        gap.join(
            cell.rjust(widths[index]) if index in right else cell.ljust(widths[index])
            for index, cell in enumerate(row)
        ).rstrip()
        for row in rows
    ]


def doctor_report(findings: Mapping[str, Any], *, width: int = WIDTH) -> str:
    """What ``doctor`` found, in paragraphs of a term and what is said of it."""
    rows = [("exo-gpu", f"{findings['exo_gpu']} on Python {findings['python']}")]
    rows += [row for backend in findings["backends"] for row in _backend_rows(backend)]
    rows += _missing_rows(findings["missing"])
    rows += [
        ("software", f"{driver['name']}: {driver['manifest'] or 'manifest not known'}")
        for driver in findings["software_drivers"]
    ]
    store = findings["lease_store"]
    rows.append(("leases", f"{store['path']} ({store['reason']}), shared by {store['shared_by']}"))
    if store["problem"]:
        rows.append(("", store["problem"]))
    rows += _cordon_rows(findings["cordons"])
    rows += _registry_rows(findings["registry"])
    rows.append(("history", _history_words(findings["history"])))
    rows += _extra_rows(findings["extras"])
    rows += [("variable", f"{name}={value}") for name, value in findings["variables"].items()]
    rows += [("warning", text) for text in findings["warnings"]]
    return paragraphs(rows, width=width)


def _backend_rows(backend: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    term = str(backend["backend"])
    for device_id, name in backend["devices"].items():
        yield term, f"{device_id}: {name}"
        term = ""
    if backend["reason"]:
        yield term, backend["reason"]
        term = ""
    elif term:
        yield term, "works, and has no device"
        term = ""
    if backend["hint"]:
        yield "", f"to do: {backend['hint']}"
    if backend["devices"]:
        yield "", support_words(backend["backend"], backend["support"])


def _missing_rows(missing: Iterable[Mapping[str, Any]]) -> Iterable[tuple[str, str]]:
    for one in missing:
        device = one["device"]
        text = f"{device['device_id']} ({device['name']}), last seen {moment(one['last_seen'])}"
        yield "missing", f"{text}: {one['reason']}"
        yield "", f"to drop it: exo-gpu devices --forget {device['device_id']}"


def _cordon_rows(cordons: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    for cordon in cordons["in_force"]:
        yield "cordon", f"{cordon.device_id}: {cordon_words(cordon)}"
    if cordons["problem"]:
        yield "cordons", cordons["problem"]


def _registry_rows(registry: Mapping[str, str] | None) -> Iterable[tuple[str, str]]:
    if registry is not None:
        yield "registry", registry["path"]
        if registry["problem"]:
            yield "", registry["problem"]


def _history_words(history: Mapping[str, Any]) -> str:
    size_bytes = history["size_bytes"]
    held = "none yet; 'exo-gpu watch' keeps one" if size_bytes is None else format_size(size_bytes)
    return f"{history['path']} ({held})"


def _extra_rows(extras: Sequence[Mapping[str, Any]] | None) -> Iterable[tuple[str, str]]:
    if extras is None:
        yield "extras", "not known: exo-gpu runs from a checkout that is not installed"
        return
    for extra in extras:
        missing = ", ".join(extra["missing"])
        text = f"not installed ({missing}): {extra['install']}" if missing else "installed"
        yield "extra", f"{extra['extra']}: {text}"
