"""How a workflow changes over time, and which step made one run different."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from aiohttp import web
from sqlalchemy import Connection, Row

from tachograph.events import NS
from tachograph.exporter.api.executions import find_run
from tachograph.exporter.api.request import DATABASE, Query, json_response, workflow_of, workspace_of
from tachograph.exporter.api.routes import Parameter, Route
from tachograph.exporter.changes import Shift, shifts
from tachograph.exporter.comparison import compare_runs, compare_with_usual
from tachograph.exporter.figures import COMPLETED, all_measures, trend_bucket
from tachograph.exporter.schemas import ChangePoint, ExecutionComparison, WorkflowTrends
from tachograph.exporter.store import rollups
from tachograph.exporter.store.queries import StoredRun
from tachograph.exporter.store.tally import StepPack, Tally
from tachograph.exporter.times import human, rfc3339

BUCKETS: Final = {"5m": rollups.FINE, "1h": rollups.HOUR, "1d": rollups.DAY}
USUAL_RANGE: Final = {"5m": 86_400, "1h": 14 * 86_400, "1d": 180 * 86_400}
"""How far back a trend goes when nobody says, in seconds."""
MOST_BUCKETS: Final = 2_500


async def trends(request: web.Request) -> web.Response:
    """``GET /api/workflows/{workflow_id}/trends``: counts, success rate, percentiles and cost, bucket by bucket.

    With the points at which the execution or a step began to take longer or shorter. Only whole buckets: a range is
    widened to them. Five-minute buckets are kept for 7 days before the newest execution's.
    """
    query = Query(request)
    bucket = query.choice("bucket", BUCKETS, "1h")
    from_ns, to_ns, step = query.time("from"), query.time("to"), query.text("step")
    low, high = bucket_range(bucket, from_ns, to_ns if to_ns is not None else query.now_ns)
    count = (high - low) // BUCKETS[bucket]
    if count > MOST_BUCKETS:
        query.fault("from", f"that is {count} buckets of {bucket}; at most {MOST_BUCKETS} are answered")
    query.done()
    workspace = await workspace_of(request)
    workflow = await workflow_of(request, workspace)
    key = (workspace.id, workflow.id)
    found = await request.app[DATABASE].read(
        lambda c: build_trends(c, key, workflow, bucket, low, max(low, high), step)
    )
    return json_response(found)


def bucket_range(bucket: str, from_ns: int | None, to_ns: int) -> tuple[int, int]:
    """A range (unix nanoseconds) widened to whole buckets, in unix seconds; without a start, the usual range."""
    unit = BUCKETS[bucket]
    high = -(-to_ns // (unit * NS)) * unit
    return from_ns // (unit * NS) * unit if from_ns is not None else high - USUAL_RANGE[bucket], high


def build_trends(
    connection: Connection, key: rollups.Key, workflow: Row[Any], bucket: str, low_s: int, high_s: int, step: str | None
) -> WorkflowTrends:
    """A workflow's trend between two borders of buckets (unix seconds); with ``step``, that step's."""
    packs = dict(sorted(rollups.series(connection, key, low_s, high_s, BUCKETS[bucket]).items()))
    if step is None:
        buckets = [
            trend_bucket(start, pack.executions, all_measures(pack.steps.values())) for start, pack in packs.items()
        ]
        changes = list(_changes(None, {start: pack.executions for start, pack in packs.items()}, bucket))
        names = sorted({name for pack in packs.values() for name in pack.steps})
    else:
        of_step = {start: pack.steps[step] for start, pack in packs.items() if step in pack.steps}
        buckets = [trend_bucket(start, found.by_status, found.measures) for start, found in of_step.items()]
        changes, names = [], [step]
    for name in names:
        series = {start: pack.steps.get(name, _NO_STEP).by_status for start, pack in packs.items()}
        changes += _changes(name, series, bucket)
    changes.sort(key=lambda change: change.since)
    return WorkflowTrends(
        workflow_id=workflow.id,
        workflow_name=workflow.name,
        step_name=step,
        bucket=bucket,
        start=rfc3339(low_s * NS),
        end=rfc3339(high_s * NS),
        buckets=buckets,
        change_points=changes,
    )


_NO_STEP: Final = StepPack()


def _changes(step: str | None, series: Mapping[int, Mapping[str, Tally]], bucket: str) -> Iterator[ChangePoint]:
    """Changes of the duration of what completed: a run that failed early is not a faster one."""
    starts, medians, tallies = [], [], []
    for start, by_status in series.items():
        tally = by_status.get(COMPLETED)
        median = tally.histogram().quantile(0.5) if tally is not None else None
        if tally is not None and median:
            starts.append(start)
            medians.append(median)
            tallies.append(tally)
    found = shifts(medians)
    for shift in found:
        yield _change_point(step, shift, starts, is_last=shift is found[-1])


def _change_point(step: str | None, shift: Shift, starts: list[int], *, is_last: bool) -> ChangePoint:
    since = rfc3339(starts[shift.start] * NS)
    until = None if is_last else rfc3339(starts[shift.end] * NS)
    is_slower = shift.ratio > 1
    what = f"Step “{step}” takes" if step is not None else "An execution takes"
    how = f"{shift.ratio:.3g} times as long" if is_slower else f"{100 * (1 - shift.ratio):.0f} % less time"
    sentence = (
        f"{what} {how} since {since}: {human(round(shift.after * NS))} instead of {human(round(shift.before * NS))}."
    )
    if until is not None:
        sentence = sentence.replace(" takes ", " took ").replace(f" since {since}", f" from {since} until {until}")
    return ChangePoint(
        step_name=step,
        since=since,
        until=until,
        direction="slower" if is_slower else "faster",
        before_seconds=shift.before,
        after_seconds=shift.after,
        ratio=shift.ratio,
        sentence=sentence,
    )


async def compare(request: web.Request) -> web.Response:
    """``GET /api/workflows/executions/compare``: which step made a run slower than another, or than usual.

    Either ``a`` and ``b`` (how does b differ from a), or ``execution`` and ``baseline`` (how does it differ from the
    completed executions of its workflow that ended in so long a time before it).
    """
    query = Query(request)
    a, b = query.text("a"), query.text("b")
    execution, baseline_ns = query.text("execution"), query.duration("baseline")
    if execution is None and (a is None or b is None):
        query.fault("execution", "name either `execution` (and how far back with `baseline`), or `a` and `b`")
    elif execution is not None and (a is not None or b is not None):
        query.fault("execution", "goes with `baseline`, not with `a` and `b`")
    query.done()
    workspace = await workspace_of(request)

    def read(connection: Connection) -> ExecutionComparison:
        if execution is None:
            return compare_runs(find_run(connection, workspace.id, str(b)), find_run(connection, workspace.id, str(a)))
        run = find_run(connection, workspace.id, execution)
        return usual_comparison(
            connection, workspace.id, run, baseline_ns if baseline_ns is not None else BASELINE_SECONDS * NS
        )

    return json_response(await request.app[DATABASE].read(read))


def usual_comparison(connection: Connection, workspace: str, run: StoredRun, back_ns: int) -> ExecutionComparison:
    """A run against the completed executions of its workflow that ended in so long a time before it started."""
    row = run.execution
    high = row.started_ns if row.started_ns is not None else row.created_ns
    low = max(high - back_ns, 0)
    return compare_with_usual(run, rollups.read(connection, (workspace, row.workflow_id), low, high), low, high)


BASELINE_SECONDS: Final = 7 * 86_400

ROUTES = (
    Route(method="GET", path="/api/workflows/executions/compare", handler=compare, answer=ExecutionComparison,
          query=(Parameter(name="a", about="The execution to compare with."),
                 Parameter(name="b", about="The execution looked at."),
                 Parameter(name="execution", about="The execution looked at, against its usual."),
                 Parameter(name="baseline", kind="duration", about="How far back its usual goes.", default="7d")),
          codes=("execution_not_found", "archive_unavailable")),
    Route(method="GET", path="/api/workflows/{workflow_id}/trends", handler=trends, answer=WorkflowTrends,
          query=(Parameter(name="bucket", about="How long a bucket is.", choices=tuple(BUCKETS), default="1h"),
                 Parameter(name="from", kind="time", about="From when on. Default: 24 h, 14 d or 180 d ago, by bucket.",
                           example="30d"),
                 Parameter(name="to", kind="time", about="Until when. Default: now."),
                 Parameter(name="step", about="This step instead of the executions."))),
)  # fmt: skip
