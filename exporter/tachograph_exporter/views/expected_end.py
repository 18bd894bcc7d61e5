"""When a running execution is expected to end: from what remains of its critical path, and from what is usual.

What is usual are the completed executions of the last four weeks. What a thing that has been running for a while will
take in all is the median of those that took longer than that: half of them ended by then. Where nothing ever took so
long, nothing is expected.

The steps to come are those of the newest completed execution. Their medians along the dependencies give the length of
the path; it is stretched so that a whole run has the usual duration, because programs do something between steps, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Row, select

from tachograph.clock import NS
from tachograph.events import OPEN_STEP
from tachograph.histogram import ExponentialHistogram
from tachograph_exporter.store.rollups import read
from tachograph_exporter.store.rollups.counting import Key
from tachograph_exporter.store.schema import workflow_executions
from tachograph_exporter.store.steps import StoredStep, steps_of, steps_of_many

USUAL_NS: Final = 28 * 86_400 * NS
"""How far back the executions go that say what is usual."""
MAX_STEPS: Final = 200
"""Executions with more steps are expected to take what is usual as a whole."""
MAX_OPEN: Final = 100
"""Open executions of a page of a list whose end is computed; the others have none."""
_NEWEST: Final = 100
"""A completed execution is looked for among so many."""
_STRETCH: Final = (0.5, 10.0)
_COMPLETED: Final = "completed"


class ExpectedEnd(NamedTuple):
    """When an execution is expected to end (unix ns), and what is usual for its workflow (the median, in seconds).

    Either may be None: nothing is known of it.
    """

    end_ns: int | None = None
    usual_seconds: float | None = None


UNKNOWN: Final = ExpectedEnd()


class Usual(NamedTuple):
    """What is usual for a workflow: durations in seconds, by step too, and the steps of its newest completed run."""

    durations: ExponentialHistogram
    steps: Mapping[str, ExponentialHistogram]
    template: Sequence[StoredStep]


def total_seconds(durations: ExponentialHistogram, elapsed_seconds: float) -> float | None:
    """What something takes in all that has taken so long already: the median of all that took longer; or None."""
    if not durations.count:
        return None
    rank = durations.rank(elapsed_seconds) if elapsed_seconds > 0 else 0.0
    if rank is None or rank >= 1 or elapsed_seconds > durations.max:
        return None
    total = durations.quantile((1 + rank) / 2)
    return None if total is None else max(total, elapsed_seconds)


def expected_end(row: Row[Any], steps: Sequence[StoredStep], usual: Usual, now_ns: int) -> ExpectedEnd:
    """When an execution is expected to end, given its steps so far."""
    median = usual.durations.quantile(0.5) if usual.durations.count else None
    if row.started_ns is None or row.finished_ns is not None:
        return UNKNOWN
    left = _left_on_path(steps, usual, now_ns)
    if left is not None:
        return ExpectedEnd(now_ns + round(left * NS) if left >= 0 else None, median)
    total = total_seconds(usual.durations, (now_ns - row.started_ns) / NS)
    return ExpectedEnd(row.started_ns + round(total * NS) if total is not None else None, median)


def _left_on_path(steps: Sequence[StoredStep], usual: Usual, now_ns: int) -> float | None:
    """Seconds that the rest of the critical path takes; -1: not known; None: the steps do not tell."""
    template = [step for step in usual.template if step.parent_step_id is None and step.started_ns is not None]
    if not template or len(steps) > MAX_STEPS or len(template) > MAX_STEPS:
        return None
    current = {step.step_id: step for step in steps}
    whole, left = {}, {}
    for step in template:
        usually = usual.steps.get(step.name)
        median = usually.quantile(0.5) if usually is not None and usually.count else None
        whole[step.step_id] = median or 0.0
        now = current.get(step.step_id)
        if now is None or now.status == "pending":
            left[step.step_id] = median or 0.0
        elif now.status not in OPEN_STEP:
            left[step.step_id] = 0.0
        else:
            elapsed = max(0, now_ns - (now.started_ns or now_ns)) / NS
            total = total_seconds(usually, elapsed) if usually is not None else None
            if total is None:
                return -1
            left[step.step_id] = total - elapsed
    path, rest = _longest(template, whole), _longest(template, left)
    if not path or not rest:
        return None
    median = usual.durations.quantile(0.5) or path
    return rest * min(max(median / path, _STRETCH[0]), _STRETCH[1])


def _longest(steps: Sequence[StoredStep], seconds: Mapping[str, float]) -> float:
    """The longest way through the dependencies; ``seconds`` by step."""
    ends: dict[str, float] = {}
    # In the order in which they started, dependencies come first.
    for step in sorted(steps, key=lambda step: (step.started_ns or 0, step.step_order)):
        begin = max((ends.get(dependency, 0.0) for dependency in step.depends_on), default=0.0)
        ends[step.step_id] = begin + seconds[step.step_id]
    return max(ends.values(), default=0.0)


def read_usual(connection: Connection, key: Key, now_ns: int) -> Usual:
    """What is usual for a workflow now."""
    template = _template(connection, key)
    low_ns = max(0, now_ns - USUAL_NS)
    # Whole days: these are the fewest rows.
    totals = read.read(connection, key, low_ns - low_ns % (86_400 * NS), steps=bool(template))
    completed = totals.executions.get(_COMPLETED)
    if completed is None:
        return Usual(ExponentialHistogram(), {}, ())
    steps = {
        name: step.by_status[_COMPLETED].histogram()
        for name, step in totals.steps.items()
        if _COMPLETED in step.by_status
    }
    return Usual(completed.histogram(), steps, template)


def _template(connection: Connection, key: Key) -> Sequence[StoredStep]:
    columns = workflow_executions.c
    newest = (
        select(columns.execution_id, columns.status, columns.finished_ns, columns.step_count)
        .where(columns.workspace_id == key[0], columns.workflow_id == key[1], columns.finished_ns.is_not(None))
        .order_by(columns.finished_ns.desc())
        .limit(_NEWEST)
        .subquery()
    )
    statement = (
        select(newest.c.execution_id)
        .where(newest.c.status == _COMPLETED, newest.c.step_count <= MAX_STEPS)
        .order_by(newest.c.finished_ns.desc())
        .limit(1)
    )
    execution_id = connection.execute(statement).scalar()
    return steps_of(connection, execution_id) if execution_id is not None else ()


def read_expected_end(connection: Connection, row: Row[Any], steps: Sequence[StoredStep], now_ns: int) -> ExpectedEnd:
    """When an execution is expected to end; unknown if it has ended."""
    if row.finished_ns is not None or row.started_ns is None:
        return UNKNOWN
    return expected_end(row, steps, read_usual(connection, (row.workspace_id, row.workflow_id), now_ns), now_ns)


def read_large_expected_end(connection: Connection, row: Row[Any], now_ns: int) -> ExpectedEnd:
    """The same of an execution with more than `MAX_STEPS` steps, which tell nothing then."""
    if row.finished_ns is not None or row.started_ns is None:
        return UNKNOWN
    usual = read_usual(connection, (row.workspace_id, row.workflow_id), now_ns)
    return expected_end(row, (), usual._replace(template=()), now_ns)


def read_expected_ends(connection: Connection, rows: Sequence[Row[Any]], now_ns: int) -> dict[str, ExpectedEnd]:
    """`read_expected_end` of the open ones of a list, by id; of the first `MAX_OPEN` of them."""
    running = [row for row in rows if row.finished_ns is None and row.started_ns is not None][:MAX_OPEN]
    if not running:
        return {}
    usual_by_workflow: dict[Key, Usual] = {}
    steps = steps_of_many(connection, [row.execution_id for row in running if row.step_count <= MAX_STEPS])
    ends = {}
    for row in running:
        key = (row.workspace_id, row.workflow_id)
        if key not in usual_by_workflow:
            usual_by_workflow[key] = read_usual(connection, key, now_ns)
        ends[row.execution_id] = expected_end(row, steps.get(row.execution_id, ()), usual_by_workflow[key], now_ns)
    return ends
