"""Traces that are read together: what becomes of the group when one of them is old, or faulty."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update
from tests.api.test_otlp import T0, S
from tests.ingest.intake import Intake, intakes
from tests.ingest.recorded import recorded_requests
from tests.ingest.test_several_traces import chain, is_consistent, message, send, spans_of, task

from tachograph_exporter.ingest import trace_executions
from tachograph_exporter.ingest.assembly import executions as assembly
from tachograph_exporter.ingest.trace_groups import TraceGroups
from tachograph_exporter.store import archiving, open_spans, refused
from tachograph_exporter.store.schema import open_spans as open_span_rows
from tachograph_exporter.store.schema import spans as span_rows
from tachograph_exporter.store.schema import trace_keys, traces

DAY = 86_400 * S
GROUP, OTHER = "3d114af1-6f8b-4b39-a114-c9b02b87783a", "5f1de37d-51e3-4e4c-8d4c-0c8a5a3fd7a2"


@pytest.fixture
def intake(tmp_path: Path, empty_database: Path) -> Iterator[Callable[[], Intake]]:
    with intakes(Intake, tmp_path, empty_database) as make:
        yield make


def stored(service: Intake) -> set[str]:
    return set(service.database.look(lambda c: c.execute(select(traces.c.trace_id)).scalars().all()))


def ids(*numbers: int) -> set[str]:
    return {f"{number:032x}" for number in numbers}


# Retention


def test_an_old_trace_stays_as_long_as_its_run_goes_on(any_database_url: str) -> None:
    service = Intake(any_database_url)
    try:
        before = T0 + 3 * DAY
        # One and its group of three, of which the last comes four days later; and one that is alone.
        service.take(spans_of([send(1, 100_000, 0.5), *task(1), *task(2)]))
        service.take(spans_of([send(9, 200_000, 0.5)]))
        service.database.run(lambda c: c.execute(update(traces).values(changed_ns=T0 + DAY)))
        service.take(spans_of(task(3, last=True, start=4 * 86_400.0)))
        assert archiving.delete_spans(service.database, before) == 1
        assert stored(service) == ids(100_000, 1, 2, 3)
        left = stored(service)
        (unit,) = set(service.database.look(lambda c: TraceGroups.of(c, service.workspace_id, left)).values())
        assert set(unit.traces) == ids(100_000, 1, 2, 3)
        service.settle()
        assert steps(service) == [["t1", "t2", "t3"], ["t9"]]
        is_consistent(service)
        # When the last of it is old, all of it goes, and what was noted of the group.
        service.database.run(lambda c: c.execute(update(traces).values(changed_ns=T0 + 4 * DAY)))
        assert archiving.delete_spans(service.database, T0 + 6 * DAY) > 0
        assert stored(service) == set()
        assert service.database.look(lambda c: c.execute(select(trace_keys)).all()) == []
        assert service.database.look(lambda c: c.execute(select(span_rows)).all()) == []
    finally:
        service.close()


def test_an_old_trace_stays_as_long_as_something_in_it_runs(intake: Callable[[], Intake]) -> None:
    service = intake()
    service.take(spans_of([message("nightly", 1, 1, 0, None, of={}), message("hourly", 2, 1, 0, 1, of={})]))
    service.database.run(lambda c: c.execute(update(traces).values(changed_ns=T0 + DAY)))
    assert archiving.delete_spans(service.database, T0 + 3 * DAY) == 1
    assert stored(service) == ids(1)
    # Nothing was heard of it any more.
    (leased,) = service.database.look(open_spans.leased)
    assert service.database.run(lambda c: open_spans.lose(c, [leased], time.time_ns())) == 1
    assert archiving.delete_spans(service.database, T0 + 3 * DAY) == 1
    assert stored(service) == set()
    assert service.database.look(lambda c: c.execute(select(open_span_rows)).all()) == []


def test_a_group_that_is_old_goes_in_parts(intake: Callable[[], Intake], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archiving, "CHUNK", 2)
    service = intake()
    service.take(spans_of(chain(7)))
    service.database.run(lambda c: c.execute(update(traces).values(changed_ns=T0 + DAY)))
    archiving.delete_spans(service.database, T0 + 3 * DAY)
    assert stored(service) == set()
    assert service.database.look(lambda c: c.execute(select(trace_keys)).all()) == []


# Faults


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The names of spans with which nothing can be assembled."""
    names: set[str] = set()
    assemble = assembly.assemble

    def failing(workspace: str, spans: Any, *arguments: Any, **options: Any) -> Any:
        if any(span.name in names for span in spans):
            raise KeyError("poison")
        return assemble(workspace, spans, *arguments, **options)

    monkeypatch.setattr(trace_executions, "assemble", failing)
    return names


def steps(service: Intake) -> list[list[str]]:
    return sorted([step["step_name"] for step in run["step_timeline"]] for run in service.timelines())


def test_a_faulty_trace_is_left_out_of_its_group_and_set_aside(intake: Callable[[], Intake], poison: set[str]) -> None:
    service = intake()
    service.take(spans_of([send(1, 100_000, 0.5), *task(1), *task(2)]))
    assert steps(service) == [["t1", "t2", "t3"]]
    # It was stored by a version that could read it.
    poison.add("run/t2")
    third = spans_of(task(3, last=True))
    assert service.take(third) == 1
    assert steps(service) == [["t1", "t2"], ["t3"]]
    (record,) = service.database.look(refused.listed)
    assert (record.kind, record.subject) == ("trace", f"{2:032x}")
    assert "poison" in record.reason
    assert record.payload
    # Once: neither what arrives later nor its quiet end sets it aside again.
    service.settle()
    assert service.take(spans_of([message("late", 3, 50, 9, 10, parent=1, of={})])) == 1
    service.settle()
    assert len(service.database.look(refused.listed)) == 1
    is_consistent(service)
    # What has been mended since is part of it again, with the next span.
    poison.clear()
    assert service.take(spans_of([message("later", 3, 51, 9, 10, parent=1, of={})])) == 1
    service.settle()
    assert steps(service) == [["t1", "t2", "t3"]]
    is_consistent(service)


