"""Airflow 3: install Tachograph where Airflow is, and name a service in ``TACHOGRAPH_URL``.

The plugin (`tachograph.integrations.airflow_plugin`, found by entry point) hands the calls of Airflow's listener
interface to the functions here. DAG runs are told of by the scheduler, task instances by the processes that run them,
each by itself. Nothing here reads Airflow's database: of an object that is a row, only what is already loaded is read.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from tachograph.quiet_log import QuietLog
from tachograph.recording.setup import get_recorder
from tachograph.report import Run, Step, expect, expect_no_more, run
from tachograph.variables import DATABASE_VARIABLE, URL_VARIABLE

quiet = QuietLog(logging.getLogger(__name__))

SOURCE: Final = "airflow"
LEASE_SECONDS: Final = 86_400.0
"""How long a DAG run may be silent: its tasks may wait, and Airflow itself finds out which of them have died."""
FLUSH_SECONDS: Final = 5.0
MAX_TASKS: Final = 5_000
"""Tasks of a DAG that are told of before they run."""


def is_configured() -> bool:
    """Whether the environment says where to record."""
    return bool(os.environ.get(URL_VARIABLE, "").strip() or os.environ.get(DATABASE_VARIABLE, "").strip())


def _harmless(hook: Callable[..., None]) -> Callable[..., None]:
    def call(*args: Any, **kwargs: Any) -> None:
        try:
            hook(*args, **kwargs)
        except Exception:
            quiet.exception(hook.__name__, "not reported: %s", hook.__name__)

    call.__name__ = hook.__name__
    call.__doc__ = hook.__doc__
    return call


@_harmless
def dag_run_running(dag_run: Any) -> None:
    """A DAG run starts; in the scheduler."""
    reported = _run_of(dag_run, _read(dag_run, "context_carrier"))
    if (queued := _moment(dag_run, "queued_at")) is not None:
        reported.queued(at=queued)
    reported.begin(inputs=_read(dag_run, "conf") or None, at=_moment(dag_run, "start_date"), heartbeats=False)
    dag = _read(dag_run, "dag")
    if dag is not None:
        _plan(reported, dag)
        _take_over(dag)


@_harmless
def dag_run_success(dag_run: Any) -> None:
    """A DAG run ended well; in the scheduler."""
    _ending(dag_run).finished(at=_moment(dag_run, "end_date"))


@_harmless
def dag_run_failed(dag_run: Any, message: str = "") -> None:
    """A DAG run failed; in the scheduler."""
    _ending(dag_run).failed(message or "a task failed", at=_moment(dag_run, "end_date"))


@_harmless
def task_instance_running(task_instance: Any) -> None:
    """A try of a task starts; in its own process."""
    step = _step_of(task_instance)
    step.started(
        attempt=_try_of(task_instance),
        at=_moment(task_instance, "start_date"),
        queued_at=_moment(task_instance, "queued_dttm"),
    )
    # The process does nothing but this try: its log records are the task's.
    step.collect_logs()


@_harmless
def task_instance_success(task_instance: Any) -> None:
    """A task ended well; in its own process, which ends soon."""
    _step_of(task_instance).finished(attempt=_try_of(task_instance), at=_moment(task_instance, "end_date"))
    get_recorder().flush(FLUSH_SECONDS)


@_harmless
def task_instance_failed(task_instance: Any, error: Any = None) -> None:
    """A try of a task failed; in its own process, or, if that died, in the scheduler."""
    step, attempt, at = _step_of(task_instance), _try_of(task_instance), _moment(task_instance, "end_date")
    if step.started_ns is None and (began := _moment(task_instance, "start_date")) is not None:
        # Its own process died, or had no time to tell.
        step.started(attempt=attempt, at=began)
    why = (
        error if isinstance(error, BaseException) else str(error) if error else "it failed, and Airflow says no reason"
    )
    is_timeout = type(error).__name__ == "AirflowTaskTimeout"
    state = _read(task_instance, "state")
    if str(getattr(state, "value", state)) == "up_for_retry":
        delay = getattr(_read(task_instance, "task"), "retry_delay", None)
        seconds = delay.total_seconds() if isinstance(delay, timedelta) else 0.0
        step.retrying(why, seconds, timed_out=is_timeout, attempt=attempt, at=at)
    elif is_timeout:
        step.timed_out(why, attempt=attempt, at=at)
    else:
        step.failed(why, attempt=attempt, at=at)
    get_recorder().flush(FLUSH_SECONDS)


@_harmless
def task_instance_skipped(task_instance: Any) -> None:
    """A task skipped itself; in its own process."""
    step = _step_of(task_instance)
    if step.started_ns is None:
        step.started(attempt=_try_of(task_instance), at=_moment(task_instance, "start_date"))
    step.skipped("itself", at=_moment(task_instance, "end_date"))
    get_recorder().flush(FLUSH_SECONDS)


def _read(row: Any, name: str) -> Any:
    """An attribute. Of a row of Airflow's database only what is already loaded: the scheduler dies of queries here."""
    values = getattr(row, "__dict__", {})
    if "_sa_instance_state" in values:
        return values.get(name)
    return getattr(row, name, None)


