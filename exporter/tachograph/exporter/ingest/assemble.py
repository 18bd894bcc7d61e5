"""The spans of a trace as executions, told in events. A pure function of the spans that are there.

Spans come in any order, twice, in pieces over minutes, or never. So every time some arrive, the trace is put together
anew from all that are kept: the answer depends on what arrived, not on when. What is missing is missing quietly: an
execution whose root has not come yet is running; a step whose parent has not come hangs under its execution.
"""

from __future__ import annotations

import operator
import re
import uuid
from collections import defaultdict
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
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
    StepReady,
    StepRef,
    StepRetrying,
    StepSkipped,
    StepStarted,
    StepStatus,
    step_id,
    workflow_id,
)
from tachograph.exporter.ingest.mapping import ANY, BUILT_IN, Role, Rule, Rulebook
from tachograph.exporter.ingest.spans import SpanRecord, clean
from tachograph.exporter.store.recovery import INGESTED
from tachograph.summary import mask_text

_UUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NAMESPACE: Final = uuid.UUID("5b7ac6a1-5c1e-5f8e-8a55-0f6f746c7021")
_NAME_LIMIT: Final = 200
_UNKNOWN: Final = "?"
_OUTCOMES: Final = frozenset({"completed", "failed", "cancelled", "timeout"})


class Assembled(NamedTuple):
    """One execution.

    ``root`` is its own span, if it has come. ``is_named``: what it is an execution of is known, not guessed.
    ``sources``: for each event what it is told by, the same in every reading: a span's id, or a key that several share.
    ``spans``: those that are of it, its own not among them. ``settles``: a step may have several spans, or outlast the
    span above it, so that only when nothing more comes it is sure how a step ended.
    """

    execution: ExecutionRef
    root: SpanRecord | None
    events: list[Event]
    sources: list[Any]
    is_named: bool
    spans: Sequence[SpanRecord]
    settles: bool

    @property
    def is_finished(self) -> bool:
        """Whether it has ended, as far as is known."""
        return type(self.events[-1]) is ExecutionFinished

    def keyed(self) -> Iterator[tuple[EventKey, Event]]:
        """Its events as a run here would have told them, each with a key by which another reading has it too."""
        for event, source in zip(self.events, self.sources, strict=True):
            if isinstance(event, StepRetrying | StepFinished):
                # Spans tell of an attempt when it has ended.
                yield (StepStarted, source, event.attempt), start_of(event)
            yield (type(event), source, getattr(event, "attempt", 0)), event


EventKey = tuple[type[Event], Any, int]


def start_of(event: StepRetrying | StepFinished) -> StepStarted:
    """The start of the attempt whose end this is."""
    is_first = event.attempt == 1
    if isinstance(event, StepRetrying):
        started, queue, backoff = event.started_ns, event.queue_ns, event.backoff_ns
    else:
        started, queue, backoff = event.attempt_started_ns, event.last_queue_ns, event.last_backoff_ns
    return StepStarted(
        step=event.step,
        time_ns=started,
        attempt=event.attempt,
        dependency_ns=event.dependency_ns if is_first else 0,
        queue_ns=queue,
        backoff_ns=backoff,
    )


