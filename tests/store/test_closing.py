"""A database that is closed answers every thread that still works with it; none waits for ever."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from sqlalchemy import Connection, text

from tachograph.errors import DatabaseUnavailable
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.deadline import Deadline


def ask(connection: Connection) -> None:
    connection.execute(text("SELECT 1"))


def test_threads_that_work_while_it_closes_are_told(any_database_url: str) -> None:
    database = Database(any_database_url)
    started = threading.Barrier(7)
    answers: list[BaseException] = []

    def work(number: int) -> None:
        started.wait()
        try:
            while True:
                match number % 3:
                    case 0:
                        database.run(ask)
                    case 1:
                        database.look(ask)
                    case _:
                        database.look(ask, Deadline(60))
        except BaseException as error:
            answers.append(error)

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(6)]
    for thread in threads:
        thread.start()
    started.wait()
    database.close()
    for thread in threads:
        thread.join(60)
    assert not [thread for thread in threads if thread.is_alive()]
    assert [error for error in answers if not isinstance(error, DatabaseUnavailable)] == []


def test_after_closing_it_says_that_it_is_closed(any_database_url: str) -> None:
    database = Database(any_database_url)
    database.look(ask)
    database.close()
    database.close()
    for call in (database.run, database.look):
        with pytest.raises(DatabaseUnavailable, match="closed"):
            call(ask)


async def test_after_closing_the_event_loop_is_told_too(any_database_url: str) -> None:
    database = Database(any_database_url)
    await database.read(ask)
    await database.aclose()
    for call in (database.read, database.write):
        with pytest.raises(DatabaseUnavailable, match="closed"):
            await call(ask)


@pytest.mark.e2e
def test_threads_whose_work_does_not_end_are_told(postgres: Callable[[], str], wait_until: Callable[..., None]) -> None:
    others = {thread.ident for thread in threading.enumerate()}
    database = Database(postgres())
    is_in, go_on = threading.Event(), threading.Event()
    answers: list[BaseException] = []

    def stuck(connection: Connection) -> None:
        is_in.set()
        go_on.wait(60)

    def work(task: Callable[[Connection], None]) -> None:
        try:
            database.run(task)
        except BaseException as error:
            answers.append(error)

    threads = [threading.Thread(target=work, args=(stuck,), daemon=True)]
    threads[0].start()
    assert is_in.wait(60)
    # The loop is busy, so this waits behind what is stuck.
    threads.append(threading.Thread(target=work, args=(ask,), daemon=True))
    threads[1].start()
    try:
        database.close()
        for thread in threads:
            thread.join(60)
        assert not [thread for thread in threads if thread.is_alive()]
        assert [type(error) for error in answers] == [DatabaseUnavailable] * 2
    finally:
        go_on.set()
    wait_until(
        lambda: not [t for t in threading.enumerate() if t.name == "tachograph-asyncpg" and t.ident not in others]
    )
