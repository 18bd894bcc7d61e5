"""Liveness and readiness of the service."""

from __future__ import annotations

from typing import Final

import msgspec
from aiohttp import web

from tachograph.version import version
from tachograph_exporter.api.request import DATABASE, RECORDER, json_response
from tachograph_exporter.api.routes import Route
from tachograph_exporter.store.database import Lane, ping

MAX_QUEUE_FILL: Final = 0.8
"""A listener queue that is fuller than this share of its limit makes the service not ready."""


class Health(msgspec.Struct):
    """The process responds."""

    status: str
    version: str


class Readiness(msgspec.Struct):
    """Whether the service can do its work; ``faults`` says what prevents it."""

    status: str
    faults: list[str]


class Lifecycle:
    """Shared state of the service: whether it is shutting down."""

    def __init__(self) -> None:
        self.is_stopping = False


LIFECYCLE: Final = web.AppKey("lifecycle", Lifecycle)


async def healthy(_request: web.Request) -> web.Response:
    """``GET /-/healthy``: 200 as long as the process responds."""
    return json_response(Health(status="healthy", version=version()))


async def ready(request: web.Request) -> web.Response:
    """``GET /-/ready``: 200 when the database responds, no queue is nearly full and the service is not stopping."""
    faults = []
    if request.app[LIFECYCLE].is_stopping:
        faults.append("the service is shutting down")
    try:
        await request.app[DATABASE].read(ping, Lane.PROBE)
    except Exception as error:
        faults.append(f"the database is unavailable: {type(error).__name__}")
    for name, queue in request.app[RECORDER].queues.items():
        if len(queue) > queue.queue_limit * MAX_QUEUE_FILL:
            faults.append(f"the {name} listener is {len(queue)} events behind")
    return json_response(Readiness("not ready" if faults else "ready", faults), 503 if faults else 200)


ROUTES: Final = (
    Route(method="GET", path="/-/healthy", handler=healthy, scope=None, in_workspace=False, response=Health),
    Route(
        method="GET",
        path="/-/ready",
        handler=ready,
        scope=None,
        in_workspace=False,
        response=Readiness,
        other_statuses=(503,),
    ),
)
