"""Workflow definitions, from their rows, and what is wrong with one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import Row

from tachograph.errors import Fault
from tachograph.identity import step_id
from tachograph.workflow.validation import Report
from tachograph_exporter.times import rfc3339
from tachograph_exporter.views.schemas.workflows import (
    DefinitionFault,
    ValidationResult,
    WorkflowDetail,
    WorkflowSummary,
)

MAX_LISTED_BYTES: Final = 4 * 1024 * 1024
"""Size of the definitions in one list; a definition that does not fit is listed without its fields."""
_DEFINITION_DEFAULTS: Final[Mapping[str, Any]] = {
    "timeout_seconds": None,
    "max_retries": 0,
    "config": {},
    "metadata": {},
}


def workflow_list(rows: Sequence[Row[Any]], *, with_definitions: bool) -> list[WorkflowSummary]:
    """Workflows as items of a list."""
    left = MAX_LISTED_BYTES if with_definitions else -1
    items = []
    for row in rows:
        size = len(row.document or "")
        fits = size <= left
        left -= size if fits else 0
        items.append(WorkflowSummary(**_summary_fields(row), **(_definition_fields(row) if fits else {})))
    return items


def workflow_detail(row: Row[Any], warnings: Sequence[Fault] = (), *, with_steps: bool = True) -> WorkflowDetail:
    """A workflow with its definition and the warnings of its validation; each step gets its id."""
    detail = WorkflowDetail(**_summary_fields(row), **_definition_fields(row), warnings=list(warnings))
    if not with_steps:
        detail.variables, detail.steps = [], []
    return detail


def encodable_detail(row: Row[Any], warnings: Sequence[Fault] = ()) -> WorkflowDetail:
    """`workflow_detail` for nothing but its encoding: of many steps, all as values would take a lot of memory."""
    detail = WorkflowDetail(**_summary_fields(row), warnings=list(warnings))
    if row.document is not None:
        document = _decode_document(row.document)
        steps = document.pop("steps", msgspec.Raw(b"[]"))
        fields = {name: msgspec.json.decode(value) for name, value in document.items()}
        for name, value in _fields_of(row, fields).items():
            setattr(detail, name, value)
        detail.steps = _encoded_steps(row, steps)
    return detail


class _Named(msgspec.Struct):
    name: str


_decode_document: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_entries: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_name: Final = msgspec.json.Decoder(_Named).decode


def _encoded_steps(row: Row[Any], steps: msgspec.Raw) -> Any:
    """What `_with_times` makes of each step, as JSON."""
    of_workflow = b'","workflow_id":' + msgspec.json.encode(row.id) + b","
    times = b"," + msgspec.json.encode(_times(row))[1:]
    text = bytearray(b"[")
    for step in _decode_entries(steps):
        text += b'{"id":"' if len(text) == 1 else b',{"id":"'
        text += step_id(row.id, _decode_name(step).name).encode()
        text += of_workflow
        text += memoryview(step)[1:-1]
        text += times
    text += b"]"
    return msgspec.Raw(text)


def template(identifier: str, document: Mapping[str, Any]) -> dict[str, Any]:
    """An example definition as an item of a list; it can be posted as it is."""
    return {"id": identifier, "description": "", "variables": [], **document}


def validation_result(document: Any, report: Report) -> ValidationResult:
    """The faults of a definition; ``document`` is what was validated, decoded as far as it is JSON."""
    steps = document.get("steps") if isinstance(document, Mapping) else None
    faults = [_definition_fault(fault, steps if isinstance(steps, list) else []) for fault in report.errors]
    return ValidationResult(report.is_valid, faults, report.warnings)


_ERROR_TYPES: Final = {
    "no_steps": "MISSING_STEPS",
    "duplicate_step": "DUPLICATE_STEP_NAMES",
    "unknown_dependency": "MISSING_DEPENDENCY",
    "cycle": "CIRCULAR_DEPENDENCY",
}
"""Codes that older clients know by another name; the others are in capitals."""
_IN_STEP: Final = re.compile(r"steps\[(\d{1,9})\]")


def _definition_fault(fault: Fault, steps: Sequence[Any]) -> DefinitionFault:
    place = _IN_STEP.match(fault.at)
    step = steps[int(place[1])] if place is not None and int(place[1]) < len(steps) else None
    name = step.get("name") if isinstance(step, Mapping) else None
    error_type = _ERROR_TYPES.get(fault.code, fault.code.upper())
    if fault.code == "cycle" and isinstance(step, Mapping) and name in (step.get("depends_on_steps") or ()):
        error_type = "SELF_DEPENDENCY"
    return DefinitionFault(
        code=fault.code,
        at=fault.at,
        message=fault.message,
        error_type=error_type,
        step_name=name if isinstance(name, str) else None,
    )


def _summary_fields(row: Row[Any]) -> dict[str, Any]:
    """Fields of `WorkflowSummary` but the definition."""
    return {
        "id": row.id,
        "name": row.name,
        "description": row.description,
        "version": row.version,
        "workspace_id": row.workspace_id,
        "project_id": row.project,
        "is_active": row.is_active,
        "is_runnable": row.document is not None,
        "created_at": rfc3339(row.created_ns),
        "updated_at": rfc3339(row.updated_ns),
    }


def _definition_fields(row: Row[Any]) -> dict[str, Any]:
    """The definition in the fields of `WorkflowSummary`; each step and variable gets an id and its workflow's times."""
    document: dict[str, Any] = msgspec.json.decode(row.document) if row.document is not None else {}
    steps = [_with_times(row, step_id(row.id, step["name"]), step) for step in document.get("steps", [])]
    return {**_fields_of(row, document), "steps": steps}


def _fields_of(row: Row[Any], document: Mapping[str, Any]) -> dict[str, Any]:
    """The same without the steps."""
    return {
        **{name: document.get(name, default) for name, default in _DEFINITION_DEFAULTS.items()},
        "variables": [
            _with_times(row, step_id(row.id, f"variable {variable['name']}"), variable)
            for variable in document.get("variables", [])
        ],
    }


def _with_times(row: Row[Any], identifier: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    return {"id": identifier, "workflow_id": row.id, **entry, **_times(row)}


def _times(row: Row[Any]) -> dict[str, str]:
    return {"created_at": rfc3339(row.created_ns), "updated_at": rfc3339(row.updated_ns)}
