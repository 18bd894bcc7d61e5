"""The recorder's spans keep a provider's span limits as the SDK's own span does, and count the same drops."""

from __future__ import annotations

import contextvars
import logging
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode
from tests.conftest import make_execution, make_step

from tachograph.events import ExecutionStarted, Failure, StepFinished, StepStarted, StepStatus
from tachograph.identity import StepRef
from tachograph.spans import semconv as sc
from tachograph.spans.attributes import (
    exception_attributes,
    execution_attributes,
    step_attributes,
    step_state_attributes,
)
from tachograph.spans.ended_spans import EndedSpan
from tachograph.spans.listener import SpanListener

LIMITS: list[dict[str, int]] = [
    {},
    {"max_span_attributes": 3},
    {"max_span_attributes": 0},
    {"max_span_attributes": 16},
    {"max_attributes": 2},
    {"max_events": 2},
    {"max_events": 0},
    {"max_links": 1},
    {"max_links": 0},
    {"max_event_attributes": 1, "max_link_attributes": 1},
    {"max_attribute_length": 4},
    {"max_span_attribute_length": 5},
    {"max_attribute_length": SpanLimits.UNSET, "max_span_attributes": SpanLimits.UNSET, "max_links": SpanLimits.UNSET,
     "max_events": SpanLimits.UNSET},
]  # fmt: skip
FAILURE = Failure("KeyError", "no such key", "Traceback …")


def what_a_handler_adds(span: Any) -> None:
    """Everything the API lets a handler do, past every limit that is tested."""
    for number in range(150):
        span.set_attribute(f"attribute {number}", "long text" if number % 2 else ["long text", number])
    span.set_attributes({"attribute 149": "again", "": "no name", "last": 1.5})
    for number in range(140):
        span.add_event(f"event {number}", {"a": "long text", "b": number}, 1000 + number)
    for number in range(140):
        span.add_link(SpanContext(7, 8 + number, False), {"a": "long text", "b": number})
    span.add_link(SpanContext(0, 0, False))
    span.update_name("renamed")
    span.set_status(StatusCode.UNSET)


def sdk_span(provider: TracerProvider, step: StepRef, *, touched: bool) -> ReadableSpan:
    """The same step, as the SDK's own span records it."""
    tracer = provider.get_tracer("sdk")
    links = [Link(SpanContext(1, int(span_id, 16), False)) for span_id in step.links]
    started = step_attributes(execution_attributes(step.execution), step)
    span: Any = tracer.start_span(step.name, None, SpanKind.INTERNAL, started, links, 20)
    if touched:
        what_a_handler_adds(span)
    span.set_attributes(step_state_attributes(StepStatus.FAILED, 1))
    span.set_attribute(sc.ERROR_TYPE, FAILURE.type)
    span.add_event(sc.EXCEPTION_EVENT, exception_attributes(FAILURE), 90)
    span.set_status(Status(StatusCode.ERROR, FAILURE.message))
    span.end(90)
    return span  # type: ignore[no-any-return]


def recorded_span(provider: TracerProvider, step: StepRef, *, touched: bool) -> ReadableSpan:
    # The listener makes its spans the current ones; not in other tests.
    return contextvars.copy_context().run(_recorded_span, provider, step, touched)


def _recorded_span(provider: TracerProvider, step: StepRef, touched: bool) -> ReadableSpan:
    listener = SpanListener(provider)
    listener.begin(ExecutionStarted(execution=step.execution, time_ns=10))
    run = listener._runs[step.execution.execution_id]
    listener.begin(StepStarted(step=step, time_ns=20))
    span: Any = run.steps[step.span_id]
    if touched:
        what_a_handler_adds(span)
    listener(StepFinished(step=step, time_ns=90, status=StepStatus.FAILED, attempt=1, started_ns=20,
                          attempt_started_ns=20, failure=FAILURE))  # fmt: skip
    return span  # type: ignore[no-any-return]


