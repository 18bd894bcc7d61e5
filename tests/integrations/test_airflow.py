"""What Airflow's listener interface said of a real DAG run, call by call, and each process by itself."""

from __future__ import annotations

import asyncio
import enum
import json
import types
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import Api
from tests.ingest.truth import differences

from tachograph.integrations import airflow as hooks
from tachograph.report import runs

RECORDINGS = Path(__file__).parent / "recordings"
CALLS = [json.loads(line) for line in (RECORDINGS / "airflow3_listener_calls.jsonl").read_text().splitlines()]
QUEUED_AT = "2026-11-25T04:10:50.055234+00:00"
"""The row of a DAG run has it; the recording does not."""


class State(enum.Enum):
    """As Airflow's task SDK has it: no text, and none when it is printed."""

    RUNNING = "running"
    SUCCESS = "success"
    FAILED = "failed"
    SKIPPED = "skipped"
    UP_FOR_RETRY = "up_for_retry"


def moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


class Row:
    """A row as SQLAlchemy loads it: what is not in its ``__dict__`` would be read from the database."""

    def __init__(self, **loaded: Any) -> None:
        self.__dict__.update(loaded, _sa_instance_state=object())

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} is read from Airflow's database")


def dag() -> Any:
    """The DAG as the scheduler has it, from what the calls say of its tasks."""
    upstream: dict[str, set[str]] = {}
    mapped = set()
    for call in CALLS:
        if call["hook"] == "ti":
            upstream.setdefault(call["task"], set()).update(call["up"])
            if call["map"] >= 0:
                mapped.add(call["task"])
            for after in call["down"]:
                upstream.setdefault(after, set()).add(call["task"])
    tasks = [
        types.SimpleNamespace(task_id=name, upstream_task_ids=before, is_mapped=name in mapped)
        for name, before in upstream.items()
    ]
    timetable = types.SimpleNamespace(
        periodic=True, summary="0 3 * * *", _timezone=types.SimpleNamespace(name="Europe/Berlin")
    )
    return types.SimpleNamespace(dag_id="nightly_fail", tasks=tasks, timetable=timetable)


def replay(call: Any, told_dag: Any) -> None:
    if call["hook"] == "dr":
        row = Row(
            dag_id=call["dag"], run_id=call["run"], start_date=moment(call["start"]), end_date=moment(call.get("end")),
            context_carrier=call.get("carrier"), dag=told_dag, queued_at=moment(QUEUED_AT), conf={},
        )  # fmt: skip
        hooks.dag_run_running(row) if call["what"] == "running" else hooks.dag_run_failed(row)
        return
    instance = types.SimpleNamespace(
        dag_id=call["dag"], run_id=call["run"], task_id=call["task"], map_index=call["map"], try_number=call["tr"],
        start_date=moment(call["start"]), queued_dttm=None, state=State(call["state"]),
        context_carrier=call["carrier"],
        # Where Airflow says none, it is the moment of the call, which this test cannot wait for.
        end_date=moment(call["end"]) or datetime.fromtimestamp(call["t"], UTC),
        task=types.SimpleNamespace(upstream_task_ids=set(call["up"]), retry_delay=timedelta(seconds=2)),
    )  # fmt: skip
    if call["what"] == "failed":
        hooks.task_instance_failed(instance, call["err"])
    else:
        getattr(hooks, f"task_instance_{call['what']}")(instance)


