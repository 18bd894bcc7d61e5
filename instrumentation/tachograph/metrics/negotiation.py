"""Choosing the exposition format by a scraper's ``Accept`` header."""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import Enum
from typing import Final, NamedTuple

LEGACY_NAME: Final = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")


class Format(Enum):
    """An exposition format; its value is the content type."""

    TEXT = "text/plain; version=0.0.4; charset=utf-8"
    OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8; escaping=underscores"
    PROTOBUF = "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"


class _MediaRange(NamedTuple):
    """A media range of an ``Accept`` header."""

    media_type: str
    parameters: dict[str, str]
    weight: float


def choose_format(accept: str) -> Format:
    """The supported format that the scraper prefers; text by default."""
    best, weight = Format.TEXT, 0.0
    for media_range in _media_ranges(accept):
        form = _format(media_range)
        if form is not None and media_range.weight > weight:
            best, weight = form, media_range.weight
    return best


def _media_ranges(accept: str) -> Iterator[_MediaRange]:
    for part in accept.split(","):
        media_type, *rest = (word.strip() for word in part.split(";"))
        parameters = {key.strip(): value.strip() for key, _, value in (word.partition("=") for word in rest)}
        try:
            weight = float(parameters.pop("q", 1.0))
        except ValueError:
            weight = 0.0
        yield _MediaRange(media_type.lower(), parameters, weight)


def _format(media_range: _MediaRange) -> Format | None:
    media_type, parameters, _ = media_range
    if media_type == "application/vnd.google.protobuf":
        message = (parameters.get("proto"), parameters.get("encoding"))
        return Format.PROTOBUF if message == ("io.prometheus.client.MetricFamily", "delimited") else None
    if media_type == "application/openmetrics-text":
        return Format.OPENMETRICS if parameters.get("version", "1.0.0") in ("1.0.0", "0.0.1") else None
    if media_type in ("text/plain", "text/*", "*/*"):
        return Format.TEXT
    return None
