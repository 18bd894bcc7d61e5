"""What real engines sent, request by request as it arrived, becomes what happened; so it does in other orders, and once."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

import pytest
from tests.ingest.intake import Intake, spans_of
from tests.ingest.test_recordings import intake, lasting, problems_of
from tests.ingest.truth import RECORDINGS, read_truth
from tools.recordings import read

from tachograph_exporter.ingest.spans import SpanRecord

__all__ = ["intake"]

FILES: Final = {
    path.name.partition(".jsonl")[0]: path
    for path in sorted(RECORDINGS.glob("*.jsonl*"))
    if json.loads(RECORDINGS.joinpath(f"{path.name.partition('.jsonl')[0]}.truth.json").read_bytes())["format"]
    == "otlp-requests"
}
NOT_YET: Final = frozenset({"celery_at_once_hard_time_limit", "celery_at_once_terminated", "temporal_continued"})
"""Recordings that do not come out right yet."""
DELIVERIES: Final = ("as it arrived", "the last request first", "a span at a time", "a span at a time, the last first")


def requests_of(name: str) -> list[list[SpanRecord]]:
    return [
        spans_of(json.dumps(request.body).encode()) for request in read(FILES[name]) if request.path == "/v1/traces"
    ]


def delivered(requests: list[list[SpanRecord]], delivery: str) -> list[list[SpanRecord]]:
    if delivery.startswith("a span at a time"):
        requests = [[span] for request in requests for span in request]
    return requests[::-1] if delivery.endswith("first") else requests


@pytest.mark.parametrize("name", FILES)
def test_a_recording_becomes_what_happened(name: str, intake: Callable[[], Intake]) -> None:
    problems: dict[str, str] = {}
    requests = requests_of(name)
    assert sum(len(request) for request in requests) == read_truth(name)["spans"]
    for delivery in DELIVERIES:
        service = intake()
        for request in delivered(requests, delivery):
            service.take(request)
        service.settle()
        for problem in problems_of(name, service):
            problems.setdefault(problem, delivery)
        service.close()
    report = "\n".join(f"{problem} ({delivery})" for problem, delivery in problems.items())
    if name in NOT_YET:
        assert problems, "it comes out right now: remove it from NOT_YET"
        pytest.xfail(report)
    assert not problems, report


@pytest.mark.parametrize("name", FILES)
def test_requests_that_arrive_twice_change_nothing(name: str, intake: Callable[[], Intake]) -> None:
    service = intake()
    states: list[Any] = []
    for _ in range(2):
        for request in requests_of(name):
            service.take(request)
        service.settle()
        states.append((lasting(service), service.counted()))
    assert states[0] == states[1]
