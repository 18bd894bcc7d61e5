"""OpenLineage ingest (https://openlineage.io/apidocs/openapi/): events of Airflow, dbt, Spark, Flink and others."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from aiohttp import web

from tachograph.errors import Fault
from tachograph_exporter.api import problems
from tachograph_exporter.api.request import CONFIG, WORKERS, json_response, read_body, workspace_of
from tachograph_exporter.api.routes import Route
from tachograph_exporter.ingest.lineage.events import MAX_EVENTS, BadEvent, read_event
from tachograph_exporter.ingest.lineage.lineage_store import Arrived
from tachograph_exporter.ingest.lineage.receiver import LineageReceiver
from tachograph_exporter.store.tokens import INGEST

LINEAGE: Final = web.AppKey("lineage", LineageReceiver)
_MAX_FAULTS: Final = 100
_MIN_THREADED_BYTES: Final = 100_000


class LineageRun(msgspec.Struct):
    """Which run an event is about."""

    runId: str  # noqa: N815 - OpenLineage's own name
    facets: dict[str, Any] = {}


class LineageJob(msgspec.Struct):
    """Which job an event is about."""

    namespace: str
    name: str
    facets: dict[str, Any] = {}


class LineageEventBody(msgspec.Struct):
    """An OpenLineage run event. Job events (without ``run``) and dataset events (``dataset``) are accepted, too."""

    eventTime: str  # noqa: N815
    run: LineageRun
    job: LineageJob
    eventType: str = "OTHER"  # noqa: N815
    inputs: list[dict[str, Any]] = []
    outputs: list[dict[str, Any]] = []
    producer: str = ""
    schemaURL: str = ""  # noqa: N815


class LineageSummary(msgspec.Struct):
    """How many events of a request were accepted. Those that failed may not be sent again as they are."""

    received: int
    successful: int
    failed: int
    retriable: int
    non_retriable: int


class FailedEvent(msgspec.Struct):
    """An event that was refused, by its place in the batch, and why."""

    index: int
    reason: str
    retriable: bool = False


class LineageAnswer(msgspec.Struct):
    """What became of the events of a request: ``success``, or ``partial_success`` if some were refused."""

    status: str
    summary: LineageSummary
    failed_events: list[FailedEvent] = []


async def lineage(request: web.Request) -> web.Response:
    """``POST /api/v1/lineage``: ingest an OpenLineage event; 200 once it is committed.

    A run event becomes part of an execution: what its ``parent`` facet names is around it. Job and dataset events are
    accepted, and tell of no execution. The body may be compressed with gzip, deflate or zstd.
    """
    workspace = await workspace_of(request)
    body = await read_body(request, request.app[CONFIG].max_otlp_body_bytes)
    arrived, failed = await _read(request, [body], is_batch=False)
    if failed:
        raise _refused(failed, is_batch=False)
    refused = await _stored(request, workspace.id, workspace.slug, arrived)
    if refused:
        raise _refused(refused, is_batch=False)
    return json_response(_answer(1, ()))


async def lineage_batch(request: web.Request) -> web.Response:
    """``POST /api/v1/lineage/batch``: ingest many OpenLineage events; 200 once they are committed.

    Events that are not valid are refused by their place, and the others are stored; 422 if all of them are refused.
    """
    workspace = await workspace_of(request)
    body = await read_body(request, request.app[CONFIG].max_otlp_body_bytes)
    try:
        bodies = msgspec.json.decode(body, type=list[msgspec.Raw])
    except msgspec.ValidationError as error:
        raise problems.invalid_body(f"a batch is an array of events: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise problems.invalid_json(str(error)) from None
    if len(bodies) > MAX_EVENTS:
        raise problems.too_many_events(MAX_EVENTS)
    arrived, failed = await _read(request, [bytes(raw) for raw in bodies], is_batch=True)
    failed += await _stored(request, workspace.id, workspace.slug, arrived)
    if bodies and len(failed) == len(bodies):
        raise _refused(failed, is_batch=True)
    return json_response(_answer(len(bodies), sorted(failed, key=lambda event: event.index)))


async def _read(
    request: web.Request, bodies: Sequence[bytes], *, is_batch: bool
) -> tuple[list[tuple[int, Arrived]], list[FailedEvent]]:
    """The run events among these, with their places, and those that are not valid."""

    def read() -> tuple[list[tuple[int, Arrived]], list[FailedEvent]]:
        arrived: list[tuple[int, Arrived]] = []
        failed: list[FailedEvent] = []
        for index, body in enumerate(bodies):
            try:
                event = read_event(body)
            except BadEvent as error:
                if not (error.is_json or is_batch):
                    raise problems.invalid_json(str(error).removeprefix("the event is not JSON: ")) from None
                failed.append(FailedEvent(index, str(error)))
                continue
            if event is not None:
                arrived.append((index, Arrived(event, body)))
        return arrived, failed

    if sum(map(len, bodies)) < _MIN_THREADED_BYTES:
        return read()
    return await request.app[WORKERS].run(read)


async def _stored(
    request: web.Request, workspace_id: str, workspace: str, arrived: Sequence[tuple[int, Arrived]]
) -> list[FailedEvent]:
    """Store events; those that were refused."""
    if not arrived:
        return []
    pending = request.app[LINEAGE].submit(workspace_id, workspace, [item for _, item in arrived])
    stored = await asyncio.wrap_future(pending)
    return [
        FailedEvent(index, stored.refused[item.event.event_id])
        for index, item in arrived
        if item.event.event_id in stored.refused
    ]


def _refused(failed: Sequence[FailedEvent], *, is_batch: bool) -> problems.Problem:
    faults = [Fault("invalid_event", f"[{e.index}]" if is_batch else "", e.reason) for e in failed[:_MAX_FAULTS]]
    return problems.invalid_events(faults)


def _answer(received: int, failed: Sequence[FailedEvent]) -> LineageAnswer:
    summary = LineageSummary(received, received - len(failed), len(failed), 0, len(failed))
    return LineageAnswer("partial_success" if failed else "success", summary, list(failed))


_EXAMPLE: Final = {
    "eventType": "START", "eventTime": "2026-11-25T03:44:04.577Z", "producer": "https://example.com/etl",
    "run": {"runId": "b39908c2-3f03-45c8-bba5-ba0890018f60"}, "job": {"namespace": "etl", "name": "extract"},
    "schemaURL": "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent",
}  # fmt: skip
ROUTES = (
    Route(method="POST", path="/api/v1/lineage/batch", handler=lineage_batch, scope=INGEST,
          body=list[LineageEventBody], body_example=[_EXAMPLE], response=LineageAnswer),
    Route(method="POST", path="/api/v1/lineage", handler=lineage, scope=INGEST, body=LineageEventBody,
          body_example=_EXAMPLE, response=LineageAnswer),
)  # fmt: skip
