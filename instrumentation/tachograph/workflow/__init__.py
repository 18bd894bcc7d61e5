"""Define workflows and run them. Knows nothing of telemetry: the executor only calls its listener."""

from tachograph.errors import (
    ConditionError,
    DoNotRetry,
    ExecutorClosed,
    Fault,
    InvalidInputs,
    InvalidWorkflow,
    StepFailed,
    WorkflowError,
)
from tachograph.workflow import builtin as _builtin
from tachograph.workflow.builder import WorkflowBuilder as WorkflowBuilder
from tachograph.workflow.context import StepContext
from tachograph.workflow.definition import Backoff, DataType, Step, StepType, TriggerRule, Variable, Workflow
from tachograph.workflow.document import parse, to_document
from tachograph.workflow.executor import Executor
from tachograph.workflow.handlers import Handler, HandlerRegistry, handler, registry
from tachograph.workflow.result import ExecutionResult
from tachograph.workflow.runner import LocalRunner, Runner
from tachograph.workflow.validation import Report, validate, validate_document

del _builtin

__all__ = [
    "Backoff",
    "ConditionError",
    "DataType",
    "DoNotRetry",
    "ExecutionResult",
    "Executor",
    "ExecutorClosed",
    "Fault",
    "Handler",
    "HandlerRegistry",
    "InvalidInputs",
    "InvalidWorkflow",
    "LocalRunner",
    "Report",
    "Runner",
    "Step",
    "StepContext",
    "StepFailed",
    "StepType",
    "TriggerRule",
    "Variable",
    "Workflow",
    "WorkflowBuilder",
    "WorkflowError",
    "handler",
    "parse",
    "registry",
    "to_document",
    "validate",
    "validate_document",
]
