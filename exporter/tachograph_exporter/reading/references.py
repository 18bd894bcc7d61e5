"""Which run somebody means: by its id, a piece of it, ``last``, or the name of its workflow."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from tachograph.errors import TachographError
from tachograph_exporter.reading.queries import RunQuery
from tachograph_exporter.reading.reader import Reader

if TYPE_CHECKING:
    from tachograph_exporter.views.schemas.executions import WorkflowExecutionResponse

LAST: Final = "last"
MAX_CANDIDATES: Final = 10
_ID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_PIECE: Final = re.compile(r"[0-9a-f-]{4,36}")


class NoSuchRun(TachographError):
    """No run is meant by this text. ``what`` says so; ``likely`` is the name of a workflow that may be meant."""

    def __init__(self, what: str, likely: str | None = None) -> None:
        super().__init__(what + _asking(likely))
        self.what = what
        self.likely = likely


class AmbiguousRun(TachographError):
    """The piece of an id is one of several runs: ``candidates`` are the newest of ``count``."""

    def __init__(self, text: str, candidates: Sequence[WorkflowExecutionResponse], count: int) -> None:
        super().__init__(f'"{text}" is ambiguous; give more of the id')
        self.candidates = candidates
        self.count = count


def find_run_id(reader: Reader, text: str) -> str:
    """The whole id of the run that ``text`` means. Raises `NoSuchRun` and `AmbiguousRun`.

    A workflow's name comes before a piece of an id, which has at least four characters. A whole id is not looked up.
    """
    if text == LAST:
        return _newest(reader)
    if _ID.fullmatch(text.lower()):
        return text.lower()
    runs, _ = reader.runs(RunQuery(workflow=text), 1)
    if runs:
        return runs[0].execution_id
    piece = text.strip().lstrip("….#").lower()
    if _PIECE.fullmatch(piece):
        runs, count = reader.runs(RunQuery(id=piece), MAX_CANDIDATES)
        if len(runs) == 1:
            return runs[0].execution_id
        if runs:
            raise AmbiguousRun(text, runs, count)
    names = reader.names()
    if text in names:
        raise NoSuchRun(f'workflow "{text}" has no runs yet in {reader.name}')
    raise NoSuchRun(f'no run and no workflow is called "{text}" in {reader.name}', likely(text, names))


def _newest(reader: Reader) -> str:
    runs, _ = reader.runs(RunQuery(), 1)
    if not runs:
        raise NoSuchRun(f"no runs yet in {reader.name}")
    return runs[0].execution_id


def hint(text: str, names: Sequence[str]) -> str:
    """``; did you mean …?`` for the name most like ``text``, or nothing."""
    return _asking(likely(text, names))


def _asking(name: str | None) -> str:
    return f'; did you mean "{name}"?' if name is not None else ""


def likely(text: str, names: Sequence[str]) -> str | None:
    """The name most like ``text``, or None if none is like it."""
    # Only who mistypes a name pays for this.
    from difflib import get_close_matches

    close = get_close_matches(text[:200], names, 1)
    return close[0] if close else None
