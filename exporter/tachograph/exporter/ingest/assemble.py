"""The spans of a trace as executions, told in events. A pure function of the spans that are there.

Spans come in any order, twice, in pieces over minutes, or never. So every time some arrive, the trace is put together
anew from all that are kept: the answer depends on what arrived, not on when. What is missing is missing quietly: an
execution whose root has not come yet is running; a step whose parent has not come hangs under its execution.
"""

from __future__ import annotations

import re
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from tachograph.analysis import InferredDependencies, path_of
from tachograph.events import (
    Event,
    ExecutionFinished,
    ExecutionRef,
    ExecutionStarted,
    ExecutionStatus,
    Failure,
    Heartbeat,
    SkipReason,
    StepFinished,
    StepRef,
    StepRetrying,
    StepSkipped,
    StepStarted,
    StepStatus,
    step_id,
    workflow_id,
)
from tachograph.exporter.ingest.mapping import ANY, RULES, Role, Rule, rule_for
from tachograph.exporter.ingest.spans import SpanRecord
from tachograph.exporter.store.recovery import INGESTED
from tachograph.summary import mask_text

_UUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NAMESPACE: Final = uuid.UUID("5b7ac6a1-5c1e-5f8e-8a55-0f6f746c7021")
_NAME_LIMIT: Final = 200
_UNKNOWN: Final = "?"


class Assembled(NamedTuple):
    """One execution. ``root`` is its own span, if it has come; ``of_span``: the events that one span is told by."""

    execution: ExecutionRef
    root: SpanRecord | None
    events: list[Event]
    of_span: dict[str, list[Event]]


class _Step:
    """A step while it is put together: its spans, one for every attempt (or one for all)."""

    def __init__(self, name: str, rule: Rule, span: SpanRecord) -> None:
        self.name = name
        self.rule = rule
        self.spans = [span]
        self.attempts: list[tuple[Rule, SpanRecord]] = []
        self.parent: _Step | None = None
        self.ref: StepRef | None = None

    # What `analysis` asks of a step.
    step_id = ""
    depends_on: tuple[str, ...] = ()
    parent_step_id: str | None = None

    @property
    def started_ns(self) -> int:
        # Where attempts have spans of their own, what comes before the first is waiting.
        own = self.spans if len(self.spans) > 1 or not self.attempts else [span for _, span in self.attempts]
        return min(span.start_ns for span in own)

    @property
    def last(self) -> SpanRecord:
        return max(self.spans, key=lambda span: (span.start_ns, span.span_id))

    @property
    def finished_ns(self) -> int | None:
        return self.last.end_ns or None


def assemble(
    workspace: str,
    spans: Sequence[SpanRecord],
    now_ns: int,
    rules: tuple[Rule, ...] = RULES,
    avoid: frozenset[str] = frozenset(),
) -> list[Assembled]:
    """The executions in one trace. Costs O(spans).

    ``avoid``: ids that other workspaces' executions have; one whose engine gave it such an id gets another.
    """
    found = {span.span_id: span for span in spans}
    matched = {span.span_id: rule_for(span, rules) for span in spans}
    order = sorted(spans, key=lambda span: (span.start_ns, span.span_id))
    roots = {s.span_id: s for s in order if (r := matched[s.span_id]) is not None and r.role is Role.EXECUTION}
    groups: dict[str, list[SpanRecord]] = defaultdict(list)
    heads: dict[str, tuple[SpanRecord | None, Rule]] = {}
    by_run: dict[str, str] = {}
    for span_id, span in roots.items():
        rule = matched[span_id]
        assert rule is not None  # noqa: S101
        heads[span_id] = (span, rule)
        if rule.run_id is not None and (run := rule.run_id(span)) is not None:
            by_run[f"{rule.engine}:{run}"] = span_id
    is_known = bool(roots) or any(_run_of(matched[span.span_id], span) is not None for span in order)
    first_root = next((span for span in order if not span.parent_span_id), None)
    for span in order:
        if span.span_id in roots:
            continue
        rule = matched[span.span_id]
        head = _nearest(span, found, roots.__contains__)
        if head is None and rule is not None and (run := _run_of(rule, span)) is not None:
            # Its execution's own span has not come, but it says which one it is.
            head = by_run.get(f"{rule.engine}:{run}") or f"{rule.engine}:{run}"
            heads.setdefault(head, (None, rule))
        elif head is None and not is_known:
            # Spans of no known kind: those without a parent are executions; who lost its parent belongs to the first.
            top = _top(span, found)
            if top.parent_span_id:
                top = first_root or top
            head = top.span_id if not top.parent_span_id else _UNKNOWN
            heads.setdefault(head, (top if not top.parent_span_id else None, matched[top.span_id] or ANY))
        if head is not None and head != span.span_id:
            groups[head].append(span)
    return [
        _execution(
            workspace,
            "" if key == _UNKNOWN or root is first_root else key,
            root,
            rule,
            groups.get(key, []),
            found,
            matched,
            order[0].trace_id,
            now_ns,
            avoid,
        )
        for key, (root, rule) in heads.items()
    ]


