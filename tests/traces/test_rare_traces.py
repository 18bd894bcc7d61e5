"""Searches find what is rare by the rarest of its conditions, newest first, and end in time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span
from sqlalchemy import Connection, text

from tachograph.errors import QueryTimeout
from tachograph.identity import workspace_id
from tachograph_exporter.ingest.span_rows import SpanRows
from tachograph_exporter.ingest.spans import SpanRecord, record
from tachograph_exporter.store import lengths, span_search, span_values
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.deadline import limited
from tachograph_exporter.traces import search as searching
from tachograph_exporter.traces.reading import read_traces
from tachograph_exporter.traces.search import Outcome, Search, search
from tachograph_exporter.traces.traceql.parser import parse

W = workspace_id("default")
S = 1_000_000_000
START = 1_790_000_000 * S
_GROUP = ResourceSpans()
_GROUP.resource.attributes.add(key="service.name").value.string_value = "service"
RESOURCE = _GROUP.SerializeToString()
TRACES = 60
HOUR = 3_600 * S
RARE = 7
LONG = 9


@pytest.fixture
def database(any_database_url: str) -> Iterator[Database]:
    opened = Database(any_database_url)
    yield opened
    opened.close()


def span(trace: int, number: int, name: str, attributes: Mapping[str, str | int], seconds: float = 1.0) -> SpanRecord:
    start = START + trace * HOUR + number
    sent = Span(
        trace_id=trace.to_bytes(16), span_id=(trace * 8 + number).to_bytes(8), name=name,
        parent_span_id=b"" if number == 1 else (trace * 8 + 1).to_bytes(8), kind=Span.SPAN_KIND_INTERNAL,
        start_time_unix_nano=start, end_time_unix_nano=start + round(seconds * S),
    )  # fmt: skip
    for key, value in attributes.items():
        kept = sent.attributes.add(key=key).value
        if isinstance(value, str):
            kept.string_value = value
        else:
            kept.int_value = value
    return record(sent, "service", "", "r", RESOURCE, {"service.name": "service"})


def trace(number: int) -> list[SpanRecord]:
    """In every third trace both attributes, but of one span only in the rare trace."""
    both = {"customer": "c", "region": "r"} if number % 3 == 1 else {}
    first = both if number == RARE else {name: value for name, value in both.items() if name == "customer"}
    second = {} if number == RARE else {name: value for name, value in both.items() if name == "region"}
    return [
        span(number, 1, "run", {"attempt": 1}, 100 if number == LONG else 2),
        span(number, 2, "step", {**first, "attempt": 2 if number == RARE else 1}),
        span(number, 3, "step", second, 90 if number == LONG else 1),
        span(number, 4, "other", {"attempt": 2}),
    ]


def fill(database: Database) -> None:
    rows = SpanRows(database.dialect)
    fresh = {spans[0].trace_id: spans for spans in map(trace, range(1, TRACES + 1))}
    counts = {trace_id: len(own) for trace_id, own in fresh.items()}

    def work(connection: Connection) -> None:
        rows.put(connection, W, fresh, counts, {})
        rows.put_traces(connection, W, fresh, counts, {}, {}, START)

    database.run(work)
    rows.settle(is_committed=True)


def numbers(database: Database, query: str, limit: int = 20, **criteria: object) -> tuple[list[int], Outcome]:
    """The traces that are found, the newest first, and how the search ended."""
    taken: list[int] = []
    options = {"start_ns": START, "end_ns": START + TRACES * 2 * HOUR, **criteria}
    request = Search(query=parse(query), limit=limit, **options)  # type: ignore[arg-type]

    def work(connection: Connection) -> Outcome:
        outcome = search(connection, W, "default", request, lambda found: taken.append(int(found.trace_id, 16)))
        # Whatever became of it, the connection is as before.
        assert connection.execute(text("SELECT 1")).scalar_one() == 1
        return outcome

    return taken, database.look(work)


def test_what_is_rare_is_looked_for_first(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(database)
    # Two values that often are in one trace, and seldom of one span: the traces that have both are looked at.
    meeting = '{ span.customer = "c" && span.region = "r" }'
    assert numbers(database, meeting) == ([RARE], Outcome(TRACES // 3))
    assert numbers(database, '{ span.customer = "c" && span.region = "other" }') == ([], Outcome(0))
    either = '{ span.customer = "c" && span.region = "r" || span.customer = "other" && span.region = "r" }'
    assert numbers(database, either) == ([RARE], Outcome(TRACES // 3))
    monkeypatch.setattr(span_values, "_MAX_KEYS", 1)
    assert numbers(database, meeting) == ([RARE], Outcome(TRACES // 3))
    # Too many to be intersected: those with one of them are looked at.
    monkeypatch.setattr(span_values, "MAX_TOGETHER", 3)
    assert numbers(database, meeting) == ([RARE], Outcome(TRACES // 3))
    # An attribute that is not text, of spans that are found by name.
    assert numbers(database, '{ span.attempt = 2 && name = "step" }') == ([RARE], Outcome(TRACES))
    assert numbers(database, '{ span.attempt = 3 && name = "step" }') == ([], Outcome(0))
    assert numbers(database, '{ name = "run" } > { span.attempt = 2 && name = "step" }') == ([RARE], Outcome(TRACES))
    # What is read whole is what may match.
    read: list[str] = []

    def reading(connection: Connection, workspace: str, slug: str, where: object) -> Iterator[object]:
        chosen = list(where)  # type: ignore[call-overload]
        read.extend(place.trace_id for place in chosen)
        return whole(connection, workspace, slug, chosen)

    whole = read_traces
    monkeypatch.setattr(searching, "read_traces", reading)
    assert numbers(database, '{ span.attempt = 2 && name = "step" }')[0] == [RARE]
    # The first ones, to see whether most match.
    assert len(read) == searching._FIRST_CHUNK + 1

    # How long: of the trace, and of a span.
    for query in (
        "{ duration > 50s }", "{ traceDuration > 50s }", '{ name = "step" && duration > 50s }',
        '{ resource.service.name = "service" && duration > 50s }', "{ duration > 95s }",
        '{ rootName = "run" && traceDuration > 50s }',
        "{ duration > 50s || traceDuration > 60s }",
    ):  # fmt: skip
        assert numbers(database, query) == ([LONG], Outcome(1)), query
    assert numbers(database, '{ name = "step" && duration > 95s }') == ([], Outcome(1))
    assert numbers(database, "{ duration > 200s }") == ([], Outcome(0))
    edge = START + LONG * HOUR + 1
    for window, count in (((edge, None), 1), ((edge + 1, None), 0), ((None, edge), 1), ((None, edge - 1), 0)):
        found, _ = numbers(database, "{ duration > 50s }", start_ns=window[0], end_ns=window[1])
        assert len(found) == count, window
    # Where very many are long, the newest come first all the same.
    monkeypatch.setattr(lengths, "_MAX_ROWS", 2)
    monkeypatch.setattr(lengths, "FIRST_ROWS", 3)
    monkeypatch.setattr(span_search, "_FEW", 4)
    every = list(range(TRACES, 0, -1))
    assert numbers(database, "{ duration > 1ms }", limit=100)[0] == every
    assert numbers(database, "{ traceDuration > 1ms }", limit=3)[0] == every[:3]
    assert numbers(database, '{ name = "other" && duration > 1ms }', limit=100)[0] == every
    assert numbers(database, '{ resource.service.name = "service" && name = "nothing" }') == ([], Outcome(0))

    # In time or not, there is an answer.
    monkeypatch.setattr(searching, "SECONDS", 0.0)
    assert numbers(database, "{ duration > 1ms }") == ([], Outcome(0, is_complete=False))
    monkeypatch.setattr(searching, "SECONDS", 60.0)
    monkeypatch.setattr(searching, "MAX_INSPECTED", 30)
    assert numbers(database, '{ span.attempt = 2 && name = "step" }') == ([], Outcome(30, is_complete=False))

    def endless(connection: Connection) -> int:
        statement = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
        with pytest.raises(QueryTimeout), limited(connection, 0.05):
            connection.execute(text(statement))
        return int(connection.execute(text("SELECT 1")).scalar_one())

    assert database.look(endless) == 1
