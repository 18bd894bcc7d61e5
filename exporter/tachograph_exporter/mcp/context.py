"""What a tool works with."""

from __future__ import annotations

from typing import NamedTuple

from tachograph.errors import TachographError
from tachograph_exporter.mcp.wording import MESSAGE, NAME, is_changed, plain
from tachograph_exporter.reading.reader import Reader
from tachograph_exporter.reading.references import find_run_id
from tachograph_exporter.times import parse_duration, parse_time

RESOURCE: str = "tachograph://runs/"
"""How the address of a run as a resource begins."""


class ToolError(TachographError):
    """A tool cannot answer; the message says what to ask instead."""


class Context(NamedTuple):
    """Who answers, the address of the service's page (None: not known), and the time."""

    reader: Reader
    base: str | None
    now_ns: int

    def page(self, run_id: str) -> str | None:
        """The address of a run's page."""
        return f"{self.base}/#/executions/{run_id}" if self.base is not None else None

    def evidence(self, path: str) -> str:
        """The address of a path of the API; the path itself where the address is not known."""
        return f"{self.base}{path}" if self.base is not None else path

    def time_ns(self, text: str | None) -> int | None:
        """Unix nanoseconds of a time or an age. Raises `ToolError`."""
        try:
            return parse_time(text, self.now_ns) if text is not None else None
        except ValueError as error:
            raise ToolError(plain(str(error), MESSAGE)) from None

    def workflow(self, text: str) -> str:
        """The name of the workflow that a text means: it may be as an answer showed it, shortened or escaped."""
        if not is_changed(text):
            return text
        return next((name for name in self.reader.names() if plain(name, NAME) == text), text)

    def run_id(self, text: str) -> str:
        """The whole id of the run that ``text`` means. Raises `NoSuchRun` and `AmbiguousRun`."""
        return find_run_id(self.reader, self.workflow(text))


def duration_ns(text: str) -> int:
    """Nanoseconds of a duration. Raises `ToolError`."""
    try:
        return parse_duration(text)
    except ValueError as error:
        raise ToolError(plain(str(error), MESSAGE)) from None