class _Step:
    """A step while it is put together: its spans, one for every attempt (or one for all).

    A step that was asked for and has not begun has the span that asked for it, and ``is_pending``.
    """

    __slots__ = (
        "after", "attempts", "depends_on", "finished_ns", "is_asked_again", "is_pending", "last", "name", "parent",
        "parent_step_id", "ready_ns", "ref", "rule", "source", "spans", "started_ns", "step_id",
    )  # fmt: skip

    def __init__(self, name: str, rule: Rule, span: SpanRecord, key: Any = None, *, is_pending: bool = False) -> None:
        self.name = name
        self.rule = rule
        self.source = span.span_id if key is None else key
        self.spans = [span]
        self.attempts: list[tuple[Rule, SpanRecord]] = []
        self.is_pending = is_pending
        # It has run, and was asked for once more since.
        self.is_asked_again = False
        self.parent: _Step | None = None
        self.ref: StepRef | None = None
        self.last = span
        # When it was asked for, where a span says that, and the step it comes after, where that is the span above it.
        self.ready_ns: int | None = None
        self.after: _Step | None = None
        # What `analysis` asks of a step.
        self.step_id = ""
        self.depends_on: tuple[str, ...] = ()
        self.parent_step_id: str | None = None
        self.started_ns: int | None = None
        self.finished_ns: int | None = None

    @property
    def first_ns(self) -> int:
        """When it started, or was asked for."""
        return self.started_ns if self.started_ns is not None else self.last.start_ns

    def settle(self) -> None:
        """All its spans are there: when did it start and end?"""
        spans = self.spans
        self.last = spans[0] if len(spans) == 1 else max(spans, key=_when)
        if self.is_pending:
            return
        # Where attempts have spans of their own, what comes before the first is waiting.
        own = spans if len(spans) > 1 or not self.attempts else [span for _, span in self.attempts]
        self.started_ns = min([span.start_ns for span in own])
        self.finished_ns = None if self.is_asked_again else self.last.end_ns or None


def _when(span: SpanRecord) -> tuple[int, str]:
    return (span.start_ns, span.span_id)


class _Trace:
    """The spans of a trace with what they are."""

    def __init__(self, spans: Sequence[SpanRecord], book: Rulebook) -> None:
        self.found = {span.span_id: span for span in spans}
        self.rules = {span.span_id: book.find(span) for span in self.found.values()}
        self.order = sorted(self.found.values(), key=_when)
        self.trace_id = self.order[0].trace_id

    def role(self, span_id: str) -> Role | None:
        """What a span is, if that is known."""
        rule = self.rules.get(span_id)
        return rule.role if rule is not None else None


class _Above:
    """For each span the nearest one above it that is wanted. Every span is walked over once, however deep they lie."""

    def __init__(self, found: Mapping[str, SpanRecord], wanted: Container[str]) -> None:
        self._found = found
        self._wanted = wanted
        self._known: dict[str, str | None] = {}

    def __call__(self, span_id: str) -> str | None:
        known, path, at = self._known, [], span_id
        while True:
            if at in known:
                answer = known[at]
                break
            # Who comes back here goes in a circle.
            known[at] = None
            path.append(at)
            span = self._found.get(at)
            parent = span.parent_span_id if span is not None else ""
            if not parent or parent in self._wanted:
                answer = parent or None
                break
            at = parent
        for one in path:
            known[one] = answer
        return answer


def assemble(
    workspace: str,
    spans: Sequence[SpanRecord],
    now_ns: int,
    book: Rulebook = BUILT_IN,
    avoid: frozenset[str] = frozenset(),
    *,
    is_quiet: bool = False,
) -> list[Assembled]:
    """The executions in one trace. Costs O(spans).

    ``avoid``: ids that other workspaces' executions have; one whose engine gave it such an id gets another.
    ``is_quiet``: nothing has come for so long that an execution without a span of its own has ended with its last step.
    """
    trace = _Trace(spans, book)
    heads, groups = _heads(trace)
    return [
        _execution(workspace, trace, key, *head, groups.get(key, []), now_ns, avoid, is_quiet)
        for key, head in heads.items()
    ]


