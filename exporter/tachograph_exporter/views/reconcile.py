"""Reconciliation: reads one execution as its users do, in every view, and says where the views differ.

All views come from the same events, so they must agree. A difference is a defect, or events that were dropped (and
counted as dropped). Values that no run can have (a step that outlasts its run, work that does not fit into it) are
differences too, though all views may show them alike.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy import Row

from tachograph.clock import NS
from tachograph.events import ExecutionStatus
from tachograph.reported_process import ReportedProcess
from tachograph.spans.attributes import attempt_span_id
from tachograph.spans.ended_spans import EndedSpan
from tachograph_exporter.ingest.spans import SpanRecord
from tachograph_exporter.store.batch import Batch
from tachograph_exporter.store.event_log import LoggedExecution
from tachograph_exporter.store.executions import StoredRun
from tachograph_exporter.store.merging import INGESTED_PROCESS
from tachograph_exporter.store.rollups.checking import CountedRow
from tachograph_exporter.store.schema import EXECUTION_ROWS, STEP_ROWS
from tachograph_exporter.store.steps import StoredStep, by_step, status_counts
from tachograph_exporter.store.totals import decode_folded
from tachograph_exporter.times import rfc3339
from tachograph_exporter.views.executions import execution_summary
from tachograph_exporter.views.impossible import impossible
from tachograph_exporter.views.otlp_spans import ended_spans
from tachograph_exporter.views.rollup_differences import rollup_differences
from tachograph_exporter.views.schemas.executions import WorkflowExecutionResponse
from tachograph_exporter.views.schemas.reconciliation import Difference, Reconciliation
from tachograph_exporter.views.schemas.timeline import WorkflowExecutionTimeline, WorkflowStepTimelineEntry
from tachograph_exporter.views.series_differences import SeriesEvidence, series_differences
from tachograph_exporter.views.timeline import build_timeline

MAX_DIFFERENCES: Final = 1_000
"""Differences that are listed."""
_MAX_TEXT: Final = 200
_OF_ROWS: Final = ("rows", "timeline", "events")
"""Views that show steps as they are stored."""
_EXECUTION_COLUMNS: Final = [str(name) for name in EXECUTION_ROWS.columns]
_STEP_FIELDS: Final = [name for name in StoredStep.__struct_fields__ if name not in ("step_id", "attempt")]
_STEP_COLUMNS: Final = [str(name) for name in STEP_ROWS.columns]


class ExportedSpans(NamedTuple):
    """The spans of an execution that ended, by id, as they were exported. ``is_whole``: from its start on."""

    spans: Mapping[str, EndedSpan]
    is_whole: bool


class Evidence(NamedTuple):
    """Everything that is known of one execution; a text says why something is not.

    Attributes:
        run: its rows.
        workspace: slug of its workspace.
        listed: its row in the list of its workflow's executions.
        counted: the rollup row it is counted in.
        logged: its events in the event log.
        spans: its spans as this process exported them or, if they were ingested, as they arrived.
        series: the series of ``/metrics`` that it is counted in.
    """

    run: StoredRun
    workspace: str
    listed: Row[Any] | str
    counted: CountedRow | str
    logged: LoggedExecution | str
    spans: ExportedSpans | Sequence[SpanRecord] | str
    series: SeriesEvidence | str


Facts = dict[str, Any]
"""Values by field."""


class _View(NamedTuple):
    """What one view shows, by step id ("" for the execution). ``is_whole``: it must have every step that ended."""

    name: str
    facts: Mapping[str, Facts]
    is_whole: bool = True


def reconcile(evidence: Evidence, now_ns: int) -> Reconciliation:
    """Compare the views of a stored execution. Costs O(steps), and the executions of the rollup row it is counted in.

    Where repetitions of a step are folded, the views are compared by their sums.

    While the execution runs, only what has ended is compared.
    """
    comparison = _Comparison(evidence, now_ns)
    differences = comparison.differences()
    return Reconciliation(
        execution_id=evidence.run.execution.execution_id,
        agrees=not differences,
        views=comparison.counts,
        differences=differences[:MAX_DIFFERENCES],
        reasons=comparison.reasons,
        difference_count=len(differences),
    )


class _Comparison:
    def __init__(self, evidence: Evidence, now_ns: int) -> None:
        self.counts: dict[str, int | None] = {}
        self.reasons: dict[str, str] = {}
        self._evidence = evidence
        self._run = evidence.run
        self._execution = evidence.run.execution
        self._is_open = evidence.run.execution.finished_ns is None
        # Engines' spans have the clocks of several machines.
        process = getattr(evidence.run.execution, "process", None)
        self._is_ingested = process == INGESTED_PROCESS
        self._is_reported = ReportedProcess.parse(process or "") is not None
        self._names = {step.step_id: step.name for step in evidence.run.steps}
        # Many repetitions share these rows: what is known of each alone cannot be compared.
        self._folded = {step.step_id: step.name for step in evidence.run.steps if step.folded is not None}
        self._timeline = build_timeline(evidence.run, now_ns=now_ns)
        self._now_ns = now_ns
        self._attempts = by_step(evidence.run.attempts)

    def differences(self) -> list[Difference]:
        """All differences: between views, then within what they show."""
        views = [self._rows(), self._timeline_view(), *self._list(), *self._spans(), *self._events()]
        differences = [
            *self._compare(views),
            *self._rollups(),
            *self._metrics(),
            *impossible(
                self._run,
                has_one_clock=not self._is_ingested,
                is_settled=not (self._is_reported and self._is_open),
            ),
        ]
        for difference in differences:
            difference.step = difference.step or self._names.get(difference.step_id, "")
            difference.values = {name: _bounded(value) for name, value in difference.values.items()}
        return differences

    def _compare(self, views: Sequence[_View]) -> Iterator[Difference]:
        ended = {step.step_id for step in self._run.steps if step.finished_ns is not None}
        ids = {"": None, **dict.fromkeys(self._names)}
        for view in views:
            ids |= dict.fromkeys(view.facts)
        for step_id in ids:
            is_folded = step_id in self._folded
            shown = [view for view in views if view.name in _OF_ROWS or not is_folded]
            by_view = {view.name: view.facts[step_id] for view in shown if step_id in view.facts}
            if step_id and (step_id in ended or not (self._is_open or step_id in self._names)):
                missing = [view.name for view in shown if view.is_whole and step_id not in view.facts]
                if missing:
                    yield Difference(step_id, "presence", {view.name: view.name in by_view for view in shown
                                                           if view.name in by_view or view.is_whole})  # fmt: skip
            yield from _differing(step_id, by_view)

    def _rows(self) -> _View:
        facts: dict[str, Facts] = {"": _execution_facts(self._execution)}
        # Only events say as much as rows.
        columns = _STEP_FIELDS if not isinstance(self._evidence.logged, str) and self._evidence.logged.events else ()
        for step in self._run.steps:
            step_facts = facts[step.step_id] = {
                "name": step.name,
                "status": step.status,
                "attempts": step.attempt,
                "started_ns": step.started_ns,
                "finished_ns": step.finished_ns,
                "run_ns": step.run_ns,
                "span_id": step.span_id,
            }
            for name in columns:
                step_facts[name] = getattr(step, name)
            if columns:
                step_facts["depends_on"] = list(step.depends_on)
            if step.started_ns is not None and step.finished_ns is not None:
                step_facts["duration_ns"] = step.finished_ns - step.started_ns
            if step.error_type is not None:
                step_facts["is_error"] = True
            for row in self._attempts.get(step.step_id, ()):
                step_facts |= _attempt_facts(row.attempt, row.status, row.started_ns, row.finished_ns)
        self.counts["rows"] = status_counts(self._run.steps).total()
        return _View("rows", facts)

    def _timeline_view(self) -> _View:
        timeline = self._timeline
        facts = {"": self._summary_facts(timeline)}
        if not self._is_open:
            facts[""] |= {"duration_ns": _ns(timeline.total_duration_seconds), "span_id": timeline.span_id}
            if self._execution.status != ExecutionStatus.LOST:
                # A lost execution has no rows for steps it never reached.
                facts[""]["step_count"] = status_counts(self._run.steps).total()
        for entry in timeline.step_timeline:
            facts[entry.step_id] = _entry_facts(entry, has_all_attempts=not (self._is_ingested or self._is_reported))
        self.counts["timeline"] = sum(
            entry.folded.count if entry.folded is not None else 1 for entry in timeline.step_timeline
        )
        return _View("timeline", facts)

    def _summary_facts(self, summary: WorkflowExecutionTimeline | WorkflowExecutionResponse) -> Facts:
        """What a list item and a timeline both say."""
        facts: Facts = {
            "workflow_id": summary.workflow_id,
            "workflow": summary.workflow_name,
            "version": summary.workflow_version,
            "status": summary.status,
            "trace_id": summary.trace_id,
            "error_type": summary.error_type,
            "error_message": summary.error_message,
            "started_at": summary.started_at,
            "completed_at": summary.completed_at,
        }
        if not self._is_open:
            # The row of a running execution does not count its steps yet.
            for name in ("step_count", "completed_step_count", "failed_step_count", "skipped_step_count"):
                facts[name] = getattr(summary, name)
            facts["work_ns"] = _ns(summary.work_seconds)
            facts["critical_path_ns"] = _ns(summary.critical_path_seconds)
        return facts

    def _list(self) -> Iterator[_View]:
        listed = self._evidence.listed
        if isinstance(listed, str):
            self._leave_out("list", listed)
            return
        item = execution_summary(listed, self._now_ns)
        facts = self._summary_facts(item)
        if not self._is_open:
            facts["duration_ns"] = _ns(item.duration_seconds)
        self.counts["list"] = item.step_count
        yield _View("list", {"": facts}, is_whole=False)

    def _spans(self) -> Iterator[_View]:
        spans = self._evidence.spans
        facts = self._span_facts(ended_spans(self._run, self._evidence.workspace))
        self.counts["otlp"] = len(facts) - 1
        yield _View("otlp", facts, is_whole=True)
        if isinstance(spans, str):
            self._leave_out("spans", spans)
        elif isinstance(spans, ExportedSpans):
            ended = {""} if not self._is_open else set()
            ended |= {step.step_id for step in self._run.steps if step.finished_ns is not None}
            facts = {
                key: value
                for key, value in self._span_facts(spans.spans).items()
                if key in ended or (key[:1] == "?" and not self._folded)
            }
            self.counts["spans"] = sum(key in self._names for key in facts)
            if not spans.is_whole and ended - facts.keys():
                self.reasons["spans"] = "in part: another process, or an earlier one, has the others"
            yield _View("spans", facts, spans.is_whole)
        else:
            facts = self._arrived_facts({span.span_id: span for span in spans})
            self.counts["spans"] = len(facts)
            yield _View("spans", facts)

    def _span_facts(self, spans: Mapping[str, EndedSpan]) -> dict[str, Facts]:
        """What the spans of an execution say of it and its steps. Spans of nothing known get ids that begin with ?."""
        owners: dict[str, tuple[str, StoredStep | None, int]] = {self._execution.span_id: ("", None, 0)}
        for stored in self._run.steps:
            owners[stored.span_id] = (stored.step_id, stored, 0)
            if stored.attempt > 1 or stored.step_id in self._attempts:
                for number in range(1, stored.attempt + 1):
                    owners[attempt_span_id(stored.span_id, number)] = (stored.step_id, stored, number)
        facts: defaultdict[str, Facts] = defaultdict(dict)
        for span_id, span in spans.items():
            step_id, step, attempt = owners.get(span_id) or (f"?{span_id}", None, 0)
            if attempt:
                facts[step_id] |= _attempt_facts(attempt, span.status, span.start_ns, span.end_ns or None)
                continue
            has_failed = (step.error_type if step is not None else self._execution.error_type) is not None
            span_facts = facts[step_id]
            if span.status is not None:
                span_facts["status"] = span.status
            if span.end_ns:
                span_facts["finished_ns"] = span.end_ns
            if step is None or step.started_ns is not None:
                span_facts["started_ns"] = span.start_ns
                if span.end_ns:
                    span_facts["duration_ns"] = span.end_ns - span.start_ns
            if has_failed:
                # Handlers may set the status of a step that did not fail.
                span_facts["is_error"] = span.is_error
        return dict(facts)

    def _arrived_facts(self, spans: Mapping[str, SpanRecord]) -> dict[str, Facts]:
        """What the spans of an engine say of the steps that were read from them."""
        facts: dict[str, Facts] = {}
        for step in self._run.steps:
            if (span := spans.get(step.span_id)) is not None:
                facts[step.step_id] = {"span_id": span.span_id}
        return facts

    def _events(self) -> Iterator[_View]:
        logged = self._evidence.logged
        if isinstance(logged, str):
            self._leave_out("events", logged)
            return
        if not logged.events:
            reason = "the event log does not hold it: nobody followed the events, or too long ago"
            self._leave_out("events", logged.reason or reason)
            return
        batch = Batch(logged.events)
        execution_id = self._execution.execution_id
        row = batch.executions.get(execution_id)
        columns = dict(zip(_EXECUTION_COLUMNS, row, strict=True)) if row is not None else {}
        is_from_start = columns.get("started_ns") is not None and columns.get("process") is not None
        is_to_end = self._is_open or columns.get("finished_ns") is not None
        if not (logged.is_whole and is_from_start and is_to_end):
            self._leave_out("events", "the event log holds only a part of it")
            return
        facts: dict[str, Facts] = {"": _only(columns, self._execution)}
        for (_, step_id), values in batch.steps.items():
            step_facts = dict(zip(_STEP_COLUMNS, values, strict=True))
            # The log leaves out when a step became ready.
            for name in ("execution_id", "rank", "ready_ns", "asked_ns", "folded_count"):
                del step_facts[name]
            if step_facts["folded"] is not None:
                step_facts["folded"] = decode_folded(step_facts["folded"])
            step_facts["attempts"] = step_facts.pop("attempt")
            step_facts["depends_on"] = msgspec.json.decode(step_facts["depends_on"])
            facts[step_id] = step_facts
        for _, step_id, number, status, started, finished, *_ in batch.attempts.values():
            facts.setdefault(step_id, {}).update(_attempt_facts(number, status, started, finished))
        self.counts["events"] = len(facts) - 1
        yield _View("events", facts)

    def _rollups(self) -> Iterator[Difference]:
        counted = self._evidence.counted
        if isinstance(counted, str):
            self._leave_out("rollups", counted)
            return
        self.counts["rollups"] = counted.steps
        on_path = {entry.step_id for entry in self._timeline.step_timeline if entry.on_critical_path}
        for step_id in sorted(on_path ^ counted.critical_path):
            yield Difference(
                step_id,
                "on_critical_path",
                {"timeline": step_id in on_path, "rollups": step_id in counted.critical_path},
            )
        yield from rollup_differences(counted)

    def _metrics(self) -> Iterator[Difference]:
        series = self._evidence.series
        if isinstance(series, str):
            self._leave_out("metrics", series)
            return
        checked = series.checked
        self.counts["metrics"] = checked.steps
        if self._is_open:
            self.reasons["metrics"] = "it counts when it ends"
        elif checked.reason:
            self.reasons["metrics"] = checked.reason
        elif isinstance(series.shown, str):
            self.reasons["metrics"] = series.shown
        ids = defaultdict(list)
        for step in self._run.steps:
            ids[step.name].append(step.step_id)
        yield from series_differences(series, ids)

    def _leave_out(self, view: str, reason: str) -> None:
        self.counts[view] = None
        self.reasons[view] = reason


def _differing(step_id: str, by_view: Mapping[str, Facts]) -> Iterator[Difference]:
    fields = dict.fromkeys(field for facts in by_view.values() for field in facts)
    for field in fields:
        values = {name: facts[field] for name, facts in by_view.items() if field in facts}
        if len(values) > 1 and not _are_equal(list(values.values()), is_from_seconds=field in _FROM_SECONDS):
            yield Difference(step_id, field, values)


_FROM_SECONDS: Final = frozenset({"duration_ns", "run_ns", "work_ns", "critical_path_ns"})
"""Durations that some views show in seconds: those of several days lose their last digit."""


def _are_equal(values: Sequence[Any], *, is_from_seconds: bool) -> bool:
    first = values[0]
    for value in values[1:]:
        if value == first:
            continue
        is_rounded = is_from_seconds and isinstance(value, int) and isinstance(first, int)
        if not (is_rounded and abs(value - first) <= max(value, first) >> 50):
            return False
    return True


def _execution_facts(execution: Row[Any]) -> Facts:
    facts = {name: getattr(execution, name) for name in _EXECUTION_COLUMNS if hasattr(execution, name)}
    started, finished = execution.started_ns, execution.finished_ns
    facts["started_at"] = rfc3339(started) if started is not None else None
    facts["completed_at"] = rfc3339(finished) if finished is not None else None
    if started is not None and finished is not None:
        facts["duration_ns"] = finished - started
    if execution.error_type is not None:
        facts["is_error"] = True
    return facts


def _only(columns: Facts, execution: Row[Any]) -> Facts:
    """The columns that a reader of the execution's row sees. Heartbeats are not logged; storing gives it a number."""
    left_out = ("last_seen_ns", "number")
    return {name: value for name, value in columns.items() if name not in left_out and hasattr(execution, name)}


