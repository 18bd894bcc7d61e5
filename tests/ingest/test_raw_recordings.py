"""What real engines sent, request by request as it arrived, becomes what happened, in another order too, and once."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Final

import pytest
from tests.ingest.intake import Intake
from tests.ingest.recorded import spans_of
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
NOT_YET: Final = frozenset({
    "celery_links_chain_with_retry", "celery_links_chord_in_span", "dagster113_warehouse", "temporal_plugin_asked",
})  # fmt: skip
"""Recordings that do not come out right yet."""


def requests_of(name: str) -> list[list[SpanRecord]]:
    return [
        spans_of(json.dumps(request.body).encode()) for request in read(FILES[name]) if request.path == "/v1/traces"
    ]


def taken(service: Intake, requests: list[list[SpanRecord]]) -> None:
    for request in requests:
        service.take(request)
    service.settle()


@pytest.mark.parametrize("name", FILES)
def test_a_recording_becomes_what_happened(name: str, intake: Callable[[], Intake]) -> None:
    requests, truth = requests_of(name), read_truth(name)
    tolerance: float = truth["tolerance_seconds"]
    assert sum(len(request) for request in requests) == truth["spans"]
    service = intake()
    taken(service, requests)
    problems = dict.fromkeys(problems_of(name, service, tolerance=tolerance), "as it arrived")
    before = lasting(service), service.counted()
    taken(service, requests)
    assert (lasting(service), service.counted()) == before, "arriving twice changes it"
    service.close()
    backwards = intake()
    taken(backwards, [[span] for request in requests[::-1] for span in request[::-1]])
    for problem in problems_of(name, backwards, tolerance=tolerance):
        problems.setdefault(problem, "a span at a time, the last first")
    report = "\n".join(f"{problem} ({delivery})" for problem, delivery in problems.items())
    if name in NOT_YET and problems:
        pytest.xfail(report)
    assert not problems, report
