"""``/metrics`` for Prometheus."""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections.abc import Collection
from functools import partial
from typing import Final, NamedTuple

from aiohttp import web
from prometheus_client import CollectorRegistry

from tachograph.metrics.exposition import render, render_gzip
from tachograph.metrics.negotiation import Escaping, Format, Negotiated, negotiate
from tachograph.metrics.self_metrics import SelfMetrics
from tachograph.recording.recorder import Recorder
from tachograph_exporter.api import problems
from tachograph_exporter.api.encodings import accepted_coding
from tachograph_exporter.api.routes import Route
from tachograph_exporter.api.workers import Workers
from tachograph_exporter.metrics.workflow_metrics import WorkflowMetrics

WAIT_SECONDS: Final = 0.6
"""How long a scrape waits for what was recorded before it; after that it shows what is known."""
BEHIND_SECONDS: Final = 0.3
"""How long it waits when the one before it waited in vain: it shows at least what that one waited for."""


class Scraped(NamedTuple):
    """The body of a scrape, and the generation of the newest series in it (see `Births`)."""

    body: bytes
    generation: int


class Scraper:
    """Renders scrapes off the event loop; equal scrapes that arrive meanwhile share the result."""

    def __init__(
        self,
        registry: CollectorRegistry,
        recorder: Recorder,
        self_metrics: SelfMetrics,
        workflow_metrics: WorkflowMetrics,
    ) -> None:
        self.workflow_metrics = workflow_metrics
        self._registry = registry
        self._recorder = recorder
        self._self_metrics = self_metrics
        self._workers = Workers("scrape")
        self._is_behind = False
        self._pending: dict[tuple[Format, Escaping, bool, frozenset[str]], asyncio.Future[Scraped]] = {}

    async def scrape(self, negotiated: Negotiated, *, is_gzip: bool, names: frozenset[str]) -> Scraped:
        """A scrape, optionally compressed with gzip. No ``names``: all metrics."""
        key = (negotiated.form, negotiated.escaping, is_gzip, names)
        pending = self._pending.get(key)
        if pending is None:
            pending = asyncio.ensure_future(self._workers.run(partial(self._render, *key)))
            self._pending[key] = pending
            pending.add_done_callback(lambda _: self._pending.pop(key, None))
        # A scraper that disconnects must not cancel the others.
        return await asyncio.shield(pending)

    def _render(self, form: Format, escaping: Escaping, is_gzip: bool, names: Collection[str]) -> Scraped:
        # Events recorded before the scrape belong to it.
        wait = BEHIND_SECONDS if self._is_behind else WAIT_SECONDS
        end = time.monotonic() + wait
        self._recorder.queues["store"].flush(wait / 2)
        self._is_behind = not self.workflow_metrics.refresh(max(0.0, end - time.monotonic()))
        started = time.perf_counter()
        generation = self.workflow_metrics.births.scraping()
        renderer = render_gzip if is_gzip else render
        body = renderer(self._registry, form, escaping=escaping, names=tuple(names), wait=lambda: time.sleep(0))
        self._self_metrics.scraped(form.name.lower(), time.perf_counter() - started, len(body))
        return Scraped(body, generation)


SCRAPER: Final = web.AppKey("scraper", Scraper)


async def exposition(request: web.Request) -> web.Response:
    """``GET /metrics``: for Prometheus, in protobuf, OpenMetrics or text by Accept; ``name[]`` selects metrics."""
    began = time.perf_counter()
    negotiated = negotiate(request.headers.get("Accept", ""))
    is_gzip = accepted_coding(request.headers.get("Accept-Encoding", "")) == "gzip"
    names = frozenset(request.query.getall("name[]", []))
    try:
        timeout = float(request.headers.get("X-Prometheus-Scrape-Timeout-Seconds", "nan"))
    except ValueError:
        timeout = math.nan
    try:
        # The scraper discards an answer after its timeout.
        scraper = request.app[SCRAPER]
        async with asyncio.timeout(timeout if 0 < timeout < 3600 else None):
            scraped = await scraper.scrape(negotiated, is_gzip=is_gzip, names=names)
    except TimeoutError:
        raise problems.scrape_timeout(timeout) from None
    # The scraper's clock started before ours: so late, it may have given up.
    is_late = time.perf_counter() - began > 0.8 * timeout
    # Nobody has seen the series of a response to HEAD.
    if not names and request.method != "HEAD" and not is_late:
        scraper.workflow_metrics.births.scraped(scraped.generation, _regular(request))
    headers = {"Content-Type": negotiated.content_type, "Vary": "Accept, Accept-Encoding"}
    if is_gzip:
        headers["Content-Encoding"] = "gzip"
    return web.Response(body=scraped.body, headers=headers)


def _regular(request: web.Request) -> str | None:
    """Who scrapes, if it says that it does so regularly: Prometheus and its likes tell when they give up."""
    headers = request.headers
    if "X-Prometheus-Scrape-Timeout-Seconds" not in headers:
        return None
    # The jobs of one Prometheus differ in their formats or parameters.
    parts = (request.remote, headers.get("User-Agent"), headers.get("Accept"), request.raw_path)
    return hashlib.blake2b("\n".join(map(str, parts)).encode(errors="replace"), digest_size=8).hexdigest()


ROUTES: Final = (
    Route(method="GET", path="/metrics", handler=exposition, in_workspace=False, codes=("scrape_timeout",),
          media=tuple(form.value for form in Format)),
)  # fmt: skip