def _entry_facts(entry: WorkflowStepTimelineEntry, *, has_all_attempts: bool) -> Facts:
    facts: Facts = {"status": entry.status, "name": entry.step_name}
    if entry.attempts:
        # The spans of an engine's earlier attempts may never have arrived, or nobody told how those ended.
        numbers = [attempt.attempt for attempt in entry.attempts]
        facts["attempts"] = len(numbers) if has_all_attempts or len(set(numbers)) < len(numbers) else max(numbers)
    if entry.duration_seconds is not None:
        facts["duration_ns"] = _ns(entry.duration_seconds)
        facts["run_ns"] = _ns(entry.run_seconds)
    return facts


def _attempt_facts(number: int, status: str | None, started_ns: int, finished_ns: int | None) -> Facts:
    facts: Facts = {f"attempts[{number}].started_ns": started_ns}
    if status is not None and finished_ns is not None:
        facts[f"attempts[{number}].status"] = status
    if finished_ns is not None:
        facts[f"attempts[{number}].finished_ns"] = finished_ns
    return facts


def _ns(value: float | None) -> int | None:
    return None if value is None else round(value * NS)


def _bounded(value: Any) -> Any:
    return value[: _MAX_TEXT - 1] + "…" if isinstance(value, str) and len(value) > _MAX_TEXT else value
