"""What the steps of an execution waited for, and their ids."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final

from tachograph.events import FAILED
from tachograph.identity import ExecutionRef, StepRef, step_id
from tachograph.inferred_dependencies import MAX_DEPENDENCIES, Dependencies, InferredDependencies
from tachograph.spans import semconv
from tachograph_exporter.ingest.assembly.assembled_step import AssembledStep, has_failed
from tachograph_exporter.ingest.assembly.tries import Matched
from tachograph_exporter.ingest.rules import Links
from tachograph_exporter.ingest.spans import clean

TYPE_LIMIT: Final = 16
MAX_INDEX: Final = 1_000_000
"""The greatest index of an engine that is also the number of the repetition here."""
_MAX_FRAMES: Final = 1_000
"""Frames that are looked into for what a step waited for."""
_NONE: Final[Dependencies] = ((), 0)
_MOMENT: Final = operator.itemgetter(0, 1, 2)


def identify(ref: ExecutionRef, steps: list[AssembledStep]) -> None:
    """Set every step's id and dependencies.

    Each step by itself: those that its spans link to or that asked for it; where neither is known, and the engine does
    not link all that wait for each other, those that had ended when it was ready.
    """
    indexes = _set_ids(ref, steps)
    told = _told(steps)
    runs = {step.step_id for step in steps if step.run is not None}
    inferred = _inferred(steps) if runs or any(_is_inferred(step, told) for step in steps) else {}
    span_ids = {step.step_id: step.first.span_id for step in steps}
    for order, step in enumerate(steps):
        depends_on, dependency_count = told.get(step.step_id, ()), 0
        if not depends_on and inferred and _is_inferred(step, told):
            depends_on, dependency_count = inferred.get(step.step_id, ((), 0))
        elif runs and step.run is None and (after := inferred.get(step.step_id)) is not None:
            # Nothing says what waited for a nested execution: the program ran on after it.
            depends_on = tuple(dict.fromkeys((*depends_on, *[other for other in after[0] if other in runs])))
        step.depends_on, step.dependency_count = depends_on, dependency_count
        step.parent_step_id = step.parent.step_id if step.parent is not None else None
        first = step.first
        step.ref = StepRef(
            execution=ref,
            step_id=step.step_id,
            name=step.name,
            span_id=first.span_id,
            parent_span_id=first.parent_span_id or ref.span_id,
            step_type=_step_type(step),
            step_order=order + 1,
            index=indexes[order],
            map_index=step.index,
            depends_on=depends_on,
            dependency_count=dependency_count,
            links=tuple([span_ids[other] for other in depends_on if other in span_ids]),
            parent_step_id=step.parent_step_id,
            child_execution_id=step.child_execution_id,
        )


def mark_blocked(steps: Sequence[AssembledStep]) -> None:
    """Find the steps that wait for one that failed, or will not start itself, and were never released."""
    waiting = [step for step in steps if step.is_pending and step.queued and all(rule.waits for rule, _ in step.queued)]
    if not waiting:
        return
    by_span = _by_span(steps)
    dependents: dict[int, list[AssembledStep]] = defaultdict(list)
    pending = []
    for step in waiting:
        for link in _links_of(step):
            if (other := by_span.get(link)) is not None and other is not step:
                dependents[id(other)].append(step)
                if has_failed(other):
                    pending.append(other)
    while pending:
        for step in dependents[id(pending.pop())]:
            if not step.is_blocked:
                step.is_blocked = True
                pending.append(step)


def _set_ids(ref: ExecutionRef, steps: Sequence[AssembledStep]) -> list[int]:
    """Set the ids; returns what counts repetitions: the engine's index where it is a number, or the order in which they
    were asked for."""
    by_name: dict[str, list[int]] = defaultdict(list)
    for place, step in enumerate(steps):
        by_name[step.name].append(place)
    indexes = [0] * len(steps)
    for name, places in by_name.items():
        if len(places) > 1 or steps[places[0]].index is not None:
            _count(steps, places, indexes)
        for place in places:
            steps[place].step_id = step_id(ref.workflow_id, name, indexes[place])
    return indexes


def _count(steps: Sequence[AssembledStep], places: Sequence[int], indexes: list[int]) -> None:
    taken: set[int] = set()
    rest: list[int] = []
    for place in places:
        index = steps[place].index
        number = int(index) if index is not None and index.isdecimal() and len(index) < len(str(MAX_INDEX)) else -1
        if number < 0 or number in taken:
            rest.append(place)
        else:
            indexes[place] = number
            taken.add(number)
    rest.sort(key=lambda place: (_asked(steps[place]), place))
    following = 0
    for place in rest:
        while following in taken:
            following += 1
        indexes[place] = following
        taken.add(following)


def _asked(step: AssembledStep) -> int:
    return step.first_ns if step.asked_ns is None else min(step.asked_ns, step.first_ns)


def _told(steps: Sequence[AssembledStep]) -> dict[str, tuple[str, ...]]:
    """What steps waited for according to their spans, by the step's id."""
    links = {id(step): found for step in steps if (found := _links_of(step))}
    has_keys = any(step.rule.waits_for is not None or step.rule.releases is not None for step in steps)
    by_key = {step.source: step for step in steps} if has_keys else {}
    if not links and not by_key and all(step.after is None for step in steps):
        return {}
    released = _released_by(steps)
    by_span = _by_span(steps)
    told: dict[str, tuple[str, ...]] = {}
    for step in steps:
        others = [by_span[link] for link in links.get(id(step), ()) if link in by_span]
        if step.after is not None:
            others.insert(0, step.after)
        if by_key and step.rule.waits_for is not None:
            keys = [(rule.engine, key) for rule, span in step.spans if rule.waits_for for key in rule.waits_for(span)]
            others += [by_key[key] for key in keys if key in by_key]
        others += released.get(_known_as(step), ()) if released else ()
        ids = tuple(dict.fromkeys([other.step_id for other in others if other is not step]))
        if ids:
            told[step.step_id] = ids
    return told


