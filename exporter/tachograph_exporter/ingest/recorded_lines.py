"""Lines that other processes recorded, as they are kept: bounded, and with secrets masked."""

from __future__ import annotations

import re
from typing import Final

from msgspec.structs import replace

from tachograph.clock import MAX_NS
from tachograph.events import Failure, StepLine, StepLines
from tachograph.names import encodable
from tachograph.redaction import mask_text
from tachograph.summary import STACK_LIMIT
from tachograph_exporter.store.step_lines import MAX_LINES

_WRITER: Final = re.compile(r"[0-9A-Za-z._-]{1,36}", re.ASCII)
_MAX_NUMBER: Final = (1 << 53) - 1
_MAX_ATTEMPT: Final = (1 << 31) - 1
_MAX_SEVERITY: Final = 24


def cleaned_lines(event: StepLines) -> StepLines:
    """The event with its last lines as they are kept. Raises `ValueError` if it cannot be."""
    if not _WRITER.fullmatch(event.writer):
        raise ValueError("its writer is no id of at most 36 letters, digits, dots and dashes")
    if not 0 <= event.attempt <= _MAX_ATTEMPT:
        raise ValueError("its attempt is no number of an attempt")
    return replace(event, lines=tuple([_cleaned(line) for line in event.lines[-MAX_LINES:]]))


def _cleaned(line: StepLine) -> StepLine:
    if not 0 < line.number <= _MAX_NUMBER:
        raise ValueError("the number of a line is not positive")
    if not 0 <= line.time_ns <= MAX_NS:
        raise ValueError("the time_ns of a line is no time in unix nanoseconds")
    failure = line.failure
    if failure is not None:
        stack = mask_text(failure.stack, STACK_LIMIT + 1) if failure.stack is not None else None
        failure = Failure(encodable(failure.type, 300), mask_text(failure.message), stack)
    return replace(
        line,
        severity=min(max(line.severity, 0), _MAX_SEVERITY),
        logger=encodable(line.logger),
        message=mask_text(line.message),
        failure=failure,
    )
