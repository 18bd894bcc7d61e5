"""What the steps of a run do now and what the sampled ones did, as users and flame graphs read it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Row

from tachograph.clock import NS
from tachograph.folded_stacks import SEPARATOR, StacksKind
from tachograph.version import version
from tachograph_exporter.store import executions, stacks
from tachograph_exporter.store.runs import find_run
from tachograph_exporter.store.stacks import StoredStacks
from tachograph_exporter.times import format_duration, rfc3339
from tachograph_exporter.views.schemas.stacks import (
    Answer,
    ExecutionStacks,
    SeenStack,
    SpeedscopeFile,
    SpeedscopeFrame,
    SpeedscopeProfile,
    SpeedscopeShared,
    StacksNow,
    StacksProfile,
    StepStacks,
    TopFrame,
)

MAX_TOP: Final = 10
"""Innermost functions that are named."""
_FRAME: Final = re.compile(r"(?P<name>.*) \((?P<file>[^()]*):(?P<line>\d+)\)", re.DOTALL)


class Request(NamedTuple):
    """That the processes of an execution were asked. ``has_open_steps``: a step of it runs."""

    id: str
    is_answered: bool
    has_open_steps: bool


def is_open(connection: Connection, workspace: str, execution_id: str) -> bool:
    """Whether an execution of a workspace (an id) runs, so that its processes can be asked.

    Raises `ExecutionNotFound` and `ArchiveError`.
    """
    row = executions.execution(connection, workspace, execution_id)
    if row is None:
        row = find_run(connection, workspace, execution_id).execution
    return row.finished_ns is None and row.started_ns is not None


def answers_of(connection: Connection, execution_id: str, request: str) -> tuple[int, int]:
    """(how many of the steps that run were told of, how many run), since a request. Ids of requests are in order."""
    told = {(row.step_id, row.attempt) for row in stacks.told_of(connection, execution_id) if row.request >= request}
    running = {(step.step_id, step.attempt) for step in stacks.open_steps(connection, execution_id)}
    return len(told & running), len(running)


def read_stacks(
    connection: Connection,
    workspace: str,
    execution_id: str,
    names: Collection[str],
    request: Request | None,
    now_ns: int,
) -> ExecutionStacks:
    """The stacks of an execution, of the steps with these names or ids if any are given.

    Raises `ExecutionNotFound` and `ArchiveError`.
    """
    row = executions.execution(connection, workspace, execution_id)
    if row is None:
        row = find_run(connection, workspace, execution_id).execution
        return _answer(row, [], "not_asked", "the run is archived, and stacks of archived runs are not kept")
    steps = stacks.stacked_steps(connection, execution_id)
    chosen = {i for i, step in steps.items() if not names or i in names or step.name in names}
    by_attempt: dict[tuple[str, int], list[StoredStacks]] = {}
    for stored in stacks.stacks_of(connection, execution_id, chosen):
        by_attempt.setdefault((stored.step_id, stored.attempt), []).append(stored)
    items = [_step(steps[step_id], attempt, of_one, request) for (step_id, attempt), of_one in by_attempt.items()]
    items.sort(key=lambda item: (item.status != "running", item.step_name, item.step_id, item.attempt))
    answer, message = _said(row, request, now_ns)
    return _answer(row, items, answer, message)


def _answer(row: Row[Any], items: list[StepStacks], answer: Answer, message: str | None) -> ExecutionStacks:
    return ExecutionStacks(
        execution_id=row.execution_id,
        workflow_name=row.workflow,
        status=row.status,
        answer=answer,
        message=message,
        last_seen_at=rfc3339(row.last_seen_ns) if row.last_seen_ns else None,
        items=items,
    )


def _said(row: Row[Any], request: Request | None, now_ns: int) -> tuple[Answer, str | None]:
    if request is None:
        return "not_asked", None
    if request.is_answered:
        return "answered", None
    if not request.has_open_steps:
        return "no_answer", "no step of the run is running now"
    ago = format_duration(max(0, now_ns - row.last_seen_ns))
    if row.process is None:
        return "no_answer", (
            f"the run is known from what arrived of it, {ago} ago the last time: only processes that record steps of "
            "Python code can tell their stacks"
        )
    return "no_answer", (
        f"its process has not answered; it last gave a sign of life {ago} ago. Commands, steps that wait for a worker, "
        "and processes that C code holds up cannot tell their stacks"
    )


def _step(step: Row[Any], attempt: int, of_one: Sequence[StoredStacks], request: Request | None) -> StepStacks:
    by_kind = {stored.kind: stored for stored in of_one}
    now, profile = by_kind.get(StacksKind.NOW), by_kind.get(StacksKind.PROFILE)
    is_current = step.attempt == attempt
    return StepStacks(
        step_id=step.step_id,
        step_name=step.name,
        status=step.status if is_current else "retrying",
        attempt=attempt,
        now=_now(now, request) if now is not None else None,
        profile=_profile(profile) if profile is not None else None,
    )


def _now(stored: StoredStacks, request: Request | None) -> StacksNow:
    is_new = request is not None and stored.request >= request.id
    return StacksNow(taken_at=rfc3339(stored.time_ns), is_new=is_new, stacks=_seen(stored))


def _profile(stored: StoredStacks) -> StacksProfile:
    interval = stored.interval_ns / NS
    return StacksProfile(
        since=rfc3339(stored.started_ns),
        until=rfc3339(stored.time_ns),
        interval_seconds=interval,
        seconds=sum(folded.count for folded in stored.stacks) * interval,
        sample_count=stored.samples,
        dropped_count=stored.dropped,
        cut_count=stored.cut,
        top=top_functions(stored),
        stacks=_seen(stored),
    )


def _seen(stored: StoredStacks) -> list[SeenStack]:
    return [SeenStack(frames=folded.stack.split(SEPARATOR), count=folded.count) for folded in stored.stacks]


def function_of(frame: str) -> str:
    """The function of a frame, without its file and line."""
    match = _FRAME.fullmatch(frame)
    return match["name"] if match is not None else frame


def top_functions(stored: StoredStacks) -> list[TopFrame]:
    """The innermost functions of the attempt's own stacks, those seen most often first.

    Where other threads work for it, and its own only waits for them, they count too.
    """
    counts: Counter[str] = Counter()
    for folded in stored.stacks:
        counts[function_of(folded.stack.rpartition(SEPARATOR)[2])] += folded.count
    total = sum(counts.values())
    return [TopFrame(function=name, share=round(count / total, 4)) for name, count in counts.most_common(MAX_TOP)]


def folded_text(view: ExecutionStacks) -> str:
    """Folded stacks as Brendan Gregg's tools read them: a line each, ``step;frame;…;frame count``."""
    lines = []
    for item in view.items:
        for seen in _exported(item):
            name = _label(item).replace(SEPARATOR, "_")
            lines.append(f"{SEPARATOR.join((name, *seen.frames))} {seen.count}\n")
    return "".join(lines)


