"""The envelope in which events travel: to the service (``POST /api/events``), and from the spool."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from tachograph.events import Event
from tachograph.folded_stacks import StackWish

PATH: Final = "/api/events"
VERSION: Final = 1
"""The newest version of the envelope. What a version means never changes; the service reads all of them."""
MAX_EVENTS: Final = 5_000
"""Events in a batch."""
SENDER_LIMIT: Final = 64
"""Characters of a sender's id."""


class EventBatch(msgspec.Struct, frozen=True, kw_only=True):
    """Events of one sender. ``sequence`` numbers its batches from 1: one that arrives again is not stored again.

    A sender waits for the answer to a batch before it sends the next one.
    """

    version: int = VERSION
    sender: str
    sequence: int
    events: list[Event]


class RawBatch(msgspec.Struct, frozen=True, kw_only=True):
    """An `EventBatch` whose events are not read yet, so that one that is not valid costs no other."""

    version: int
    sender: str
    sequence: int
    events: list[msgspec.Raw]


class RefusedEvent(msgspec.Struct, frozen=True):
    """An event of a batch that was not stored, by its place, and why. It would be refused again."""

    index: int
    reason: str


class BatchAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a batch. It is sent once the events are committed.

    ``stored`` events are new. ``is_repeated``: the batch was stored before, so none of it was. A run whose process
    sends no heartbeat for ``lease_seconds`` is lost. ``stacks``: what is asked of the processes that run the executions
    whose heartbeats it has.
    """

    received: int
    stored: int
    is_repeated: bool = False
    refused: Sequence[RefusedEvent] = ()
    lease_seconds: float = 30.0
    stacks: Sequence[StackWish] = ()


encode: Final = msgspec.json.Encoder().encode
decode_answer: Final = msgspec.json.Decoder(BatchAnswer).decode
decode_event: Final = msgspec.json.Decoder(Event).decode