def _heads(
    trace: _Trace,
) -> tuple[dict[str, tuple[str, SpanRecord | None, Rule]], dict[str, list[SpanRecord]]]:
    """The executions by the span (or run) they begin with: what their id is made of, their own span and its rule.

    And the other spans of each.
    """
    rules, order = trace.rules, trace.order
    roots = {s.span_id: s for s in order if (r := rules[s.span_id]) is not None and r.role is Role.EXECUTION}
    groups: dict[str, list[SpanRecord]] = defaultdict(list)
    heads: dict[str, tuple[str, SpanRecord | None, Rule]] = {}
    by_run: dict[str, str] = {}
    first_root = next((span for span in order if not span.parent_span_id), None)
    for span_id, span in roots.items():
        rule = rules[span_id]
        assert rule is not None  # noqa: S101
        heads[span_id] = ("" if span is first_root else span_id, span, rule)
        if (run := _run_of(rule, span)) is not None:
            by_run[f"{rule.engine}:{run}"] = span_id
    is_known = bool(roots) or any(_belongs(rules[span.span_id], span) for span in order)
    above, top = _Above(trace.found, roots), _tops(trace)
    for span in order:
        if span.span_id in roots:
            continue
        rule = rules[span.span_id]
        head: str | None
        if rule is not None and (run := _run_of(rule, span)) is not None:
            # It says which execution it is of, be that one's own span above it, elsewhere or still to come.
            head = by_run.get(f"{rule.engine}:{run}") or f"{rule.engine}:{run}"
            heads.setdefault(head, (head, None, rule))
        elif roots and (head := above(span.span_id)) is not None:
            pass
        elif not is_known:
            # Spans of no known kind: those without a parent are executions; who lost its parent belongs to the first.
            highest = top(span)
            if highest.parent_span_id:
                highest = first_root or highest
            is_root = not highest.parent_span_id
            head = highest.span_id if is_root else _UNKNOWN
            key = "" if not is_root or highest is first_root else head
            heads.setdefault(head, (key, highest if is_root else None, rules[highest.span_id] or ANY))
        else:
            head = None
        if head is not None and (head != span.span_id or (rule is not None and rule.role is Role.STEP)):
            groups[head].append(span)
    return heads, groups


def _belongs(rule: Rule | None, span: SpanRecord) -> bool:
    """Whether a span is part of an execution that another span is the root of, come or not."""
    return rule is not None and (rule.role in (Role.INSIDE, Role.END) or _run_of(rule, span) is not None)


def _run_of(rule: Rule | None, span: SpanRecord) -> Any:
    """The id that an engine gave the execution a span belongs to, if the span says it."""
    return rule.run_id(span) if rule is not None and rule.run_id is not None else None


def _tops(trace: _Trace) -> Callable[[SpanRecord], SpanRecord]:
    """For each span the highest one above it that is there, or itself."""
    found, known = trace.found, dict[str, SpanRecord]()

    def top(span: SpanRecord) -> SpanRecord:
        path, at = [], span
        while at.span_id not in known:
            known[at.span_id] = at
            path.append(at.span_id)
            at = found.get(at.parent_span_id, at)
        answer = known[at.span_id]
        for one in path:
            known[one] = answer
        return answer

    return top