def _run_of(rule: Rule | None, span: SpanRecord) -> Any:
    """The id that an engine gave the execution a span belongs to, if the span says it."""
    return rule.run_id(span) if rule is not None and rule.run_id is not None else None


def _nearest(span: SpanRecord, found: dict[str, SpanRecord], wanted: Callable[[str], bool]) -> str | None:
    """The nearest span above this one that is wanted. A cycle (spans that name each other) ends the search."""
    seen = {span.span_id}
    at = span.parent_span_id
    while at and at not in seen:
        if wanted(at):
            return at
        seen.add(at)
        above = found.get(at)
        at = above.parent_span_id if above is not None else ""
    return None


def _top(span: SpanRecord, found: dict[str, SpanRecord]) -> SpanRecord:
    seen = {span.span_id}
    while (above := found.get(span.parent_span_id)) is not None and above.span_id not in seen:
        seen.add(above.span_id)
        span = above
    return span


def _execution(
    workspace: str,
    key: str,
    root: SpanRecord | None,
    rule: Rule,
    spans: list[SpanRecord],
    found: dict[str, SpanRecord],
    matched: dict[str, Rule | None],
    trace_id: str,
    now_ns: int,
    avoid: frozenset[str],
) -> Assembled:
    name = _name_of(root, rule, spans)
    given = rule.workflow_id(root) if root is not None and rule.workflow_id is not None else None
    of_workflow = given if isinstance(given, str) and _UUID.fullmatch(given) else workflow_id(workspace, name)
    run = rule.run_id(root if root is not None else spans[0]) if rule.run_id is not None else None
    ref = ExecutionRef(
        workspace=workspace,
        workflow=name,
        workflow_id=of_workflow,
        execution_id=_execution_id(workspace, rule, run, trace_id, key, avoid),
        trace_id=trace_id,
        span_id=root.span_id if root is not None else (spans[0].parent_span_id or spans[0].span_id),
        parent_span_id=(root.parent_span_id or None) if root is not None else None,
        version=str((rule.version(root) if root is not None and rule.version is not None else None) or "1")[
            :_NAME_LIMIT
        ],
    )
    steps = _steps(root, spans, found, matched)
    begun = min([root.start_ns] if root is not None else [s.start_ns for s in spans])
    _identify(ref, steps)
    of_span: dict[str, list[Event]] = defaultdict(list)
    started = ExecutionStarted(execution=ref, time_ns=begun, step_count=len(steps), process=INGESTED)
    events: list[Event] = [started]
    counts: dict[StepStatus, int] = defaultdict(int)
    work = 0
    ends = {step.step_id: step.finished_ns for step in steps}
    for step in steps:
        for event in _tell(step, ends, begun):
            events.append(event)
            for span in (*step.spans, *[span for _, span in step.attempts]):
                of_span[span.span_id].append(event)
            if isinstance(event, StepFinished):
                counts[event.status] += 1
                work += event.run_ns if step.parent is None else 0
            elif isinstance(event, StepSkipped):
                counts[StepStatus.SKIPPED] += 1
    if root is not None and root.end_ns:
        status = ExecutionStatus(_execution_word(rule.status(root)))
        finished = ExecutionFinished(
            execution=ref,
            time_ns=root.end_ns,
            status=status,
            started_ns=begun,
            step_count=len(steps),
            completed_step_count=counts[StepStatus.COMPLETED],
            failed_step_count=counts[StepStatus.FAILED] + counts[StepStatus.TIMEOUT],
            skipped_step_count=counts[StepStatus.SKIPPED],
            work_ns=work,
            critical_path=path_of([step for step in steps if step.finished_ns is not None]),
            failure=_failure(root) if status is not ExecutionStatus.COMPLETED else None,
        )
        events.append(finished)
        of_span[root.span_id] += [started, finished]
    else:
        events.append(Heartbeat(execution=ref, time_ns=now_ns))
    return Assembled(ref, root, events, dict(of_span))


def _version(rule: Rule, root: SpanRecord | None) -> str:
    given = rule.version(root) if root is not None and rule.version is not None else None
    return str(given or "1")[:_NAME_LIMIT]


