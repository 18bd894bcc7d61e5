"""Rules that say which spans are executions, steps and attempts; the first match wins.

Sources of the attribute names: our own (`semconv`); OpenTelemetry's CI/CD conventions
(https://opentelemetry.io/docs/specs/semconv/cicd/cicd-spans/); Airflow 3 (``dag_run.*``, ``task_run.*``, ``worker.*``
spans of airflow.models.dagrun and the task SDK); Prefect 3 (prefect.telemetry.run_telemetry); Temporal's Python
interceptor (temporalio.contrib.opentelemetry); Celery (opentelemetry-instrumentation-celery); Dagster (dagster-otel's
resource, opentelemetry-instrumentation-dagster); GitHub Actions (the collector's githubreceiver, which describes a run
and a job on their resource). In any other trace, the root span is the execution and its children are the steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any

import msgspec

from tachograph_exporter.ingest.spans import SpanRecord


class Role(Enum):
    """What a span stands for."""

    EXECUTION = "execution"
    STEP = "step"
    ATTEMPT = "attempt"
    END = "end"
    """It only says when and how an execution ended."""
    QUEUED = "queued"
    """A step was requested; the span of its run is a child of this span and starts when a worker takes it."""
    INSIDE = "inside"
    """Part of a step: stored and shown in traces, but not in timelines."""


class Links(Enum):
    """What it means that a step has no link to another one, and was asked for by none."""

    UNKNOWN = "unknown"
    """Nothing: its dependencies are inferred from when it was ready."""
    COMPLETE = "complete"
    """It waited for nothing."""


Read = Callable[[SpanRecord], Any]


def attribute(*names: str) -> Read:
    """Reads the first of these attributes that the span has, else None."""

    def read(span: SpanRecord) -> Any:
        return next((span.attributes[name] for name in names if span.attributes.get(name) is not None), None)

    return read


def of_resource(*names: str) -> Read:
    """Reads the first of these attributes that the span's resource has, else None."""

    def read(span: SpanRecord) -> Any:
        return next(
            (span.resource_attributes[name] for name in names if span.resource_attributes.get(name) is not None), None
        )

    return read


def own_name(span: SpanRecord) -> str:
    """The span's name."""
    return span.name


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """Which spans it matches, and how to read them.

    A span matches when it has all attributes of ``has``, none of ``lacks`` and the values of ``equals``, its resource
    has all of ``resource_has``, and its name and instrumentation scope start with one of ``names`` and ``scopes``, if
    those are given.

    ``name`` reads the name of the workflow or step, ``run_id`` the engine's id of the execution, ``attempt`` the number
    of the attempt (the engine counts from ``first_attempt``), ``state`` a key of ``states``, ``why`` the reason of a
    failure. Steps with the same ``key`` are attempts of the same step. ``workflow`` names the workflow when the
    execution has no span of its own.

    ``follows``: the step above a span is a dependency, not an enclosing step. ``lasting``: an execution with such spans
    ends with its last step, not with the span above them. ``opens``: a zero-length span marks the start of an
    execution, and one of role END its end. ``retries``: a failed step may be retried for as long as its execution runs.
    ``index`` reads the engine's number of one of several steps of a name, ``ready`` when a step was queued, in unix
    nanoseconds. ``links``: what it means that a step has none. ``knows_own_skips``: a skipped step whose span has a
    length ran, and skipped itself.
    ``series``: executions of which this reads the same value follow each other, so none of them ran inside another.
    """

    engine: str
    role: Role
    has: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    equals: Mapping[str, Any] = {}
    resource_has: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ()
    name: Read = own_name
    workflow: Read | None = None
    run_id: Read | None = None
    workflow_id: Read | None = None
    version: Read | None = None
    attempt: Read | None = None
    first_attempt: int = 1
    state: Read | None = None
    why: Read | None = None
    states: Mapping[str, str] = {}
    key: Read | None = None
    index: Read | None = None
    ready: Read | None = None
    series: Read | None = None
    follows: bool = False
    lasting: bool = False
    opens: bool = False
    retries: bool = False
    links: Links = Links.UNKNOWN
    knows_own_skips: bool = False

    def matches(self, span: SpanRecord) -> bool:
        """Whether the span matches."""
        # Loops, because every rule checks every span: `all` and `any` cost four times as much.
        attributes, resource = span.attributes, span.resource_attributes
        if self.names and not span.name.startswith(self.names):
            return False
        for name in self.has:
            if name not in attributes:
                return False
        for name, value in self.equals.items():
            if attributes.get(name) != value:
                return False
        for name in self.resource_has:
            if name not in resource:
                return False
        for name in self.lacks:
            if name in attributes:
                return False
        return not self.scopes or span.scope.startswith(self.scopes)

    def status(self, span: SpanRecord) -> str:
        """How the span ended: completed, failed, cancelled, timeout, skipped."""
        word = self.state(span) if self.state is not None else None
        status = self.states.get(str(word).lower()) if word is not None else None
        return status or ("failed" if span.is_error else "completed")


class Rulebook:
    """Rules in order of precedence."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.rules = tuple(rules)
        # Most spans match no rule; these sets show that without trying every rule.
        self._attributes = frozenset(name for rule in rules for name in (*rule.has, *rule.equals))
        self._resource = frozenset(name for rule in rules for name in rule.resource_has)
        self._names = tuple(
            name for rule in rules if not (rule.has or rule.equals or rule.resource_has) for name in rule.names or ("",)
        )

    def find(self, span: SpanRecord) -> Rule | None:
        """The first rule that matches a span, if any."""
        if (
            self._attributes.isdisjoint(span.attributes)
            and self._resource.isdisjoint(span.resource_attributes)
            and not span.name.startswith(self._names)
        ):
            return None
        return next((rule for rule in self.rules if rule.matches(span)), None)
