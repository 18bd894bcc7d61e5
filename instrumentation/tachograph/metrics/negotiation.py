"""Which exposition format a scraper gets, by its Accept header."""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import Enum
from typing import Final, NamedTuple

LEGACY_NAME: Final = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")


class Format(Enum):
    """An exposition format, by its content type."""

    TEXT = "text/plain; version=0.0.4; charset=utf-8"
    OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8; escaping=underscores"
    PROTOBUF = "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"


class Offer(NamedTuple):
    """What a scraper takes: a media type, its parameters, its weight."""

    media_type: str
    parameters: dict[str, str]
    weight: float


def choose(accept: str) -> Format:
    """The format to answer with: the one the scraper likes best of those there are, text when it does not say."""
    best, weight = Format.TEXT, 0.0
    for offer in _offers(accept):
        found = _format(offer)
        if found is not None and offer.weight > weight:
            best, weight = found, offer.weight
    return best


def _offers(accept: str) -> Iterator[Offer]:
    for part in accept.split(","):
        media_type, *rest = (word.strip() for word in part.split(";"))
        parameters = {key.strip(): value.strip() for key, _, value in (word.partition("=") for word in rest)}
        try:
            weight = float(parameters.pop("q", 1.0))
        except ValueError:
            weight = 0.0
        yield Offer(media_type.lower(), parameters, weight)


def _format(offer: Offer) -> Format | None:
    media_type, parameters, _ = offer
    if media_type == "application/vnd.google.protobuf":
        wanted = (parameters.get("proto"), parameters.get("encoding"))
        return Format.PROTOBUF if wanted == ("io.prometheus.client.MetricFamily", "delimited") else None
    if media_type == "application/openmetrics-text":
        return Format.OPENMETRICS if parameters.get("version", "1.0.0") in ("1.0.0", "0.0.1") else None
    if media_type in ("text/plain", "text/*", "*/*"):
        return Format.TEXT
    return None
