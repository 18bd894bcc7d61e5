"""Recordings as they might have arrived: spans seen open first, one of them late, all of them heard of again."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

import pytest
from tests.ingest.hurried_intake import Hurried
from tests.ingest.proven import NAMES, RAW, TOLERANCE, TOLERANCES
from tests.ingest.recorded import spans_of
from tests.ingest.test_recordings import intake, lasting, problems_of
from tests.ingest.told import told_wrong
from tests.ingest.truth import RECORDINGS, read_truth
from tools.recordings import read

from tachograph_exporter.ingest.spans import SpanRecord

__all__ = ["intake"]

CHOSEN: Final = frozenset({
    "airflow33_nightly", "arq_failed", "celery_chain_with_retry", "celery_chord_in_span", "dagster113_nightly",
    "dbt112_nightly", "dramatiq_pipeline", "kafka_failed", "langgraph_fan_out", "metaflow_nightly", "n8n_nightly",
    "openai_agents_guarded", "prefect39_nightly", "pydantic_ai_nested", "ray_pipeline", "rq_pipeline", "taskiq_two",
    "temporal_family", "temporal_plugin_nightly",
})  # fmt: skip
"""One or two of each engine; `make slow` varies all."""
CHANGED_BY_LATER_SPANS: Final = {
    "dbt112_failing": "a node that did not run has a span, which says so when it ends",
    "logfire_pydantic_ai_web": "that a request is not a run, the agent in it says",
}
"""Where something was told that no longer holds, and why nobody could know."""

Item = tuple[dict[str, Any], dict[str, Any], dict[str, Any]]
"""A span, after its resource and scope."""


def items_of(name: str) -> list[Item]:
    if name in RAW:
        bodies = [request.body for request in read(RAW[name]) if request.path == "/v1/traces"]
    else:
        bodies = [json.loads((RECORDINGS / f"{name}.json").read_bytes())]
    return [
        ({key: value for key, value in group.items() if key != "scopeSpans"},
         {key: value for key, value in scope.items() if key != "spans"}, span)
        for body in bodies for group in body.get("resourceSpans", ())
        for scope in group["scopeSpans"] for span in scope["spans"]
    ]  # fmt: skip


def records(*items: Item) -> list[SpanRecord]:
    groups = [{**group, "scopeSpans": [{**scope, "spans": [span]}]} for group, scope, span in items]
    return spans_of(json.dumps({"resourceSpans": groups}).encode())


def opened(item: Item) -> Item:
    """The span before it ended."""
    group, scope, span = item
    return group, scope, {key: value for key, value in span.items() if key not in ("endTimeUnixNano", "status")}


@pytest.mark.parametrize(
    "name", [n if n in CHOSEN else pytest.param(n, marks=pytest.mark.slow) for n in sorted({*NAMES, *RAW})]
)
def test_what_is_seen_running_arrives_late_or_again_is_what_happened(name: str, intake: Callable[[], Hurried]) -> None:
    items = items_of(name)
    tolerance = read_truth(name)["tolerance_seconds"] if name in RAW else TOLERANCES.get(name, TOLERANCE)
    late = items[len(items) // 2]
    moments = [(int(item[2]["startTimeUnixNano"]), 0, opened(item)) for item in items if item is not late]
    moments += [(int(end), 1, item) for item in items if item is not late and (end := item[2].get("endTimeUnixNano"))]
    moments.sort(key=lambda moment: moment[:2])
    service = intake()
    for _, _, item in moments:
        service.take(records(item))
    service.take(records(late))
    service.settle()
    assert problems_of(name, service, tolerance=tolerance) == []
    if name not in CHANGED_BY_LATER_SPANS:
        assert told_wrong(service.events, service.timelines()) == []
    before = lasting(service), service.counted(), len(service.events)
    service.take(records(*[opened(item) for item in items]))
    service.settle()
    assert (lasting(service), service.counted(), len(service.events)) == before, "a heartbeat after the end"
