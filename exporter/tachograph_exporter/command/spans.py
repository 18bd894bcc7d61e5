"""The spans of a recorded command, from its events: those that `tachograph.spans` would make of them.

A test holds the two together. The library is not imported, because with OpenTelemetry it takes longer to start than
most commands run.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from tachograph_exporter.command.events import Event

Value = str | int | float | bool
Attributes = dict[str, Value]

SERVER, INTERNAL = 2, 1
"""Kinds of spans, as OTLP numbers them: that of a run, and that of a step."""
MAX_EVENTS = 128
"""Events of a span that are kept, the last ones: the default of OpenTelemetry's SDK."""
_RESULTS = {
    "completed": "success", "failed": "failure", "timeout": "timeout", "cancelled": "cancellation", "lost": "error",
}  # fmt: skip
_RESOURCES = {
    "cpu_seconds": "workflow.step.cpu_seconds",
    "peak_memory_bytes": "workflow.step.peak_memory_bytes",
    "read_bytes": "workflow.step.read_bytes",
    "written_bytes": "workflow.step.written_bytes",
}


class SpanEvent(NamedTuple):
    """Something that happened in a span at a moment (unix ns)."""

    time_ns: int
    name: str
    attributes: Attributes


_WARN = 13
"""The severity number from which a line is a warning, see OpenTelemetry's log data model."""


class Span(NamedTuple):
    """A span that has ended. Ids are hex digits, times unix nanoseconds; ``error`` is the message, if it failed."""

    trace_id: str
    span_id: str
    parent_span_id: str
    name: str
    kind: int
    started_ns: int
    ended_ns: int
    attributes: Attributes
    events: Sequence[SpanEvent] = ()
    links: Sequence[str] = ()
    error: str | None = None
    dropped_events: int = 0


class SpanBook:
    """The spans of a command that have ended, as far as its events tell; no more is kept than spans have."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self._logs: deque[SpanEvent] = deque(maxlen=MAX_EVENTS)
        self._logged = self._last = 0

    def add(self, recorded: Sequence[Event]) -> None:
        """Take note of events of one execution, in their order."""
        for event in recorded:
            kind = event["event"]
            if kind == "step_lines":
                self._add_lines(event["lines"])
            elif kind == "step_retrying":
                self._last = 0
                self.spans.append(_attempt(event, event["started_ns"]))
            elif kind == "step_finished":
                if event["attempt"] > 1 and not event.get("between_attempts"):
                    self.spans.append(_attempt(event, event["attempt_started_ns"]))
                self.spans.append(_step(event, list(self._logs), self._logged))
                self._logs.clear()
                self._logged = self._last = 0
            elif kind == "execution_finished":
                self.spans.append(_run(event))

    def _add_lines(self, lines: Sequence[Event]) -> None:
        """Lines of an attempt. Those that were told of while it ran come again at its end."""
        for line in lines:
            if line["number"] > self._last:
                self._logged += line["number"] - self._last
                self._last = line["number"]
                said: Attributes = {
                    "level": "warning" if line["severity"] >= _WARN else "info",
                    "message": line["message"],
                }
                self._logs.append(SpanEvent(line["time_ns"], "log", said))


def _run(event: Event) -> Span:
    ref, status = event["execution"], event["status"]
    attributes = {
        **_execution_attributes(ref),
        "workflow.execution.status": status,
        "cicd.pipeline.result": _RESULTS[status],
    }
    name = f"run {ref['workflow']}"
    return _ended(
        event, ref["trace_id"], ref["span_id"], ref.get("parent_span_id", ""), name, SERVER, event["started_ns"],
        attributes,
    )  # fmt: skip


def _step(event: Event, logs: Sequence[SpanEvent], logged: int) -> Span:
    ref, execution, status = event["step"], event["step"]["execution"], event["status"]
    waited = event.get("dependency_ns", 0) + event.get("unaccounted_ns", 0) + event.get("backoff_ns", 0)
    attributes = {
        **_execution_attributes(execution),
        "workflow.step.name": ref["name"],
        "cicd.pipeline.task.name": ref["name"],
        "workflow.step.id": ref["step_id"],
        "workflow.step.type": ref["step_type"],
        "cicd.pipeline.task.run.id": f"{execution['execution_id']}/{ref['step_id']}",
        "workflow.step.attempt": event["attempt"],
        "workflow.step.status": status,
        "workflow.step.wait_seconds": waited / 1e9,
        "cicd.pipeline.task.run.result": _RESULTS[status],
        **_resources(event),
    }
    return _ended(
        event, execution["trace_id"], ref["span_id"], ref["parent_span_id"], ref["name"], INTERNAL, event["started_ns"],
        attributes, logs, logged, ref.get("links", []),
    )  # fmt: skip


def _attempt(event: Event, started_ns: int) -> Span:
    ref, number = event["step"], event["attempt"]
    digest = hashlib.blake2b(f"{ref['span_id']}/{number}".encode(), digest_size=8)
    attributes = {
        "workflow.execution.id": ref["execution"]["execution_id"],
        "workflow.step.name": ref["name"],
        "workflow.step.id": ref["step_id"],
        "workflow.step.attempt": number,
        "workflow.step.status": event["status"],
        **_resources(event),
    }
    span_id = digest.hexdigest() if any(digest.digest()) else f"{1:016x}"
    return _ended(
        event, ref["execution"]["trace_id"], span_id, ref["span_id"], f"{ref['name']} attempt {number}", INTERNAL,
        started_ns, attributes,
    )  # fmt: skip


def _ended(
    event: Event, trace_id: str, span_id: str, parent_span_id: str, name: str, kind: int, started_ns: int,
    attributes: Attributes, happened: Sequence[SpanEvent] = (), count: int = 0, links: Sequence[str] = (),
) -> Span:  # fmt: skip
    failure, end = event.get("failure"), event["time_ns"]
    if failure is not None:
        attributes["error.type"] = failure["type"]
        said: Attributes = {"exception.type": failure["type"], "exception.message": failure["message"]}
        happened, count = [*happened, SpanEvent(end, "exception", said)], count + 1
    return Span(
        trace_id, span_id, parent_span_id, name, kind, started_ns, end, attributes, happened[-MAX_EVENTS:], links,
        None if failure is None else failure["message"], max(0, count - MAX_EVENTS),
    )  # fmt: skip


def _execution_attributes(ref: Event) -> Attributes:
    return {
        "workflow.definition.name": ref["workflow"],
        "workflow.definition.id": ref["workflow_id"],
        "workflow.definition.version": ref.get("version", "1"),
        "workflow.workspace": ref["workspace"],
        "workflow.execution.id": ref["execution_id"],
        "cicd.pipeline.name": ref["workflow"],
        "cicd.pipeline.run.id": ref["execution_id"],
    }


def _resources(event: Event) -> Attributes:
    used = event.get("resources") or {}
    return {attribute: used[name] for name, attribute in _RESOURCES.items() if name in used}
