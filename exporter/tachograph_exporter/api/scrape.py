"""``/metrics`` for Prometheus."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from typing import Final

from aiohttp import web
from prometheus_client import CollectorRegistry

from tachograph.metrics.exposition import render, render_gzip
from tachograph.metrics.negotiation import Format, choose
from tachograph.metrics.self_metrics import SelfMetrics
from tachograph.recording.recorder import Recorder
from tachograph_exporter.api import problems
from tachograph_exporter.api.routes import Route


class Scraper:
    """Renders scrapes off the event loop; scrapes that come while one is rendered share it."""

    def __init__(self, registry: CollectorRegistry, recorder: Recorder, own: SelfMetrics) -> None:
        self._registry = registry
        self._recorder = recorder
        self._own = own
        self._under_way: dict[tuple[Format, bool, frozenset[str]], asyncio.Future[bytes]] = {}

    async def scrape(self, form: Format, *, packed: bool, names: frozenset[str]) -> bytes:
        """The answer to a scrape; ``packed``: compressed with gzip."""
        key = (form, packed, names)
        under_way = self._under_way.get(key)
        if under_way is None:
            loop = asyncio.get_running_loop()
            under_way = loop.run_in_executor(None, self._render, form, packed, tuple(names))
            self._under_way[key] = under_way
            under_way.add_done_callback(lambda _: self._under_way.pop(key, None))
        # One scraper that goes away must not take the answer from the others.
        return await asyncio.shield(under_way)

    def _render(self, form: Format, packed: bool, names: Sequence[str]) -> bytes:
        # What ended before the scrape belongs to it.
        self._recorder.queues["metrics"].flush(0.5)
        begun = time.perf_counter()
        how = render_gzip if packed else render
        body = how(self._registry, form, names=names, wait=lambda: time.sleep(0))
        self._own.scraped(form.name.lower(), time.perf_counter() - begun, len(body))
        return body


SCRAPER: Final = web.AppKey("scraper", Scraper)


async def exposition(request: web.Request) -> web.Response:
    """``GET /metrics``: for Prometheus; protobuf, OpenMetrics or text, as Accept asks; ``name[]`` filters."""
    form = choose(request.headers.get("Accept", ""))
    packed = "gzip" in request.headers.get("Accept-Encoding", "")
    names = frozenset(request.query.getall("name[]", []))
    try:
        patience = float(request.headers.get("X-Prometheus-Scrape-Timeout-Seconds", "nan"))
    except ValueError:
        patience = math.nan
    try:
        # An answer that comes after the scraper has gone is work for nothing.
        async with asyncio.timeout(patience if 0 < patience < 3600 else None):
            body = await request.app[SCRAPER].scrape(form, packed=packed, names=names)
    except TimeoutError:
        raise problems.scrape_timeout(patience) from None
    headers = {"Content-Type": form.value, "Vary": "Accept, Accept-Encoding"}
    if packed:
        headers["Content-Encoding"] = "gzip"
    return web.Response(body=body, headers=headers)


ROUTES: Final = (
    Route(method="GET", path="/metrics", handler=exposition, in_workspace=False, codes=("scrape_timeout",),
          media=tuple(form.value for form in Format)),
)  # fmt: skip