def speedscope(view: ExecutionStacks) -> SpeedscopeFile:
    """The stacks in the format of https://www.speedscope.app: a profile an attempt, the heaviest stacks first."""
    indices: dict[str, int] = {}
    profiles: list[SpeedscopeProfile] = []
    for item in view.items:
        seen = _exported(item)
        milliseconds = item.profile.interval_seconds * 1000 if item.profile is not None else 1.0
        weights = [each.count * milliseconds for each in seen]
        profiles.append(
            SpeedscopeProfile(
                name=_label(item),
                unit="milliseconds" if item.profile is not None else "none",
                endValue=sum(weights),
                samples=[[indices.setdefault(frame, len(indices)) for frame in each.frames] for each in seen],
                weights=weights,
            )
        )
    frames = [_speedscope_frame(text) for text in indices]
    return SpeedscopeFile(
        shared=SpeedscopeShared(frames=frames), profiles=profiles, name=f"{view.workflow_name} {view.execution_id}",
        exporter=f"tachograph@{version()}",
    )  # fmt: skip


def _speedscope_frame(text: str) -> SpeedscopeFrame:
    match = _FRAME.fullmatch(text)
    if match is None:
        return SpeedscopeFrame(name=text)
    return SpeedscopeFrame(name=match["name"], file=match["file"], line=int(match["line"][:9]))


def _exported(item: StepStacks) -> Iterable[SeenStack]:
    if item.profile is not None:
        return item.profile.stacks
    return item.now.stacks if item.now is not None else ()


def _label(item: StepStacks) -> str:
    return item.step_name if item.attempt == 1 else f"{item.step_name} (attempt {item.attempt})"
