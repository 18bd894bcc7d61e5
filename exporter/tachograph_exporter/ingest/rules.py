"""Which spans are executions, steps and attempts: one table, first match wins.

Sources of the names: our own (`semconv`); OpenTelemetry's CI/CD conventions
(https://opentelemetry.io/docs/specs/semconv/cicd/cicd-spans/); Airflow 3 (``dag_run.*``, ``task_run.*``, ``worker.*``
spans of airflow.models.dagrun and the task SDK); Prefect 3 (prefect.telemetry.run_telemetry); Temporal's Python
interceptor (temporalio.contrib.opentelemetry); Celery (opentelemetry-instrumentation-celery); Dagster (dagster-otel's
resource, opentelemetry-instrumentation-dagster); GitHub Actions (the collector's githubreceiver, which describes a run
and a job on their resource). For everything else the root span of a trace is the execution and its children are the
steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any

import msgspec

from tachograph_exporter.ingest.spans import SpanRecord


class Role(Enum):
    """What a span is to us."""

    EXECUTION = "execution"
    STEP = "step"
    ATTEMPT = "attempt"
    END = "end"
    """Says only when, and how, an execution ended."""
    QUEUED = "queued"
    """A step was asked for; the span of its run is a child of this one and begins when a worker takes it."""
    INSIDE = "inside"
    """Part of a step: kept, shown in traces, nothing of its own in a timeline."""


Read = Callable[[SpanRecord], Any]


def attribute(*names: str) -> Read:
    """The first of these attributes that is there, else None."""

    def read(span: SpanRecord) -> Any:
        return next((span.attributes[name] for name in names if span.attributes.get(name) is not None), None)

    return read


def of_resource(*names: str) -> Read:
    """The first of these attributes that the span's resource has, else None."""

    def read(span: SpanRecord) -> Any:
        return next((span.around[name] for name in names if span.around.get(name) is not None), None)

    return read


def own_name(span: SpanRecord) -> str:
    """The span's name."""
    return span.name


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """Spans of one kind.

    A span matches when it has all of ``has`` and none of ``lacks``, the values of ``equals``, a resource that has all
    of ``resource_has``, and a name and an instrumentation scope that begin with one of ``names`` and one of ``scopes``
    (when there are any). ``name`` reads the workflow's or step's name, ``run_id`` the execution's id in its engine,
    ``attempt`` the number of the attempt (from ``first_attempt``), ``state`` a word of ``states``, ``why`` what went
    wrong. Steps with the same ``key`` are attempts of one step. ``workflow`` names the workflow where no execution's
    own span does. ``follows``: the step above it is what it waited for, not what it is part of. ``lasting``: an
    execution with such spans ends with the last of its steps, not with the span above them. ``opens``: a span of no
    length says when an execution began, and one of role END when it ended. ``retries``: a step that failed may be
    tried again for as long as its execution runs.
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
    follows: bool = False
    lasting: bool = False
    opens: bool = False
    retries: bool = False

    def matches(self, span: SpanRecord) -> bool:
        """Whether the span is of this kind."""
        # Loops, for this is asked of every span by every rule: `all` and `any` cost four times as much.
        known, around = span.attributes, span.around
        if self.names and not span.name.startswith(self.names):
            return False
        for name in self.has:
            if name not in known:
                return False
        for name, value in self.equals.items():
            if known.get(name) != value:
                return False
        for name in self.resource_has:
            if name not in around:
                return False
        for name in self.lacks:
            if name in known:
                return False
        return not self.scopes or span.scope.startswith(self.scopes)

    def status(self, span: SpanRecord) -> str:
        """How the span ended: completed, failed, cancelled, timeout, skipped."""
        word = self.state(span) if self.state is not None else None
        found = self.states.get(str(word).lower()) if word is not None else None
        return found or ("failed" if span.is_error else "completed")


class Rulebook:
    """Rules in order; the first that a span matches says what it is."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.rules = tuple(rules)
        # Most spans are of no kind that is known; that is found out without trying every rule.
        self._attributes = frozenset(name for rule in rules for name in (*rule.has, *rule.equals))
        self._resource = frozenset(name for rule in rules for name in rule.resource_has)
        self._names = tuple(
            name for rule in rules if not (rule.has or rule.equals or rule.resource_has) for name in rule.names or ("",)
        )

    def find(self, span: SpanRecord) -> Rule | None:
        """The first rule that a span matches."""
        if (
            self._attributes.isdisjoint(span.attributes)
            and self._resource.isdisjoint(span.around)
            and not span.name.startswith(self._names)
        ):
            return None
        return next((rule for rule in self.rules if rule.matches(span)), None)