@pytest.mark.parametrize("has_dag", [True, False], ids=["with its DAG", "without"])
async def test_a_recorded_run_is_what_airflow_says(
    api: Api, has_dag: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is delivered at once is up to the process; here it is the service's own.
    monkeypatch.setattr(hooks, "FLUSH_SECONDS", 0.0)
    told_dag = dag() if has_dag else None
    kept: dict[int, Any] = {}

    def play() -> None:
        for call in CALLS:
            # Each process knows only what it told itself.
            runs._runs.clear()
            runs._runs.update(kept.get(call["pid"], {}))
            replay(call, told_dag)
            kept[call["pid"]] = dict(runs._runs)
        runs._runs.clear()

    await asyncio.to_thread(play)
    await asyncio.to_thread(api.service.recorder.flush, 60)
    truth = json.loads((RECORDINGS / "airflow3_listener_calls.truth.json").read_text())
    page = await api.get("/api/workflows/executions")
    timelines = [await api.get(f"/api/workflows/executions/{item['execution_id']}/timeline") for item in page["items"]]
    if has_dag:
        # With it, Airflow tells of all tasks.
        truth["unknowable"] = [entry for entry in truth["unknowable"] if entry.get("step") not in ("never", "after")]
    # A task's process knows its start as it sees it itself, not as the scheduler noted it, some seconds before.
    assert differences(truth, timelines, tolerance_seconds=20.0) == []
    (timeline,) = timelines
    assert timeline["trace_id"] == "4d75ea50e40ea5912252ad75b753e81b"
    assert [part["step_name"] for part in timeline["critical_path"]][-1] == "load"
    ended = datetime.fromisoformat(timeline["completed_at"]) - datetime(2026, 11, 25, 4, 11, 24, 929459, tzinfo=UTC)
    assert abs(ended.total_seconds()) < 0.05
    if has_dag:
        info = await api.get("/api/expectations/nightly_fail")
        assert info["said"]["airflow"] == {"schedule": "0 3 * * *", "timezone": "Europe/Berlin"}
    assert not [record for record in caplog.records if "not reported" in record.getMessage()]


async def test_a_task_that_its_trigger_ends_has_ended_well(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """No hook hears of that: it was deferred, and goes on nowhere."""
    monkeypatch.setattr(hooks, "FLUSH_SECONDS", 0.0)
    began = datetime(2026, 11, 25, 4, tzinfo=UTC)

    def at(seconds: float) -> datetime:
        return began + timedelta(seconds=seconds)

    def task(name: str, start: float, end: float | None, *above: str) -> Any:
        return types.SimpleNamespace(
            dag_id="waiting", run_id="1", task_id=name, map_index=-1, try_number=1, state=None, context_carrier=None,
            start_date=at(start), end_date=at(end) if end is not None else None, queued_dttm=None,
            task=types.SimpleNamespace(upstream_task_ids=set(above)),
        )  # fmt: skip

    def play() -> None:
        dag_run = types.SimpleNamespace(dag_id="waiting", run_id="1", start_date=began, end_date=at(9))
        hooks.dag_run_running(dag_run)
        hooks.task_instance_running(task("pause", 1, None))
        runs._runs.clear()
        hooks.task_instance_running(task("load", 6, 8, "pause"))
        hooks.task_instance_success(task("load", 6, 8, "pause"))
        runs._runs.clear()
        hooks.dag_run_success(dag_run)
        runs._runs.clear()

    await asyncio.to_thread(play)
    await asyncio.to_thread(api.service.recorder.flush, 60)
    (item,) = (await api.get("/api/workflows/executions"))["items"]
    path = f"/api/workflows/executions/{item['execution_id']}"
    timeline = await api.get(f"{path}/timeline")
    shown = {step["step_name"]: (step["status"], step["duration_seconds"]) for step in timeline["step_timeline"]}
    assert shown == {"pause": ("completed", 5.0), "load": ("completed", 2.0)}
    assert (await api.get(f"{path}/reconcile"))["differences"] == []


@pytest.mark.parametrize(
    ("timetable", "text"),
    [
        ({"periodic": True, "summary": "*/5 * * * *"}, "*/5 * * * *"),
        ({"periodic": True, "summary": "1 day, 0:00:00", "_delta": timedelta(days=1)}, "every 86400s"),
        ({"periodic": False, "summary": "Never, external triggers only"}, None),
        ({"periodic": True, "summary": "At every harvest of the year"}, None),
        ({}, None),
    ],
)
def test_timetables(timetable: dict[str, Any], text: str | None) -> None:
    dag = types.SimpleNamespace(dag_id="etl", timetable=types.SimpleNamespace(**timetable), timezone="Europe/Berlin")
    assert hooks.schedule_of(dag) == (text, "Europe/Berlin")


@pytest.mark.parametrize("hook", [getattr(hooks, name) for name in dir(hooks) if name.startswith(("dag_", "task_"))])
def test_hooks_never_raise(hook: Callable[[Any], None]) -> None:
    class Hostile:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("no")

    for value in (None, Hostile(), Row(), object()):
        hook(value)
