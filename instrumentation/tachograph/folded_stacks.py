"""Stacks of an attempt, folded: each is one text, ``outermost;…;innermost``, with the number of times it was seen.

A frame is ``module.function (file:line)``. Where the innermost frame calls C, ``name (native)`` follows. The file is
relative to its package, or its name alone: never a path of the machine. Values, arguments and source are not in it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import msgspec

from tachograph.names import encodable

SEPARATOR: Final = ";"
MAX_DEPTH: Final = 128
"""Frames of a stack; further ones at its outer end are left out, and `OUTER` stands for them."""
MAX_STACKS: Final = 1_000
"""Different stacks of one attempt; what is seen beyond them is counted only."""
MAX_BYTES: Final = 256_000
"""Characters of all stacks of one attempt."""
MAX_FRAME: Final = 300
"""Characters of one frame."""
OUTER: Final = "[outer frames left out]"
INTERVAL_NS: Final = 50_000_000
"""What one count of a profile stands for."""
_MAX_COUNT: Final = 1 << 40


class StacksKind(StrEnum):
    """What stacks are of: the moment somebody asked, or all the time since sampling began."""

    NOW = "now"
    PROFILE = "profile"


class FoldedStack(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A stack and how often it was seen."""

    stack: str
    count: int


class StackWish(msgspec.Struct, frozen=True, omit_defaults=True):
    """What whoever stores an execution asks the processes that run it.

    ``request``: tell the stacks of its running steps, under this id. ``step_ids``: sample these steps until they end.
    """

    execution_id: str
    request: str = ""
    step_ids: tuple[str, ...] = ()


class LongAttempt(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A step that has been running for a while and is not sampled."""

    step_id: str
    name: str
    running_ns: int


def frame_text(text: str) -> str:
    """A part of a frame as folded stacks can hold it: one line, without separators and control characters."""
    if not (text.isascii() and text.isprintable()) or SEPARATOR in text:
        text = "".join(c if c.isprintable() and c != SEPARATOR else "_" for c in text)
    return encodable(text, MAX_FRAME)


def cleaned(stacks: tuple[FoldedStack, ...]) -> tuple[FoldedStack, ...]:
    """Stacks that came from outside, within the bounds and without control characters."""
    kept: list[FoldedStack] = []
    size = 0
    for folded in stacks[:MAX_STACKS]:
        frames = folded.stack.split(SEPARATOR)[-MAX_DEPTH - 1 :]
        text = SEPARATOR.join(frame_text(frame) for frame in frames)
        size += len(text)
        if size > MAX_BYTES:
            break
        kept.append(FoldedStack(text, min(max(1, folded.count), _MAX_COUNT)))
    return tuple(kept)
