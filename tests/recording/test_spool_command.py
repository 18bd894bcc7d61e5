"""``tachograph spool``: what waits, and delivering it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.conftest import make_execution, make_run

from tachograph.recording import setup
from tachograph.recording.spool import Spool
from tachograph_exporter.command.spool import main
from tachograph_exporter.store.database import Database


@pytest.fixture(autouse=True)
def spools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TACHOGRAPH_SPOOL_DIR", str(tmp_path / "spools"))
    for variable in ("TACHOGRAPH_URL", "TACHOGRAPH_DATABASE_URL"):
        monkeypatch.delenv(variable, raising=False)


def test_what_waits_is_shown_and_sent(database_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    spool = Spool(database_url, limit_bytes=3_000)
    for _ in range(3):
        spool.append(make_run(make_execution()))
    spool.close_journal()
    assert main(["--database", database_url]) == 0
    shown = capsys.readouterr().out
    files, events = spool.waiting()
    dropped = 12 - events
    assert (files > 0, dropped > 0) == (True, True)
    assert f"{events} event(s) in {files} file(s) wait in" in shown
    assert f"{dropped} event(s) were dropped because the spool was full" in shown
    assert main(["send", "--database", database_url]) == 0
    assert f"delivered {events} event(s); 0 event(s) in 0 file(s) wait" in capsys.readouterr().out
    assert main(["show", "--database", database_url]) == 0
    assert "dropped" not in capsys.readouterr().out


def test_what_cannot_be_sent_stays(capsys: pytest.CaptureFixture[str]) -> None:
    url = "http://127.0.0.1:1"
    Spool(url).keep(make_run(make_execution()))
    assert main(["send", "--url", url]) == 1
    said = capsys.readouterr()
    assert "4 event(s) in 1 file(s) wait" in said.out
    assert "refused" in said.err
    assert main([]) == 2


def test_a_locked_database_costs_no_memory(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from tachograph.recording import spooled_store
    from tachograph_exporter.store import database as database_module

    monkeypatch.setattr(spooled_store, "PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(database_module, "BUSY_SECONDS", 0.05)
    locker = Database(database_url)
    store = setup.open_store(database_url)
    run = make_run(make_execution())
    with locker.unpooled(1.0, is_write=True) as connection:
        connection.exec_driver_sql("UPDATE workspaces SET name = name")
        store.apply(run[:2])
        was_spooling = store.is_spooling
        store.apply(run[2:])
        connection.rollback()
    locker.close()
    store._try_at = 0.0
    store.apply([])
    assert (was_spooling, store.is_spooling) == (True, False)
    store.close()
