"""Is the service up, and can it do its work?"""

from __future__ import annotations

from typing import Final

import msgspec
from aiohttp import web
from sqlalchemy import text

from tachograph.exporter.api.request import DATABASE, RECORDER, json_response
from tachograph.exporter.api.routes import Route
from tachograph.instrumentation.health import version

BEHIND: Final = 0.8


class Health(msgspec.Struct):
    """That the process answers."""

    status: str
    version: str


class Readiness(msgspec.Struct):
    """Whether the service can do its work, and what keeps it from it."""

    status: str
    faults: list[str]


class Life:
    """Whether the service is on its way out."""

    def __init__(self) -> None:
        self.is_stopping = False


LIFE: Final = web.AppKey("life", Life)


async def healthy(_request: web.Request) -> web.Response:
    """``GET /-/healthy``: 200 as long as the process answers."""
    return json_response(Health(status="healthy", version=version()))


async def ready(request: web.Request) -> web.Response:
    """``GET /-/ready``: 200 when the database answers, no queue is nearly full and the service is not stopping."""
    faults = []
    if request.app[LIFE].is_stopping:
        faults.append("the service is shutting down")
    try:
        await request.app[DATABASE].read(lambda c: c.execute(text("SELECT 1")).scalar())
    except Exception as error:
        faults.append(f"the database does not answer: {type(error).__name__}")
    for name, lane in request.app[RECORDER].lanes.items():
        if len(lane) > lane.queue_limit * BEHIND:
            faults.append(f"the {name} listener is {len(lane)} events behind")
    return json_response(Readiness("not ready" if faults else "ready", faults), 503 if faults else 200)


ROUTES = (
    Route(method="GET", path="/-/healthy", handler=healthy, scope=None, in_workspace=False, answer=Health),
    Route(method="GET", path="/-/ready", handler=ready, scope=None, in_workspace=False, answer=Readiness, also=(503,)),
)
