"""Tachograph, the flight recorder for workflows: what a workflow's own process needs.

>>> import tachograph
>>> @tachograph.step
... def extract(): ...
>>> @tachograph.workflow
... def nightly():
...     extract()

``__all__`` is the whole public library. `tachograph.workflow` is the decorator. The modules of the package of that name
are imported by their full names (``from tachograph.workflow.graph import …``) and are private.
"""

from tachograph import events
from tachograph import otel_variables as _otel_variables  # first: it imports OpenTelemetry
from tachograph import workflow as _executor_rooms  # next: the decorator below takes the package's name
from tachograph.errors import (
    ConditionError,
    DoNotRetry,
    ExecutorClosed,
    Fault,
    InvalidInputs,
    InvalidWorkflow,
    SetupError,
    StepFailed,
    StoreError,
    StoreUnavailable,
    TachographError,
    WorkflowError,
)
from tachograph.identity import ExecutionRef, StepRef
from tachograph.metrics.exposition import render as render_metrics
from tachograph.metrics.listener import MetricsListener
from tachograph.metrics.negotiation import choose_format
from tachograph.metrics.specs import METRICS
from tachograph.recording.decorators import cost, current_execution, log, measure, step, workflow
from tachograph.recording.listener_queue import BatchListener
from tachograph.recording.recorder import Recorder
from tachograph.recording.setup import configure, get_recorder
from tachograph.recording.subscription import Subscription
from tachograph.spans.listener import SpanListener
from tachograph.spans.propagation import caller, propagation
from tachograph.version import version
from tachograph.workflow.builder import WorkflowBuilder
from tachograph.workflow.context import StepContext
from tachograph.workflow.definition import Backoff, Step, Variable, Workflow
from tachograph.workflow.executor import Executor
from tachograph.workflow.handlers import HandlerRegistry, handler
from tachograph.workflow.result import ExecutionResult
from tachograph.workflow.validation import validate_document

del _executor_rooms, _otel_variables

__version__ = version()

__all__ = [
    "METRICS",
    "Backoff",
    "BatchListener",
    "ConditionError",
    "DoNotRetry",
    "ExecutionRef",
    "ExecutionResult",
    "Executor",
    "ExecutorClosed",
    "Fault",
    "HandlerRegistry",
    "InvalidInputs",
    "InvalidWorkflow",
    "MetricsListener",
    "Recorder",
    "SetupError",
    "SpanListener",
    "Step",
    "StepContext",
    "StepFailed",
    "StepRef",
    "StoreError",
    "StoreUnavailable",
    "Subscription",
    "TachographError",
    "Variable",
    "Workflow",
    "WorkflowBuilder",
    "WorkflowError",
    "__version__",
    "caller",
    "choose_format",
    "configure",
    "cost",
    "current_execution",
    "events",
    "get_recorder",
    "handler",
    "log",
    "measure",
    "propagation",
    "render_metrics",
    "step",
    "validate_document",
    "workflow",
]
