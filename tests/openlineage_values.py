"""OpenLineage events as values, with the fields and facets that their producers give them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

START: Final = datetime(2026, 11, 25, 4, tzinfo=UTC)
AIRFLOW: Final = "https://github.com/apache/airflow/tree/providers-openlineage/2.20.3"
SPEC: Final = "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent"


def run_id(name: str) -> str:
    """A run id that is the same for the same name."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, name))


def job_run(run: str, job: str, namespace: str = "ns") -> dict[str, Any]:
    return {"run": {"runId": run_id(run)}, "job": {"namespace": namespace, "name": job}}


def event(
    kind: str,
    seconds: float,
    run: str,
    job: str,
    *,
    parent: tuple[str, str] | None = None,
    root: tuple[str, str] | None = None,
    job_type: tuple[str, str] | None = None,
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
    facets: dict[str, Any] | None = None,
    job_facets: dict[str, Any] | None = None,
    namespace: str = "ns",
) -> dict[str, Any]:
    """A run event. ``parent`` and ``root`` are (run, job), ``job_type`` is (integration, job type)."""
    run_facets, own_job_facets = dict(facets or {}), dict(job_facets or {})
    if parent is not None:
        run_facets["parent"] = job_run(*parent, namespace) | ({"root": job_run(*root, namespace)} if root else {})
    if job_type is not None:
        integration, kind_of_job = job_type
        own_job_facets["jobType"] = {"integration": integration, "jobType": kind_of_job, "processingType": "BATCH"}
    return {
        "eventType": kind,
        "eventTime": (START + timedelta(seconds=seconds)).isoformat(),
        "run": {"runId": run_id(run), "facets": run_facets},
        "job": {"namespace": namespace, "name": job, "facets": own_job_facets},
        "inputs": [{"namespace": "db", "name": name} for name in inputs],
        "outputs": [{"namespace": "db", "name": name} for name in outputs],
        "producer": "https://example.com/producer",
        "schemaURL": SPEC,
    }


def airflow_task(
    kind: str,
    seconds: float,
    task: str,
    *,
    try_number: int = 1,
    map_index: int = -1,
    mapped: bool = False,
    retries: int = 0,
    upstream: Sequence[str] = (),
    group: str = "",
    error: str = "",
    dag: str = "sales",
) -> dict[str, Any]:
    """A task's event as Airflow's provider sends it: names of other tasks are the text of a Python list."""
    facets: dict[str, Any] = {
        "airflow": {
            "_producer": AIRFLOW,
            "dag": {"dag_id": dag},
            "dagRun": {"dag_id": dag, "run_id": "manual__1", "start_date": START.isoformat()},
            "task": {"task_id": task, "mapped": mapped, "retries": retries, "upstream_task_ids": str(list(upstream)),
                     "downstream_task_ids": "[]"} | ({"task_group": {"group_id": group}} if group else {}),
            "taskInstance": {"try_number": try_number} | ({"map_index": map_index} if map_index >= 0 else {}),
        }
    }  # fmt: skip
    if error:
        stack = f"Traceback (most recent call last):\nValueError: {error}\n"
        facets["errorMessage"] = {"message": error, "programmingLanguage": "python", "stackTrace": stack}
    name = f"{dag}.{task}.{try_number}.{map_index}"
    return event(kind, seconds, name, f"{dag}.{task}", parent=(dag, dag), root=(dag, dag), facets=facets,
                 job_type=("AIRFLOW", "TASK"))  # fmt: skip


def airflow_dag(
    kind: str,
    seconds: float,
    *,
    tasks: Mapping[str, Sequence[str]] | None = None,
    groups: dict[str, str] | None = None,
    states: dict[str, str | None] | None = None,
    durations: dict[str, float] | None = None,
    dag: str = "sales",
) -> dict[str, Any]:
    """A DAG run's event as Airflow's provider sends it. ``tasks``: the tasks after each one."""
    facets: dict[str, Any] = {
        "airflowDagRun": {"dag": {"dag_id": dag}, "dagRun": {"dag_id": dag, "run_id": "manual__1"}}
    }
    job_facets: dict[str, Any] = {}
    if tasks is not None:
        details = {
            name: {"downstream_task_ids": list(after), "task_group": (groups or {}).get(name)}
            for name, after in tasks.items()
        }
        job_facets["airflow"] = {"taskTree": {}, "taskGroups": {}, "tasks": details}
    if states is not None:
        word = "success" if kind == "COMPLETE" else "failed"
        facets["airflowState"] = {"dagRunState": word, "tasksState": states, "tasksDuration": durations or {}}
        if kind == "FAIL":
            facets["errorMessage"] = {"message": "task_failure", "programmingLanguage": "python"}
    return event(kind, seconds, dag, dag, facets=facets, job_facets=job_facets, job_type=("AIRFLOW", "DAG"))


def encoded(value: Any) -> bytes:
    return json.dumps(value).encode()
