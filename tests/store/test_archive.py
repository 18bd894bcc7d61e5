"""Archiving loses nothing wherever it stops; archived executions are listed and read as before."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from tests.conftest import running
from tests.store.test_rollups import DAY, KEY, START, a_run, applied, differing

from tachograph.clock import NS
from tachograph.errors import ArchiveError
from tachograph.events import Event, ExecutionFinished
from tachograph.workflow import HandlerRegistry
from tachograph_exporter.config import Config
from tachograph_exporter.store import archive, archiving, partitions, state
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.rollups import read
from tachograph_exporter.store.rollups import rebuild as rollup_rebuild
from tachograph_exporter.store.schema import metadata
from tachograph_exporter.store.writer import StoreWriter

RUN_TABLES = ("workflow_executions", "workflow_step_executions", "workflow_step_attempts", "workflow_step_reports")


def sizes(database: Database) -> list[int]:
    return [len(database.look(lambda c, n=name: c.execute(select(metadata.tables[n])).all())) for name in RUN_TABLES]  # type: ignore[misc]


def filled(url: str) -> tuple[Database, list[list[Event]]]:
    rng = random.Random(8)
    database = Database(url)
    runs = [a_run(rng, START + rng.random() * 9 * DAY) for _ in range(40)]
    applied(database, [event for run in runs for event in run], [])
    return database, runs


async def test_archived_executions_stay_listed_and_readable(
    any_database_url: str, tmp_path: Path, handlers: HandlerRegistry
) -> None:
    database, runs = filled(any_database_url)
    old = [run for run in runs if run[-1].time_ns < (START + 5 * DAY) * NS]
    some = old[3][0].execution.execution_id
    async with running(Config(database=any_database_url, grace_seconds=0.1), handlers) as api:
        paths = [
            "/api/workflows/executions?limit=100",
            "/api/workflows/etl/metrics",
            "/api/workflows/executions/stats",
            f"/api/workflows/executions/{some}/timeline",
            f"/api/workflows/executions/{some}/timeline?format=chrome",
            f"/api/workflows/executions/compare?execution={some}",
            "/api/workflows/etl/executions?sort=duration&limit=7&skip=3&status=completed",
        ]
        before = [await api.get(path) for path in paths]
        days = {run[-1].time_ns // NS // DAY for run in old}
        moved = archiving.archive(database, (START + 5 * DAY) * NS + 99, tmp_path / "archive")
        assert (moved.executions, moved.left, len(moved.files)) == (len(old), 0, len(days))
        assert sizes(database)[0] == len(runs) - len(old)
        after = [await api.get(path) for path in paths]
        for page in (after[0], after[-1]):
            archived = {item["execution_id"] for item in page["items"] if item.pop("is_archived")}
            assert archived <= {run[0].execution.execution_id for run in old}
        for page in (before[0], before[-1]):
            for item in page["items"]:
                item.pop("is_archived")
        assert after == before
        # With the file gone, the API says so.
        for file in moved.files:
            file.rename(file.with_suffix(".away"))
        status, body = await api.call("GET", f"/api/workflows/executions/{some}/timeline")
        assert (status, body["code"]) == (410, "archive_unavailable")
    assert differing(database) == 0
    database.close()


@pytest.mark.parametrize("at", ["writing", "renaming", "moving", "between"])
def test_stopped_anywhere_it_loses_nothing_and_can_be_run_again(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    database, runs = filled(database_url)

    class Killed(BaseException):
        pass

    def killed(*_: Any, **__: Any) -> Any:
        raise Killed

    monkeypatch.setattr(archiving, "CHUNK", 3)
    with monkeypatch.context() as stopped:
        if at == "writing":
            stopped.setattr("os.fsync", killed)
        elif at == "renaming":
            stopped.setattr(Path, "replace", killed)
        elif at == "moving":
            stopped.setattr(archiving, "delete", killed)
        else:
            calls = []
            real = archiving._move

            def move(*a: Any, **k: Any) -> int:
                calls.append(1)
                if len(calls) == 2:
                    raise Killed
                return real(*a, **k)

            stopped.setattr(archiving, "_move", move)
        with pytest.raises(Killed):
            archiving.archive(database, (START + 9 * DAY) * NS, tmp_path / "archive")
    moved = archiving.archive(database, (START + 9 * DAY) * NS, tmp_path / "archive")
    assert sizes(database)[0] == 0
    assert moved.executions == (37 if at == "between" else 40)
    for run in runs:
        archived_run = database.look(lambda c, r=run: archive.run(c, KEY[0], r[0].execution.execution_id))  # type: ignore[misc]
        assert archived_run is not None
        assert sorted(step.name for step in archived_run.steps) == ["a", "b", "c"]
    assert differing(database) == 0
    assert sum(t.count for t in database.look(lambda c: read.read(c, KEY)).executions.values()) == 40
    database.close()


def test_executions_that_change_meanwhile_stay(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database, runs = filled(database_url)
    real = archiving._write

    def write(store: Database, ids: Any, path: Path) -> int:
        size = real(store, ids, path)
        late = f"UPDATE workflow_executions SET error_message = 'late' WHERE execution_id = '{ids[0]}'"
        store.run(lambda c: c.exec_driver_sql(late))
        return size

    monkeypatch.setattr(archiving, "_write", write)
    moved = archiving.archive(database, (START + DAY) * NS, tmp_path)
    assert moved.left == 1
    monkeypatch.undo()
    archiving.archive(database, (START + DAY) * NS, tmp_path)
    first = min((r for r in runs if r[-1].time_ns < (START + DAY) * NS), key=lambda r: r[0].execution.execution_id)
    archived_run = database.look(lambda c: archive.run(c, KEY[0], first[0].execution.execution_id))
    assert archived_run is not None
    assert archived_run.execution.error_message == "late"
    database.close()


def test_events_of_an_archived_execution_are_dropped(database_url: str, tmp_path: Path) -> None:
    database, runs = filled(database_url)
    archiving.archive(database, (START + 9 * DAY) * NS, tmp_path)
    # These ids were made today, long after the times of their events; only ids older than the watermark are looked up.
    rollups_before = database.look(lambda c: rollup_rebuild.stored(c, KEY))
    database.run(lambda c: state.set_watermark(c, 1 << 33))
    # A writer reads the watermark once a second, so take a new writer.
    StoreWriter(database).apply([*runs[0], *runs[1]])
    assert sizes(database) == [0, 0, 0, 0]
    assert database.look(lambda c: rollup_rebuild.stored(c, KEY)) == rollups_before
    database.close()


def test_deleting_keeps_the_figures(database_url: str) -> None:
    database, runs = filled(database_url)
    before = database.look(lambda c: rollup_rebuild.stored(c, KEY))
    moved = archiving.archive(database, (START + 5 * DAY) * NS, None)
    assert 0 < moved.executions < 40
    assert database.look(lambda c: rollup_rebuild.stored(c, KEY)) == before
    assert differing(database) == 0
    # Later executions are counted as before.
    rng = random.Random(9)
    StoreWriter(database).apply(a_run(rng, START + 40 * DAY))
    StoreWriter(database).apply(a_run(rng, START + 8 * DAY))
    assert differing(database) == 0
    last = runs[0][-1]
    assert isinstance(last, ExecutionFinished)
    database.close()


@pytest.mark.e2e
def test_empty_months_are_dropped_tables_on_postgresql(postgres: Any, tmp_path: Path) -> None:
    database = Database(postgres())
    rng = random.Random(1)
    run = a_run(rng, START + 10)
    # An id as it would have been made at that time.
    then = f"{START * 1000:012x}"
    old = json.loads(json.dumps(f"{then[:8]}-{then[8:]}-7000-8000-{rng.getrandbits(48):012x}"))
    import msgspec

    ref = msgspec.structs.replace(run[0].execution, execution_id=old)
    moved_events = []
    for event in run:
        if hasattr(event, "step"):
            moved_events.append(msgspec.structs.replace(event, step=msgspec.structs.replace(event.step, execution=ref)))
        else:
            moved_events.append(msgspec.structs.replace(event, execution=ref))
    StoreWriter(database).apply(moved_events)
    assert (2026, 10) in database.look(partitions.months)
    counted = "SELECT count(*) FROM workflow_step_executions_y2026m10"
    assert database.look(lambda c: c.exec_driver_sql(counted).scalar()) == 3
    archiving.archive(database, (START + 2 * DAY) * NS, tmp_path)
    assert (2026, 10) not in database.look(partitions.months)
    assert database.look(lambda c: archive.run(c, KEY[0], old)) is not None
    # A late execution creates its month's partitions again.
    StoreWriter(database).apply(a_run(rng, START + 11))
    assert differing(database) == 0
    database.close()


def test_a_directory_that_cannot_be_written_is_named(database_url: str, tmp_path: Path) -> None:
    database, _ = filled(database_url)
    (tmp_path / "file").write_text("")
    with pytest.raises(ArchiveError, match="cannot write"):
        archiving.archive(database, (START + 9 * DAY) * NS, tmp_path / "file")
    assert sizes(database)[0] == 40
    database.close()


async def test_files_of_versions_that_knew_less_are_read(
    database_url: str, tmp_path: Path, handlers: HandlerRegistry
) -> None:
    import pyarrow
    import pyarrow.parquet

    database, runs = filled(database_url)
    some = next(run for run in runs if run[-1].time_ns < (START + 5 * DAY) * NS)[0].execution.execution_id
    moved = archiving.archive(database, (START + 5 * DAY) * NS + 99, tmp_path / "archive")
    path = f"/api/workflows/executions/{some}/timeline"
    async with running(Config(database=database_url, grace_seconds=0.1), handlers) as api:
        now = await api.get(path)
        for file in moved.files:
            records = pyarrow.parquet.read_table(file).to_pylist()
            for record in records:
                for name in ("parent_execution_id", "parent_step_id"):
                    del record[name]
                for step in record["steps"]:
                    for name in (
                        "child_execution_id",
                        "dependency_count",
                        "unaccounted_ns",
                        "scheduled_ns",
                        "asked_ns",
                    ):
                        del step[name]
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), file)
        then = await api.get(path)
        for entry in (*now["step_timeline"], *then["step_timeline"]):
            if entry["wait"] is not None:
                entry["wait"].pop("unaccounted")
                entry["wait"].pop("scheduled")
                entry.pop("wait_seconds")
        for part in (*now["critical_path"], *then["critical_path"]):
            part.pop("scheduled_seconds")
        assert then == now
        page = await api.get("/api/workflows/executions?limit=100")
        assert {item["parent_execution_id"] for item in page["items"]} == {None}
    database.close()
