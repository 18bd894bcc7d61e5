"""Calls that never raise into the caller, and what they accept: moments, errors, names."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Concatenate, Final, ParamSpec, TypeAlias, TypeVar

from tachograph.clock import MAX_NS, NS
from tachograph.events import Failure
from tachograph.identity import traceparent
from tachograph.names import clean_name, encodable
from tachograph.quiet_log import QuietLog
from tachograph.redaction import mask_text
from tachograph.spans.propagation import caller
from tachograph.summary import as_text
from tachograph.summary import failure as describe

log = logging.getLogger("tachograph.report")
quiet = QuietLog(log, interval_seconds=3600.0)

Moment: TypeAlias = "datetime | float | None"
"""A moment: a datetime (without a zone: UTC), or unix seconds; None: now."""
Error: TypeAlias = "BaseException | str | None"
RUN_ID_LIMIT: Final = 500

_S = TypeVar("_S")
_P = ParamSpec("_P")


def safely(method: Callable[Concatenate[_S, _P], None]) -> Callable[Concatenate[_S, _P], _S]:
    """Let a method never raise, and return its object. What goes wrong is logged, each kind once in a while."""

    @functools.wraps(method)
    def call(self: _S, /, *args: _P.args, **kwargs: _P.kwargs) -> _S:
        try:
            method(self, *args, **kwargs)
        except Exception as error:
            complain(method.__name__, error)
        return self

    call.reports_something = True  # type: ignore[attr-defined]
    return call


def complain(what: str, error: BaseException) -> None:
    """Log that something could not be reported."""
    quiet.warning((what, type(error)), "not reported: %s(): %s: %s", what, type(error).__name__, error)


def moment_ns(at: Moment, now_ns: int) -> int:
    """The moment in unix nanoseconds. Raises ValueError if it is none that can be stored."""
    if at is None:
        return now_ns
    if isinstance(at, datetime):
        value = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
        whole = value - datetime(1970, 1, 1, tzinfo=UTC)
        ns = (whole.days * 86_400 + whole.seconds) * NS + whole.microseconds * 1000
    elif type(at) in (int, float):
        ns = round(at * NS)
    else:
        raise TypeError(f"at={type(at).__name__}: expected a datetime, or unix seconds")
    if not 0 <= ns <= MAX_NS:
        raise ValueError(f"at={at!r} is no moment between 1970 and 2262")
    return ns


def failure_of(error: Error, default: str = "Error") -> Failure:
    """What went wrong, bounded and masked. A text may begin with the type: ``ValueError: no price``."""
    if isinstance(error, BaseException):
        return describe(error)
    text = mask_text(encodable(as_text(error), 10_000)) if error is not None else ""
    kind, colon, message = text.partition(": ")
    if colon and kind.replace(".", "").replace("_", "").isalnum() and len(kind) <= 100:
        return Failure(kind, message)
    return Failure(default, text or "no reason was given")


def text_of(value: Any, what: str, limit: int = RUN_ID_LIMIT) -> str:
    """An id or a key as text. Raises ValueError if it is empty or too long."""
    text = value if type(value) is str else str(value)
    if not text or len(text) > limit:
        raise ValueError(f"{what} needs 1 to {limit} characters")
    return encodable(text, limit)


def name_of(value: Any, what: str) -> str:
    """A name. Raises ValueError if it is empty."""
    name = clean_name(value)
    if not name:
        raise ValueError(f"{what} needs a name")
    return name


def caller_traceparent() -> str | None:
    """The W3C ``traceparent`` of the calling code's current span; None without one."""
    here = caller()
    return traceparent(*here) if here is not None else None
