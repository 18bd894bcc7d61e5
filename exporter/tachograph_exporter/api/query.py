"""The query string of a request: parameters read by type, faults collected."""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Callable, Iterable
from typing import Final

import msgspec
from aiohttp import web

from tachograph.errors import Fault
from tachograph.events import ExecutionStatus, StepStatus
from tachograph.workflow.hints import did_you_mean
from tachograph_exporter.api import problems
from tachograph_exporter.api.request import T, is_text
from tachograph_exporter.api.routes import PAGE, ROUTE_BY_HANDLER
from tachograph_exporter.store.execution_list import Position
from tachograph_exporter.times import checked, parse_duration, parse_time

_LOGFMT: Final = re.compile(r'([^\s=]+)=("[^"]*"|\S*)')
_INTEGER: Final = re.compile(r"-?[0-9]{1,19}")
_BOOLEANS: Final = {
    **dict.fromkeys(("true", "1", "yes", "on"), True),
    **dict.fromkeys(("false", "0", "no", "off"), False),
}
_WORKSPACE_PARAMETERS: Final = ("workspace_id", "workspace_slug", "project_id")
_BAD_CURSOR: Final = "not a valid cursor; use `next` of the previous page"


def encode_cursor(sort: str, position: Position) -> str:
    """The position of a page's last item as text for a query string."""
    return base64.urlsafe_b64encode(msgspec.msgpack.encode((sort, *position))).decode().rstrip("=")


def decode_cursor(sort: str, text: str) -> Position:
    """The position that `encode_cursor` encoded. Raises ValueError, also if it belongs to another sort order."""
    try:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        cursor_sort, value, execution_id = msgspec.msgpack.decode(data, type=tuple[str, int, str])
    except (ValueError, msgspec.DecodeError):
        raise ValueError(_BAD_CURSOR) from None
    if not is_text(execution_id):
        raise ValueError(_BAD_CURSOR)
    if cursor_sort != sort:
        raise ValueError(f"this cursor belongs to sort={cursor_sort}, not to sort={sort}")
    if not -(1 << 63) <= value < 1 << 63:
        raise ValueError(_BAD_CURSOR)
    return Position(value, execution_id)


