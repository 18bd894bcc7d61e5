"""Reading few rows by their ids, directly through the driver: what SQLAlchemy adds costs several times as much."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Connection
from sqlalchemy.engine import Dialect
from sqlalchemy.sql import Executable
from sqlalchemy.sql.elements import ClauseElement

IDS: Final = "ids"
"""The expanding parameter of a statement that the ids are given in."""


class DriverSelect:
    """A statement with the parameter `IDS`, whose rows come as the driver gives them: no column may need converting.

    Args:
        statement: what to read; it has no constants but those in literal columns.
        names: its other parameters.
    """

    def __init__(self, statement: Executable, *names: str) -> None:
        self._statement, self._names = statement, names
        self._text = functools.cache(self._compile)

    def rows(self, connection: Connection, ids: Sequence[str], **parameters: Any) -> list[Any]:
        """The rows for some ids, at least one."""
        # Of few sizes, so that few texts are compiled, and the database knows them.
        size = 1 << (len(ids) - 1).bit_length()
        values = [*ids, *[ids[-1]] * (size - len(ids))]
        text, order = self._text(connection.dialect, size)
        cursor = connection.connection.cursor()
        try:
            cursor.execute(text, tuple([values[key] if isinstance(key, int) else parameters[key] for key in order]))
            return list(cursor.fetchall())
        finally:
            cursor.close()

    def _compile(self, dialect: Dialect, size: int) -> tuple[str, list[int | str]]:
        """The text for so many ids, and for each of its parameters the number of an id, or a name."""
        assert isinstance(self._statement, ClauseElement)  # noqa: S101
        given = self._statement.params({IDS: [str(number) for number in range(size)], **dict.fromkeys(self._names, "")})
        compiled = given.compile(dialect=dialect, compile_kwargs={"render_postcompile": True})
        numbers = {f"{IDS}_{number + 1}": number for number in range(size)}
        names = compiled.positiontup  # type: ignore[attr-defined]
        return str(compiled), [numbers.get(name, name) for name in names]
