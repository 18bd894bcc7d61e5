"""The index of services, span names, attribute names and values: exact within its bounds, by day, on both databases."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from sqlalchemy import event, func, select
from tests.conftest import make_execution, make_step
from tests.store.test_writer import RUN

from tachograph.events import Event, ExecutionStarted, StepFinished, StepStarted, StepStatus
from tachograph.identity import step_id, workspace_id
from tachograph.spans import semconv
from tachograph_exporter.attribute_text import ValueKind, as_text, kind_of
from tachograph_exporter.store import span_index as module
from tachograph_exporter.store import span_index_reading as reading
from tachograph_exporter.store.database import Database, prepare
from tachograph_exporter.store.migrations import downgrade
from tachograph_exporter.store.schema import span_index
from tachograph_exporter.store.span_index import DAY_NS, MAX_CHARACTERS, Source, SpanIndex, day_of
from tachograph_exporter.store.span_index_reading import Days
from tachograph_exporter.store.writer import StoreWriter

DAY = 20_000
AT = DAY * DAY_NS


@pytest.fixture
def database(any_database_url: str) -> Iterator[Database]:
    database = Database(any_database_url)
    yield database
    database.close()


def note(database: Database, index: SpanIndex, *attributes: Mapping[str, Any], at: int = AT, workspace: str = "w",
         service: str = "etl", name: str = "load", kind: int = 1, commit: bool = True) -> None:  # fmt: skip
    notes = index.begin()
    day = day_of(workspace, at)

    def work(connection: Any) -> None:
        index.note_operation(notes, day, service, name, kind)
        index.note_resource(notes, day, service, {"service.name": service})
        for of_span in attributes:
            index.note_attributes(notes, day, of_span)
        index.write(connection, notes)
        if not commit:
            raise KeyError("rolled back")

    if not commit:
        with pytest.raises(KeyError):
            database.run(work)
        return
    database.run(work)
    index.remember(notes)


def values(database: Database, name: str, scope: str | None = None, days: Days = reading.ALWAYS) -> dict[str, Any]:
    return dict(database.look(lambda c: reading.attribute_values(c, "w", scope, name, days)))


def test_what_was_noted_is_listed(database: Database) -> None:
    index = SpanIndex(database.dialect, Source.ARRIVED)
    note(database, index, {"a": "x", "n": 1, "b": True, "f": 1.5, "l": [1, "é"], "empty": None})
    note(database, index, {"a": "y", "n": True, "f": float("nan")}, name="extract", kind=2, service="shop")
    look = database.look
    assert look(lambda c: reading.services(c, "w")) == ["etl", "shop"]
    assert look(lambda c: reading.operations(c, "w", None)) == [("extract", 2), ("load", 1)]
    assert look(lambda c: reading.operations(c, "w", "etl")) == [("load", 1)]
    assert look(lambda c: reading.attribute_names(c, "w")) == {
        "span": ["a", "b", "empty", "f", "l", "n"], "resource": ["service.name"],
    }  # fmt: skip
    assert values(database, "a") == {"x": ValueKind.STRING, "y": ValueKind.STRING}
    assert values(database, "n") == {"1": ValueKind.INT, "true": ValueKind.BOOL}
    assert values(database, "f") == {"1.5": ValueKind.FLOAT, "nan": ValueKind.FLOAT}
    assert values(database, "l") == {'[1,"é"]': ValueKind.OTHER}
    assert values(database, "empty") == {}
    assert values(database, "service.name", "resource") == {"etl": ValueKind.STRING, "shop": ValueKind.STRING}
    assert values(database, "service.name", "span") == {}
    assert look(lambda c: reading.services(c, "another")) == []


def test_days_are_apart_and_dropped_by_source(database: Database) -> None:
    arrived, recorded = (SpanIndex(database.dialect, source) for source in Source)
    for index, word in ((arrived, "arrived"), (recorded, "recorded")):
        for offset in range(3):
            note(database, index, {"a": f"{word} {offset}"}, at=AT + offset * DAY_NS, service=word)
    on_second = Days(AT + DAY_NS, AT + 2 * DAY_NS - 1)
    assert set(values(database, "a", days=on_second)) == {"arrived 1", "recorded 1"}
    assert set(values(database, "a", days=Days(AT + DAY_NS))) == {
        f"{w} {n}" for w in ("arrived", "recorded") for n in (1, 2)
    }
    # The day of the moment itself stays.
    database.run(lambda c: reading.drop_days(c, Source.ARRIVED, AT + 2 * DAY_NS + 5))
    assert set(values(database, "a")) == {"arrived 2", "recorded 0", "recorded 1", "recorded 2"}
    database.run(lambda c: reading.drop_days(c, Source.RECORDED, AT + 3 * DAY_NS))
    assert database.look(lambda c: reading.services(c, "w")) == ["arrived"]


def test_lists_are_bounded_and_say_so(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_VALUES", 5)
    index = SpanIndex(database.dialect, Source.ARRIVED)
    note(database, index, {"id": "0", "few": "1"})
    for number in range(20):
        note(database, index, {"id": str(number), "few": number % 2, "long": "x" * 500 + str(number)})
    assert set(values(database, "id")) == {"0", "1", "2", "3", "4"}
    assert values(database, "long") == {"x" * MAX_CHARACTERS: ValueKind.STRING}

    def may_have(name: str, text: str, days: Days = reading.ALWAYS) -> bool:
        return database.look(lambda c: reading.has_value(c, "w", name, text, days))

    assert may_have("id", "3")
    assert may_have("id", "no such")  # nobody knows
    assert may_have("few", "1")
    assert not may_have("few", "2")
    assert not may_have("other", "2")
    assert may_have("long", "x" * 1000)
    assert not may_have("id", "3", Days(AT + DAY_NS))
    # A process that starts later knows what is full, and adds nothing.
    later = SpanIndex(database.dialect, Source.ARRIVED)
    note(database, later, {"id": "new", "few": "4"})
    assert len(values(database, "id")) == 5
    rows = database.look(lambda c: reading.attribute_values(c, "w", "span", "few"))
    assert rows == [("0", ValueKind.INT), ("1", ValueKind.STRING), ("1", ValueKind.INT), ("4", ValueKind.STRING)]
    # Attributes beyond the bound of names have neither name nor values, and nobody knows of them.
    note(database, later, {f"n{number}": "v" for number in range(9)})
    names = database.look(lambda c: reading.attribute_names(c, "w"))["span"]
    assert len(names) == 5
    listed = [number for number in range(9) if values(database, f"n{number}")]
    assert [f"n{number}" for number in listed] == [name for name in names if name.startswith("n")]
    assert may_have("n8", "w")


def test_names_without_end_cost_no_rows_without_end(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_VALUES", 5)
    index = SpanIndex(database.dialect, Source.ARRIVED)
    for number in range(30):
        note(database, index, {f"a{number}": "x"}, service=f"s{number}", name=f"op {number}")
    count = select(func.count()).select_from(span_index)
    # Five of each, their values and operations, and a row each that says of a list that it is full.
    rows = database.look(lambda c: c.execute(count).scalar())
    assert rows == 5 + 5 + 5 + 5 + 1 + 5 + 3
    assert len(database.look(lambda c: reading.operations(c, "w", None))) == 5
    # A process that starts later asks no more of a full list than this one.
    later = SpanIndex(database.dialect, Source.ARRIVED)
    note(database, later, {"a0": "x"}, service="s0", name="op 0")
    notes = later.begin()
    later.note_attributes(notes, day_of("w", AT), {"a0": "x"})
    assert notes.pending == {}


def test_lists_of_all_days_are_found_by_index(database: Database) -> None:
    index = SpanIndex(database.dialect, Source.ARRIVED)
    for offset in (0, 1, 5, 900):
        note(database, index, {"a": str(offset)}, at=AT + offset * DAY_NS)
    assert set(values(database, "a")) == {"0", "1", "5", "900"}
    assert set(values(database, "a", days=Days(AT + DAY_NS, AT + 5 * DAY_NS))) == {"1", "5"}
    assert set(values(database, "a", days=Days(AT + 2 * DAY_NS, AT + 4 * DAY_NS))) == set()
    assert set(values(database, "a", days=Days(None, AT + 4 * DAY_NS))) == {"0", "1"}
    if database.is_sqlite:
        statements: list[str] = []

        def plan(connection: Any) -> list[str]:
            event.listen(connection, "before_cursor_execute", lambda *args: statements.append(args[2]))
            reading.operations(connection, "w", "etl")
            last = statements[-1]
            return [row[-1] for row in connection.exec_driver_sql(
                "EXPLAIN QUERY PLAN " + last.replace("?", "1")).all()]  # fmt: skip

        assert any("workspace_id=? AND day=? AND what=? AND name=?" in step for step in database.look(plan))


def test_a_day_has_a_bound_of_its_own(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ROWS", 12)
    index = SpanIndex(database.dialect, Source.ARRIVED)
    for number in range(30):
        note(database, index, {f"a{number % 4}": number})
    noted = select(func.count()).where(span_index.c.what != module.What.FULL.value)
    assert database.look(lambda c: c.execute(noted).scalar()) == 12
    note(database, index, {"a0": "next day"}, at=AT + DAY_NS)
    assert values(database, "a0", days=Days(AT + DAY_NS)) == {"next day": ValueKind.STRING}


def test_what_was_rolled_back_is_noted_again(database: Database) -> None:
    index = SpanIndex(database.dialect, Source.ARRIVED)
    note(database, index, {"a": "x"}, commit=False)
    assert values(database, "a") == {}
    note(database, index, {"a": "x"})
    assert set(values(database, "a")) == {"x"}


def test_two_writers_note_the_same(database: Database) -> None:
    first, second = (SpanIndex(database.dialect, Source.ARRIVED) for _ in range(2))
    for index in (first, second, first, second):
        note(database, index, {"a": "x"}, {"a": random.choice("xyz")})
    assert set(values(database, "a")) <= {"x", "y", "z"}


def test_what_is_known_costs_no_statement(database: Database) -> None:
    index = SpanIndex(database.dialect, Source.ARRIVED)
    note(database, index, {"a": "x", "n": 1, "l": [1], "none": None})
    notes = index.begin()
    day = day_of("w", AT)
    index.note_operation(notes, day, "etl", "load", 1)
    index.note_resource(notes, day, "etl", {"service.name": "etl"})
    index.note_attributes(notes, day, {"a": "x", "n": 1, "l": [1], "none": None})
    assert notes.pending == {}
    # For an hour: somebody may have deleted it.
    index._since = time.monotonic() - module.REFRESH_SECONDS - 1
    database.run(lambda c: reading.drop_days(c, Source.ARRIVED, AT + DAY_NS))
    note(database, index, {"a": "x"})
    assert set(values(database, "a")) == {"x"}


@pytest.mark.parametrize("sizes", [[], [3, 4], [1] * 40], ids=["at once", "in parts", "one by one"])
def test_every_instance_of_a_step_is_found_by_what_it_says(database: Database, sizes: list[int]) -> None:
    run = make_execution("etl")
    steps = [make_step(run, "load", map_index=str(i)) for i in range(12)]
    steps = [replace(step, step_id=step_id(run.workflow_id, step.name, i)) for i, step in enumerate(steps)]
    statuses = [StepStatus.FAILED if i % 4 == 3 else StepStatus.COMPLETED for i in range(11)]
    events: list[Event] = [ExecutionStarted(execution=run, time_ns=AT)]
    events += [StepStarted(step=step, time_ns=AT) for step in steps]
    events += [
        StepFinished(step=step, time_ns=AT + i, status=status, attempt=1 + i % 2, started_ns=AT, attempt_started_ns=AT)
        for i, (step, status) in enumerate(zip(steps, statuses, strict=False))  # The last one goes on.
    ]
    writer = StoreWriter(database)
    for size in [*sizes, len(events)]:
        writer.apply(events[:size])
        events = events[size:]

    def listed(name: str) -> set[str]:
        return set(
            dict(database.look(lambda c: reading.attribute_values(c, workspace_id(run.workspace), "span", name)))
        )

    assert listed(semconv.STEP_ID) == {step.step_id for step in steps}
    assert listed(semconv.STEP_STATUS) == {"completed", "failed"}
    assert listed(semconv.STEP_ATTEMPT) == {"1", "2"}
    operations = database.look(lambda c: reading.operations(c, workspace_id(run.workspace), None))
    assert {"load", "load attempt 2"} <= {name for name, _ in operations}


VALUE = st.one_of(
    st.text(max_size=8), st.text(min_size=195, max_size=205), st.integers(-(1 << 63), (1 << 63) - 1), st.booleans(),
    st.floats(), st.binary(max_size=4), st.lists(st.integers(), max_size=2), st.none(),
)  # fmt: skip


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.dictionaries(st.sampled_from("abcd"), VALUE, max_size=4)), max_size=12))
def test_the_lists_are_those_of_the_spans(
    empty_database: Any, tmp_path_factory: pytest.TempPathFactory, spans: list[tuple[int, dict[str, Any]]]
) -> None:
    path = tmp_path_factory.mktemp("index") / "runs.db"
    path.write_bytes(empty_database.read_bytes())
    database = Database(f"sqlite:///{path}")
    index = SpanIndex(database.dialect, Source.ARRIVED)
    for offset, attributes in spans:
        note(database, index, attributes, at=AT + offset * DAY_NS)
    for offset in range(3):
        days = Days(AT + offset * DAY_NS, AT + offset * DAY_NS)
        said = [attributes for day, attributes in spans if day == offset]
        names = database.look(lambda c, d=days: reading.attribute_names(c, "w", d))["span"]  # type: ignore[misc]
        assert names == sorted({name for attributes in said for name in attributes})
        for name in "abcd":
            expected = {
                as_text(of[name])[:MAX_CHARACTERS].replace("\0", "\ufffd"): kind_of(of[name])
                for of in said
                if of.get(name) is not None
            }
            assert set(values(database, name, days=days)) == set(expected)
    database.close()


def test_an_upgrade_keeps_what_was_known(any_database_url: str) -> None:
    database = Database(any_database_url)
    StoreWriter(database).apply(RUN)
    note(database, SpanIndex(database.dialect, Source.ARRIVED), {"a": "x"})
    workspace = workspace_id(RUN[0].execution.workspace)
    before = {name: database.look(lambda c, n=name: reading.operations(c, n, None)) for name in ("w", workspace)}  # type: ignore[misc]
    assert [name for name, _ in before[workspace]][-1] == f"run {RUN[0].execution.workflow}"
    database.run(lambda c: downgrade(c, "0010"))
    database.run(prepare)
    # Attempts are not in the rows of steps; attributes of earlier days are not known, and nobody says that they are.
    after = {name: database.look(lambda c, n=name: reading.operations(c, n, None)) for name in ("w", workspace)}  # type: ignore[misc]
    assert after["w"] == before["w"]
    assert after[workspace] == [row for row in before[workspace] if " attempt " not in row[0]]
    assert database.look(lambda c: reading.services(c, workspace)) == ["tachograph"]
    assert values(database, "a") == {}
    assert database.look(lambda c: reading.has_value(c, "w", "a", "no"))
    since = database.look(reading.noted_since)
    assert not database.look(lambda c: reading.has_value(c, "w", "a", "no", Days(since + DAY_NS)))
    database.close()
