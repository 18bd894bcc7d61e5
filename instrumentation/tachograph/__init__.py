"""Tachograph, the flight recorder for workflows: what a workflow's own process needs.

>>> import tachograph
>>> @tachograph.step
... def extract(): ...
>>> @tachograph.workflow
... def nightly():
...     extract()

``__all__`` is the whole public library, beside `tachograph.client`, which reads from a service. `tachograph.workflow`
is the decorator. The modules of the package of that name are imported by their full names
(``from tachograph.workflow.graph import …``) and are private.

Names are loaded when they are first used: what needs one room does not load all of them.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from tachograph import events, report
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
    from tachograph.recording.log_handler import LogHandler
    from tachograph.recording.recorder import Recorder
    from tachograph.recording.setup import configure, get_recorder
    from tachograph.recording.subscription import Subscription
    from tachograph.spans.listener import SpanListener
    from tachograph.spans.propagation import caller, propagation
    from tachograph.workflow.builder import WorkflowBuilder
    from tachograph.workflow.context import StepContext
    from tachograph.workflow.definition import Backoff, Step, Variable, Workflow
    from tachograph.workflow.executor import Executor
    from tachograph.workflow.handlers import HandlerRegistry, handler
    from tachograph.workflow.result import ExecutionResult
    from tachograph.workflow.validation import validate_document

    __version__: str
else:

    class _Face(ModuleType):
        """The package, whose attribute ``workflow`` is the decorator though it has a package of that name."""

        @property
        def workflow(self) -> Any:
            """The decorator."""
            from tachograph.recording.decorators import workflow

            return workflow

        @workflow.setter
        def workflow(self, _package: ModuleType) -> None:
            # The import system sets it to the package when that is imported.
            pass

    _ROOMS: Final = {
        "errors": "ConditionError DoNotRetry ExecutorClosed Fault InvalidInputs InvalidWorkflow SetupError StepFailed "
        "StoreError StoreUnavailable TachographError WorkflowError",
        "identity": "ExecutionRef StepRef",
        "metrics.listener": "MetricsListener",
        "metrics.negotiation": "choose_format",
        "metrics.specs": "METRICS",
        "recording.decorators": "cost current_execution log measure step",
        "recording.listener_queue": "BatchListener",
        "recording.log_handler": "LogHandler",
        "recording.recorder": "Recorder",
        "recording.setup": "configure get_recorder",
        "recording.subscription": "Subscription",
        "spans.listener": "SpanListener",
        "spans.propagation": "caller propagation",
        "workflow.builder": "WorkflowBuilder",
        "workflow.context": "StepContext",
        "workflow.definition": "Backoff Step Variable Workflow",
        "workflow.executor": "Executor",
        "workflow.handlers": "HandlerRegistry handler",
        "workflow.result": "ExecutionResult",
        "workflow.validation": "validate_document",
    }
    _HOMES: Final = {name: (room, name) for room, names in _ROOMS.items() for name in names.split()}
    _HOMES["render_metrics"] = ("metrics.exposition", "render")

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            from tachograph.version import version

            value = version()
        elif name in ("events", "report"):
            value = importlib.import_module(f"tachograph.{name}")
        elif name in _HOMES:
            room, original = _HOMES[name]
            value = getattr(importlib.import_module(f"tachograph.{room}"), original)
        else:
            raise AttributeError(f"module 'tachograph' has no attribute {name!r}")
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})

    sys.modules[__name__].__class__ = _Face

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
    "LogHandler",
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
    "report",
    "step",
    "validate_document",
    "workflow",
]
