"""Attributes of the spans of executions, steps and attempts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tachograph.identity import ExecutionRef, StepRef
from tachograph.spans import semconv


def step_attributes(execution: Mapping[str, Any], step: StepRef) -> dict[str, Any]:
    name, step_id = step.name, step.step_id
    return {
        **execution,
        semconv.STEP_NAME: name,
        semconv.TASK_NAME: name,
        semconv.STEP_ID: step_id,
        semconv.STEP_TYPE: step.step_type,
        semconv.TASK_RUN_ID: f"{step.execution.execution_id}/{step_id}",
    }


def execution_attributes(ref: ExecutionRef) -> dict[str, Any]:
    return {
        semconv.WORKFLOW_NAME: ref.workflow,
        semconv.WORKFLOW_ID: ref.workflow_id,
        semconv.WORKFLOW_VERSION: ref.version,
        semconv.WORKSPACE: ref.workspace,
        semconv.EXECUTION_ID: ref.execution_id,
        semconv.PIPELINE_NAME: ref.workflow,
        semconv.PIPELINE_RUN_ID: ref.execution_id,
    }