def _execution(
    workspace: str,
    trace: _Trace,
    head: str,
    key: str,
    root: SpanRecord | None,
    rule: Rule,
    spans: list[SpanRecord],
    now_ns: int,
    avoid: frozenset[str],
    is_quiet: bool,
) -> Assembled:
    name, is_named = _name_of(root, rule, spans)
    given = rule.workflow_id(root) if root is not None and rule.workflow_id is not None else None
    of_workflow = given if isinstance(given, str) and _UUID.fullmatch(given) else workflow_id(workspace, name)
    run = _run_of(rule, root if root is not None else spans[0])
    ref = ExecutionRef(
        workspace=workspace,
        workflow=name,
        workflow_id=of_workflow,
        execution_id=_execution_id(workspace, rule, run, trace.trace_id, key, avoid),
        trace_id=trace.trace_id,
        span_id=root.span_id if root is not None else (spans[0].parent_span_id or spans[0].span_id),
        parent_span_id=(root.parent_span_id or None) if root is not None else None,
        version=_version(rule, root),
    )
    steps = _steps(root, spans, trace)
    begun = root.start_ns if root is not None else min([span.start_ns for span in spans])
    _identify(ref, steps)
    ended = next((span for span in spans if trace.role(span.span_id) is Role.END), None)
    end, status, blamed = _end(root, rule, steps, (ended, trace.rules[ended.span_id]) if ended else None, is_quiet)
    events: list[Event] = [ExecutionStarted(execution=ref, time_ns=begun, step_count=len(steps), process=INGESTED)]
    sources: list[Any] = [ref.execution_id]
    counts: dict[StepStatus, int] = defaultdict(int)
    work = 0
    ends = {step.step_id: step.finished_ns for step in steps}
    for step in steps:
        if end is None and step.rule.retries and step.finished_ns is not None and _failed(step):
            # It may be tried again for as long as the execution runs.
            step.is_asked_again, step.finished_ns, ends[step.step_id] = True, None, None
        for event in _tell(step, ends, begun):
            events.append(event)
            sources.append(step.source)
            if type(event) is StepFinished:
                counts[event.status] += 1
                work += event.run_ns if step.parent is None else 0
            elif type(event) is StepSkipped:
                counts[StepStatus.SKIPPED] += 1
    failed = counts[StepStatus.FAILED] + counts[StepStatus.TIMEOUT]
    if end is not None and failed and status is ExecutionStatus.COMPLETED and _is_lasting(rule, steps):
        # Nobody above these steps waited for them, so nobody above says that one failed.
        status, blamed = ExecutionStatus.FAILED, next(s for s in steps if _failed(s)).last
    if end is not None:
        events.append(
            ExecutionFinished(
                execution=ref,
                time_ns=end,
                status=status,
                started_ns=begun,
                step_count=len(steps),
                completed_step_count=counts[StepStatus.COMPLETED],
                failed_step_count=failed,
                skipped_step_count=counts[StepStatus.SKIPPED],
                work_ns=work,
                critical_path=path_of([step for step in steps if step.finished_ns is not None]),
                failure=_failure(blamed, rule) if status is not ExecutionStatus.COMPLETED and blamed else None,
            )
        )
    else:
        events.append(Heartbeat(execution=ref, time_ns=now_ns))
    sources.append(ref.execution_id)
    settles = rule.opens or rule.lasting or any(_may_grow(step) for step in steps)
    return Assembled(ref, root, events, sources, is_named, spans, settles)


def _may_grow(step: _Step) -> bool:
    rule = step.rule
    return bool(step.attempts) or rule.key is not None or rule.lasting or rule.retries or rule.role is Role.ATTEMPT


def _is_lasting(rule: Rule, steps: Sequence[_Step]) -> bool:
    return rule.lasting or any(step.rule.lasting for step in steps)


def _failed(step: _Step) -> bool:
    return step.finished_ns is not None and step.rule.status(step.last) in ("failed", "timeout")


def _end(
    root: SpanRecord | None,
    rule: Rule,
    steps: Sequence[_Step],
    ended: tuple[SpanRecord, Rule | None] | None,
    is_quiet: bool,
) -> tuple[int | None, ExecutionStatus, SpanRecord | None]:
    """When an execution ended (None: it has not), how, and the span that says why. ``ended``: the span of role END."""
    if root is None or (rule.opens and root.end_ns <= root.start_ns):
        if ended is not None:
            span, says = ended
            return span.end_ns or span.start_ns, ExecutionStatus(_outcome(says or rule, span)), span
        if root is not None:
            return None, ExecutionStatus.RUNNING, None
    is_lasting = _is_lasting(rule, steps)
    if root is None:
        if not (is_lasting and is_quiet and steps) or any(step.finished_ns is None for step in steps):
            return None, ExecutionStatus.RUNNING, None
        return max(step.finished_ns or 0 for step in steps), ExecutionStatus.COMPLETED, None
    end = root.end_ns
    if not end or (is_lasting and any(step.finished_ns is None for step in steps)):
        return None, ExecutionStatus.RUNNING, None
    if is_lasting:
        end = max([end, *[step.finished_ns or 0 for step in steps]])
        if rule.role in (Role.STEP, Role.QUEUED):
            # It is a step, or asked for one, and that says how it went.
            return end, ExecutionStatus.COMPLETED, None
    return end, ExecutionStatus(_outcome(rule, root)), root


