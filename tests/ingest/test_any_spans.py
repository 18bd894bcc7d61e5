"""Whatever spans say, with whatever attributes of engines, they become executions: the same in any order."""

from __future__ import annotations

import random
from typing import Any, Final

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from tests.api.test_otlp import T0, S, export
from tests.otlp_values import any_value

from tachograph.events import ExecutionFinished, StepFinished
from tachograph_exporter.ingest.assembly.executions import assemble
from tachograph_exporter.ingest.built_in_rules import ENGINES
from tachograph_exporter.ingest.spans import SpanRecord, records
from tachograph_exporter.store.batch import Batch

MAX: Final = (1 << 63) - 1
NOW: Final = T0 + 3_600 * S
VALUES: Final[st.SearchStrategy[Any]] = st.one_of(
    st.sampled_from(["a", "b", "work[1]", "work[]", "[x]", "", "success", "RETRY", "up_for_retry", "skipped", "r-1f3",
                     "9999-12-31T23:59:59+00:00", "2026-11-25 03:32:33.875372+00:00", "not a time",
                     "x.py step pull --run-id 1 --task-id 2 --retry-count 3"]),
    st.integers(-3, 5), st.sampled_from([MAX, -MAX, 10**12]), st.booleans(), st.floats(allow_nan=True),
    st.lists(st.integers(0, 2), max_size=2),
)  # fmt: skip
EVENTS: Final = st.sampled_from(["Running", "AwaitingRetry", "Retrying", "Completed", "exception", "odd"])
STATES: Final = st.sampled_from(["RUNNING", "SCHEDULED", "COMPLETED", "FAILED", "PAUSED", 5])


@st.composite
def some_spans(draw: st.DrawFn) -> list[Span]:
    """A trace of up to twelve spans of one engine, or two."""
    engines = [ENGINES[draw(st.integers(0, len(ENGINES) - 1))] for _ in range(draw(st.integers(1, 2)))]
    count = draw(st.integers(1, 12))
    spans = []
    for number in range(1, count + 1):
        rules = draw(st.sampled_from(engines))
        rule = draw(st.sampled_from(rules))
        start = T0 + draw(st.integers(0, 20)) * S // 2
        end = 0 if draw(st.integers(0, 9)) == 0 else start + draw(st.integers(0, 8)) * S // 2
        parent = draw(st.integers(0, count + 1))
        span = Span(
            trace_id=b"\1" * 16, span_id=number.to_bytes(8, "big"), start_time_unix_nano=start, end_time_unix_nano=end,
            parent_span_id=parent.to_bytes(8, "big") if parent else b"",
            name=draw(st.sampled_from([*(f"{name}x" for name in rule.names or ("",)), "other"])),
        )  # fmt: skip
        span.kind = draw(st.sampled_from([*rule.kinds, 1, 2, 4, 5]))  # type: ignore[assignment]
        names = {*rule.has, *(name for other in rules for name in other.has if draw(st.booleans()))}
        values = {**{name: draw(VALUES) for name in sorted(names)}, **rule.equals}
        for name, value in values.items():
            span.attributes.add(key=name).value.CopyFrom(any_value(value))
        for link in draw(st.lists(st.integers(1, count), max_size=2)):
            span.links.add(trace_id=span.trace_id, span_id=link.to_bytes(8, "big"))
        for _ in range(draw(st.integers(0, 4)) if "prefect.run.type" in values else 0):
            event = span.events.add(
                name=draw(EVENTS), time_unix_nano=draw(st.sampled_from([0, start, start + S, end or start, 1 << 63]))
            )
            event.attributes.add(key="prefect.state.type").value.CopyFrom(any_value(draw(STATES)))
        span.status.code = draw(st.sampled_from([0, 1, 2]))  # type: ignore[assignment]
        spans.append(span)
    return spans


def read(spans: list[Span]) -> list[SpanRecord]:
    found = list(records(export(spans).resource_spans))
    return [record for record in found if isinstance(record, SpanRecord)]


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(spans=some_spans(), seed=st.integers(0, 1000))
def test_any_spans_of_any_engine_become_the_same_executions_in_any_order(spans: list[Span], seed: int) -> None:
    kept = read(spans)
    shuffled = list(kept)
    random.Random(seed).shuffle(shuffled)
    for is_quiet in (False, True):
        runs = assemble("default", kept, NOW, is_quiet=is_quiet)
        again = assemble("default", shuffled, NOW, is_quiet=is_quiet)
        events = {run.execution.execution_id: run.events for run in runs}
        assert {run.execution.execution_id: run.events for run in again} == events
        Batch([event for run in runs for event in run.events])
        for run in runs:
            assert len({key for key, _ in run.keyed()}) == len(list(run.keyed()))
            for event in run.events:
                assert 0 <= event.time_ns <= MAX
                if isinstance(event, StepFinished):
                    parts = (event.dependency_ns, event.unaccounted_ns, event.scheduled_ns, event.queue_ns,
                             event.backoff_ns, event.run_ns)  # fmt: skip
                    assert all(0 <= part <= MAX for part in parts)
                    assert 1 <= event.attempt < 1 << 31
                elif isinstance(event, ExecutionFinished):
                    steps = event.completed_step_count + event.failed_step_count + event.skipped_step_count
                    assert steps <= event.step_count
