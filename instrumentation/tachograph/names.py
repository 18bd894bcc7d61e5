"""Names as every view can hold them: a label, a row, a header, a span."""

from __future__ import annotations

import functools
import hashlib
import pathlib
from collections.abc import Callable
from typing import Any, Final

NAME_LIMIT: Final = 200
"""Characters of a name, a version, a label or a unit."""
# A subclass's own methods are not called.
_PRINT: Final[tuple[tuple[type, Callable[[Any], str]], ...]] = (
    (str, str.__str__),
    (bool, bool.__repr__),
    (int, int.__repr__),
    (float, float.__repr__),
    (pathlib.PurePath, pathlib.PurePath.__str__),
)


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

    Of two long names the beginnings may be equal, so a name that is cut ends in a digest of the whole. Numbers and
    paths are what they print, other objects are named by their type. Never raises.
    """
    if type(name) is not str:
        kind = type(name)
        print_ = next((method for base, method in _PRINT if issubclass(kind, base)), None)
        try:
            name = print_(name) if print_ is not None else ""
        except ValueError:
            name = ""  # An integer with more digits than Python prints.
        name = name or f"<{type.__getattribute__(kind, '__name__')}>"
    return _clean(name)


@functools.lru_cache(maxsize=4096)
def _clean(name: str) -> str:
    if len(name) > NAME_LIMIT:
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
        name = f"{name[: NAME_LIMIT - 9]}…{digest}"
    return encodable(name)
