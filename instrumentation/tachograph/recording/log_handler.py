"""Records of Python's `logging` as lines of the step in which they were emitted.

`install` looks at every record that a logger hands to its handlers, whatever handlers there are: a program that
configures logging later (``basicConfig``, ``dictConfig``) changes nothing here, and sees nothing of this. `LogHandler`
is the same as a handler, for programs that name all of theirs in a configuration.
"""

from __future__ import annotations

import functools
import logging
import math
import os
from typing import Any, Final

from tachograph.events import Failure
from tachograph.recording import line_buffers
from tachograph.redaction import TEXT_LIMIT
from tachograph.summary import failure as describe
from tachograph.workflow.reporter import current_reporter, engine_reporter

log = logging.getLogger(__name__)

LOGS_VARIABLE: Final = "TACHOGRAPH_LOGS"
_OWN: Final = ("tachograph", "tachograph_exporter")
_MAX_CHARACTERS: Final = 2 * TEXT_LIMIT
_OFF: Final = ("", "off", "none", "false", "0")


class LogHandler(logging.Handler):
    """A handler that keeps the records of running steps with them. It ignores records outside steps, and formatters.

    It takes no lock, and does no I/O: what it gathers is recorded by another thread.
    """

    def handle(self, record: logging.LogRecord) -> Any:
        """Handle a record. Unlike other handlers, without a lock."""
        passed: Any = self.filter(record)
        if isinstance(passed, logging.LogRecord):
            record = passed
        if passed:
            self.emit(record)
        return passed

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record, unless `install` does so already."""
        if record.levelno < _level:
            keep(record)


def keep(record: logging.LogRecord) -> None:
    """Keep a record as a line of the step that the calling code belongs to, if there is one. Never raises."""
    reporter = current_reporter.get()
    if reporter is None or not reporter.is_open:
        reporter = engine_reporter.get()
        if reporter is None or not reporter.is_open:
            return
    # `logging.makeLogRecord` makes records without a name.
    name = f"{record.name}"
    if name.startswith(_OWN) and name.partition(".")[0] in _OWN:
        return  # What recording itself has to say would come back again and again.
    try:
        message = record.getMessage() if record.args else record.msg
        if type(message) is not str:
            message = str(message)
    except Exception as error:
        message = f"{_shown(record.msg)} (its arguments cannot be formatted: {type(error).__name__})"
    try:
        if len(message) > _MAX_CHARACTERS:
            message = message[:_MAX_CHARACTERS]
        failure: Failure | None = None
        if record.exc_info and isinstance(raised := record.exc_info[1], BaseException):
            failure = describe(raised)
        line_buffers.add(reporter, severity_of(record.levelno), name, message, failure)
    except Exception:
        # The program's own logging must go on, and there is no place left to say so.
        return


def _shown(template: object) -> str:
    return template if type(template) is str else f"<{type(template).__name__}>"


@functools.lru_cache(maxsize=64)
def severity_of(level: int) -> int:
    """OpenTelemetry's severity number of a level of `logging`; see its log data model, appendix B."""
    for low, severity in ((50, 21), (40, 17), (30, 13), (20, 9), (10, 5)):
        if level >= low:
            return severity
    return 1


class _Lowered(int):
    """The root logger's level as `install` set it. ``before``: what it was; other handlers see no more than that."""

    before: int


_level: float = math.inf
_call_handlers: Any = None
_is_asked = False
"""Whether somebody decided about a level."""


def level_of(value: str | int | None) -> int | None:
    """A level by its name or number; None for nothing, or for ``off``. Raises `ValueError`."""
    if value is None or (isinstance(value, str) and value.strip().lower() in _OFF):
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        level: int | None = value
    else:
        text = str(value).strip()
        level = int(text) if text.isascii() and text.isdecimal() else logging.getLevelNamesMapping().get(text.upper())
    if level is None or not 0 < level <= 1_000:
        raise ValueError(f"{str(value)[:50]!a} is no level of logging, such as INFO")
    return level


def install(level: int | None) -> None:
    """From now on, keep records of this level or above; None: no more."""
    global _level, _call_handlers, _is_asked
    _is_asked = True
    _raise_root()
    _level = math.inf if level is None else level
    if level is None:
        return
    if _call_handlers is None:
        _call_handlers = original = logging.Logger.callHandlers

        @functools.wraps(original)
        def call_handlers(self: logging.Logger, record: logging.LogRecord) -> None:
            if record.levelno >= _level:
                keep(record)
            if record.levelno >= _shown_from(self):
                original(self, record)

        logging.Logger.callHandlers = call_handlers  # type: ignore[method-assign]
    root = logging.getLogger()
    if root.level > level:
        lowered = _Lowered(level)
        lowered.before = root.level
        root.setLevel(lowered)


def install_from_environment() -> None:
    """`install` with the level in ``TACHOGRAPH_LOGS``, once, unless it was called: for a worker of an executor."""
    global _is_asked
    if _is_asked:
        return
    _is_asked = True
    try:
        level = level_of(os.environ.get(LOGS_VARIABLE))
    except ValueError as error:
        log.warning("no log records are kept: %s: %s", LOGS_VARIABLE, error)
        return
    if level is not None:
        install(level)


def installed_level() -> int | None:
    """The level from which records are kept; None: they are not."""
    return None if _level == math.inf else int(_level)


def _raise_root() -> None:
    root = logging.getLogger()
    if type(root.level) is _Lowered:
        root.setLevel(root.level.before)


def _shown_from(logger: logging.Logger) -> int:
    """From which level on a logger's handlers see records: from where they did before the root's level was lowered."""
    root = logging.root.level
    if type(root) is not _Lowered:
        return 0
    at: logging.Logger | None = logger
    while at is not None:
        if at.level:
            return root.before if at.level is root else 0
        at = at.parent
    return 0
