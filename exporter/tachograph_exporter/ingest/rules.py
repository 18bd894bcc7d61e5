"""Rules that say which spans are executions, steps and attempts; the first match wins.

In a trace that no rule knows, the root span is the execution and its children are its steps; a message that was sent
(kind PRODUCER) is a step that was asked for, and the span that processed it (CONSUMER or SERVER) is the step itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from enum import Enum, IntEnum
from typing import Any, Final, NamedTuple

import msgspec

from tachograph_exporter.ingest.prices import NO_PRICES, Prices
from tachograph_exporter.ingest.spans import SpanRecord
from tachograph_exporter.ingest.usage import Usage


class Kind(IntEnum):
    """Kinds of spans, with OTLP's numbers."""

    INTERNAL = 1
    SERVER = 2
    CLIENT = 3
    PRODUCER = 4
    CONSUMER = 5


class Role(Enum):
    """What a span stands for."""

    EXECUTION = "execution"
    STEP = "step"
    ATTEMPT = "attempt"
    END = "end"
    """It only says when and how an execution ended."""
    QUEUED = "queued"
    """A step was asked for; the span of its run is a child of this span, or has its key, and starts when a worker
    takes it."""
    OUTCOME = "outcome"
    """It only says how an attempt ended: of the step above it, or of the one with its key."""
    INSIDE = "inside"
    """Part of a step: stored and shown in traces, but not in timelines."""


class Links(Enum):
    """What it means that a step has no link to another one, and was asked for by none."""

    UNKNOWN = "unknown"
    """Nothing: its dependencies are inferred from when it was ready."""
    IF_ANY = "if any"
    """It waited for nothing, provided that other steps of its execution have links."""
    COMPLETE = "complete"
    """It waited for nothing."""


class Moment(NamedTuple):
    """An attempt that only events of a span tell of. ``end_ns`` is 0 while it runs; ``status`` as `Rule.status` has it;
    ``exception`` is (type, message, stack)."""

    start_ns: int
    end_ns: int
    status: str
    exception: tuple[str, str, str] | None = None


Read = Callable[[SpanRecord], Any]