def _moment(row: Any, name: str) -> datetime | None:
    value = _read(row, name)
    return value if isinstance(value, datetime) else None


def _run_of(row: Any, carrier: Any) -> Run:
    """The run that a DAG run or a task instance belongs to, in the trace that Airflow made for it."""
    parent = carrier.get("traceparent") if isinstance(carrier, Mapping) else None
    trace_id = parent.split("-")[1] if isinstance(parent, str) and parent.count("-") >= 3 else None
    return run(
        str(_read(row, "dag_id")), run_id=_read(row, "run_id"), engine="airflow", lease=LEASE_SECONDS, trace_id=trace_id
    )


def _ending(dag_run: Any) -> Run:
    reported = _run_of(dag_run, _read(dag_run, "context_carrier"))
    # Another scheduler may have told of the start.
    return reported.begin(at=_moment(dag_run, "start_date"), heartbeats=False)


def _step_of(task_instance: Any) -> Step:
    task = _read(task_instance, "task")
    index = _read(task_instance, "map_index")
    return _run_of(task_instance, _read(task_instance, "context_carrier")).step(
        str(_read(task_instance, "task_id")),
        index=index if type(index) is int and index >= 0 else None,
        depends_on=sorted(getattr(task, "upstream_task_ids", None) or ()),
    )


def _try_of(task_instance: Any) -> int:
    number = _read(task_instance, "try_number")
    return number if type(number) is int and number >= 1 else 1


def _plan(reported: Run, dag: Any) -> None:
    """Tell of the tasks of a DAG: some may never run. Of a mapped one, nobody knows the instances yet."""
    for task in list(getattr(dag, "tasks", ()))[:MAX_TASKS]:
        closest = getattr(task, "get_closest_mapped_task_group", None)
        if getattr(task, "is_mapped", False) or (callable(closest) and closest() is not None):
            continue
        reported.step(task.task_id, depends_on=sorted(task.upstream_task_ids)).planned()


def _take_over(dag: Any) -> None:
    """Take over a DAG's timetable, if it is a cron expression or an interval."""
    dag_id = str(dag.dag_id)
    text, zone = schedule_of(dag)
    if text is None or not expect(dag_id, text, timezone=zone, source=SOURCE):
        expect_no_more(dag_id, source=SOURCE)


def schedule_of(dag: Any) -> tuple[str | None, str]:
    """The schedule of a DAG as an expectation's, or None; and its time zone."""
    timetable = getattr(dag, "timetable", None)
    zone = getattr(timetable, "_timezone", None) or getattr(dag, "timezone", None)
    name = str(getattr(zone, "name", None) or getattr(zone, "key", None) or zone or "UTC")
    if not getattr(timetable, "periodic", False):
        return None, name
    delta = getattr(timetable, "_delta", None)
    if isinstance(delta, timedelta):
        return f"every {delta.total_seconds():g}s", name
    summary = getattr(timetable, "summary", None)
    if isinstance(summary, str) and len(summary.split()) == 5 and "," not in summary.split()[0][-1:]:
        return summary, name
    return None, name
