"""A workflow's figures, and ``/metrics`` for Prometheus."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from aiohttp import web
from prometheus_client import CollectorRegistry
from sqlalchemy import Connection, Row

from tachograph.exporter.api import errors
from tachograph.exporter.api.request import DATABASE, Query, workspace_of
from tachograph.exporter.api.routes import FROM, TO, Route
from tachograph.exporter.figures import metrics_summary
from tachograph.exporter.schemas import WorkflowMetricsSummary
from tachograph.exporter.store import queries, rollups
from tachograph.instrumentation.exposition import Format, choose, render, render_gzip
from tachograph.instrumentation.health import OwnSeries
from tachograph.instrumentation.recorder import Recorder


async def workflow_metrics(request: web.Request) -> web.Response:
    """``GET /api/workflows/{workflow_id}/metrics``: success rate, percentiles, waits and cost, per status and per step.

    Of the executions that ended in the range, at the same cost however many they are. Executions that are still open
    count in ``total_executions`` when the range reaches to now.
    """
    query = Query(request)
    from_ns, to_ns = query.time("from"), query.time("to")
    now = query.now_ns
    query.done()
    workspace = await workspace_of(request)
    wanted = request.match_info["workflow_id"]

    answers = request.app[ANSWERS]

    def read(connection: Connection) -> bytes:
        workflow = queries.overview(connection, workspace.id, wanted, from_ns or 0)
        if workflow is None:
            raise errors.workflow_not_found(wanted)
        state = (workflow.revision, workflow.open_count, workflow.name)
        is_whole = from_ns is None and to_ns is None
        if (
            is_whole
            and (known := answers.of_all_time.get((workspace.id, workflow.id))) is not None
            and known[0] == state
        ):
            return known[1]
        body = msgspec.json.encode(figures_of(connection, workflow, from_ns, to_ns, now, answers.sums))
        if is_whole:
            answers.keep(workspace.id, workflow.id, state, body)
        return body

    return web.Response(body=await request.app[DATABASE].read(read), content_type="application/json")


class Answers:
    """What was answered before, as long as it is still true (see `rollups.Head`)."""

    LIMIT: Final = 1_000

    def __init__(self) -> None:
        self.sums = rollups.Kept()
        self.of_all_time: dict[tuple[str, str], tuple[object, bytes]] = {}

    def keep(self, workspace: str, workflow: str, state: object, body: bytes) -> None:
        """Keep a workflow's figures over all time."""
        if len(self.of_all_time) >= self.LIMIT:
            self.of_all_time.clear()
        self.of_all_time[workspace, workflow] = (state, body)


ANSWERS: Final = web.AppKey("answers", Answers)


def read_metrics(
    connection: Connection, workspace: str, wanted: str, from_ns: int | None, to_ns: int | None, now_ns: int
) -> WorkflowMetricsSummary | None:
    """Figures of a workflow (by id or name) over a range (unix nanoseconds, the end exclusive); None: there is none."""
    workflow = queries.overview(connection, workspace, wanted, from_ns or 0)
    return None if workflow is None else figures_of(connection, workflow, from_ns, to_ns, now_ns)


def figures_of(
    connection: Connection,
    workflow: Row[Any],
    from_ns: int | None,
    to_ns: int | None,
    now_ns: int,
    kept: rollups.Kept | None = None,
) -> WorkflowMetricsSummary:
    """Figures of a workflow known by `queries.overview`."""
    head = None
    if workflow.head_s is not None:
        head = rollups.Head(workflow.head_s, workflow.revision, workflow.closed_revision)
    pack = rollups.read_from(connection, (workflow.workspace_id, workflow.id), head, from_ns, to_ns, kept=kept)
    still_open = workflow.open_count if to_ns is None or to_ns >= now_ns else 0
    return metrics_summary(workflow.id, workflow.name, pack, still_open)


class Scraper:
    """Renders scrapes off the event loop; scrapes that come while one is rendered share it."""

    def __init__(self, registry: CollectorRegistry, recorder: Recorder, own: OwnSeries) -> None:
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
        self._recorder.lanes["metrics"].flush(0.5)
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
        raise errors.scrape_timeout(patience) from None
    headers = {"Content-Type": form.value, "Vary": "Accept, Accept-Encoding"}
    if packed:
        headers["Content-Encoding"] = "gzip"
    return web.Response(body=body, headers=headers)


ROUTES = (
    Route(method="GET", path="/api/workflows/{workflow_id}/metrics", handler=workflow_metrics, query=(FROM, TO),
          answer=WorkflowMetricsSummary),
    Route(method="GET", path="/metrics", handler=exposition, in_workspace=False, codes=("scrape_timeout",),
          media=tuple(form.value for form in Format)),
)  # fmt: skip
