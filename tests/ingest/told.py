"""What listeners have been told, and what they should have been by the timelines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from tachograph.events import Event, ExecutionFinished, ExecutionStarted, StepFinished, StepRetrying, StepStarted

Key: TypeAlias = tuple[str, str]
"""(type of the event, name of the workflow or step)"""


def told(events: Iterable[Event]) -> Counter[Key]:
    """How often each thing was told. What is lost may still end: that is another thing.

    By name: when one of several of a name arrives late, those after it get other numbers than they were told with. An
    end with another outcome corrects the one before.
    """
    keys: Counter[Key] = Counter()
    ends: dict[str, ExecutionFinished] = {}
    for event in events:
        if isinstance(event, ExecutionFinished) and event.status != "lost":
            before = ends.get(event.execution.execution_id)
            ends[event.execution.execution_id] = event
            if before is not None and before.status != event.status:
                continue
        if isinstance(event, ExecutionStarted | ExecutionFinished):
            keys[_kind(event), event.execution.workflow] += 1
        elif isinstance(event, StepStarted | StepRetrying | StepFinished):
            keys[_kind(event), event.step.name] += 1
    return keys


def due(timelines: Iterable[dict[str, Any]]) -> Counter[Key]:
    """What has to be told, once each; of an execution that has not ended, what may be."""
    keys: Counter[Key] = Counter()
    for timeline in timelines:
        name = timeline["workflow_name"]
        keys["ExecutionStarted", name] += 1
        if timeline["completed_at"] is not None:
            keys[_named("ExecutionFinished", timeline), name] += 1
        for entry in timeline["step_timeline"]:
            if entry["skip_reason"] is not None:
                if entry["started_at"] is not None:
                    # It ran, and skipped itself.
                    keys["StepStarted", entry["step_name"]] += 1
                continue
            attempts = entry["attempts"]
            for number, attempt in enumerate(attempts, start=1):
                keys["StepStarted", entry["step_name"]] += 1
                if attempt["completed_at"] is not None:
                    is_last = number == len(attempts) and entry["completed_at"] is not None
                    keys[_named("StepFinished" if is_last else "StepRetrying", attempt), entry["step_name"]] += 1
    return keys


def _kind(event: Event) -> str:
    return type(event).__name__ + (" lost" if getattr(event, "status", "") == "lost" else "")


def _named(kind: str, shown: dict[str, Any]) -> str:
    return kind + (" lost" if shown["status"] == "lost" else "")


def told_wrong(events: Sequence[Event], timelines: Sequence[dict[str, Any]]) -> list[str]:
    """What was told more often than it has happened, or, of executions that have ended, less often."""
    heard, may_be = told(events), due(timelines)
    must_be = due([timeline for timeline in timelines if timeline["completed_at"] is not None])
    return [f"{kind} of {name} was told {heard[kind, name]} times instead of {may_be[kind, name]}"
            for kind, name in heard.keys() | may_be.keys()
            if not must_be[kind, name] <= heard[kind, name] <= may_be[kind, name]]  # fmt: skip