def _released_by(steps: Sequence[AssembledStep]) -> dict[Any, list[AssembledStep]]:
    """The steps that say that another one waits for them, by the source of that one."""
    released: dict[Any, list[AssembledStep]] = defaultdict(list)
    for step in steps:
        for rule, span in step.spans if step.rule.releases is not None else ():
            if rule.releases is not None and (key := rule.releases(span)) is not None:
                released[rule.engine, key].append(step)
    return released


def _known_as(step: AssembledStep) -> Any:
    rule = step.rule
    return step.source if rule.known_as is None else (rule.engine, rule.known_as(step.first))


def _by_span(steps: Sequence[AssembledStep]) -> dict[str, AssembledStep]:
    return {span.span_id: step for step in steps for matched in _spans_of(step) for _, span in matched}


def _spans_of(step: AssembledStep) -> tuple[Sequence[Matched], ...]:
    return (step.spans, step.attempts, step.queued)


def _links_of(step: AssembledStep) -> list[str]:
    return [link for matched in _spans_of(step) for _, span in matched if span.links for link in span.links]


def _is_inferred(step: AssembledStep, told: dict[str, tuple[str, ...]]) -> bool:
    if step.step_id in told:
        return False
    links = step.rule.links
    return step.run is not None or links is Links.UNKNOWN or (links is Links.IF_ANY and not told)


def _released(step: AssembledStep) -> bool:
    """Whether others may have waited for its end: what was skipped released nobody."""
    if step.finished_ns is None or not step.tries:
        return step.finished_ns is not None
    status = step.tries[-1].status
    return status != "skipped" and not (step.rule.blocks and status in FAILED)


def _inferred(steps: Sequence[AssembledStep]) -> dict[str, Dependencies]:
    """What had ended when each step was ready.

    Steps inside a step are left out, but for those of agents: they waited for each other.
    """
    moments: list[tuple[int, int, int, AssembledStep]] = []
    for number, step in enumerate(steps):
        times = [time_ns for time_ns in (step.ready_ns, step.started_ns) if time_ns is not None]
        if (step.parent is None or step.rule.of_agent) and times:
            # What a step waited for had ended when it was asked for; after that it waits for a slot.
            began = min(times)
            moments.append((began, 1, number, step))
            if step.finished_ns is not None and _released(step):
                # At the same moment ends come before starts, but a step of zero length ends after its own start.
                moments.append((step.finished_ns, 0 if step.finished_ns > began else 2, number, step))
    orders: dict[str, InferredDependencies] = defaultdict(InferredDependencies)
    inferred: dict[str, Dependencies] = {}
    moments.sort(key=_MOMENT)
    for time_ns, kind, _, step in moments:
        order = orders[step.parent.step_id if step.parent is not None else ""]
        if kind == 1:
            inferred[step.step_id] = order.started(step.step_id, time_ns)
        else:
            order.finished(step.step_id, time_ns)
    _pass_through_frames(steps, inferred, orders)
    return inferred


def _pass_through_frames(
    steps: Sequence[AssembledStep], inferred: dict[str, Dependencies], orders: Mapping[str, InferredDependencies]
) -> None:
    """Let the first steps inside a frame wait for the last ones inside the frame before it."""
    frames = {step.step_id for step in steps if step.rule.is_frame}
    if not frames:
        return

    def last_inside(step_ids: Sequence[str]) -> tuple[str, ...]:
        """The last steps in frames, however deep: as many as are listed of dependencies."""
        pending, last, visited = list(step_ids), list[str](), 0
        while pending and len(last) < MAX_DEPENDENCIES and visited < _MAX_FRAMES:
            step_id = pending.pop()
            visited += 1
            if step_id in frames and step_id in orders:
                pending += [inner for _, inner in orders[step_id].frontier()]
            else:
                last.append(step_id)
        return tuple(reversed(last))

    for step in steps:
        frame = step.parent
        if frame is None or frame.step_id not in frames or step.rule.is_frame or inferred.get(step.step_id, _NONE)[0]:
            continue
        if step.step_id in inferred and (ids := last_inside(inferred.get(frame.step_id, _NONE)[0])):
            inferred[step.step_id] = (ids, 0)


def _step_type(step: AssembledStep) -> str:
    if step.run is not None:
        return "workflow"
    kind = step.rule.step_type or step.first.attributes.get(semconv.STEP_TYPE)
    return clean(kind) if isinstance(kind, str) and 0 < len(kind) <= TYPE_LIMIT else "task"