class Query:
    """The query string of a request. Faults are collected and raised together by `done`.

    A parameter that is missing, empty or at fault reads as None or as its default.

    >>> query = Query(request)
    >>> skip, limit = query.page()
    >>> query.done()  # raises 422 with every fault, unknown parameters included
    """

    def __init__(self, request: web.Request) -> None:
        self._values = request.query
        route = request.app[ROUTE_BY_HANDLER][request.match_info.handler]
        self._declared = {parameter.name: parameter for parameter in route.query}
        self._names: set[str] = {*_WORKSPACE_PARAMETERS, *self._declared}
        self._faults: list[Fault] = []
        self.now_ns = time.time_ns()

    def _check(self, name: str) -> None:
        if name not in self._declared:
            raise LookupError(f"the route does not declare the parameter {name!r}")

    def fault(self, name: str, message: str) -> None:
        """Record a fault of a parameter."""
        self._faults.append(Fault("bad_value", name, message))

    def _read(self, name: str, parse: Callable[[str], T]) -> T | None:
        self._check(name)
        text = self._values.get(name)
        if text is None or text == "":
            return None
        try:
            return parse(text)
        except ValueError as error:
            self.fault(name, str(error))
            return None

    def text(self, name: str) -> str | None:
        """The text as it is."""
        return self._read(name, str)

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        """An integer from ``low`` to ``high``."""

        def parse(text: str) -> int:
            if not _INTEGER.fullmatch(text):
                raise ValueError(f"{text[:40]!r} is not an integer")
            if not low <= int(text) <= high:
                raise ValueError(f"{text} is not between {low} and {high}")
            return int(text)

        value = self._read(name, parse)
        return default if value is None else value

    def optional_integer(self, name: str) -> int | None:
        """An optional integer within the bounds that the route declares."""
        declared = self._declared[name]
        number = self.integer(name, -1, declared.low or 0, declared.high or 0)
        return None if number < 0 else number

    def boolean(self, name: str) -> bool | None:
        """True or false, in the words that other APIs take too."""

        def parse(text: str) -> bool:
            value = _BOOLEANS.get(text.lower())
            if value is None:
                raise ValueError(f"{text[:40]!r} is neither true nor false")
            return value

        return self._read(name, parse)

    def page(self) -> tuple[int, int]:
        """``skip`` and ``limit``."""
        return tuple(self.integer(p.name, p.default, p.low or 0, p.high or 0) for p in PAGE)  # type: ignore[return-value]

    def time(self, name: str) -> int | None:
        """A time in unix nanoseconds; given as RFC 3339, unix seconds, or an age (``24h``)."""
        return self._read(name, lambda text: parse_time(text, self.now_ns))

    def duration(self, name: str) -> int | None:
        """A duration in nanoseconds; given in seconds or with a unit."""
        return self._read(name, parse_duration)

    def texts(self, name: str) -> frozenset[str]:
        """All values of a parameter that may be repeated or hold a comma-separated list."""
        self._check(name)
        return frozenset(part.strip() for value in self._values.getall(name, []) for part in value.split(",") if part)

    def microseconds(self, name: str) -> int | None:
        """Unix microseconds, in nanoseconds."""
        return self._unix_time(name, "microseconds", 16, 1000)

    def milliseconds(self, name: str) -> int | None:
        """Unix milliseconds, in nanoseconds."""
        return self._unix_time(name, "milliseconds", 13, 1_000_000)

    def _unix_time(self, name: str, unit: str, digits: int, factor: int) -> int | None:
        def parse(text: str) -> int:
            if not text.isascii() or not text.isdigit() or len(text) > digits:
                raise ValueError(f"{text[:40]!r} is not a time in unix {unit}")
            return checked(int(text) * factor, text)

        return self._read(name, parse)

    def tags(self, name: str) -> dict[str, str]:
        """A JSON object whose values are strings."""

        def parse(text: str) -> dict[str, str]:
            try:
                return msgspec.json.decode(text, type=dict[str, str])
            except msgspec.DecodeError as error:
                raise ValueError(f"not a JSON object of strings: {error}") from None

        return self._read(name, parse) or {}

    def logfmt(self, name: str) -> dict[str, str]:
        """Pairs in logfmt: ``key=value key="another value"``."""

        def parse(text: str) -> dict[str, str]:
            return {key: value.strip('"') for key, value in _LOGFMT.findall(text)}

        return self._read(name, parse) or {}

    def parsed(self, name: str, parse: Callable[[str], T]) -> T | None:
        """The result of ``parse``. The message of a ValueError it raises becomes a fault."""
        return self._read(name, parse)

    def cursor(self, name: str, sort: str) -> Position | None:
        """The position where the previous page ended."""
        return self._read(name, lambda text: decode_cursor(sort, text))

    def choice(self, name: str, choices: Iterable[str], default: str) -> str:
        """One of the choices."""
        options = list(choices)

        def parse(text: str) -> str:
            if text not in options:
                raise ValueError(f"{text!r} is none of {', '.join(options)}{did_you_mean(text, options)}")
            return text

        return self._read(name, parse) or default

    def execution_statuses(self) -> tuple[ExecutionStatus, ...]:
        """The parameter ``status`` as execution statuses."""
        return tuple(ExecutionStatus(word) for word in self._statuses({s.value for s in ExecutionStatus}))

    def step_statuses(self, name: str = "status") -> frozenset[StepStatus]:
        """The parameter as step statuses."""
        return frozenset(StepStatus(word) for word in self._statuses({s.value for s in StepStatus}, name))

    def _statuses(self, valid: set[str], name: str = "status") -> list[str]:
        words = sorted(self.texts(name))
        for word in words:
            if word not in valid:
                hint = did_you_mean(word, valid, self._faults) or f"; expected one of: {', '.join(sorted(valid))}"
                self.fault(name, f'"{word}" is not a status{hint}')
        return [word for word in words if word in valid]

    def done(self) -> None:
        """Raise 422 with every fault, if there are any."""
        for name in self._values:
            if name not in self._names:
                hint = did_you_mean(name, self._names, self._faults)
                self._faults.append(Fault("unknown_parameter", name, f'there is no parameter "{name}"{hint}'))
        if self._faults:
            raise problems.invalid_parameters(self._faults)
