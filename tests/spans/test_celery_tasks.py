"""Celery's own messages and requests tell which tasks belong together; the spans of its instrumentation repeat it."""

from __future__ import annotations

import contextvars
import importlib
import time
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry import context as otel_context
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from tachograph.spans import LiveSpanProcessor, celery_tasks

celery = pytest.importorskip("celery")
signals, tracing = importlib.import_module("celery.signals"), importlib.import_module("celery.app.trace")
instrumentation = importlib.import_module("opentelemetry.instrumentation.celery")
SCOPE = "opentelemetry.instrumentation.celery"
OURS = (celery_tasks.ROOT_ID, celery_tasks.PARENT_ID, celery_tasks.GROUP_ID, celery_tasks.CHORD_ID)


class Program:
    """A program with Celery whose tasks run where they are sent from, and what it exports."""

    def __init__(self) -> None:
        self.app = celery.Celery("shop", broker="memory://", backend="cache+memory://", set_as_current=False)
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

        def load(number: int = 0) -> int:
            return number

        self.load: Any = self.app.task(name="load", shared=False)(load)

    def attributes(self, kind: str) -> list[Mapping[str, Any]]:
        spans = [span for span in self.exporter.get_finished_spans() if span.name.startswith(kind)]
        return [dict(span.attributes or {}) for span in sorted(spans, key=started)]


def started(span: ReadableSpan) -> int:
    return span.start_time or 0


@pytest.fixture(params=["ours first", "theirs first"])
def program(request: pytest.FixtureRequest) -> Iterator[Program]:
    """The processor is added before Celery is instrumented, or after."""
    program, instrumentor = Program(), instrumentation.CeleryInstrumentor()
    # The instrumentation looks for a task in the current app, which may be another test's.
    others, before = celery._state._tls.current_app, otel_context.get_current()
    program.app.set_current()
    signals.before_task_publish.disconnect(dispatch_uid="tachograph")
    if request.param == "theirs first":
        instrumentor.instrument(tracer_provider=program.provider)
    processor = LiveSpanProcessor("http://127.0.0.1:9", sends_ends=False)
    program.provider.add_span_processor(processor)
    if request.param == "ours first":
        instrumentor.instrument(tracer_provider=program.provider)
    yield program
    instrumentor.uninstrument()
    processor.shutdown()
    celery._state._set_current_app(others)
    # Spans of messages that were not sent are current until now.
    otel_context.attach(before)
    for signal in (signals.before_task_publish, signals.after_task_publish):
        signal.disconnect(dispatch_uid="tachograph")


def test_a_message_says_root_parent_and_group(program: Program) -> None:
    group = celery.group(program.load.s(1), program.load.s(2), app=program.app).apply_async()
    alone = program.load.apply_async()
    # The instrumentation ends the span of a task that the program does not know before anything can be said in it.
    program.app.send_task("elsewhere")
    last = program.load.apply_async()
    sent = program.attributes("apply_async/")
    ids = [result.id for result in group.results]
    assert [(a["celery.root_id"], a.get("celery.group_id")) for a in sent[:3]] == [
        (ids[0], group.id), (ids[1], group.id), (alone.id, None)
    ]  # fmt: skip
    assert [a["celery.root_id"] for a in sent[4:]] == [last.id]
    for attributes in sent:
        assert (
            attributes.get("celery.root_id", attributes["messaging.message.id"]) == attributes["messaging.message.id"]
        )
        assert "celery.parent_id" not in attributes


def test_a_run_says_it_too_and_what_its_chord_waits_for(program: Program) -> None:
    body = program.load.s().set(task_id="b" * 36)
    # As a worker does with a message that it has received.
    run = tracing.build_tracer("load", program.load, app=program.app)
    run("t1", (), {}, request={"root_id": "r", "parent_id": "p", "group": "g", "chord": dict(body)})
    run("t2", (), {}, request={"root_id": "t2"})
    first, second = program.attributes("run/")
    assert [first[name] for name in OURS] == ["r", "p", "g", "b" * 36]
    assert [second.get(name) for name in OURS] == ["t2", None, None, None]


@pytest.mark.parametrize(
    "headers", [None, {}, [1], {"id": 1, "root_id": object(), "group": ["x"]}, {"root_id": "x" * 9_999}]
)
def test_headers_of_any_kind_harm_nothing(program: Program, headers: Any) -> None:
    signals.before_task_publish.send(sender="load", body=None, exchange="", routing_key="", headers=headers)
    tracer = program.provider.get_tracer(SCOPE)
    tracer.start_span("apply_async/load", kind=SpanKind.PRODUCER).end()
    for attributes in program.attributes("apply_async/"):
        ours = [attributes[name] for name in OURS if name in attributes]
        assert all(isinstance(value, str) and len(value) <= 200 for value in ours)


def test_spans_of_others_say_nothing_of_tasks(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    celery_tasks._sent.set((time.monotonic(), {"root_id": "r"}))
    program.provider.get_tracer("shop").start_span("apply_async/x", kind=SpanKind.PRODUCER).end()
    program.provider.get_tracer(SCOPE).start_span("run/x", kind=SpanKind.CONSUMER).end()
    (mine, theirs) = (program.attributes(kind)[0] for kind in ("apply_async/", "run/"))
    assert mine == theirs == {}
    celery_tasks._sent.set(None)

    class Broken:
        @property
        def request(self) -> Any:
            raise RuntimeError("no request")

    # Whatever Celery does, the span starts.
    monkeypatch.setattr(
        celery_tasks, "sys", SimpleNamespace(modules={"celery": SimpleNamespace(current_task=Broken())})
    )
    program.provider.get_tracer(SCOPE).start_span("run/y", kind=SpanKind.CONSUMER).end()
    assert len(program.attributes("run/")) == 2


def test_a_message_without_a_span_says_nothing_of_the_next(program: Program) -> None:
    """Its span may not be sampled, or it could not be sent."""
    headers = {"id": "x", "root_id": "other root", "group": "other group"}

    def send() -> None:
        for is_sent in (True, False):
            # The instrumentation does not hear of it, as if its span were not sampled.
            celery_tasks._note_message(headers=headers)
            if is_sent:
                celery_tasks._forget_message()
            else:
                celery_tasks._sent.set((0.0, headers))
            result = program.load.apply_async()
            said = program.attributes("apply_async/")[-1]
            assert (said["celery.root_id"], said.get("celery.group_id")) == (result.id, None)

    contextvars.copy_context().run(send)
