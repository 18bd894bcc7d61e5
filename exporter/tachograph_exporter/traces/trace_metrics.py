"""Metrics of a TraceQL query: which spans have to be read for it, and how.

Where the query asks something of spans alone, they are read one by one, without their payload if their columns say it
all; otherwise (structure, aggregates) trace by trace. Executions recorded here are always read trace by trace.

With the hint ``sample``, and only then, not all spans are read where they are many: those of some of the traces, chosen
by their ids, stand for all of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from functools import reduce
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Row

from tachograph_exporter.ingest.spans import SpanRecord, stored_record
from tachograph_exporter.store.recorded_search import traces_of_executions
from tachograph_exporter.store.span_criteria import SpanCriteria, Window
from tachograph_exporter.store.span_search import count_between, rootless_traces, spans_between, traces_with_spans
from tachograph_exporter.traces.collectors import Collector, collector
from tachograph_exporter.traces.reading import read_traces
from tachograph_exporter.traces.series import MAX_SERIES, Series, staged
from tachograph_exporter.traces.time_steps import TimeSteps
from tachograph_exporter.traces.traceql.expressions import condition
from tachograph_exporter.traces.traceql.fields import IS_ROOT, Need, TraceView, need_of
from tachograph_exporter.traces.traceql.pipelines import Spanset, stage
from tachograph_exporter.traces.traceql.requirements import of_condition
from tachograph_exporter.traces.traceql.syntax import (
    Binary,
    Compare,
    Expression,
    Field,
    Filter,
    Intrinsic,
    Literal,
    Metrics,
    OverTime,
    Pipeline,
    Query,
    Select,
    Unary,
    expressions_of,
    fields_of,
)


class Answer(NamedTuple):
    """The series of a query. ``is_partial``: there were more than are shown or counted."""

    series: list[Series]
    inspected_spans: int
    is_partial: bool


def compute(
    connection: Connection, workspace_id: str, slug: str, query: Query, steps: TimeSteps, exemplars: int = 0
) -> Answer:
    """The metrics of a query over time."""
    metrics = query.metrics
    assert metrics is not None  # noqa: S101
    taking = collector(metrics.function, steps, exemplars)
    reading = _Reading(connection, workspace_id, slug, query, steps, taking, exemplars)
    alone = spans_alone(query.pipeline, metrics)
    if alone is not None:
        reading.spans(alone, _need_of_metrics(metrics) | need_of(alone))
    else:
        reading.traces()
    made = taking.series()
    if reading.sampled < _ALL and metrics_name(metrics) in _COUNTING:
        made = [_scaled(each, _ALL / reading.sampled) for each in made]
    series = staged(made, metrics.stages)
    is_partial = taking.is_partial or len(series) > MAX_SERIES
    return Answer(series[:MAX_SERIES], reading.inspected, is_partial)


MAX_SAMPLED: Final = 100_000
"""Spans that a query with the hint ``sample=true`` reads, about, if there are more."""
_ALL: Final = 256
_COUNTING: Final = ("rate", "count_over_time", "histogram_over_time", "sum_over_time", "compare")


def metrics_name(metrics: Metrics) -> str:
    """The name of the function."""
    return "compare" if isinstance(metrics.function, Compare) else metrics.function.function


def _scaled(series: Series, factor: float) -> Series:
    return series._replace(values={step: value * factor for step, value in series.values.items()})


def spans_alone(pipeline: Pipeline, metrics: Metrics) -> Expression | None:
    """The condition of a pipeline that asks each span alone, or None if it needs to know other spans of the trace."""
    conditions = []
    for each in pipeline.stages:
        if isinstance(each, Filter):
            conditions.append(_with_root(each.condition))
        elif not isinstance(each, Select):
            return None
    test = reduce(lambda left, right: Binary("&&", left, right), conditions) if conditions else Literal(True)
    needs = need_of(test) | _need_of_metrics(metrics)
    if Need.TREE in needs:
        return None
    # Elsewhere than in a condition that every span has to fulfil, a root of a trace that lacks one is not told.
    asks_root = IS_ROOT in fields_of(test)
    return test if not asks_root or all(each.is_root for each in _criteria(test)) else None


_ROOT_TEST: Final = Binary("<", Intrinsic("nestedSetParent"), Literal(0))


def _with_root(expression: Expression) -> Expression:
    if expression == _ROOT_TEST:
        return IS_ROOT
    if isinstance(expression, Binary):
        return Binary(expression.operator, _with_root(expression.left), _with_root(expression.right))
    return Unary(expression.operator, _with_root(expression.operand)) if isinstance(expression, Unary) else expression


def _criteria(test: Expression) -> tuple[SpanCriteria, ...]:
    """What the database looks for. `IS_ROOT` is a condition by itself."""
    return tuple(of_condition(test))


def _need_of_metrics(metrics: Metrics) -> Need:
    function = metrics.function
    if isinstance(function, Compare):
        return Need.SPAN | Need.SUMMARY | need_of(function.selection.condition)
    need = Need.COLUMNS
    for field in (*function.by, *([function.of] if function.of is not None else [])):
        need |= need_of(field)
    return need


def _fields_of(query: Query) -> set[Field]:
    fields = {field for expression in expressions_of(query.pipeline) for field in fields_of(expression)}
    function = query.metrics.function if query.metrics is not None else None
    if isinstance(function, OverTime):
        fields |= {*function.by, *([function.of] if function.of is not None else [])}
    return fields


class _Reading:
    """Spans on their way from the database to a collector."""

    def __init__(
        self,
        connection: Connection,
        workspace_id: str,
        slug: str,
        query: Query,
        steps: TimeSteps,
        taking: Collector,
        exemplars: int,
    ) -> None:
        self._connection, self._workspace_id, self._slug = connection, workspace_id, slug
        # A step begins after its start; one that is the whole range, at it.
        self._window = Window(steps.start_ns + (not steps.is_instant), steps.end_ns)
        self._steps = steps
        self._evaluate = stage(query.pipeline)
        # Exemplars show the name.
        self._with_name = exemplars > 0 or Intrinsic("name") in _fields_of(query)
        self._add = taking.add
        self._sample = dict(query.hints).get("sample")
        self.inspected = 0
        self.sampled = _ALL
        """Of 256 traces, how many are read."""

    def traces(self) -> None:
        """All spans, trace by trace."""
        found = {place.trace_id: place for place in self._executions()}
        found |= {
            place.trace_id: place for place in traces_with_spans(self._connection, self._workspace_id, self._window)
        }
        self._whole(found)

    def _executions(self) -> Iterator[Any]:
        return traces_of_executions(self._connection, self._workspace_id, self._window)

    def _whole(self, places: Mapping[str, Any]) -> None:
        index = self._steps.index
        for trace in read_traces(self._connection, self._workspace_id, self._slug, places.values()):
            self.inspected += len(trace.spans)
            view = trace.view()
            for spanset in self._evaluate([Spanset(trace.spans)], view):
                for span in spanset.spans:
                    if index(span.start_ns) is not None:
                        self._add(span, view)

    def spans(self, test: Expression, need: Need) -> None:
        """Spans one by one, those of executions recorded here trace by trace."""
        whole = {place.trace_id: place for place in self._executions()}
        criteria = _criteria(test)
        is_root = all(each.is_root for each in criteria)
        self.sampled = self._share(is_root)
        if is_root:
            for place in rootless_traces(self._connection, self._workspace_id, self._window):
                whole[place.trace_id] = place
        is_matching = condition(test)
        for span, view in self._arrived(criteria, need, whole):
            self.inspected += 1
            if is_matching(span, view):
                self._add(span, view)
        if self.sampled < _ALL:
            whole = {trace_id: place for trace_id, place in whole.items() if int(trace_id[-2:], 16) < self.sampled}
        self._whole(whole)

    def _share(self, is_root: bool) -> int:
        """Of 256 traces, how many to read: all, unless the query has the hint ``sample``."""
        if self._sample is True:
            count = count_between(self._connection, self._workspace_id, self._window, is_root=is_root)
            return _ALL if count <= MAX_SAMPLED else max(1, _ALL * MAX_SAMPLED // count)
        if isinstance(self._sample, float) and 0 < self._sample < 1:
            return max(1, round(_ALL * self._sample))
        return _ALL

    def _arrived(
        self, criteria: tuple[SpanCriteria, ...], need: Need, left_out: Collection[str]
    ) -> Iterator[tuple[SpanRecord, TraceView]]:
        with_payload, with_trace = Need.SPAN in need, Need.SUMMARY in need
        rows = spans_between(
            self._connection, self._workspace_id, criteria, self._window, with_payload=with_payload,
            with_trace=with_trace, with_name=self._with_name,
            sample=f"{self.sampled:02x}" if self.sampled < _ALL else None,
        )  # fmt: skip
        view = TraceView("", "", "", 0)
        resources: dict[str, Mapping[str, Any]] = {}
        for row in rows:
            if left_out and row.trace_id in left_out:
                continue
            if with_trace:
                duration_ns = row.trace_end_ns - row.trace_start_ns
                view = TraceView(row.trace_id, row.root_name, row.root_service, duration_ns)
            if with_payload:
                yield stored_record(row.payload, row.resource, row.resource_id), view
            else:
                yield _from_columns(row, resources), view


def _from_columns(row: Row[Any], resources: dict[str, Mapping[str, Any]]) -> SpanRecord:
    columns: Any = row
    trace_id, span_id, parent, name, service, start_ns, end_ns, kind, status, payload, *_ = columns
    if status is None:
        whole = stored_record(payload, b"", "")
        kind, status = whole.kind, whole.status_code
    attributes = resources.get(service)
    if attributes is None:
        attributes = resources[service] = {"service.name": service}
    return SpanRecord(
        trace_id, span_id, parent, name, kind, start_ns, end_ns, service, "", "", b"", b"", {}, status, "", (), None,
        attributes,
    )  # fmt: skip
