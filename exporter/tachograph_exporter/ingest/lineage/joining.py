"""One run of which both Airflow's own spans and its OpenLineage events tell: the spans of both, as those of one run.

Lineage knows what waits for what, and the tasks that never ran; Airflow's spans know when a task was queued, and tries
whose events are missing. A pure function of the spans of a trace.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from msgspec.structs import replace

from tachograph_exporter.ingest.lineage import vocabulary as words
from tachograph_exporter.ingest.lineage.keys import airflow_key
from tachograph_exporter.ingest.spans import SpanRecord

_DAG: Final = ("airflow.dag_id", "airflow.dag_run.dag_id")
_RUN: Final = "airflow.dag_run.run_id"
_TASK: Final = "airflow.task_id"


class _Try(NamedTuple):
    step: str
    number: int


class _TaskSpans(NamedTuple):
    """Airflow's spans of a task instance: one for the task, with its newest try, and one for each try."""

    task: list[SpanRecord]
    tries: dict[int, SpanRecord]


def engine_key(span: SpanRecord) -> str | None:
    """The key of the run that a span of Airflow belongs to; None: it is no span of Airflow."""
    attributes = span.attributes
    run_id = attributes.get(_RUN)
    if run_id is None or span.scope == words.SCOPE:
        return None
    dag_id = next((attributes[name] for name in _DAG if name in attributes), None)
    return airflow_key(str(dag_id), str(run_id)) if dag_id is not None else None


def joined(spans: Sequence[SpanRecord]) -> Sequence[SpanRecord]:
    """The spans, with those of Airflow made part of the runs that lineage tells of."""
    if not any(span.scope == words.SCOPE and words.KEY in span.attributes for span in spans):
        return spans
    by_key: dict[str, list[SpanRecord]] = defaultdict(list)
    own: dict[str, list[SpanRecord]] = defaultdict(list)
    rest: list[SpanRecord] = []
    for span in spans:
        if span.scope == words.SCOPE:
            own[str(span.attributes.get(words.KEY, ""))].append(span)
        elif (key := engine_key(span)) is not None:
            by_key[key].append(span)
        else:
            rest.append(span)
    aliases: dict[str, str] = {}
    result: list[SpanRecord] = []
    for key, lineage in own.items():
        theirs = by_key.pop(key, None)
        result += lineage if theirs is None or not key else _join(lineage, theirs, aliases)
    for unmatched in by_key.values():
        rest += unmatched
    if aliases:
        result = [_renamed(span, aliases) for span in result]
    return [*rest, *result]


def _renamed(span: SpanRecord, aliases: Mapping[str, str]) -> SpanRecord:
    return replace(
        span,
        span_id=aliases.get(span.span_id, span.span_id),
        parent_span_id=aliases.get(span.parent_span_id, span.parent_span_id),
        links=tuple([aliases.get(link, link) for link in span.links]),
    )


def _join(lineage: Sequence[SpanRecord], theirs: Iterable[SpanRecord], aliases: dict[str, str]) -> list[SpanRecord]:
    """The spans of one run, from both; adds to ``aliases`` the ids that lineage's spans get from Airflow's."""
    roots = [span for span in lineage if words.STEP not in span.attributes]
    # A DAG's run that was cleared is another run of lineage, with the same id in Airflow.
    newest = max(lineage, key=lambda span: (span.start_ns, span.span_id)).attributes[words.EXECUTION]
    root = next((span for span in roots if span.attributes[words.EXECUTION] == newest), None)
    dag_runs, tasks = _sorted_out(theirs)
    result = {span.span_id: span for span in lineage}
    for span in dag_runs[:1]:
        if root is not None:
            aliases[root.span_id] = span.span_id
            result[root.span_id] = root = replace(root, parent_span_id=span.parent_span_id)
        else:
            root = _execution(span, lineage[0])
            result[root.span_id] = root
    parent_id = root.span_id if root is not None else lineage[0].parent_span_id
    told: dict[_Try, SpanRecord] = {}
    by_step: dict[str, list[SpanRecord]] = defaultdict(list)
    for span in lineage:
        step, number = span.attributes.get(words.STEP), span.attributes.get(words.TRY, 0)
        if isinstance(step, str) and span.attributes[words.EXECUTION] == newest:
            by_step[step].append(span)
            if words.TRY in span.attributes:
                told[_Try(step, number)] = span
    queued = {_Try(step, _number(task)): task.start_ns for step, (of_task, _) in tasks.items() for task in of_task}
    for step, (of_task, tries) in tasks.items():
        known = [span for span in by_step.get(step, ()) if words.TRY in span.attributes]
        for task in of_task if not tries else ():
            tries[_number(task)] = task
        added: list[SpanRecord] = []
        for number, span in sorted(tries.items()):
            lineage_try = told.get(_Try(step, number))
            if lineage_try is None:
                is_last = number == max([*tries, *[s.attributes[words.TRY] for s in known]])
                added.append(
                    _attempt(span, step, number, parent_id, by_step.get(step, lineage), of_task, is_last=is_last)
                )
            else:
                # Spans below Airflow's stay below it.
                aliases[lineage_try.span_id] = span.span_id
        if added and not known:
            # What only the list of states told of has spans after all.
            for untold in by_step.get(step, ()):
                aliases[untold.span_id] = added[0].span_id
                del result[untold.span_id]
        result |= {span.span_id: span for span in added}
    return [
        _with_ready(span, queued) if span.attributes[words.EXECUTION] == newest else span for span in result.values()
    ]