def _outcome(rule: Rule, span: SpanRecord) -> str:
    word = rule.status(span)
    return word if word in _OUTCOMES else "completed"


def _version(rule: Rule, root: SpanRecord | None) -> str:
    given = rule.version(root) if root is not None and rule.version is not None else None
    return clean(str(given or "1"))[:_NAME_LIMIT]


def _name_of(root: SpanRecord | None, rule: Rule, spans: list[SpanRecord]) -> tuple[str, bool]:
    """An execution's name, and whether something says that it is its name."""
    if root is not None:
        return clean(str(rule.name(root) or root.name or "unnamed"))[:_NAME_LIMIT], True
    if rule.workflow is not None and (named := rule.workflow(spans[0])) is not None:
        return clean(str(named))[:_NAME_LIMIT], True
    for span in spans:
        for attribute in ("workflow.definition.name", "cicd.pipeline.name"):
            if attribute in span.attributes:
                return clean(str(span.attributes[attribute]))[:_NAME_LIMIT], False
    return spans[0].service[:_NAME_LIMIT], False


def _execution_id(workspace: str, rule: Rule, run: Any, trace_id: str, key: str, avoid: frozenset[str]) -> str:
    if isinstance(run, str) and _UUID.fullmatch(run) and run not in avoid:
        return run
    # Without an id of its engine's, it is the execution of its trace: also before its root has come.
    own = f"{trace_id}:{rule.engine}:{run}" if run is not None else f"{trace_id}:{key}"
    return str(uuid.uuid5(_NAMESPACE, f"{workspace}/{own}"))


def _steps(root: SpanRecord | None, spans: list[SpanRecord], trace: _Trace) -> list[_Step]:
    """The steps among an execution's spans, by when they started."""
    found, rules = trace.found, trace.rules
    by_span: dict[str, _Step] = {}
    by_key: dict[Any, _Step] = {}
    attempts: list[tuple[Rule, SpanRecord]] = []
    queued = [span for span in spans if trace.role(span.span_id) is Role.QUEUED]
    if root is not None and trace.role(root.span_id) is Role.QUEUED:
        queued.insert(0, root)
    has_steps = bool(queued) or any(trace.role(span.span_id) in (Role.STEP, Role.ATTEMPT) for span in spans)
    top = root.span_id if root is not None else None
    for span in spans:
        rule = rules[span.span_id]
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
        key = rule.key(span) if rule.key is not None else None
        known = by_key.get((rule.engine, key)) if key is not None else None
        if known is not None:
            known.spans.append(span)
            by_span[span.span_id] = known
            continue
        step = by_span[span.span_id] = _Step(_step_name(rule, span), rule, span, key)
        if key is not None:
            by_key[rule.engine, key] = step
    above = _Above(found, by_span)
    orphans: list[tuple[Rule, SpanRecord]] = []
    for rule, span in attempts:
        owner = above(span.span_id)
        if owner is not None:
            by_span[owner].attempts.append((rule, span))
        else:
            orphans.append((rule, span))
    for rule, span in orphans:
        # The step's own span has not come: its attempts stand for it.
        name = _step_name(rule, span)
        known = by_key.get((rule.engine, "attempts of", name))
        if known is None:
            known = by_key[rule.engine, "attempts of", name] = _Step(name, rule, span, name)
        else:
            known.spans.append(span)
        by_span[span.span_id] = known
    _add_pending(queued, spans, trace, by_span, by_key)
    steps = list({id(step): step for step in by_span.values()}.values())
    above = _Above(found, by_span)
    for step in steps:
        step.settle()
        first = min(step.spans, key=_when)
        asked = step.spans[0] if step.is_pending else found.get(first.parent_span_id)
        is_asked = asked is not None and trace.role(asked.span_id) is Role.QUEUED
        around = by_span.get(above(asked.span_id if asked is not None and is_asked else first.span_id) or "")
        if around is step:
            around = None
        if asked is not None and is_asked:
            # It comes after the step that asked for it, not inside it: who asks does not wait.
            step.ready_ns, step.after = asked.start_ns, around
        elif step.rule.follows and around is not None and around.rule.follows:
            step.after = around
        else:
            step.parent = around
    _without_circles(steps)
    steps.sort(key=lambda step: (step.first_ns, step.spans[0].span_id))
    return steps


