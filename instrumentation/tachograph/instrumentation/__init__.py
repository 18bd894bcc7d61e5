"""Record workflows: from the executor, or from ordinary Python functions.

>>> from tachograph.instrumentation import step, workflow
>>> @step
... def extract(): ...
>>> @workflow
... def nightly():
...     extract()
"""

from tachograph.instrumentation.functions import cost, measure, note, step, workflow
from tachograph.instrumentation.metrics import METRICS, MetricsListener
from tachograph.instrumentation.recorder import BatchListener, Recorder, Subscription, Unavailable
from tachograph.instrumentation.setup import SetupError, configure, get_recorder
from tachograph.instrumentation.spans import SpanListener, caller, propagation

__all__ = [
    "METRICS",
    "BatchListener",
    "MetricsListener",
    "Recorder",
    "SetupError",
    "SpanListener",
    "Subscription",
    "Unavailable",
    "caller",
    "configure",
    "cost",
    "get_recorder",
    "measure",
    "note",
    "propagation",
    "step",
    "workflow",
]