def _sorted_out(spans: Iterable[SpanRecord]) -> tuple[list[SpanRecord], dict[str, _TaskSpans]]:
    """Airflow's spans of DAG runs, and those of task instances by step."""
    dag_runs: list[SpanRecord] = []
    tasks: dict[str, _TaskSpans] = defaultdict(lambda: _TaskSpans([], {}))
    for span in spans:
        task_id = span.attributes.get(_TASK)
        if task_id is None:
            dag_runs.append(span)
            continue
        of_step = tasks[f"{task_id}[{span.attributes.get('airflow.task_instance.map_index', -1)}]"]
        if span.name.startswith("worker."):
            # A deferred task has two spans of one try: it went on.
            other = of_step.tries.get(_number(span))
            of_step.tries[_number(span)] = span if other is None else _merged(other, span)
        else:
            of_step.task.append(span)
    return dag_runs, tasks


def _merged(one: SpanRecord, other: SpanRecord) -> SpanRecord:
    first, last = sorted((one, other), key=lambda span: (span.start_ns, span.span_id))
    return replace(
        last, span_id=first.span_id, start_ns=first.start_ns, end_ns=last.end_ns and max(first.end_ns, last.end_ns)
    )


def _number(span: SpanRecord) -> int:
    try:
        return max(1, int(span.attributes.get("airflow.task_instance.try_number", 1)))
    except (TypeError, ValueError):
        return 1


def _execution(span: SpanRecord, lineage: SpanRecord) -> SpanRecord:
    """Airflow's span of a DAG run, as lineage would have it."""
    state = span.attributes.get("airflow.dag_run.state") or ("failed" if span.is_error else "success")
    attributes = {name: lineage.attributes[name] for name in (words.EXECUTION, words.WORKFLOW, words.KEY)}
    return replace(span, scope=words.SCOPE, attributes={**attributes, words.STATE: state if span.end_ns else None})


def _attempt(
    span: SpanRecord,
    step: str,
    number: int,
    parent_id: str,
    alike: Sequence[SpanRecord],
    of_task: Sequence[SpanRecord],
    *,
    is_last: bool,
) -> SpanRecord:
    """Airflow's span of a try, as lineage would have it; ``alike``: spans of the same step, or any of the run."""
    state = next((s.attributes.get("airflow.task_instance.state") for s in of_task if _number(s) == number), None)
    word = "failed" if span.is_error or not is_last else str(state or "success")
    if word == "skipped" and span not in of_task:
        word = words.SKIPPED_ITSELF
    attributes: dict[str, Any] = {
        words.EXECUTION: alike[0].attributes[words.EXECUTION],
        words.WORKFLOW: alike[0].attributes[words.WORKFLOW],
        words.KEY: alike[0].attributes[words.KEY],
        words.STEP: step,
        words.STEP_NAME: str(span.attributes[_TASK]),
        words.TRY: number,
        words.TRAITS: "",
    }
    if span.end_ns:
        attributes[words.STATE] = word
    index = step[step.rindex("[") + 1 : -1]
    if index.isdigit():
        attributes[words.STEP_INDEX] = int(index)
    same = next((s for s in alike if s.attributes.get(words.STEP) == step), None)
    links: tuple[str, ...] = ()
    if same is not None:
        links, attributes[words.TRAITS] = same.links, same.attributes.get(words.TRAITS, "")
    return replace(span, scope=words.SCOPE, parent_span_id=parent_id, attributes=attributes, links=links)


def _with_ready(span: SpanRecord, queued: Mapping[_Try, int]) -> SpanRecord:
    """The span with the time when it was queued: Airflow's span of a task starts then, and is of its newest try."""
    step, number = span.attributes.get(words.STEP), span.attributes.get(words.TRY)
    ready_ns = queued.get(_Try(step, number)) if isinstance(step, str) and isinstance(number, int) else None
    if ready_ns is None or ready_ns > span.start_ns:
        return span
    return replace(span, attributes={**span.attributes, words.READY: ready_ns})
