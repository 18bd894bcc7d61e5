"""What waits in the queues of engines."""

from __future__ import annotations

import time
from typing import Final

from aiohttp import web

from tachograph.clock import NS
from tachograph_exporter.api.query import Query
from tachograph_exporter.api.request import json_response
from tachograph_exporter.api.routes import Route
from tachograph_exporter.queues.broker import BrokerAddress
from tachograph_exporter.queues.watch import QueueWatch, Read
from tachograph_exporter.times import rfc3339
from tachograph_exporter.views.schemas.queues import BrokerInfo, QueueInfo, QueuesInfo

QUEUES: Final = web.AppKey("queues", QueueWatch)


async def list_queues(request: web.Request) -> web.Response:
    """``GET /api/queues``: how many messages wait in the queues of engines, and since when.

    Those of the brokers that `tachograph serve --queue` names. One that does not answer has an error, and no queues.
    """
    Query(request).done()
    watch, now = request.app[QUEUES], time.time()
    brokers = [_broker(address, read, now) for address, read in watch.reads.items()]
    return json_response(QueuesInfo(is_watching=watch.is_watching, brokers=brokers))


def _broker(address: BrokerAddress, read: Read, now: float) -> BrokerInfo:
    return BrokerInfo(
        engine=address.engine,
        broker=address.place,
        read_at=_text(read.at),
        error=read.error,
        queues=[
            QueueInfo(
                queue=state.queue,
                length=state.length,
                oldest_at=None if state.oldest is None else _text(state.oldest),
                oldest_seconds=None if state.oldest is None else max(0.0, round(now - state.oldest, 3)),
            )
            for state in read.queues
        ],
    )


def _text(seconds: float) -> str:
    return rfc3339(round(seconds * NS))


ROUTES: Final = (Route(method="GET", path="/api/queues", handler=list_queues, in_workspace=False, response=QueuesInfo),)
