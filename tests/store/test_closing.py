"""Whoever uses a PostgreSQL database from a thread while it is closed gets an error, and does not wait for ever."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Connection

from tachograph.errors import DatabaseUnavailable
from tachograph_exporter.store import database as database_module
from tachograph_exporter.store.database import Database

pytestmark = pytest.mark.e2e


def sleep(connection: Connection) -> None:
    connection.exec_driver_sql("SELECT pg_sleep(60)")


def in_thread(call: Callable[[], Any]) -> tuple[threading.Thread, list[BaseException]]:
    """A thread that makes a call, not started, and what the call will have raised."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            errors.append(error)

    return threading.Thread(target=run, daemon=True), errors


def test_what_begins_while_it_is_closed_is_refused(
    postgres: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database(postgres())
    late, errors = in_thread(lambda: database.run(sleep))
    finish = database_module._SideLoop._finish

    async def finish_and_begin(loop: Any) -> None:
        # Between the last look at what is running and the end of the loop.
        await finish(loop)
        late.start()

    monkeypatch.setattr(database_module._SideLoop, "_finish", finish_and_begin)
    database.close()
    late.join(30)
    assert not late.is_alive()
    assert isinstance(errors[0], DatabaseUnavailable)


def test_after_it_was_closed_it_is_unavailable(postgres: Callable[..., str]) -> None:
    database = Database(postgres())
    database.close()
    with pytest.raises(DatabaseUnavailable, match="closed"):
        database.run(sleep)
    database.close()
