"""Workflow definitions: request and response types."""

from __future__ import annotations

from typing import Any

import msgspec

from tachograph.errors import Fault


class WorkflowSummary(msgspec.Struct, kw_only=True):
    """A workflow in a list, with its definition.

    ``is_runnable`` is false if it is known from recorded executions only. The API executes it only while ``is_active``.
    ``timeout_seconds`` to ``steps``, the definition, are left out of a list with ``include_steps=false``, and of the
    definitions that would make the list longer than 4 MiB.
    """

    id: str
    name: str
    description: str
    version: str
    workspace_id: str
    project_id: str
    is_active: bool
    is_runnable: bool
    created_at: str
    updated_at: str
    timeout_seconds: float | msgspec.UnsetType | None = msgspec.UNSET
    max_retries: int | msgspec.UnsetType = msgspec.UNSET
    config: Any = msgspec.UNSET
    metadata: Any = msgspec.UNSET
    variables: list[Any] | msgspec.UnsetType = msgspec.UNSET
    steps: list[Any] | msgspec.UnsetType = msgspec.UNSET


class WorkflowDetail(WorkflowSummary, kw_only=True):
    """A workflow with its definition.

    ``is_runnable`` is false if it is known from recorded executions only. The API executes it only while ``is_active``.
    With ``include_steps=false``, ``variables`` and ``steps`` are empty.
    """

    timeout_seconds: float | None = None
    max_retries: int = 0
    config: Any = {}
    metadata: Any = {}
    variables: list[Any] = []
    steps: list[Any] = []
    warnings: list[Fault] = []


class DefinitionFault(msgspec.Struct, kw_only=True):
    """A fault of a definition. ``error_type`` is its code in the words of older clients; ``step_name`` the step it is
    about, if it is about one.
    """

    code: str
    at: str
    message: str
    error_type: str
    step_name: str | None


class ValidationResult(msgspec.Struct):
    """Result of validating a definition."""

    is_valid: bool
    errors: list[DefinitionFault]
    warnings: list[Fault]


class NewExecution(msgspec.Struct, forbid_unknown_fields=True):
    """An execution to start."""

    input_variables: dict[str, Any] | None = None
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
