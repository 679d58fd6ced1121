"""Who holds what, who waits, which jobs run, and why a decision is as it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
from anyio import to_thread
from litestar import Request, get, post
from litestar.params import Parameter

from exo.gpu.coordination.jobs import JobStory, story_of, tries_of
from exo.gpu.coordination.overview import Overseer
from exo.gpu.execution.job_folder import SUFFIX, jobs_folder, journals
from exo.gpu.nodes.policies import default_policy
from exo.gpu.scheduling.explanation import explain as in_words
from exo.gpu.scheduling.explanation import refusal_message
from exo.gpu.scheduling.policies import POLICIES
from exo.gpu.service.answers import (
    Explanation,
    JobList,
    LeaseList,
    PolicyList,
    PolicyView,
    Question,
    Queue,
    TermView,
    TryList,
    TryView,
    lease_views,
    waiter_views,
)
from exo.gpu.vocabulary.errors import NoSuchJob
from exo.gpu.vocabulary.journal import ChunkEnded, ItemEnded


@get("/leases", sync_to_thread=False)
def leases(overseer: Overseer) -> LeaseList:
    """All live leases, with what their processes are seen to hold."""
    overview = overseer.overview
    return LeaseList(leases=lease_views(overview), notes=overview.notes)


@get("/queue", sync_to_thread=False)
def queue(overseer: Overseer) -> Queue:
    """Everybody who waits for a device, with the rule that refuses each device."""
    overview = overseer.overview
    return Queue(waiting=waiter_views(overview), notes=overview.notes)


@get("/jobs", sync_to_thread=False)
def jobs(overseer: Overseer) -> JobList:
    """The newest jobs of the user whom the service runs as."""
    overview = overseer.overview
    return JobList(jobs=overview.jobs, problems=overview.job_problems)


@get("/jobs/{job_id:str}", sync_to_thread=True)
def job(overseer: Overseer, job_id: str) -> JobStory:
    """One job: its items and devices in figures, and what may have been done twice."""
    return story_of(find_job(overseer, job_id))


@get("/jobs/{job_id:str}/items", sync_to_thread=True)
def items(
    overseer: Overseer,
    job_id: str,
    failed: Annotated[bool, Parameter(description="Only tries of which something failed.")] = False,
    offset: Annotated[int, Parameter(ge=0, le=2**31, description="Tries to leave out.")] = 0,
    limit: Annotated[int, Parameter(ge=1, le=10_000, description="Tries at most.")] = 1000,
) -> TryList:
    """The tries of a job's items in the order of their ends: when, where, how each ended."""
    path = find_job(overseer, job_id)
    total, page = 0, list[TryView]()
    for view in _tries(path):
        if failed and not view.failed:
            continue
        if offset <= total < offset + limit:
            page.append(view)
        total += 1
    return TryList(job_id=job_id, total=total, offset=offset, tries=tuple(page))


@get("/policies", sync_to_thread=False)
def policies(overseer: Overseer) -> PolicyList:
    """The policies that ship with the product, and how each weighs a device."""
    views = (
        PolicyView(
            name=policy.name,
            terms=(
                *(
                    TermView(name=scorer.name, weight=weight, multiplies=False)
                    for scorer, weight in policy.terms
                ),
                *(
                    TermView(name=scorer.name, weight=1.0, multiplies=True)
                    for scorer in policy.factors
                ),
            ),
        )
        for policy in POLICIES.values()
    )
    return PolicyList(default=default_policy(overseer.environ), policies=tuple(views))


@post("/explain", status_code=200)
async def explain(
    request: Request[Any, Any, Any], overseer: Overseer, data: Question
) -> Explanation:
    """What would be chosen for a request now, with every term and refusal; nothing is taken.

    Where it names no policy, the one that is set in the configuration holds.
    """
    # Litestar takes "8" for 8; whoever means a number writes one.
    body = await request.body()
    data = msgspec.json.decode(body, type=Question)
    named = "policy" in msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    return await to_thread.run_sync(_explained, overseer, data, named)


def _explained(overseer: Overseer, question: Question, named: bool) -> Explanation:
    others = {} if named else {"policy": default_policy(overseer.environ)}
    decision, snapshot = overseer.explain(question.request(**others))
    return Explanation(
        **msgspec.structs.asdict(decision),
        never=decision.never,
        message=refusal_message(decision),
        text=in_words(decision, snapshot),
    )


def find_job(overseer: Overseer, job_id: str) -> Path:
    """The journal of a job by its whole id, and of nothing else that a path may name.

    Raises:
        NoSuchJob: where there is none.

    """
    for summary in overseer.overview.jobs:
        if summary.job_id == job_id:
            return Path(summary.path)
    for path in journals(jobs_folder(overseer.environ)):
        if path.name == job_id + SUFFIX:
            return path
    raise NoSuchJob(f"there is no job {job_id!r}; /api/v1/jobs lists them")


def _tries(path: Path) -> Iterator[TryView]:
    for record in tries_of(path):
        yield _of_item(record) if isinstance(record, ItemEnded) else _of_chunk(record)


def _of_item(record: ItemEnded) -> TryView:
    return TryView(
        items=[(record.item, record.item)],
        failed=[] if record.succeeded else [record.item],
        ending=record.ending,
        cause=record.cause,
        reason=record.reason,
        device_id=record.device_id,
        slot=record.slot,
        attempt=record.attempt,
        final=record.final,
        started_at=record.started_at,
        ended_at=record.ended_at,
        exit_status=record.exit_status,
        signal=record.signal,
    )


def _of_chunk(record: ChunkEnded) -> TryView:
    return TryView(
        items=[(first, last) for first, last in record.items],
        failed=list(record.failed),
        ending="failed" if record.failed else "succeeded",
        cause="exception" if record.failed else "",
        reason="raised an exception" if record.failed else "",
        device_id=record.device_id,
        slot=record.slot,
        attempt=None,
        final=None,
        started_at=record.started_at,
        ended_at=record.ended_at,
        exit_status=None,
        signal=None,
    )


ROUTES = [leases, queue, jobs, job, items, policies, explain]
