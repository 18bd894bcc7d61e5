"""Workflow definitions, as the API answers them."""

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
    """A workflow with its definition. ``is_runnable`` is False where only runs recorded elsewhere are known of it."""

    timeout_seconds: float | None = None
    max_retries: int = 0
    config: Any = {}
    metadata: Any = {}
    variables: list[Any] = []
    steps: list[Any] = []
    warnings: list[Fault] = []


class ValidationResult(msgspec.Struct):
    """What validation found."""

    is_valid: bool
    errors: list[Fault]
    warnings: list[Fault]


class Submitted(msgspec.Struct, kw_only=True):
    """An execution was accepted."""

    execution_id: str
    workflow_id: str
    trace_id: str
    status: str = "submitted"
    message: str = "the execution was accepted"
