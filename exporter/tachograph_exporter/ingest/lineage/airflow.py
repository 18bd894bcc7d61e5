"""Airflow's facets: which task, map index and try a run is, what waits for what, and how tasks ended.

Source: apache-airflow-providers-openlineage (``plugins/facets.py``, ``utils/utils.py``). Run facets: ``airflow`` of a
task's run, ``airflowDagRun`` and ``airflowState`` of a DAG's run, ``airflow_mappedTask``; job facet: ``airflow``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

MAX_TASKS: Final = 10_000
"""Tasks that are read of a DAG."""
_MAX_ID: Final = 300
_QUOTED: Final = re.compile(r"'([^'\\]*)'|\"([^\"\\]*)\"")


class AirflowFacts(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What Airflow's facets say of a run.

    Attributes:
        dag_id, run_id: the DAG and Airflow's id of its run.
        task_id, map_index, try_number: the task instance; ``map_index`` is -1 if the task is not mapped.
        is_mapped: the task itself is mapped; false for a task in a mapped group.
        retries: how often Airflow tries the task again.
        upstream: ids of the tasks that it waits for; None: not said.
        group: the task group that it is in.
        downstream: of the DAG, the ids of the tasks that wait for each task; None: not said.
        groups: of the DAG, the group that each task is in, if any.
        run_state: how the DAG run ended.
        states, durations: how each task ended, and how many seconds it ran, one for all instances of a task.
    """

    dag_id: str = ""
    run_id: str = ""
    task_id: str = ""
    map_index: int = -1
    try_number: int = 0
    is_mapped: bool = False
    retries: int = 0
    upstream: tuple[str, ...] | None = None
    group: str = ""
    downstream: dict[str, tuple[str, ...]] | None = None
    groups: dict[str, str] = {}
    run_state: str = ""
    states: dict[str, str] = {}
    durations: dict[str, float] = {}


def airflow_facts(run_facets: Mapping[str, Any], job_facets: Mapping[str, Any]) -> AirflowFacts | None:
    """What Airflow's facets among these say, if there are any."""
    task_run, dag_run = _map(run_facets, "airflow"), _map(run_facets, "airflowDagRun")
    state, dag = _map(run_facets, "airflowState"), _map(job_facets, "airflow")
    if not (task_run or dag_run or state or dag):
        return None
    run = _map(task_run or dag_run, "dagRun")
    task, instance = _map(task_run, "task"), _map(task_run, "taskInstance")
    mapped = _map(run_facets, "airflow_mappedTask")
    map_index = _number(instance.get("map_index"), _number(mapped.get("mapIndex"), -1))
    tasks = {name: value for name, value in list(_map(dag, "tasks").items())[:MAX_TASKS] if isinstance(value, dict)}
    states = list(_map(state, "tasksState").items())[:MAX_TASKS]
    durations = list(_map(state, "tasksDuration").items())[:MAX_TASKS]
    return AirflowFacts(
        dag_id=_id(run.get("dag_id")) or _id(_map(task_run or dag_run, "dag").get("dag_id")),
        run_id=_id(run.get("run_id")),
        task_id=_id(task.get("task_id")),
        map_index=map_index,
        try_number=_number(instance.get("try_number"), 0),
        is_mapped=task.get("mapped") in (True, "True", "true"),
        retries=_number(task.get("retries"), 0),
        upstream=ids(task.get("upstream_task_ids")),
        group=_group(task.get("task_group")),
        downstream={_id(name): ids(value.get("downstream_task_ids")) or () for name, value in tasks.items()}
        if tasks
        else None,
        groups={_id(name): group for name, value in tasks.items() if (group := _group(value.get("task_group")))},
        run_state=_id(state.get("dagRunState")),
        states={_id(name): _id(value) for name, value in states},
        durations={_id(name): float(value) for name, value in durations if _is_duration(value)},
    )


def ids(value: Any) -> tuple[str, ...] | None:
    """A list of task ids, which Airflow sends as a list or as Python's text of one; None if it is neither."""
    if isinstance(value, str):
        return tuple([(single or double)[:_MAX_ID] for single, double in _QUOTED.findall(value)][:MAX_TASKS])
    if isinstance(value, list):
        return tuple([_id(item) for item in value if isinstance(item, str)][:MAX_TASKS])
    return None


def _map(value: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = value.get(name)
    return part if isinstance(part, dict) else {}


def _id(value: Any) -> str:
    return value.replace("\0", "\ufffd")[:_MAX_ID] if isinstance(value, str) else ""


def _group(value: Any) -> str:
    return _id(value.get("group_id")) if isinstance(value, dict) else _id(value)


def _number(value: Any, default: int) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        return default
    return number if -1 <= number < 1 << 31 else default


def _is_duration(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 366 * 86_400