def _name_of(root: SpanRecord | None, rule: Rule, spans: list[SpanRecord]) -> str:
    if root is not None:
        return str(rule.name(root) or root.name or "unnamed")[:_NAME_LIMIT]
    for span in spans:
        for attribute in ("workflow.definition.name", "cicd.pipeline.name", "airflow.dag_id"):
            if attribute in span.attributes:
                return str(span.attributes[attribute])[:_NAME_LIMIT]
    return spans[0].service[:_NAME_LIMIT]


def _execution_id(workspace: str, rule: Rule, run: Any, trace_id: str, key: str, avoid: frozenset[str]) -> str:
    if isinstance(run, str) and _UUID.fullmatch(run) and run not in avoid:
        return run
    # Without an id of its engine's, it is the execution of its trace: also before its root has come.
    own = f"{rule.engine}:{run}" if run is not None else f"{trace_id}:{key}"
    return str(uuid.uuid5(_NAMESPACE, f"{workspace}/{own}"))


def _steps(
    root: SpanRecord | None,
    spans: list[SpanRecord],
    found: dict[str, SpanRecord],
    matched: dict[str, Rule | None],
) -> list[_Step]:
    """The steps among an execution's spans, by when they started."""
    by_span: dict[str, _Step] = {}
    by_key: dict[Any, _Step] = {}
    attempts: list[tuple[Rule, SpanRecord]] = []
    has_steps = any((rule := matched[s.span_id]) is not None and rule.role in (Role.STEP, Role.ATTEMPT) for s in spans)
    top = root.span_id if root is not None else None
    for span in spans:
        rule = matched[span.span_id]
        if rule is not None and rule.role is Role.ATTEMPT:
            attempts.append((rule, span))
            continue
        is_step = rule is not None and rule.role is Role.STEP
        if not is_step and not has_steps and (span.parent_span_id == top or span.parent_span_id not in found):
            # Spans of no known kind: the children of the root are the steps.
            is_step = rule is None
            rule = ANY
        if not is_step or rule is None:
            continue
        name = str(rule.name(span) or span.name or "unnamed")[:_NAME_LIMIT]
        key = rule.key(span) if rule.key is not None else None
        known = by_key.get(key) if key is not None else None
        if known is not None:
            known.spans.append(span)
            by_span[span.span_id] = known
            continue
        step = by_span[span.span_id] = _Step(name, rule, span)
        if key is not None:
            by_key[key] = step
    for rule, span in attempts:
        above = _nearest(span, found, by_span.__contains__)
        if above is not None:
            by_span[above].attempts.append((rule, span))
            continue
        # The step's own span has not come: its attempts stand for it.
        key = (rule.engine, str(rule.name(span) or span.name))
        known = by_key.get(key)
        if known is None:
            known = by_key[key] = _Step(key[1][:_NAME_LIMIT], rule, span)
            by_span[span.span_id] = known
        else:
            known.spans.append(span)
    steps = list(dict.fromkeys(by_span.values()))
    for step in steps:
        above = _nearest(step.spans[0], found, by_span.__contains__)
        step.parent = by_span[above] if above is not None and by_span[above] is not step else None
    steps.sort(key=lambda step: (step.started_ns, step.spans[0].span_id))
    return steps


def _identify(ref: ExecutionRef, steps: list[_Step]) -> None:
    """Give every step its id, and what it depends on: by links between spans, else by the order they ran in."""
    repetitions: dict[str, int] = defaultdict(int)
    by_span = {span.span_id: step for step in steps for span in step.spans}
    for step in steps:
        index = repetitions[step.name]
        repetitions[step.name] += 1
        step.step_id = step_id(ref.workflow_id, step.name, index)
    has_links = any(link in by_span for step in steps for span in step.spans for link in span.links)
    inferred = _inferred(steps) if not has_links else {}
    repetitions.clear()
    spans_of = {step.step_id: step.spans[0].span_id for step in steps}
    for order, step in enumerate(steps):
        if has_links:
            linked = [by_span[link] for span in step.spans for link in span.links if link in by_span]
            depends_on = tuple(dict.fromkeys(other.step_id for other in linked if other is not step))
        else:
            depends_on = inferred.get(step.step_id, ())
        step.depends_on = depends_on
        step.parent_step_id = step.parent.step_id if step.parent is not None else None
        first = min(step.spans, key=lambda span: (span.start_ns, span.span_id))
        step.ref = StepRef(
            execution=ref,
            step_id=step.step_id,
            name=step.name,
            span_id=first.span_id,
            parent_span_id=first.parent_span_id or ref.span_id,
            step_order=order + 1,
            index=repetitions[step.name],
            depends_on=depends_on,
            links=tuple(spans_of[one] for one in depends_on if one in spans_of),
            parent_step_id=step.parent_step_id,
        )
        repetitions[step.name] += 1


