"""Masking secrets: no credential may become part of an event."""

from __future__ import annotations

import re
from typing import Final

MASK: Final = "[masked]"
TEXT_LIMIT: Final = 4096
"""Most characters of an error message or a log message."""

_SENSITIVE: Final = (
    r"pass(?:word|wd|phrase)?|secret|token|api[_-]?key|access[_-]?key|private[_-]?key|authorization|auth"
    r"|credentials?|cookie|session[_-]?key|signature|dsn"
)
_SECRET_KEY: Final = re.compile(rf"(?:^|[_\-.\s])(?:{_SENSITIVE})(?:$|[_\-.\s])", re.IGNORECASE)
_CAMEL: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_TOKEN_COUNT: Final = re.compile(r"tokens?[_-]?(?:in|out|count|total|used|limit)|max[_-]?tokens?", re.IGNORECASE)
_IN_TEXT: Final = re.compile(
    r"(?P<url>[a-z][a-z0-9+.\-]*://[^\s/:@]*:)[^\s@/]+(?=@)"
    rf"|(?P<pair>[\"']?[\w\-]*(?:{_SENSITIVE})[\"']?\s*[=:]\s*)(?P<open>[\"']?)(?!\s)(?:(?:bearer|basic)\s+)?[^\s\"'&;,]+"
    r"|(?P<bearer>\b(?:bearer|basic)\s+)[A-Za-z0-9._~+/=\-]{8,}",
    re.IGNORECASE,
)
_MAY_HOLD: Final = re.compile(rf"://|bearer|basic|{_SENSITIVE}", re.IGNORECASE)


def is_secret_key(key: str) -> bool:
    """Whether values under this key are masked: ``api_key``, ``dbPassword``, … but not counts like ``tokens_in``."""
    if _TOKEN_COUNT.search(key):
        return False
    return _SECRET_KEY.search(_CAMEL.sub("_", key)) is not None


def mask_text(text: str, limit: int = TEXT_LIMIT) -> str:
    """``text`` with credentials masked, at most ``limit`` characters, encodable as UTF-8, without NUL."""
    if len(text) > limit:
        # The final cut comes after masking, so that no half of a secret is left; this one bounds the search.
        text = text[: limit * 2]
    if _MAY_HOLD.search(text):
        text = _IN_TEXT.sub(_masked, text)
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    if not text.isascii():
        text = text.encode("utf-8", "replace").decode()
    return text.replace("\0", "�")


def _masked(match: re.Match[str]) -> str:
    if match["url"]:
        return match["url"] + MASK
    if match["bearer"]:
        return match["bearer"] + MASK
    return f"{match['pair']}{match['open'] or ''}{MASK}"
