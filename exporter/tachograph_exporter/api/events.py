"""Ingest of events that other processes recorded: what the library sends when it is given the service's URL."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import msgspec
from aiohttp import web

from tachograph.event_batch import (
    MAX_EVENTS,
    PATH,
    SENDER_LIMIT,
    VERSION,
    BatchAnswer,
    EventBatch,
    RawBatch,
    RefusedEvent,
)
from tachograph.events import Event
from tachograph_exporter.api import problems
from tachograph_exporter.api.request import CONFIG, WORKERS, decode, json_response, read_body, workspace_of
from tachograph_exporter.api.routes import Route
from tachograph_exporter.ingest.recorded_events import EventReceiver, in_workspace
from tachograph_exporter.store.tokens import INGEST

EVENTS: Final = web.AppKey("events", EventReceiver)
MAX_EVENT_BYTES: Final = 1 << 20
"""Bytes of one event: texts in it are summaries, and cut where they are recorded."""
_MIN_THREADED_BYTES: Final = 100_000


async def events(request: web.Request) -> web.Response:
    """``POST /api/events``: ingest events that another process recorded; 200 once they are committed.

    A sender numbers its batches from 1 and sends one at a time. A batch that arrives again is not stored again, so
    send it until it is answered with 200. Events that are not valid are refused by their place, and the others are
    stored. They become events of the request's workspace. The body may be compressed with gzip, deflate or zstd.
    """
    workspace = await workspace_of(request)
    config = request.app[CONFIG]
    body = await read_body(request, config.max_otlp_body_bytes)

    def read() -> tuple[RawBatch, list[tuple[int, Event]], list[RefusedEvent]]:
        return _read(body, workspace.slug)

    batch, valid, refused = (
        read() if len(body) < _MIN_THREADED_BYTES else await request.app[WORKERS].run(read)
    )  # fmt: skip
    pending = request.app[EVENTS].submit(workspace.id, workspace.slug, batch.sender, batch.sequence, valid)
    stored = await asyncio.wrap_future(pending)
    refused += [RefusedEvent(index, reason) for index, reason in stored.refused.items()]
    answer = BatchAnswer(
        received=len(batch.events),
        stored=stored.stored,
        is_repeated=stored.is_repeated,
        refused=sorted(refused, key=lambda event: event.index),
        lease_seconds=config.lease_seconds,
        stacks=stored.wishes,
    )
    return json_response(answer)


def _read(body: bytes, workspace: str) -> tuple[RawBatch, list[tuple[int, Event]], list[RefusedEvent]]:
    """The batch, its valid events with their places, and the others. Raises 400, 413 or 422 if it is no batch."""
    try:
        batch = msgspec.json.decode(body, type=RawBatch)
    except msgspec.ValidationError as error:
        raise problems.invalid_body(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise problems.invalid_json(str(error)) from None
    if batch.version != VERSION:
        raise problems.invalid_body(f"version {batch.version} is not one that this service reads - at `$.version`")
    if not 1 <= len(batch.sender) <= SENDER_LIMIT or not batch.sender.isascii() or not batch.sender.isprintable():
        raise problems.invalid_body(f"expected 1 to {SENDER_LIMIT} printable ASCII characters - at `$.sender`")
    if not 1 <= batch.sequence < 1 << 63:
        raise problems.invalid_body("expected an integer of 1 or more that fits into 64 bits - at `$.sequence`")
    if len(batch.events) > MAX_EVENTS:
        raise problems.too_many_events(MAX_EVENTS)
    return batch, *_events(batch.events, workspace)


def _events(raws: Sequence[msgspec.Raw], workspace: str) -> tuple[list[tuple[int, Event]], list[RefusedEvent]]:
    valid: list[tuple[int, Event]] = []
    refused: list[RefusedEvent] = []
    for index, raw in enumerate(raws):
        if memoryview(raw).nbytes > MAX_EVENT_BYTES:
            refused.append(RefusedEvent(index, f"it is larger than {MAX_EVENT_BYTES >> 20} MiB"))
            continue
        try:
            event: Event = decode(bytes(raw), Event)  # type: ignore[arg-type]
            valid.append((index, in_workspace(event, workspace)))
        except problems.Problem as problem:
            refused.append(RefusedEvent(index, problem.detail))
        except ValueError as error:
            refused.append(RefusedEvent(index, str(error)))
    return valid, refused


_EXECUTION: Final = {
    "workspace": "default", "workflow": "nightly", "workflow_id": "ee3ab1fb-8d2d-5a11-8e11-0d1b1b6bd3c5",
    "execution_id": "019349b0-7c00-7d4e-a2b6-8ef0c1f3a001", "trace_id": "5b8aa5a2d2c872e8321cf37308d69df2",
    "span_id": "051581bf3cb55c13",
}  # fmt: skip
_EXAMPLE: Final = {
    "version": VERSION, "sender": "019349b0-7c00-7d4e-a2b6-8ef0c1f3a000", "sequence": 1,
    "events": [
        {"event": "execution_started", "execution": _EXECUTION, "time_ns": 1_732_520_000_000_000_000},
        {"event": "execution_finished", "execution": _EXECUTION, "time_ns": 1_732_520_060_000_000_000,
         "status": "completed", "started_ns": 1_732_520_000_000_000_000, "step_count": 0},
    ],
}  # fmt: skip
ROUTES = (
    Route(method="POST", path=PATH, handler=events, scope=INGEST, body=EventBatch, body_example=_EXAMPLE,
          response=BatchAnswer),
)  # fmt: skip
