"""Log lines and processes of an execution: response types."""

from __future__ import annotations

from typing import Any

import msgspec


class LogEntry(msgspec.Struct, kw_only=True, gc=False):
    """A log line of an execution.

    ``step_id`` is the step whose span, or whose span below, it was written in; null: none of them. ``severity`` is
    OpenTelemetry's number (1 to 24; 0: not said), and ``level`` its name. ``source`` is ``recorded`` for lines that the
    step wrote (records of `logging`, what its command wrote, and what it logged itself), ``otlp`` for those that
    arrived by OTLP. ``attempt`` is the attempt of the step that wrote it, null if that is not known. ``logger`` is the
    name of the logger of a record of `logging`.
    """

    at: str
    level: str
    severity: int
    message: str
    step_id: str | None
    step_name: str | None
    trace_id: str
    span_id: str
    source: str
    attempt: int | None = None
    service: str = ""
    event_name: str = ""
    attributes: Any = None
    error_type: str | None = None
    error_message: str | None = None
    error_stack: str | None = None
    logger: str = ""


class LogPage(msgspec.Struct, kw_only=True):
    """Log lines in order of time. ``next`` continues after them; with ``last``, it is null.

    ``has_older``: with ``last``, whether there are older lines. ``dropped_count``: lines of the run that were not kept.
    """

    items: list[LogEntry]
    next: str | None
    dropped_count: int
    has_older: bool = False


class ProcessPoint(msgspec.Struct):
    """A minute of a series: the latest, lowest and highest value that the process sent."""

    at: str
    latest: float
    low: float
    high: float


class ProcessSeries(msgspec.Struct):
    """A metric of a process. ``kind``: ``gauge``, ``counter`` (grows with the process) or ``increase`` (per minute)."""

    name: str
    attributes: Any
    unit: str
    kind: str
    low: float
    high: float
    latest: float
    points: list[ProcessPoint]


class ProcessEntry(msgspec.Struct):
    """A process that worked on an execution, and what it measured of itself meanwhile."""

    process_id: str
    service: str
    service_instance_id: str
    host: str
    pid: int | None
    metrics: list[ProcessSeries]


class ProcessPage(msgspec.Struct):
    """The processes of an execution."""

    items: list[ProcessEntry]
