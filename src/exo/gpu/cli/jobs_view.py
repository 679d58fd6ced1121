"""Jobs to text and pictures: a table, a page for one job, and who did what when."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

from exo.gpu.cli.render import UNKNOWN, WIDTH, moment
from exo.gpu.vocabulary.journal import ItemEnded

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from exo.gpu.coordination.jobs import JobStory, JobSummary
    from exo.gpu.vocabulary.journal import ChunkEnded

_ROW = "{:<20} {:<11} {:>8} {:>6} {:>6}  {}"

# So many pixels lie side by side in a picture: what is closer together is one bar.
_PICTURE_COLUMNS = 2000
_UNITS = (("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0))
_TITLE_CHARACTERS = 100
_COLORS = {"succeeded": "tab:blue", "failed": "tab:red", "died": "black"}


def jobs_table(jobs: Iterable[JobSummary], *, width: int = WIDTH) -> str:
    """A line for each job: how it is, and what became of its items."""
    rows = [_ROW.format("ID", "STATE", "DONE", "FAILED", "LEFT", "COMMAND")]
    for job in jobs:
        left = UNKNOWN if job.left is None else str(job.left)
        rows.append(
            _ROW.format(job.job_id, job.state, job.succeeded, job.failed, left, job_title(job))
        )
    return "\n".join(row[:width].rstrip() for row in rows)


def job_title(job: JobSummary) -> str:
    """Its name, else its templates, in one line."""
    return " ".join((job.name or " / ".join(dict.fromkeys(job.templates.values()))).split())


def job_page(story: JobStory, failures: Sequence[ItemEnded] = (), *, width: int = WIDTH) -> str:
    """All there is to say of a job, with the last try at items that failed, or some of them."""
    job = story.summary
    left = "an unknown number" if job.left is None else str(job.left)
    rows = [
        ("job", job.job_id),
        ("name", job.name),
        *((f"on {runtime}" if runtime else "command", text) for runtime, text in _templates(job)),
        ("in", job.directory),
        ("state", str(job.state)),
        ("begun", moment(job.started_at)),
        *(("resumed", moment(at)) for at in story.resumed_at),
        ("last record", UNKNOWN if job.last_at is None else moment(job.last_at)),
        ("items", f"{job.succeeded} done, {job.failed} failed, {left} left"),
        ("under way", _numbers(story.under_way)),
        ("begun again", _again(story)),
        ("damaged", _damage(story)),
        ("journal", job.path),
    ]
    lines: list[str] = []
    for term, text in rows:
        if text:
            lead = f"{term:<12}"
            lines += textwrap.wrap(
                text, width, initial_indent=lead, subsequent_indent=" " * len(lead)
            )
    if job.devices:
        lines += ["", f"{'DEVICE':<16} {'TRIES':>9} {'SECONDS':>12}"]
        for device_id, figures in sorted(job.devices.items()):
            lines.append(f"{device_id:<16} {figures.tries:>9} {figures.seconds:>12.1f}")
    if failures:
        lines += ["", f"{'FAILED':<8} {'DEVICE':<16} {'TRIES':>5}  REASON"]
        for one in failures:
            reason = " ".join((one.reason or one.cause or one.ending).split())
            row = f"{one.item + 1:<8} {one.device_id or UNKNOWN:<16} {one.attempt:>5}  {reason}"
            lines.append(row if len(row) <= width else f"{row[: width - 1]}…")
        more = job.failed - len(failures)
        if more > 0:
            lines.append(f"and {more} more")
    return "\n".join(lines)


def _templates(job: JobSummary) -> Iterable[tuple[str, str]]:
    return job.templates.items()


def _numbers(items: Sequence[int]) -> str:
    """Items as people count them, from 1."""
    return "item " + ", ".join(str(item + 1) for item in items) if items else ""


def _again(story: JobStory) -> str:
    again = story.summary.started_again
    if not again:
        return ""
    named = _numbers(story.named_again)
    more = " and more" if again > len(story.named_again) else ""
    return f"{named}{more}: what they change may have been changed more than once"


def _damage(story: JobStory) -> str:
    parts: list[str] = []
    if story.damaged_lines:
        lines = ", ".join(map(str, story.damaged_lines[:10]))
        parts.append(f"line {lines} of the journal: what is recorded there counts as not ended")
    if story.tail_bytes:
        parts.append(f"the last {story.tail_bytes} bytes, which --resume cuts off")
    return "; ".join(parts)


class Bar:
    """A stretch of time on one lane, of tries that ended alike."""

    __slots__ = ("begin", "end")

    def __init__(self, begin: float, end: float) -> None:
        self.begin = begin
        self.end = end


def bars_of(
    tries: Iterable[ItemEnded | ChunkEnded], span_seconds: float
) -> dict[tuple[str, int], dict[str, list[Bar]]]:
    """Lane (device, slot) -> how it ended -> bars in the order of the journal.

    Those that no picture of the whole span could tell apart are one, so that a million items make
    some thousand bars.
    """
    closest = span_seconds / _PICTURE_COLUMNS
    lanes: dict[tuple[str, int], dict[str, list[Bar]]] = {}
    for one in tries:
        if isinstance(one, ItemEnded):
            ending = one.ending
        else:
            ending = "failed" if one.failed else "succeeded"
        bars = lanes.setdefault((one.device_id or UNKNOWN, one.slot), {}).setdefault(ending, [])
        if bars and 0 <= one.started_at - bars[-1].end <= closest:
            bars[-1].end = max(bars[-1].end, one.ended_at)
        else:
            bars.append(Bar(one.started_at, one.ended_at))
    return lanes


def draw_gantt(story: JobStory, tries: Iterable[ItemEnded | ChunkEnded], path: Path) -> None:
    """Write a picture of who did what when: a lane for each slot of a device.

    Raises:
        ImportError: where matplotlib is not installed.
        ValueError: for a name whose ending is no kind of picture.

    """
    from matplotlib.figure import Figure

    job = story.summary
    span = max((job.last_at or job.started_at) - job.started_at, 1e-3)
    unit, unit_seconds = next(one for one in _UNITS if span >= one[1] or one is _UNITS[-1])
    lanes = bars_of(tries, span)
    figure: Any = Figure(figsize=(10, 1.2 + 0.35 * max(1, len(lanes))), layout="constrained")
    panel: Any = figure.add_subplot()
    shown: set[str] = set()
    for height, (_, endings) in enumerate(sorted(lanes.items())):
        for ending, bars in endings.items():
            spans = [
                ((bar.begin - job.started_at) / unit_seconds, (bar.end - bar.begin) / unit_seconds)
                for bar in bars
            ]
            label = ending if ending not in shown else None
            shown.add(ending)
            color = _COLORS.get(ending, "tab:gray")
            panel.broken_barh(spans, (height - 0.4, 0.8), color=color, label=label, linewidth=0.4)
    panel.set_yticks(range(len(lanes)), [f"{device} [{slot}]" for device, slot in sorted(lanes)])
    panel.set_xlim(0, span / unit_seconds)
    panel.set_xlabel(f"{unit} since {moment(job.started_at)}")
    panel.set_title(f"{job.job_id}  {job_title(job)}"[:_TITLE_CHARACTERS], parse_math=False)
    if shown:
        figure.legend(loc="outside right upper")
    figure.savefig(path)