def test_a_trace_that_is_faulty_when_it_arrives_is_refused_and_its_group_is_not(
    intake: Callable[[], Intake], poison: set[str]
) -> None:
    service = intake()
    service.take(spans_of([send(1, 100_000, 0.5), *task(1)]))
    poison.add("run/t2")
    with pytest.raises(KeyError):
        service.take(spans_of(task(2)))
    assert service.take(spans_of(task(3, last=True))) == 1
    assert stored(service) == ids(100_000, 1, 3)


def test_a_faulty_trace_that_is_due_stops_no_other_of_its_group(intake: Callable[[], Intake], poison: set[str]) -> None:
    service = intake()
    service.take(spans_of([send(1, 100_000, 0.5), *task(1), *task(2)]))
    poison.add("run/t2")
    service.database.run(lambda c: c.execute(update(traces).values(due_ns=1)))
    service.settle()
    assert steps(service) == [["t1", "t2"]]
    assert [record.subject for record in service.database.look(refused.listed)] == [f"{2:032x}"]


# What Celery's tasks have in common


def celery(name: str, trace: int, start: float, **of: str) -> list[Any]:
    """A task that is sent and run, with what our span processor says of it."""
    told = {key.replace("_", ".", 1): value for key, value in of.items()}
    common = {"celery.task_name": name, "messaging.message.id": f"m{trace}", **told}
    return [
        message(f"apply_async/{name}", trace, 1, start, start + 0.1, of={"celery.action": "apply_async", **common}),
        message(f"run/{name}", trace, 2, start + 0.2, start + 1, parent=1,
                of={"celery.action": "run", "celery.state": "SUCCESS", **common}),
    ]  # fmt: skip


def test_tasks_of_a_group_are_a_run_and_those_of_another_group_are_not(intake: Callable[[], Intake]) -> None:
    service = intake()
    service.take(spans_of([*celery("a", 1, 0, celery_group_id=GROUP), *celery("a", 2, 5, celery_group_id=OTHER)]))
    service.take(spans_of(celery("b", 3, 1, celery_group_id=GROUP)))
    service.settle()
    assert steps(service) == [["a"], ["a", "b"]]
    is_consistent(service)


def test_the_id_of_a_group_is_that_of_its_run(intake: Callable[[], Intake]) -> None:
    first, *rest = (
        celery("a", trace, trace / 10, celery_group_id=GROUP, celery_root_id=f"{trace:08x}-51e3-4e4c-8d4c-0c8a5a3fd7a2")
        for trace in range(1, 4)
    )
    for order in ([first, *rest], [*rest, first]):
        service = intake()
        for spans in order:
            service.take(spans_of(spans))
            assert [run["execution_id"] for run in service.timelines()] == [GROUP]
        service.settle()
        (run,) = service.timelines()
        assert (run["workflow_name"], run["status"], run["step_count"]) == ("a", "completed", 3)
        assert [step["depends_on"] for step in run["step_timeline"]] == [[], [], []]
        # Nothing of it was told under another id.
        assert {event.execution.execution_id for event in service.events} == {GROUP}
        is_consistent(service)


def test_ids_that_a_program_gives_its_tasks_itself_join_nothing(intake: Callable[[], Intake]) -> None:
    """A program may give the same to a task every day."""
    service = intake()
    for trace in (1, 2):
        service.take(spans_of(celery("nightly", trace, trace, celery_root_id="nightly", celery_group_id="\0")))
    service.settle()
    assert steps(service) == [["nightly"], ["nightly"]]


def test_a_span_around_a_group_is_its_run(intake: Callable[[], Intake]) -> None:
    """Of tasks sent in a span, one comes back in a trace of its own: a message that lost its headers."""
    service = intake()
    around = message("report", 1, 9, -1, 3, of={})
    sent = celery("a", 1, 0, celery_group_id=GROUP)
    sent[0].parent_span_id = (9).to_bytes(8)
    service.take(spans_of(celery("b", 2, 0.5, celery_group_id=GROUP)))
    service.take(spans_of([around, *sent]))
    service.settle()
    (run,) = service.timelines()
    assert (run["workflow_name"], run["status"]) == ("report", "completed")
    assert steps(service) == [["a", "b"]]
    is_consistent(service)


def test_what_is_known_of_only_one_side_joins_as_well(intake: Callable[[], Intake]) -> None:
    spans = [span for request in recorded_requests("celery_live_chord_bare") for span in request]
    for kind in (4, 5):
        service = intake()
        for span in spans:
            if span.kind == kind:
                # The side where the processor did not run.
                for name in ("root_id", "group_id", "chord_id", "parent_id"):
                    span.attributes.pop(f"celery.{name}", None)
        service.take(spans)
        service.settle()
        assert len(service.timelines()) == 1
        is_consistent(service)
        spans = [span for request in recorded_requests("celery_live_chord_bare") for span in request]
