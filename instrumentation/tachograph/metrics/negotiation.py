"""Choosing the exposition format, and how names are written, by a scraper's ``Accept`` header.

Parameters: https://prometheus.io/docs/instrumenting/content_negotiation/
"""

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
    OPENMETRICS_2 = "application/openmetrics-text; version=2.0.0; charset=utf-8; escaping=underscores"
    PROTOBUF = "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"


class Escaping(Enum):
    """How names are written that have other characters than ASCII letters, digits and ``_``.

    Source: https://prometheus.io/docs/instrumenting/escaping_schemes/. The scheme ``dots``, which changes every name
    with an underscore, is not supported.
    """

    UNDERSCORES = "underscores"
    VALUES = "values"
    ALLOW_UTF_8 = "allow-utf-8"


class Negotiated(NamedTuple):
    """The format of a response and how names are written in it. ``is_text_1``: version 1.0.0 of the text format."""

    form: Format
    escaping: Escaping
    is_text_1: bool = False

    @property
    def content_type(self) -> str:
        """Of the response: names the escaping where the scraper may not assume it."""
        if self.is_text_1:
            return f"text/plain; version=1.0.0; charset=utf-8; escaping={self.escaping.value}"
        form: str = self.form.value
        if self.form in (Format.OPENMETRICS, Format.OPENMETRICS_2):
            return form.replace("underscores", self.escaping.value)
        if self.form is Format.PROTOBUF and self.escaping is not Escaping.UNDERSCORES:
            return f"{form}; escaping={self.escaping.value}"
        return form


_OPENMETRICS: Final = {
    "0.0.1": Format.OPENMETRICS, "1.0.0": Format.OPENMETRICS, "2.0.0": Format.OPENMETRICS_2,
}  # fmt: skip
"""The format by version; the oldest unless a scraper asks for a newer one."""


class _MediaRange(NamedTuple):
    """A media range of an ``Accept`` header."""

    media_type: str
    parameters: dict[str, str]
    weight: float


def choose_format(accept: str) -> Format:
    """The supported format that the scraper prefers; text by default."""
    return negotiate(accept).form


def negotiate(accept: str) -> Negotiated:
    """The supported format that the scraper prefers, and the escaping that it asks for; text by default."""
    best, weight = Negotiated(Format.TEXT, Escaping.UNDERSCORES), 0.0
    for media_range in _media_ranges(accept):
        form = _format(media_range)
        if form is not None and media_range.weight > weight:
            is_text_1 = form is Format.TEXT and media_range.parameters.get("version") == "1.0.0"
            has_escaping = is_text_1 or form is not Format.TEXT
            escaping = _escaping(media_range.parameters.get("escaping", "")) if has_escaping else Escaping.UNDERSCORES
            best, weight = Negotiated(form, escaping, is_text_1), media_range.weight
    return best


def _escaping(name: str) -> Escaping:
    try:
        return Escaping(name.lower())
    except ValueError:
        return Escaping.UNDERSCORES


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
        return _OPENMETRICS.get(parameters.get("version", "1.0.0"))
    if media_type in ("text/plain", "text/*", "*/*"):
        return Format.TEXT
    return None
