"""Workflow definitions, from their rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import Row

from tachograph.errors import Fault
from tachograph.identity import step_id
from tachograph_exporter.times import rfc3339
from tachograph_exporter.views.schemas.workflows import WorkflowDetail, WorkflowSummary

_DOCUMENT_FIELDS = ("timeout_seconds", "max_retries", "config", "metadata", "variables")


def workflow_summary(row: Row[Any]) -> WorkflowSummary:
    """A workflow as an item of a list."""
    return WorkflowSummary(**_summary_fields(row))


def workflow_detail(row: Row[Any], warnings: Sequence[Fault] = ()) -> WorkflowDetail:
    """A workflow with its definition and the warnings of its validation; each step gets its id."""
    document: dict[str, Any] = msgspec.json.decode(row.document) if row.document is not None else {}
    return WorkflowDetail(
        **_summary_fields(row),
        **{name: document[name] for name in _DOCUMENT_FIELDS if name in document},
        steps=[{"id": step_id(row.id, step["name"]), **step} for step in document.get("steps", [])],
        warnings=list(warnings),
    )


def _summary_fields(row: Row[Any]) -> dict[str, Any]:
    """Fields of `WorkflowSummary`."""
    return {
        "id": row.id,
        "name": row.name,
        "description": row.description,
        "version": row.version,
        "workspace_id": row.workspace_id,
        "project_id": row.project,
        "is_runnable": row.document is not None,
        "created_at": rfc3339(row.created_ns),
        "updated_at": rfc3339(row.updated_ns),
    }