def _step_name(rule: Rule, span: SpanRecord) -> str:
    return clean(str(rule.name(span) or span.name or "unnamed"))[:_NAME_LIMIT]


def _add_pending(
    queued: Sequence[SpanRecord],
    spans: Sequence[SpanRecord],
    trace: _Trace,
    by_span: dict[str, _Step],
    by_key: dict[Any, _Step],
) -> None:
    """Steps that were asked for and have not begun, or not begun again."""
    taken = {span.parent_span_id for span in spans if trace.role(span.span_id) is Role.STEP}
    for span in queued:
        rule = trace.rules[span.span_id]
        if span.span_id in taken or rule is None:
            continue
        key = rule.key(span) if rule.key is not None else None
        known = by_key.get((rule.engine, key)) if key is not None else None
        if known is None:
            step = by_span[span.span_id] = _Step(_step_name(rule, span), rule, span, key, is_pending=True)
            if key is not None:
                by_key[rule.engine, key] = step
        else:
            known.is_asked_again = True


def _without_circles(steps: Sequence[_Step]) -> None:
    """No step is inside one that is inside it, whatever spans say."""
    safe: set[int] = set()
    for step in steps:
        path: list[_Step] = []
        on_path: set[int] = set()
        at: _Step | None = step
        while at is not None and id(at) not in safe:
            if id(at) in on_path:
                at.parent = None
                break
            path.append(at)
            on_path.add(id(at))
            at = at.parent
        safe.update(on_path)


def _identify(ref: ExecutionRef, steps: list[_Step]) -> None:
    """Give every step its id, and what it depends on: by links and who asked for it, else by the order they ran in."""
    repetitions: dict[str, int] = defaultdict(int)
    by_span = {span.span_id: step for step in steps for span in step.spans if not step.is_pending}
    for step in steps:
        index = repetitions[step.name]
        repetitions[step.name] += 1
        step.step_id = step_id(ref.workflow_id, step.name, index)
    has_links = any(step.after is not None for step in steps) or any(
        link in by_span for step in steps for span in step.spans for link in span.links
    )
    inferred = _inferred(steps) if not has_links else {}
    repetitions.clear()
    spans_of = {step.step_id: step.spans[0].span_id for step in steps}
    for order, step in enumerate(steps):
        if has_links:
            linked = [by_span[link] for span in step.spans for link in span.links if link in by_span]
            if step.after is not None:
                linked.insert(0, step.after)
            depends_on = tuple(dict.fromkeys(other.step_id for other in linked if other is not step))
        else:
            depends_on = inferred.get(step.step_id, ())
        step.depends_on = depends_on
        step.parent_step_id = step.parent.step_id if step.parent is not None else None
        first = step.spans[0] if len(step.spans) == 1 else min(step.spans, key=_when)
        step.ref = StepRef(
            execution=ref,
            step_id=step.step_id,
            name=step.name,
            span_id=first.span_id,
            parent_span_id=first.parent_span_id or ref.span_id,
            step_order=order + 1,
            index=repetitions[step.name],
            depends_on=depends_on,
            links=tuple([spans_of[one] for one in depends_on if one in spans_of]),
            parent_step_id=step.parent_step_id,
        )
        repetitions[step.name] += 1


