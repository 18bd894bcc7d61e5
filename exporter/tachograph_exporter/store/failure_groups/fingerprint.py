"""Which failures have one cause: those of one type, with one template of their message and the same own functions."""

from __future__ import annotations

import functools
import hashlib
import re
from typing import Final, NamedTuple

from tachograph_exporter.store.failure_groups.frames import MAX_STACK, own_frames
from tachograph_exporter.store.failure_groups.template import VALUE, template_of

VERSION: Final = 1
"""Of the rules that fingerprints are made by: it is part of them, so that a change of the rules mixes no groups."""
MAX_TYPE: Final = 300
_CACHED_LENGTH: Final = 2_000
_CACHED_STACK: Final = 8_000
_OUTDENTED: Final = re.compile(r"\n[^ ]")
_MESSAGE: Final = re.compile(r'(?!File "|The above exception|During handling|at |Caused by: |Suppressed: )[A-Za-z_]')
_TELLS_NOTHING: Final = frozenset(
    {
        "",
        VALUE,
        "the span gives no reason",
        "a ping said that it failed",
        "its process died: no sign of life since",
        "its process died: no sign of life of this span since",
        "another run started before this one ended",
        "still running when its run ended",
        "its run has ended, and nothing tells how it did itself",
        "it was asked for, and no span tells whether it ran",
    }
)
"""Messages that say nothing of the cause."""


class Fingerprint(NamedTuple):
    """What failures of one cause share. ``frames``: the own functions of the stack, as `own_frames` gives them."""

    error_type: str
    template: str
    frames: tuple[str, ...]
    place: str
    """The workflow and the step, where nothing else tells the cause; else empty."""

    @property
    def id(self) -> str:
        """16 hexadecimal digits."""
        text = "\x1e".join((str(VERSION), self.error_type, self.template, self.place, *self.frames))
        return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def fingerprint(error_type: str | None, message: str | None, stack: str | None, place: str = "") -> Fingerprint:
    """The fingerprint of a failure. ``place`` counts only where neither message nor stack tells the cause."""
    kind, text = (error_type or "")[:MAX_TYPE], message or ""
    frames = _frames(stack) if stack else ()
    template = _cached_template(text) if len(text) <= _CACHED_LENGTH else template_of(text)
    return Fingerprint(kind, template, frames, place if not frames and _is_silent(kind, template) else "")


def tells_nothing(error_type: str | None, message: str | None, stack: str | None) -> bool:
    """Whether a failure says nothing of its cause."""
    return not stack and _is_silent((error_type or "")[:MAX_TYPE], template_of(message or ""))


def _is_silent(error_type: str, template: str) -> bool:
    return template in _TELLS_NOTHING or template == error_type


@functools.lru_cache(256)
def _cached_template(text: str) -> str:
    return template_of(text)


def _frames(stack: str) -> tuple[str, ...]:
    # Of Python, failures of one cause differ in the last line only, which has the message and no frame.
    head, _, last = stack.rstrip("\n").rpartition("\n")
    is_message = _MESSAGE.match(last) is not None and head.startswith("Traceback (") and '\n  File "' in head
    if is_message and len(stack) <= MAX_STACK and "  | " not in head and _OUTDENTED.search(head) is None:
        stack = head
    return _cached_frames(stack) if len(stack) <= _CACHED_STACK else own_frames(stack)


@functools.lru_cache(256)
def _cached_frames(stack: str) -> tuple[str, ...]:
    return own_frames(stack)