RUNNING: Final = "running"
"""The status of an execution that goes on though its span has ended."""
RETRYING: Final = "retrying"
"""The status of an attempt that failed when another one is due."""


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
    has all of ``resource_has``, it is of one of ``kinds``, its name is one of ``named`` and starts with one of
    ``names``, and its instrumentation scope with one of ``scopes``, if those are given.

    ``name`` reads the name of the workflow or step, ``index`` what tells it from others of that name (of a mapped
    task), ``run_id`` the engine's id of the execution, ``attempt`` the number of the attempt (the engine counts from
    ``first_attempt``), ``state`` a key of ``states``, ``why`` the reason of a failure. ``wraps``: types of exceptions
    that only say that something inside has failed, which then says why. ``outcome`` is the status where no state says
    otherwise. Steps with the same ``key`` are attempts of the same step; without a key, steps of the same name and
    parent are, if each but the last failed before the next one began. ``waits_for`` reads the keys of the steps that it
    waited for, ``releases`` the key of one that waited for it, or what ``known_as`` reads of that one. ``moments``
    reads attempts that only events tell of. ``workflow`` names the workflow when the execution has no span of its own;
    of role INSIDE, the span asked for the execution of the same ``series``.

    Times in unix nanoseconds: ``queued`` reads when an execution was queued and ``began`` when it started, where its
    span does not say so; ``due`` the time before which an attempt was not to start (a countdown, an ETA),
    ``ready`` when it was queued.

    ``links``: what it means that a step has none. ``follows``: the step above a span is a dependency, not an enclosing
    step. ``blocks``: what follows a failed step does not run, so no step that ran waited for one. ``waits``: a step
    that was asked for (QUEUED) waits for its dependencies first. ``schedules``: it waits for a time first, and another
    span of role QUEUED says when that has come. ``names_step``: it knows the name of the step, which the span of the
    run may not. ``lasting``: an execution with such spans ends with its last step, not with the span above them.
    ``opens``: a zero-length span marks the start of an execution, and one of role END its end. ``retries``: a failed
    step may be retried for as long as its execution runs. ``series``: executions of which this reads the same value
    follow each other, so none of them ran inside another, and only the last of them can be open. ``reused``: the engine
    gives all attempts the same span id. ``across_traces``: spans with the same ``run_id`` are of one run in whatever
    traces they are. ``linked``: a span without a parent is below the span of another trace that it links to first.
    ``together`` reads keys: spans that share one are of one execution, in whatever traces they are; without a span
    around all of them, of that which the first of them began. Where there are several keys, the first is the engine's
    id of the execution.

    ``step_type`` is what kind of step it is. ``usage`` reads tokens and cost, and ``cause`` the type of an error where
    the span's exception is not it. ``of_agent``: part of an agent's run, in which the steps inside a step wait for each
    other in the order they ran. ``is_outermost``: an execution only where no span above it is one by such a rule, else
    a step. ``is_model_call``: what it spent includes what spans below it say. ``is_frame``: it does nothing itself, so
    what waits for it waits for the last steps inside it. ``ends_as_last_agent``: the execution's own span always says
    that all went well, so it failed if the last frame in it failed. ``repeats``: a run with the same key after one that
    succeeded is another step, not another attempt.
    """

    engine: str
    role: Role
    has: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    equals: Mapping[str, Any] = {}
    resource_has: tuple[str, ...] = ()
    kinds: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    named: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ()
    name: Read = own_name
    index: Read | None = None
    workflow: Read | None = None
    run_id: Read | None = None
    workflow_id: Read | None = None
    version: Read | None = None
    attempt: Read | None = None
    first_attempt: int = 1
    state: Read | None = None
    why: Read | None = None
    wraps: frozenset[str] = frozenset()
    states: Mapping[str, str] = {}
    outcome: str = ""
    key: Read | None = None
    moments: Callable[[SpanRecord], Sequence[Moment]] | None = None
    waits_for: Callable[[SpanRecord], Sequence[str]] | None = None
    releases: Read | None = None
    known_as: Read | None = None
    queued: Read | None = None
    began: Read | None = None
    due: Read | None = None
    ready: Read | None = None
    series: Read | None = None
    links: Links = Links.UNKNOWN
    follows: bool = False
    blocks: bool = False
    waits: bool = False
    schedules: bool = False
    names_step: bool = False
    lasting: bool = False
    opens: bool = False
    retries: bool = False
    reused: bool = False
    across_traces: bool = False
    linked: bool = False
    together: Callable[[SpanRecord], Sequence[str]] | None = None
    step_type: str = ""
    usage: Callable[[SpanRecord], Usage | None] | None = None
    cause: Read | None = None
    of_agent: bool = False
    is_outermost: bool = False
    is_model_call: bool = False
    is_frame: bool = False
    ends_as_last_agent: bool = False
    repeats: bool = False

    def matches(self, span: SpanRecord) -> bool:
        """Whether the span matches."""
        # Loops, because each span is checked by several rules: `all` and `any` cost four times as much.
        attributes, resource = span.attributes, span.resource_attributes
        if self.names and not span.name.startswith(self.names):
            return False
        if self.named and span.name not in self.named:
            return False
        if self.kinds and span.kind not in self.kinds:
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
        """How the span ended: completed, failed, cancelled, timeout, skipped, retrying (failed, and due again)."""
        word = self.state(span) if self.state is not None else None
        status = self.states.get(str(word).lower()) if word is not None else None
        if status is None:
            exception = span.exception
            if self.outcome:
                return self.outcome
            if not span.is_error:
                return "completed"
            return "cancelled" if exception is not None and is_cancellation(exception[0]) else "failed"
        return status

    def number(self, span: SpanRecord) -> int | None:
        """The number of the attempt, from 1, if the span says it."""
        value = self.attempt(span) if self.attempt is not None else None
        try:
            return int(value) - self.first_attempt + 1 if value is not None else None
        except (TypeError, ValueError, OverflowError):
            return None


def is_cancellation(exception_type: str) -> bool:
    """Whether an exception says that work was cancelled: ``asyncio.CancelledError``, ``CancelledRun``."""
    return exception_type.rpartition(".")[2].startswith("Cancel")


class Rulebook:
    """Rules in order of precedence, and the prices of models for spans that say no cost."""

    def __init__(self, rules: Sequence[Rule], prices: Prices = NO_PRICES) -> None:
        self.rules = tuple(rules)
        self.prices = prices
        # By something that a span must have to match them, so that few are tried; numbers are those of `rules`.
        self._by_value: dict[str, dict[Any, list[int]]] = {}
        self._by_attribute: dict[str, list[int]] = {}
        self._by_resource: dict[str, list[int]] = {}
        self._others: list[int] = []
        shared = Counter(name for rule in rules for name in rule.has)
        for number, rule in enumerate(self.rules):
            value = next(((name, value) for name, value in rule.equals.items() if isinstance(value, str)), None)
            if value is not None:
                self._by_value.setdefault(value[0], {}).setdefault(value[1], []).append(number)
            elif rule.has:
                self._by_attribute.setdefault(min(rule.has, key=shared.__getitem__), []).append(number)
            elif rule.resource_has:
                self._by_resource.setdefault(rule.resource_has[0], []).append(number)
            else:
                self._others.append(number)
        self._reused = tuple(name for rule in rules if rule.reused for name in rule.names)
        tying = [rule for rule in rules if rule.across_traces or rule.linked or rule.together is not None]
        self._tying = frozenset(name for rule in tying for name in (*rule.has, *rule.equals))
        self._always_ties = any(not (rule.has or rule.equals) for rule in tying)

    def find(self, span: SpanRecord) -> Rule | None:
        """The first rule that matches a span, if any."""
        numbers = self._others.copy()
        by_attribute, by_value, by_resource = self._by_attribute, self._by_value, self._by_resource
        for name, value in span.attributes.items():
            if name in by_attribute:
                numbers += by_attribute[name]
            if name in by_value and isinstance(value, str):
                numbers += by_value[name].get(value, ())
        for name in span.resource_attributes:
            if name in by_resource:
                numbers += by_resource[name]
        numbers.sort()
        for number in numbers:
            rule = self.rules[number]
            if rule.matches(span):
                return rule
        return None

    def may_tie(self, span: SpanRecord) -> bool:
        """Whether a span may tie its trace to others (`Rule.across_traces`, `Rule.linked`, `Rule.together`)."""
        return self._always_ties or not self._tying.isdisjoint(span.attributes)

    def repetition(self, span: SpanRecord) -> int:
        """The number of the attempt (from 2) if an earlier one had the same span id, else 0."""
        if not span.name.startswith(self._reused) or not self._reused:
            return 0
        rule = self.find(span)
        number = rule.number(span) if rule is not None and rule.reused else None
        return number if number is not None and number > 1 else 0