def _inferred(steps: list[_Step]) -> dict[str, tuple[str, ...]]:
    moments: list[tuple[int, int, int, _Step]] = []
    for number, step in enumerate(steps):
        if step.parent is None and step.started_ns is not None:
            moments.append((step.started_ns, 1, number, step))
            if step.finished_ns is not None:
                # What ends when another starts was there before it; what takes no time ends after it began.
                moments.append((step.finished_ns, 0 if step.finished_ns > step.started_ns else 2, number, step))
    order = InferredDependencies()
    found: dict[str, tuple[str, ...]] = {}
    moments.sort(key=_MOMENT)
    for at, kind, _, step in moments:
        if kind == 1:
            found[step.step_id] = order.started(step.step_id, at)
        else:
            order.finished(step.step_id, at)
    return found


_MOMENT: Final = operator.itemgetter(0, 1, 2)


def _tell(step: _Step, ends: Mapping[str, int | None], begun: int) -> Iterator[Event]:
    """A step's events."""
    assert step.ref is not None  # noqa: S101
    ref, rule, last = step.ref, step.rule, step.last
    if step.is_pending:
        yield StepReady(step=ref, time_ns=last.start_ns)
        return
    word = rule.status(last)
    parts = [(rule, span) for span in step.spans] if len(step.spans) > 1 else (step.attempts or [(rule, last)])
    if len(parts) > 1:
        parts = sorted(parts, key=lambda part: _when(part[1]))
    if word == "skipped" and last.end_ns:
        yield StepSkipped(step=ref, time_ns=last.end_ns, reason=SkipReason.CONDITION)
        return
    first = step.first_ns
    before = [end for one in step.depends_on if (end := ends.get(one)) is not None and end <= first]
    origin = step.parent.first_ns if step.parent is not None else begun
    # Where it is told when it was asked for, that is when it was ready.
    ready = max([origin, *before]) if step.ready_ns is None else min(max(origin, step.ready_ns), first)
    dependency, queue = max(0, ready - origin), max(0, first - ready)
    number = _number(rule, last, len(parts))
    if len(parts) == 1 and rule.attempt is not None:
        number = max(number, 1)
    run = sum(max(0, (span.end_ns or span.start_ns) - span.start_ns) for _, span in parts)
    for i, (own, span) in enumerate(parts if step.is_asked_again else parts[:-1]):
        if span.end_ns:
            yield StepRetrying(
                step=ref,
                time_ns=span.end_ns,
                attempt=i + 1,
                status=StepStatus.TIMEOUT if own.status(span) == "timeout" else StepStatus.FAILED,
                started_ns=span.start_ns,
                delay_ns=max(0, parts[i + 1][1].start_ns - span.end_ns) if i + 1 < len(parts) else 0,
                failure=_failure(span, own),
                dependency_ns=dependency if i == 0 else 0,
                queue_ns=queue if i == 0 else 0,
                backoff_ns=max(0, span.start_ns - parts[i - 1][1].end_ns) if i else 0,
            )
    if step.is_asked_again:
        return
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
    status = StepStatus(word) if word in _OUTCOMES else StepStatus.FAILED
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
        failure=_failure(blamed, rule) if status is not StepStatus.COMPLETED else None,
    )


def _number(rule: Rule, span: SpanRecord, otherwise: int) -> int:
    given = rule.attempt(span) if rule.attempt is not None else None
    try:
        return int(given) - rule.first_attempt + 1 if given is not None else otherwise
    except (TypeError, ValueError):
        return otherwise


def _failure(span: SpanRecord, rule: Rule) -> Failure:
    kind, message, stack = span.exception or ("", "", "")
    kind = kind or str(span.attributes.get("error.type") or "Error")
    why = rule.why(span) if rule.why is not None else None
    message = message or span.status_message or str(why or "") or "the span says that it failed, not why"
    return Failure(
        clean(kind)[:300], clean(mask_text(message))[:4000], clean(mask_text(stack))[:20_000] if stack else None
    )
