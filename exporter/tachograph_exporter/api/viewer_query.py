"""The query string of a viewer's request, read as the backend that the viewer was written for reads it.

Jaeger UI and Grafana send parameters that come and go with their versions. So unknown parameters are ignored, numbers
out of range are moved into it, and durations are read as Go writes them (https://pkg.go.dev/time#ParseDuration). Our
own API stays strict (see `query`).
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from tachograph_exporter.api import problems
from tachograph_exporter.api.query import Query
from tachograph_exporter.times import parse_go_duration, parse_time

_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,30}")


class ViewerQuery(Query):
    """The query string of a request of somebody else's client."""

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        """An integer; ``high`` if it is more, ``default`` if it is less than ``low``, as Go's servers take 0."""

        def parse(text: str) -> int:
            if not _INTEGER.fullmatch(text):
                raise ValueError(f"{text[:40]!r} is not an integer")
            number = int(text)
            return min(number, high) if number >= low else default

        value = self._read(name, parse)
        return default if value is None else value

    def duration(self, name: str) -> int | None:
        """A duration in nanoseconds: as Go writes it (``1h30m``, ``500us``), or in seconds."""
        return self._read(name, parse_go_duration)

    def time(self, name: str) -> int | None:
        """A time in unix nanoseconds, as `Query.time` reads it."""
        # Grafana's Jaeger source does not escape the plus of a zone, which then reads as a space.
        return self._read(name, lambda text: parse_time(text.replace(" ", "+"), self.now_ns))

    def given(self, *names: str) -> str:
        """The first of a parameter's names that has a value in this query; its first name if none has."""
        return next((name for name in names if self._values.get(name)), names[0])

    def all(self, name: str) -> list[str]:
        """Every value of a parameter that is repeated, the empty ones left out."""
        self._check(name)
        return [value for value in self._values.getall(name, []) if value]

    def tags(self, name: str) -> dict[str, str]:
        """JSON objects of strings, numbers and booleans; each value as text. Later objects add to earlier ones."""
        tags: dict[str, str] = {}
        for text in self.all(name):
            try:
                pairs = msgspec.json.decode(text, type=dict[str, str | int | float | bool])
            except (msgspec.DecodeError, UnicodeEncodeError) as error:
                self.fault(name, f"not a JSON object of strings: {error}")
            else:
                tags |= {key: _text(value) for key, value in pairs.items()}
        return tags

    def pairs(self, name: str) -> dict[str, str]:
        """Values ``key:value`` of a parameter that is repeated."""
        pairs: dict[str, str] = {}
        for text in self.all(name):
            key, colon, value = text.partition(":")
            if not colon:
                self.fault(name, f"{text[:40]!r} is not a key and a value (key:value)")
            pairs[key] = value
        return pairs

    def done(self) -> None:
        """Raise 422 with every fault, if there are any. Unknown parameters are none."""
        if self._faults:
            raise problems.invalid_parameters(self._faults)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
