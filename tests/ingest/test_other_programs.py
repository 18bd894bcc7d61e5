"""Recordings as other programs of the same engines might have made them: other ids, at the same time as another run,
without what their processes say of themselves, with clocks that are minutes apart, and with the run's span last."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import pytest
from tests.ingest.hurried_intake import Hurried
from tests.ingest.intake import counts_of
from tests.ingest.proven import ASIDE, NAMES, RAW, TOLERANCE, TOLERANCES
from tests.ingest.test_recordings import intake, problems_of
from tests.ingest.test_varied_recordings import Item, items_of, records
from tests.ingest.told import told_wrong
from tests.ingest.truth import Truth, differences, read_truth, reference

from tachograph.events import Event, ExecutionFinished

__all__ = ["intake"]

CHOSEN: Final = frozenset({
    "airflow33_nightly", "arq_failed", "celery_chain_with_retry", "celery_chord_in_span", "dagster113_nightly",
    "dramatiq_pipeline", "kafka_orders", "langgraph_fan_out", "prefect39_nightly", "ray_pipeline", "rq_pipeline",
    "taskiq_two", "temporal_family", "temporal_nightly",
})  # fmt: skip
"""One or two of each engine; `make slow` varies all."""
OF_SEVERAL: Final = frozenset({
    "airflow33_nightly", "celery_chain_with_retry", "celery_chord_in_span", "dramatiq_pipeline", "metaflow_nightly",
    "ray_pipeline", "rq_later", "rq_pipeline", "rq_repeated", "taskiq_two", "temporal_v1_nightly",
})  # fmt: skip
"""One or two of each engine of which several processes sent spans, and said who they are."""
EVERY: Final = [n if n in CHOSEN else pytest.param(n, marks=pytest.mark.slow) for n in sorted({*NAMES, *RAW})]
SKEW_SECONDS: Final = 180
_ID: Final = re.compile(
    r"(?<![0-9A-Za-z])(?:[0-9a-f]{32}|[0-9a-f]{16}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})(?![0-9A-Za-z])"
)
_WORKFLOW_ID: Final = '{"key": "temporalWorkflowID", "value": {"stringValue": "'
_TIMES: Final = (
    "started_at", "ended_at", "queued_at", "asked_at", "scheduled_at", "tries", "index", "merge_ok", "depends_on",
)  # fmt: skip


def renamed(value: Any) -> Any:
    """JSON with other ids: those of traces, spans, runs, tasks and messages."""

    def other(match: re.Match[str]) -> str:
        text = match[0]
        if text.isdecimal():
            return text  # A time.
        digits = iter(hashlib.blake2b(text.encode()).hexdigest())
        # Where a UUID has its version and variant, they stay.
        keep = {14, 19} if len(text) == 36 else set()
        return "".join(c if c == "-" or i in keep else next(digits) for i, c in enumerate(text))

    # Of two of Temporal's runs with one id, one would follow the other.
    text = json.dumps(value).replace(_WORKFLOW_ID, f"{_WORKFLOW_ID}other-")
    return json.loads(_ID.sub(other, text))


def anonymous(item: Item) -> Item:
    """The span without what its process says of itself, but for the name of its service."""
    group, scope, span = item
    resource = group.get("resource", {})
    attributes = [each for each in resource.get("attributes", ()) if each["key"] == "service.name"]
    return {**group, "resource": {**resource, "attributes": attributes}}, scope, span


def tolerance_of(name: str, truth: Truth) -> float:
    return float(truth["tolerance_seconds"]) if name in RAW else TOLERANCES.get(name, TOLERANCE)


def ended_ns(item: Item) -> int:
    return int(item[2].get("endTimeUnixNano") or item[2]["startTimeUnixNano"])


def by_end(items: Sequence[Item]) -> list[Item]:
    return sorted(items, key=ended_ns)


def told_ends(events: Sequence[Event]) -> Iterator[tuple[str, str]]:
    for event in events:
        if isinstance(event, ExecutionFinished):
            yield event.execution.execution_id, event.status.value


@pytest.mark.parametrize("name", EVERY)
def test_two_runs_at_a_time_are_told_apart(name: str, intake: Callable[[], Hurried]) -> None:
    truth = read_truth(name)
    items = by_end(items_of(name))
    others = [anonymous(item) for item in renamed(items)]
    service = intake()
    pairs = [item for pair in zip(items, others, strict=True) for item in pair]
    for i in range(0, len(pairs), 3):
        service.take(records(*pairs[i : i + 3]))
    service.settle()
    timelines = service.timelines()
    for own, own_truth in ((items, truth), (others, renamed(truth))):
        traces = {span["traceId"] for _, _, span in own}
        shown = [timeline for timeline in timelines if timeline["trace_id"] in traces]
        assert differences(
            own_truth, shown, tolerance_seconds=tolerance_of(name, truth), aside=ASIDE.get(name, ())
        ) == []  # fmt: skip
    assert service.counted() == counts_of(timelines)
    assert service.rows_to_correct() == 0


@pytest.mark.parametrize("name", EVERY)
def test_a_run_whose_own_span_comes_last_and_late_is_what_happened(name: str, intake: Callable[[], Hurried]) -> None:
    """Until it is there, nobody is told that the run went well."""
    truth = read_truth(name)
    items = by_end(items_of(name))
    roots = [item for item in items if not item[2].get("parentSpanId")]
    rest = [item for item in items if item[2].get("parentSpanId")]
    service = intake()
    for i in range(0, len(rest), 3):
        service.take(records(*rest[i : i + 3]))
    service.pause(60)
    assert service.rows_to_correct() == 0
    if [run["status"] for run in truth["executions"]] == ["failed"]:
        assert "completed" not in {status for _, status in told_ends(service.events)}
    service.take(records(*roots))
    service.settle()
    assert problems_of(name, service, tolerance=tolerance_of(name, truth)) == []
    # What was told of each run last is what it is.
    last = dict(told_ends(service.events))
    shown = {timeline["execution_id"]: timeline["status"] for timeline in service.timelines()}
    assert {key: status for key, status in last.items() if key in shown} == {
        key: status for key, status in shown.items() if key in last
    }
    before = list(service.events)
    service.take(records(*items))
    service.settle()
    assert service.events == before


AGENTS: Final = ("lang", "logfire", "openai", "pydantic")
SEEMS_OVER: Final = {
    "celery_links_chord_in_span": "the span that sent the body of the chord is a link's, and comes later than its run",
    "dagster113_nightly": "a run has no span: nothing tells that one whose step failed goes on",
    "dagster113_varied": "a run has no span: nothing tells that one whose step failed goes on",
    "dagster_nightly": "a run has no span: nothing tells that one whose step failed goes on",
    "dramatiq": "no span tells that a message failed and will be tried again",
    "dramatiq_failed": "no span tells that a message failed and will be tried again",
    "dramatiq_pipeline": "no span tells that a message failed and will be tried again",
    "kafka_alone": "who reads a message, nobody can know before it is read",
    "kafka_billed": "who reads a message, nobody can know before it is read",
    "kafka_failed": "who reads a message, nobody can know before it is read",
    "kafka_orders": "who reads a message, nobody can know before it is read",
    "pydantic_ai_cancelled": "that a run was given up, the tool says that it waited for",
}
"""Runs that seem to have ended in between, and why: that they go on, and end, is told of then."""


@pytest.mark.parametrize("name", EVERY)
def test_a_run_that_is_very_slow_ends_once(name: str, intake: Callable[[], Hurried]) -> None:
    """Where its program paused, it did so for 20 s; an agent does between any two of its spans."""
    truth, items = read_truth(name), by_end(items_of(name))
    shortest_ns = 0 if name.startswith(AGENTS) else 500_000_000
    service = intake()
    for item, following in zip(items, [*items[1:], items[0]], strict=True):
        service.take(records(item))
        if ended_ns(following) - ended_ns(item) >= shortest_ns:
            service.pause(20)
    service.settle()
    assert problems_of(name, service, tolerance=tolerance_of(name, truth)) == []
    ends = Counter(key for key, _ in told_ends(service.events))
    shown = {timeline["execution_id"]: timeline["status"] for timeline in service.timelines()}
    assert {key: status for key, status in told_ends(service.events) if key in shown} == {
        key: shown[key] for key in ends if key in shown
    }
    if name not in SEEMS_OVER:
        assert set(ends.values()) <= {1}
        assert told_wrong(service.events, service.timelines()) == []


@pytest.mark.parametrize("seconds", [-SKEW_SECONDS, SKEW_SECONDS], ids=["behind", "ahead"])
@pytest.mark.parametrize(
    "name", [n if n in OF_SEVERAL else pytest.param(n, marks=pytest.mark.slow) for n in sorted({*NAMES, *RAW})]
)
def test_clocks_that_are_minutes_apart_change_no_outcome(
    name: str, seconds: int, intake: Callable[[], Hurried]
) -> None:
    """Longer than the run took. Statuses and attempts are what they were, and nothing took less than no time."""
    truth, items = read_truth(name), items_of(name)
    root = min(items, key=lambda item: (bool(item[2].get("parentSpanId")), int(item[2]["startTimeUnixNano"])))
    shifted = [item if item[0] == root[0] else moved(item, seconds) for item in items]
    if shifted == items:
        pytest.skip("one process made all of its spans")
    service = intake()
    for item in shifted:
        service.take(records(item))
    service.settle()
    timelines = service.timelines()
    aside: list[dict[str, str]] = [{"edge": "*"}, *({"field": field} for field in _TIMES)]
    for run in truth["executions"]:
        for step in run.get("steps", ()):
            aside += [{"step": key, "field": field} for key in {step["name"], reference(step)} for field in _TIMES]
    assert differences(truth, timelines, tolerance_seconds=1e9, aside=[*aside, *ASIDE.get(name, ())]) == []
    for timeline in timelines:
        for entry in timeline["step_timeline"]:
            lengths = [entry["duration_seconds"], *(entry["wait"] or {}).values()]
            lengths += [attempt["duration_seconds"] for attempt in entry["attempts"]]
            assert all(length is None or length >= 0 for length in lengths), entry
    assert service.counted() == counts_of(timelines)
    assert service.rows_to_correct() == 0


def moved(item: Item, seconds: int) -> Item:
    """The span by a clock that is so much ahead."""
    group, scope, span = item
    shift = seconds * 1_000_000_000
    changed = {
        key: str(int(span[key]) + shift) for key in ("startTimeUnixNano", "endTimeUnixNano") if int(span.get(key) or 0)
    }
    events = [{**event, "timeUnixNano": str(int(event["timeUnixNano"]) + shift)} for event in span.get("events", ())]
    return group, scope, {**span, **changed, **({"events": events} if events else {})}
