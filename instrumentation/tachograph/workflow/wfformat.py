"""Real workflow runs as definitions: WfFormat 1.5 (https://github.com/wfcommons/WfFormat).

``workflow.specification.tasks`` says what depends on what (``parents``), ``workflow.execution.tasks`` how long each
task really took (``runtimeInSeconds``). Every task becomes a step that sleeps that long, divided by a speed.
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

    Raises `InvalidWorkflow` when the document is no WfFormat 1.5, or names tasks that are not there.
    """
    try:
        found = msgspec.json.decode(document, type=_Document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        message = f"not a WfFormat 1.5 document: {error}"
        raise InvalidWorkflow([Fault("not_wfformat", "", message)]) from None
    if found.schema_version != "1.5":
        message = f"this is WfFormat {found.schema_version}; version 1.5 is read"
        raise InvalidWorkflow([Fault("wrong_version", "schemaVersion", message)])
    tasks = found.workflow.specification.tasks
    known = {task.id for task in tasks}
    faults = []
    for i, task in enumerate(tasks):
        for j, parent in enumerate(task.parents):
            if parent not in known:
                at = f"workflow.specification.tasks[{i}].parents[{j}]"
                message = f'task "{task.id}" names parent "{parent}", which is no task{did_you_mean(parent, known)}'
                faults.append(Fault("unknown_dependency", at, message))
    if faults:
        raise InvalidWorkflow(faults, name=found.name)
    took = {task.id: max(0.0, task.runtime) for task in found.workflow.execution.tasks}
    steps = tuple(
        Step(
            name=task.id,
            step_order=i + 1,
            depends_on_steps=tuple(dict.fromkeys(task.parents)),
            config={"handler": "sleep", "seconds": took.get(task.id, 0.0) / speed},
            metadata={"task": task.name, "runtime_seconds": took.get(task.id, 0.0)},
        )
        for i, task in enumerate(tasks)
    )
    return Workflow(
        name=found.name.removesuffix(".json")[:200] or "replay",
        description=found.description,
        metadata={"source": "WfFormat 1.5", "speed": speed},
        steps=steps,
    )