def content(span: ReadableSpan) -> dict[str, Any]:
    return {
        "name": span.name,
        "times": (span.start_time, span.end_time),
        "status": (span.status.status_code, span.status.description),
        "attributes": list((span.attributes or {}).items()),
        "dropped": (span.dropped_attributes, span.dropped_events, span.dropped_links),
        "events": [(e.name, e.timestamp, dict(e.attributes or {}), e.dropped_attributes) for e in span.events],
        "links": [(li.context.span_id, dict(li.attributes or {}), li.dropped_attributes) for li in span.links],
    }


@pytest.fixture(autouse=True)
def quiet() -> None:
    """The SDK warns of every value it cuts."""
    logging.getLogger("opentelemetry").setLevel(logging.ERROR)


@pytest.mark.parametrize("touched", [False, True], ids=["untouched", "touched"])
@pytest.mark.parametrize("nested", [False, True], ids=["of the run", "of a step"])
@pytest.mark.parametrize("limits", LIMITS, ids=str)
def test_a_steps_span_is_cut_as_the_sdks_own(limits: dict[str, int], nested: bool, touched: bool) -> None:
    provider = TracerProvider(span_limits=SpanLimits(**limits), shutdown_on_exit=False)
    execution = make_execution("w")
    step = make_step(execution, "a", links=tuple(f"{number:016x}" for number in range(1, 4)))
    if nested:
        step = StepRef(execution=execution, step_id=step.step_id, name="a", span_id=step.span_id,
                       parent_span_id="00000000000000ff", links=step.links)  # fmt: skip
    recorded, sdk = (build(provider, step, touched=touched) for build in (recorded_span, sdk_span))
    assert content(recorded) == content(sdk)
    if limits.get("max_span_attributes") == 3:
        assert len(recorded.attributes or {}) == 3


def test_the_environments_limits_hold_for_a_provider_without_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "2")
    step = make_step(make_execution("w"), "a")
    from_environment = TracerProvider(shutdown_on_exit=False)
    assert len(recorded_span(from_environment, step, touched=False).attributes or {}) == 2
    with_its_own = TracerProvider(span_limits=SpanLimits(max_span_attributes=5), shutdown_on_exit=False)
    assert len(recorded_span(with_its_own, step, touched=False).attributes or {}) == 5


def test_what_a_sampler_adds_is_limited_too() -> None:
    class Adding(Sampler):
        def should_sample(self, *arguments: Any, **_: Any) -> SamplingResult:
            attributes = arguments[4] if len(arguments) > 4 else {}
            return SamplingResult(Decision.RECORD_AND_SAMPLE, {**attributes, **{f"s{n}": n for n in range(200)}})

        def get_description(self) -> str:
            return "adds"

    provider = TracerProvider(sampler=Adding(), shutdown_on_exit=False)
    step = make_step(make_execution("w"), "a")
    recorded, sdk = (build(provider, step, touched=False) for build in (recorded_span, sdk_span))
    assert content(recorded) == content(sdk)
    assert len(recorded.attributes or {}) == 128


def test_a_span_outcome_is_known_where_the_limits_cut_its_attributes() -> None:
    provider = TracerProvider(span_limits=SpanLimits(max_span_attributes=1), shutdown_on_exit=False)
    listener = SpanListener(provider)
    step = make_step(make_execution("w"), "a")
    listener(StepFinished(step=step, time_ns=90, status=StepStatus.COMPLETED, attempt=1, started_ns=20,
                          attempt_started_ns=20))  # fmt: skip
    ended = listener.ended.of(step.execution.execution_id)
    assert ended is not None
    assert ended.by_id() == {step.span_id: EndedSpan(20, 90, False, None)}


def test_an_ended_span_takes_nothing_more() -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    span: Any = recorded_span(provider, make_step(make_execution("w"), "a"), touched=False)
    before = content(span)
    what_a_handler_adds(span)
    span.end(500)
    assert content(span) == before
