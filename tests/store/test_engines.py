"""Engines of one process share what they compile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Connection, func, literal, select
from sqlalchemy.sql.compiler import SQLCompiler

from tachograph_exporter.store.database import Database, Lane

LABEL = "label_of_this_test"


def reading(number: int) -> Callable[[Connection], str]:
    statement = select(func.upper(literal(f"text {number}")).label(LABEL))
    return lambda connection: str(connection.execute(statement).scalar_one())


async def test_a_statement_is_compiled_once_for_all_lanes_and_databases(
    any_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[str] = []
    visit_select: Any = SQLCompiler.visit_select

    def noted(self: SQLCompiler, statement: Any, *arguments: Any, **options: Any) -> Any:
        compiled.extend(column.name for column in statement.selected_columns if column.key == LABEL)
        return visit_select(self, statement, *arguments, **options)

    monkeypatch.setattr(SQLCompiler, "visit_select", noted)
    for i in range(2):
        database = Database(any_database_url)
        try:
            for lane in (Lane.READ, Lane.STREAM, Lane.VITAL, Lane.SEARCH):
                assert await database.read(reading(i), lane) == f"TEXT {i}"
            assert await asyncio.to_thread(database.look, reading(i)) == f"TEXT {i}"
        finally:
            await database.aclose()
    assert compiled == [LABEL]