def _inferred(steps: list[_Step]) -> dict[str, tuple[str, ...]]:
    moments: list[tuple[int, int, int, _Step]] = []
    for number, step in enumerate(steps):
        if step.parent is None:
            moments.append((step.started_ns, 1, number, step))
            if step.finished_ns is not None:
                # What ends when another starts was there before it; what takes no time ends after it began.
                moments.append((step.finished_ns, 0 if step.finished_ns > step.started_ns else 2, number, step))
    order = InferredDependencies()
    found: dict[str, tuple[str, ...]] = {}
    for at, kind, _, step in sorted(moments, key=lambda moment: moment[:3]):
        if kind == 1:
            found[step.step_id] = order.started(step.step_id, at)
        else:
            order.finished(step.step_id, at)
    return found


def _tell(step: _Step, ends: Mapping[str, int | None], begun: int) -> Iterator[Event]:
    """A step's events."""
    assert step.ref is not None  # noqa: S101
    ref, rule, last = step.ref, step.rule, step.last
    word = rule.status(last)
    parts = [(rule, span) for span in step.spans] if len(step.spans) > 1 else (step.attempts or [(rule, last)])
    parts = sorted(parts, key=lambda part: (part[1].start_ns, part[1].span_id))
    if word == "skipped" and last.end_ns:
        yield StepSkipped(step=ref, time_ns=last.end_ns, reason=SkipReason.CONDITION)
        return
    first = step.started_ns
    before = [end for one in step.depends_on if (end := ends.get(one)) is not None and end <= first]
    origin = step.parent.started_ns if step.parent is not None else begun
    ready = max([origin, *before])
    dependency, queue = max(0, ready - origin), max(0, first - ready)
    number = _number(rule, last, len(parts))
    if len(parts) == 1 and rule.attempt is not None:
        number = max(number, 1)
    run = sum(max(0, (span.end_ns or span.start_ns) - span.start_ns) for _, span in parts)
    for i, (own, span) in enumerate(parts[:-1]):
        if span.end_ns:
            yield StepRetrying(
                step=ref,
                time_ns=span.end_ns,
                attempt=i + 1,
                status=StepStatus.TIMEOUT if own.status(span) == "timeout" else StepStatus.FAILED,
                started_ns=span.start_ns,
                delay_ns=max(0, parts[i + 1][1].start_ns - span.end_ns),
                failure=_failure(span),
                dependency_ns=dependency if i == 0 else 0,
                queue_ns=queue if i == 0 else 0,
                backoff_ns=max(0, span.start_ns - parts[i - 1][1].end_ns) if i else 0,
            )
    newest = parts[-1][1]
    attempt = max(len(parts), number)
    waited = max(0, newest.start_ns - parts[-2][1].end_ns) if len(parts) > 1 and parts[-2][1].end_ns else 0
    if not last.end_ns:
        yield StepStarted(
            step=ref, time_ns=newest.start_ns, attempt=attempt, dependency_ns=dependency,
            queue_ns=queue if attempt == 1 else 0, backoff_ns=waited,
        )  # fmt: skip
        return
    blamed = last if last.is_error or last.exception else newest
    status = StepStatus(word) if word in ("completed", "failed", "cancelled", "timeout") else StepStatus.FAILED
    yield StepFinished(
        step=ref,
        time_ns=last.end_ns,
        status=status,
        attempt=attempt,
        started_ns=first,
        attempt_started_ns=newest.start_ns,
        dependency_ns=dependency,
        queue_ns=queue,
        # What of its time no attempt was running.
        backoff_ns=max(0, last.end_ns - first - run),
        run_ns=min(run, last.end_ns - first),
        last_queue_ns=queue if len(parts) == 1 else 0,
        last_backoff_ns=waited,
        failure=_failure(blamed) if status is not StepStatus.COMPLETED else None,
    )


def _number(rule: Rule, span: SpanRecord, otherwise: int) -> int:
    given = rule.attempt(span) if rule.attempt is not None else None
    try:
        return int(given) - rule.first_attempt + 1 if given is not None else otherwise
    except (TypeError, ValueError):
        return otherwise


def _execution_word(word: str) -> str:
    return word if word in ("completed", "failed", "cancelled", "timeout") else "completed"


def _failure(span: SpanRecord) -> Failure:
    kind, message, stack = span.exception or ("", "", "")
    kind = kind or str(span.attributes.get("error.type") or "Error")
    message = message or span.status_message or "the span says that it failed, not why"
    return Failure(kind[:300], mask_text(message)[:4000], mask_text(stack)[:20_000] if stack else None)
