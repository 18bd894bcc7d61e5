"""Is the service up, and can it do its work?"""

from __future__ import annotations

from typing import Final

import msgspec
from aiohttp import web
from sqlalchemy import text

from tachograph.version import version
from tachograph_exporter.api.request import DATABASE, RECORDER, json_response
from tachograph_exporter.api.routes import Route

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
    for name, queue in request.app[RECORDER].queues.items():
        if len(queue) > queue.queue_limit * BEHIND:
            faults.append(f"the {name} listener is {len(queue)} events behind")
    return json_response(Readiness("not ready" if faults else "ready", faults), 503 if faults else 200)


ROUTES = (
    Route(method="GET", path="/-/healthy", handler=healthy, scope=None, in_workspace=False, answer=Health),
    Route(method="GET", path="/-/ready", handler=ready, scope=None, in_workspace=False, answer=Readiness, also=(503,)),
)
