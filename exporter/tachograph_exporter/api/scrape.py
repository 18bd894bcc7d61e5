"""``/metrics`` for Prometheus."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from functools import partial
from typing import Final

from aiohttp import web
from prometheus_client import CollectorRegistry

from tachograph.metrics.exposition import render, render_gzip
from tachograph.metrics.negotiation import Format, choose_format
from tachograph.metrics.self_metrics import SelfMetrics
from tachograph.recording.recorder import Recorder
from tachograph_exporter.api import problems
from tachograph_exporter.api.routes import Route
from tachograph_exporter.api.workers import Workers


class Scraper:
    """Renders scrapes off the event loop; equal scrapes that arrive meanwhile share the result."""

    def __init__(self, registry: CollectorRegistry, recorder: Recorder, self_metrics: SelfMetrics) -> None:
        self._registry = registry
        self._recorder = recorder
        self._self_metrics = self_metrics
        self._workers = Workers("scrape")
        self._pending: dict[tuple[Format, bool, frozenset[str]], asyncio.Future[bytes]] = {}

    async def scrape(self, form: Format, *, is_gzip: bool, names: frozenset[str]) -> bytes:
        """The body of a scrape, optionally compressed with gzip. No ``names``: all metrics."""
        key = (form, is_gzip, names)
        pending = self._pending.get(key)
        if pending is None:
            pending = asyncio.ensure_future(self._workers.run(partial(self._render, form, is_gzip, tuple(names))))
            self._pending[key] = pending
            pending.add_done_callback(lambda _: self._pending.pop(key, None))
        # A scraper that disconnects must not cancel the others.
        return await asyncio.shield(pending)

    def _render(self, form: Format, is_gzip: bool, names: Sequence[str]) -> bytes:
        # Events recorded before the scrape belong to it.
        self._recorder.queues["metrics"].flush(0.5)
        started = time.perf_counter()
        renderer = render_gzip if is_gzip else render
        body = renderer(self._registry, form, names=names, wait=lambda: time.sleep(0))
        self._self_metrics.scraped(form.name.lower(), time.perf_counter() - started, len(body))
        return body


SCRAPER: Final = web.AppKey("scraper", Scraper)


async def exposition(request: web.Request) -> web.Response:
    """``GET /metrics``: for Prometheus, in protobuf, OpenMetrics or text by Accept; ``name[]`` selects metrics."""
    form = choose_format(request.headers.get("Accept", ""))
    is_gzip = "gzip" in request.headers.get("Accept-Encoding", "")
    names = frozenset(request.query.getall("name[]", []))
    try:
        timeout = float(request.headers.get("X-Prometheus-Scrape-Timeout-Seconds", "nan"))
    except ValueError:
        timeout = math.nan
    try:
        # The scraper discards an answer after its timeout.
        async with asyncio.timeout(timeout if 0 < timeout < 3600 else None):
            body = await request.app[SCRAPER].scrape(form, is_gzip=is_gzip, names=names)
    except TimeoutError:
        raise problems.scrape_timeout(timeout) from None
    headers = {"Content-Type": form.value, "Vary": "Accept, Accept-Encoding"}
    if is_gzip:
        headers["Content-Encoding"] = "gzip"
    return web.Response(body=body, headers=headers)


ROUTES: Final = (
    Route(method="GET", path="/metrics", handler=exposition, in_workspace=False, codes=("scrape_timeout",),
          media=tuple(form.value for form in Format)),
)  # fmt: skip
