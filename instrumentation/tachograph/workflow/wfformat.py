"""Recorded workflow runs as definitions: reads WfFormat 1.5 (https://github.com/wfcommons/WfFormat).

``workflow.specification.tasks`` holds the dependencies (``parents``), ``workflow.execution.tasks`` the time each task
took (``runtimeInSeconds``). Every task becomes a step that sleeps for that time, divided by the speed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from tachograph.errors import Fault, InvalidWorkflow
from tachograph.workflow.definition import Step, Workflow
from tachograph.workflow.hints import did_you_mean


class _SpecificationTask(msgspec.Struct):
    id: str
    name: str = ""
    parents: list[str] = []


class _ExecutionTask(msgspec.Struct, rename={"runtime": "runtimeInSeconds"}):
    id: str
    runtime: float = 0.0


class _Specification(msgspec.Struct):
    tasks: list[_SpecificationTask]


class _Execution(msgspec.Struct, frozen=True):
    tasks: list[_ExecutionTask] = []


class _Body(msgspec.Struct):
    specification: _Specification
    execution: _Execution = _Execution()


class _Document(msgspec.Struct, rename={"schema_version": "schemaVersion"}):
    workflow: _Body
    name: str = "replay"
    description: str = ""
    schema_version: str = "1.5"


def is_wfformat(document: Mapping[str, Any]) -> bool:
    """Whether decoded JSON looks like a WfFormat document (of any version)."""
    return isinstance(document.get("workflow"), Mapping) and "schemaVersion" in document


def from_wfformat(document: bytes, *, speed: float = 1.0) -> Workflow:
    """The run as a definition whose steps take the recorded time divided by ``speed``.

    Raises `InvalidWorkflow` if the document is not WfFormat 1.5 or names unknown tasks.
    """
    try:
        recording = msgspec.json.decode(document, type=_Document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        message = f"not a WfFormat 1.5 document: {error}"
        raise InvalidWorkflow([Fault("not_wfformat", "", message)]) from None
    if recording.schema_version != "1.5":
        message = f"this is WfFormat {recording.schema_version}; only version 1.5 is supported"
        raise InvalidWorkflow([Fault("wrong_version", "schemaVersion", message)])
    tasks = recording.workflow.specification.tasks
    task_ids = {task.id for task in tasks}
    faults: list[Fault] = []
    for i, task in enumerate(tasks):
        for j, parent in enumerate(task.parents):
            if parent not in task_ids:
                at = f"workflow.specification.tasks[{i}].parents[{j}]"
                hint = did_you_mean(parent, task_ids, faults)
                message = f'task "{task.id}" names parent "{parent}", which is not a task{hint}'
                faults.append(Fault("unknown_dependency", at, message))
    if faults:
        raise InvalidWorkflow(faults, name=recording.name)
    runtimes = {task.id: max(0.0, task.runtime) for task in recording.workflow.execution.tasks}
    steps = tuple(
        Step(
            name=task.id,
            step_order=i + 1,
            depends_on_steps=tuple(dict.fromkeys(task.parents)),
            config={"handler": "sleep", "seconds": runtimes.get(task.id, 0.0) / speed},
            metadata={"task": task.name, "runtime_seconds": runtimes.get(task.id, 0.0)},
        )
        for i, task in enumerate(tasks)
    )
    return Workflow(
        name=recording.name.removesuffix(".json")[:200] or "replay",
        description=recording.description,
        metadata={"source": "WfFormat 1.5", "speed": speed},
        steps=steps,
    )
