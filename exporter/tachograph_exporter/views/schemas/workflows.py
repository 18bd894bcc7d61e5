"""Workflow definitions: request and response types."""

from __future__ import annotations

from typing import Any

import msgspec

from tachograph.errors import Fault


class WorkflowSummary(msgspec.Struct, kw_only=True):
    """A workflow in a list."""

    id: str
    name: str
    description: str
    version: str
    workspace_id: str
    project_id: str
    is_runnable: bool
    created_at: str
    updated_at: str


class WorkflowDetail(WorkflowSummary, kw_only=True):
    """A workflow with its definition. ``is_runnable`` is false if it is known from recorded executions only."""

    timeout_seconds: float | None = None
    max_retries: int = 0
    config: Any = {}
    metadata: Any = {}
    variables: list[Any] = []
    steps: list[Any] = []
    warnings: list[Fault] = []


class ValidationResult(msgspec.Struct):
    """Result of validating a definition."""

    is_valid: bool
    errors: list[Fault]
    warnings: list[Fault]


class NewExecution(msgspec.Struct, forbid_unknown_fields=True):
    """An execution to start."""

    input_variables: dict[str, Any] = {}
    # Sent by older clients beside the inputs.
    workflow_id: str | None = None
    metadata: dict[str, Any] | None = None


class Submitted(msgspec.Struct, kw_only=True):
    """An execution was accepted."""

    execution_id: str
    workflow_id: str
    trace_id: str
    status: str = "submitted"
    message: str = "the execution was accepted"
