"""Recorded workflow runs as definitions: reads WfFormat 1.3 to 1.6 (https://github.com/wfcommons/WfFormat).

Since 1.5, ``workflow.specification.tasks`` holds the dependencies and ``workflow.execution.tasks`` the time each task
took (``runtimeInSeconds``). Before, ``workflow.tasks`` held both (1.3 calls the time ``runtime``), and a task named its
parents by their names. A dependency may be told by either end, ``parents`` or ``children``. Every task becomes a step
that sleeps for its time, divided by the speed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from tachograph.errors import Fault, InvalidWorkflow
from tachograph.workflow.definition import Step, Workflow
from tachograph.workflow.hints import did_you_mean

_T = TypeVar("_T")
VERSIONS: Final = ("1.3", "1.4", "1.5", "1.6")
_FLAT: Final = ("1.3", "1.4")
"""Versions with one list of tasks."""


class _SpecificationTask(msgspec.Struct):
    id: str
    name: str = ""
    parents: list[str] | None = None
    children: list[str] | None = None


class _ExecutionTask(msgspec.Struct, rename={"runtime": "runtimeInSeconds"}):
    id: str
    runtime: float | None = None


class _Specification(msgspec.Struct):
    tasks: list[_SpecificationTask]


class _Execution(msgspec.Struct, frozen=True):
    tasks: list[_ExecutionTask] = []


class _Body(msgspec.Struct):
    specification: _Specification
    execution: _Execution | None = None


class _FlatTask(msgspec.Struct, rename={"runtime_in_seconds": "runtimeInSeconds"}):
    name: str
    id: str = ""
    parents: list[str] | None = None
    children: list[str] | None = None
    runtime: float | None = None
    runtime_in_seconds: float | None = None


class _FlatBody(msgspec.Struct):
    tasks: list[_FlatTask]


class _Version(msgspec.Struct, rename={"schema_version": "schemaVersion"}):
    schema_version: str = "1.5"


class _Recording(msgspec.Struct):
    workflow: msgspec.Raw
    name: str = "replay"
    description: str | None = ""


class _Task(NamedTuple):
    """A task of any version. ``key``: its id, or in older versions its name."""

    key: str
    name: str
    other_name: str
    parents: Sequence[str]
    children: Sequence[str]
    seconds: float


def is_wfformat(document: Mapping[str, Any]) -> bool:
    """Whether decoded JSON looks like a WfFormat document (of any version)."""
    return isinstance(document.get("workflow"), Mapping) and "schemaVersion" in document


def from_wfformat(document: bytes, *, speed: float = 1.0) -> Workflow:
    """The run as a definition whose steps take the recorded time divided by ``speed``.

    Raises `InvalidWorkflow` if the document is not WfFormat of one of `VERSIONS`, or names unknown tasks.
    """
    version = _decode(document, _Version, "WfFormat").schema_version
    if version not in VERSIONS:
        message = f"this is WfFormat {version}; versions {', '.join(VERSIONS[:-1])} and {VERSIONS[-1]} are supported"
        raise InvalidWorkflow([Fault("wrong_version", "schemaVersion", message)])
    recording = _decode(document, _Recording, f"WfFormat {version}")
    if version in _FLAT:
        place, tasks = "workflow.tasks", _flat_tasks(_decode(recording.workflow, _FlatBody, f"WfFormat {version}"))
    else:
        place, tasks = "workflow.specification.tasks", _tasks(_decode(recording.workflow, _Body, f"WfFormat {version}"))
    parents = _dependencies(tasks, place, recording.name)
    steps = tuple(
        Step(
            name=task.key,
            step_order=i + 1,
            depends_on_steps=tuple(parents[i]),
            config={"handler": "sleep", "seconds": task.seconds / speed},
            metadata={"task": task.name, "runtime_seconds": task.seconds},
        )
        for i, task in enumerate(tasks)
    )
    return Workflow(
        name=recording.name.removesuffix(".json")[:200] or "replay",
        description=recording.description or "",
        metadata={"source": f"WfFormat {version}", "speed": speed},
        steps=steps,
    )


def _decode(document: bytes | msgspec.Raw, kind: type[_T], what: str) -> _T:
    try:
        return msgspec.json.decode(document, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidWorkflow([Fault("not_wfformat", "", f"not a {what} document: {error}")]) from None


def _tasks(body: _Body) -> list[_Task]:
    executed = body.execution.tasks if body.execution is not None else []
    seconds = {task.id: max(0.0, task.runtime or 0.0) for task in executed}
    return [
        _Task(task.id, task.name, "", task.parents or (), task.children or (), seconds.get(task.id, 0.0))
        for task in body.specification.tasks
    ]


def _flat_tasks(body: _FlatBody) -> list[_Task]:
    """Tasks are called by their names; by their ids, too, where several have one name."""
    count = Counter(task.name for task in body.tasks)
    tasks = []
    for task in body.tasks:
        seconds = task.runtime_in_seconds if task.runtime_in_seconds is not None else task.runtime
        key = task.name if count[task.name] == 1 or not task.id else f"{task.name}_{task.id}"
        other_name = task.id if task.id != key else ""
        tasks.append(
            _Task(key, task.name, other_name, task.parents or (), task.children or (), max(0.0, seconds or 0.0))
        )
    return tasks


def _dependencies(tasks: Sequence[_Task], place: str, name: str) -> list[dict[str, None]]:
    """The keys of each task's parents, in the order in which the document has them."""
    index = {task.other_name: i for i, task in enumerate(tasks) if task.other_name}
    index |= {task.key: i for i, task in enumerate(tasks)}
    faults: list[Fault] = []

    def find(i: int, other: str, kind: str, j: int) -> int | None:
        if other in index:
            return index[other]
        hint = did_you_mean(other, index.keys(), faults)
        message = f'task "{tasks[i].key}" names {kind} "{other}", which is not a task{hint}'
        field = "parents" if kind == "parent" else "children"
        faults.append(Fault("unknown_dependency", f"{place}[{i}].{field}[{j}]", message))
        return None

    parents: list[dict[str, None]] = [{} for _ in tasks]
    for i, task in enumerate(tasks):
        for j, other in enumerate(task.parents):
            if (before := find(i, other, "parent", j)) is not None:
                parents[i][tasks[before].key] = None
    for i, task in enumerate(tasks):
        for j, other in enumerate(task.children):
            if (after := find(i, other, "child", j)) is not None:
                parents[after][task.key] = None
    if faults:
        raise InvalidWorkflow(faults, name=name)
    return parents
