"""Liveness and readiness of the service."""

from __future__ import annotations

from typing import Final

import msgspec
from aiohttp import web

from tachograph.version import version
from tachograph_exporter.api.request import RECORDER, json_response
from tachograph_exporter.api.routes import Route
from tachograph_exporter.store.probing import Probe

MAX_QUEUE_FILL: Final = 0.8
"""A listener queue that is fuller than this share of its limit makes the service not ready."""


class Health(msgspec.Struct):
    """The process responds."""

    status: str
    version: str


class Readiness(msgspec.Struct):
    """Whether the service can do its work; ``faults`` says what prevents it.

    ``warnings``: what was lost or set aside since it started, which somebody should look at.
    """

    status: str
    faults: list[str]
    warnings: list[str] = []


class Lifecycle:
    """Shared state of the service: whether it is shutting down."""

    def __init__(self) -> None:
        self.is_stopping = False


MAX_REFUSED_IN_A_ROW: Final = 10
"""A listener that refuses so many events, and takes none between them, makes the service not ready."""
LIFECYCLE: Final = web.AppKey("lifecycle", Lifecycle)
PROBE: Final = web.AppKey("probe", Probe)


async def healthy(_request: web.Request) -> web.Response:
    """``GET /-/healthy``: 200 as long as the process responds."""
    return json_response(Health(status="healthy", version=version()))


async def ready(request: web.Request) -> web.Response:
    """``GET /-/ready``: 200 when the database reads and writes, no listener is behind and the service is not stopping.

    Answers within 2 seconds. `warnings` names what was refused or dropped since the service started.
    """
    faults, warnings = [], []
    if request.app[LIFECYCLE].is_stopping:
        faults.append("the service is shutting down")
    probed = await request.app[PROBE].check()
    if probed.fault:
        faults.append(probed.fault)
    if probed.refused:
        warnings.append(f"{probed.refused} record(s) were refused and set aside; see `tachograph refused list`")
    for name, queue in request.app[RECORDER].queues.items():
        if len(queue) > queue.queue_limit * MAX_QUEUE_FILL:
            faults.append(f"the {name} listener is {len(queue)} events behind")
        if queue.unavailable_reason:
            faults.append(f"the {name} listener cannot deliver: {queue.unavailable_reason}")
        if queue.refused_in_a_row >= MAX_REFUSED_IN_A_ROW:
            faults.append(f"the {name} listener refuses everything, last {queue.last_refusal}")
        if dropped := sum(queue.dropped.values()):
            reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(queue.dropped.items()))
            last = f"; last {queue.last_refusal}" if queue.last_refusal else ""
            warnings.append(f"the {name} listener did not get {dropped} event(s): {reasons}{last}")
    return json_response(Readiness("not ready" if faults else "ready", faults, warnings), 503 if faults else 200)


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
