"""Searches by attributes find what is seldom among very many traces, without reading these."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span
from sqlalchemy import Connection, func, select

from tachograph.identity import workspace_id
from tachograph_exporter.ingest.span_rows import SpanRows
from tachograph_exporter.ingest.spans import SpanRecord, record
from tachograph_exporter.store import span_values
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.schema import span_values as values_table
from tachograph_exporter.store.state import set_state
from tachograph_exporter.traces import search as searching
from tachograph_exporter.traces.search import Search, search
from tachograph_exporter.traces.traceql.parser import parse

W = workspace_id("default")
S = 1_000_000_000
START = 1_790_000_000 * S
RESOURCE = ResourceSpans().SerializeToString()


@pytest.fixture
def database(any_database_url: str) -> Iterator[Database]:
    opened = Database(any_database_url)
    yield opened
    opened.close()


def a_span(number: int, **attributes: object) -> SpanRecord:
    span = Span(
        trace_id=number.to_bytes(16), span_id=number.to_bytes(8), name="step", start_time_unix_nano=START + number * S,
        end_time_unix_nano=START + number * S + S,
    )  # fmt: skip
    for key, value in attributes.items():
        target = span.attributes.add(key=key).value
        items: list[Any] = value if isinstance(value, list) else [value]
        for item in items:
            kept = target.array_value.values.add() if isinstance(value, list) else target
            if isinstance(item, str):
                kept.string_value = item
            else:
                kept.int_value = item
    return record(span, "service", "", "r", RESOURCE, {"host": f"host{number % 2}"})


def put(rows: SpanRows, database: Database, spans: list[SpanRecord]) -> None:
    fresh: dict[str, list[SpanRecord]] = {}
    for span in spans:
        fresh.setdefault(span.trace_id, []).append(span)
    counts = {trace_id: len(own) for trace_id, own in fresh.items()}

    def work(connection: Connection) -> None:
        rows.put(connection, W, fresh, counts, {})
        rows.put_traces(connection, W, fresh, counts, {}, {}, START)

    database.run(work)
    rows.settle(is_committed=True)


def numbers(database: Database, **criteria: object) -> tuple[list[int], int]:
    """The traces that are found, and how many were looked at."""
    taken: list[int] = []
    request = Search(start_ns=START, end_ns=START + 86_400 * S, **criteria)  # type: ignore[arg-type]
    outcome = database.look(
        lambda c: search(c, W, "default", request, lambda trace: taken.append(int(trace.trace_id, 16)))
    )
    assert outcome.is_complete or outcome.inspected == searching.MAX_INSPECTED
    return sorted(taken), outcome.inspected


def test_what_is_seldom_is_found_by_its_value_and_what_is_common_among_the_newest(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(span_values, "SAMPLE", 40)
    monkeypatch.setattr(span_values, "COMMON", 10)
    monkeypatch.setattr(span_values, "MAX_VALUES", 8)
    monkeypatch.setattr(searching, "MAX_INSPECTED", 30)
    rows = SpanRows(database.dialect)
    for first in range(1, 201, 20):
        put(
            rows,
            database,
            [
                a_span(i, kind="GET", customer=f"c{i}", tags=["a", f"t{i}"], group=f"g{i % 10}")
                for i in range(first, first + 20)
            ],
        )
    # The oldest of them, which no look at the newest would reach.
    for query in (
        '{ span.customer = "c3" }',
        '{ span.tags = "t3" && name = "step" }',
        '{ span.kind = "GET" && span.customer = "c3" }',
        '{ span.customer = "c3" || span.customer = "none" }',
    ):
        assert numbers(database, query=parse(query)) == ([3], 1), query
    assert numbers(database, tags={"customer": "c4", "kind": "GET"}) == ([4], 1)
    assert numbers(database, query=parse('{ span.customer = "nobody" }')) == ([], 0)
    assert numbers(database, query=parse('{ resource.customer = "c3" }')) == ([], 1)
    # What recurs, but not in so many of a sample.
    assert numbers(database, query=parse('{ span.group = "g3" && span.customer = "c3" }')) == ([3], 1)
    assert numbers(database, query=parse('{ span.group = "g3" }'), limit=100) == (list(range(3, 201, 10)), 20)
    # A value that most have takes no rows any more, and is found among the newest.
    assert numbers(database, query=parse('{ span.kind = "GET" }'), limit=5) == (list(range(196, 201)), 5)
    token = span_values.token_of(W, "kind", "GET")
    columns = values_table.c
    count = select(func.count()).where(columns.token == token)
    assert 2 <= database.look(lambda c: c.execute(count).scalar_one()) <= 61
    # One trace with more values than are noted is looked at by every search.
    put(rows, database, [a_span(300, **{f"key{i}": f"v{i}" for i in range(20)})])
    assert numbers(database, query=parse('{ span.key19 = "v19" }')) == ([300], 1)
    # Another workspace's values are others.
    other = Search(query=parse('{ span.customer = "c3" }'), start_ns=START, end_ns=START + 86_400 * S)
    assert database.look(lambda c: search(c, "other", "other", other, lambda _trace: None)).inspected == 0
    # Before values were noted, the newest are looked at.
    database.run(lambda c: set_state(c, span_values.SINCE, str(START + 1)))
    assert numbers(database, query=parse('{ span.customer = "c200" }')) == ([200], 30)
    database.run(lambda c: span_values.drop_days(c, START + 3 * 86_400 * S))
    assert database.look(lambda c: c.execute(select(func.count()).select_from(values_table)).scalar_one()) == 0
