"""A request's query string, read and checked."""

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
from tachograph_exporter.api.guard import ROUTE_OF
from tachograph_exporter.api.request import T
from tachograph_exporter.api.routes import PAGE
from tachograph_exporter.store.execution_list import Position
from tachograph_exporter.times import parse_duration, parse_time

_LOGFMT: Final = re.compile(r'([^\s=]+)=("[^"]*"|\S*)')
_WORKSPACE_KEYS: Final = ("workspace_id", "workspace_slug", "project_id")


def encode_cursor(sort: str, position: Position) -> str:
    """A page's end as text that goes into an address."""
    return base64.urlsafe_b64encode(msgspec.msgpack.encode((sort, *position))).decode().rstrip("=")


def decode_cursor(sort: str, text: str) -> Position:
    """What `encode_cursor` made, for the same order. Raises ValueError."""
    try:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        of, value, execution_id = msgspec.msgpack.decode(data, type=tuple[str, int, str])
    except (ValueError, msgspec.DecodeError):
        raise ValueError("it is no cursor; take `next` of the page before") from None
    if of != sort:
        raise ValueError(f"it belongs to sort={of}, not to sort={sort}")
    if not -(1 << 63) <= value < 1 << 63:
        raise ValueError("it is no cursor; take `next` of the page before")
    return Position(value, execution_id)


class Query:
    """A request's query string, read one parameter at a time; faults are collected and raised together.

    >>> query = Query(request)
    >>> skip, limit = query.page()
    >>> query.done()  # raises 422 naming every fault, unknown parameters included
    """

    def __init__(self, request: web.Request) -> None:
        self._values = request.query
        route = request.app[ROUTE_OF][request.match_info.handler]
        self._declared = {parameter.name: parameter for parameter in route.query}
        self._known: set[str] = {*_WORKSPACE_KEYS, *self._declared}
        self._faults: list[Fault] = []
        self.now_ns = time.time_ns()

    def _check(self, name: str) -> None:
        if name not in self._declared:
            raise LookupError(f"the route does not declare the parameter {name!r}")

    def fault(self, name: str, why: str) -> None:
        """Note what is wrong with a parameter."""
        self._faults.append(Fault("bad_value", name, why))

    def _read(self, name: str, parse: Callable[[str], T]) -> T | None:
        self._check(name)
        text = self._values.get(name)
        if text is None or text == "":
            return None
        try:
            return parse(text)
        except ValueError as error:
            self._faults.append(Fault("bad_value", name, str(error)))
            return None

    def text(self, name: str) -> str | None:
        """A text."""
        return self._read(name, str)

    def whole(self, name: str, default: int, low: int, high: int) -> int:
        """A whole number."""

        def parse(text: str) -> int:
            if not text.lstrip("-").isascii() or not text.lstrip("-").isdigit() or len(text) > 18:
                raise ValueError(f"{text[:40]!r} is no whole number")
            if not low <= int(text) <= high:
                raise ValueError(f"{text} is not between {low} and {high}")
            return int(text)

        value = self._read(name, parse)
        return default if value is None else value

    def number(self, name: str) -> int | None:
        """A whole number that need not be there, within the bounds that the route declares."""
        declared = self._declared[name]
        found = self.whole(name, -1, declared.low or 0, declared.high or 0)
        return None if found < 0 else found

    def page(self) -> tuple[int, int]:
        """``skip`` and ``limit``."""
        return tuple(self.whole(p.name, p.default, p.low or 0, p.high or 0) for p in PAGE)  # type: ignore[return-value]

    def time(self, name: str) -> int | None:
        """A time: RFC 3339, unix seconds, or ago (``24h``)."""
        return self._read(name, lambda text: parse_time(text, self.now_ns))

    def duration(self, name: str) -> int | None:
        """A duration: seconds or with a unit."""
        return self._read(name, parse_duration)

    def texts(self, name: str) -> frozenset[str]:
        """All values of a parameter that may be repeated or comma-separated."""
        self._check(name)
        return frozenset(part.strip() for value in self._values.getall(name, []) for part in value.split(",") if part)

    def microseconds(self, name: str) -> int | None:
        """Unix microseconds, as nanoseconds."""
        return self._count(name, "microseconds", 16, 1000)

    def milliseconds(self, name: str) -> int | None:
        """Unix milliseconds, as nanoseconds."""
        return self._count(name, "milliseconds", 13, 1_000_000)

    def _count(self, name: str, unit: str, digits: int, factor: int) -> int | None:
        def parse(text: str) -> int:
            if not text.isascii() or not text.isdigit() or len(text) > digits:
                raise ValueError(f"{text[:40]!r} is no time in unix {unit}")
            return int(text) * factor

        return self._read(name, parse)

    def tags(self, name: str) -> dict[str, str]:
        """A JSON object of texts."""

        def parse(text: str) -> dict[str, str]:
            try:
                return msgspec.json.decode(text, type=dict[str, str])
            except msgspec.DecodeError as error:
                raise ValueError(f"no JSON object of texts: {error}") from None

        return self._read(name, parse) or {}

    def logfmt(self, name: str) -> dict[str, str]:
        """``key=value key="another value"``."""

        def parse(text: str) -> dict[str, str]:
            found = dict(_LOGFMT.findall(text))
            return {key: value.strip('"') for key, value in found.items()}

        return self._read(name, parse) or {}

    def parsed(self, name: str, parse: Callable[[str], T]) -> T | None:
        """Whatever ``parse`` makes of it; what it says in a ValueError is a fault."""
        return self._read(name, parse)

    def cursor(self, name: str, sort: str) -> Position | None:
        """Where the page before ended."""
        return self._read(name, lambda text: decode_cursor(sort, text))

    def choice(self, name: str, known: Iterable[str], default: str) -> str:
        """One of a few words."""
        options = list(known)

        def parse(text: str) -> str:
            if text not in options:
                raise ValueError(f"{text!r} is none of {', '.join(options)}{did_you_mean(text, options)}")
            return text

        return self._read(name, parse) or default

    def execution_statuses(self) -> tuple[ExecutionStatus, ...]:
        """``status`` as execution statuses."""
        return tuple(ExecutionStatus(word) for word in self._statuses({s.value for s in ExecutionStatus}))

    def step_statuses(self, name: str = "status") -> frozenset[StepStatus]:
        """A parameter as step statuses."""
        return frozenset(StepStatus(word) for word in self._statuses({s.value for s in StepStatus}, name))

    def _statuses(self, known: set[str], name: str = "status") -> list[str]:
        words = sorted(self.texts(name))
        for word in words:
            if word not in known:
                hint = did_you_mean(word, known) or f"; there are: {', '.join(sorted(known))}"
                self._faults.append(Fault("bad_value", name, f'"{word}" is no status{hint}'))
        return [word for word in words if word in known]

    def done(self) -> None:
        """Raise 422 naming every fault, if there are any."""
        for name in self._values:
            if name not in self._known:
                hint = did_you_mean(name, self._known)
                self._faults.append(Fault("unknown_parameter", name, f'no parameter is called "{name}"{hint}'))
        if self._faults:
            raise problems.invalid_parameters(self._faults)
