"""Names as every view can hold them: a label, a row, a header, a span."""

from __future__ import annotations

import functools
import hashlib
from typing import Final

NAME_LIMIT: Final = 200
"""Characters of a name, a version, a label or a unit."""


def encodable(text: str, limit: int = NAME_LIMIT) -> str:
    """``text`` as valid UTF-8 without NUL, at most ``limit`` characters.

    Lone surrogates (bytes of a file name that are no text, PEP 383) become ``?``, NUL becomes ``�``.
    """
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    if not text.isascii():
        text = text.encode("utf-8", "replace").decode()
    return text.replace("\0", "�") if "\0" in text else text


def clean_name(name: object) -> str:
    """The name under which something is recorded: `encodable`, and itself where it already is.

    Of two long names the beginnings may be equal, so a name that is cut ends in a digest of the whole. What is no text
    at all is named by its type. Never raises.
    """
    if type(name) is str:
        return _clean(name)
    # A subclass's own methods are not called.
    kind = type(name)
    return _clean(str.__str__(name) if issubclass(kind, str) else f"<{type.__getattribute__(kind, '__name__')}>")


@functools.lru_cache(maxsize=4096)
def _clean(name: str) -> str:
    if len(name) > NAME_LIMIT:
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
        name = f"{name[: NAME_LIMIT - 9]}…{digest}"
    return encodable(name)
