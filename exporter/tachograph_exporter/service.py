"""The service: one aiohttp process that runs workflows, records them, and serves what was recorded."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Final

import msgspec
from aiohttp import web
from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from sqlalchemy import Connection

from tachograph.clock import NS
from tachograph.events import Event
from tachograph.metrics.listener import MetricsListener
from tachograph.metrics.self_metrics import SELF_METRICS, SelfMetrics, SelfMetricsCollector
from tachograph.metrics.series_registry import SeriesRegistry
from tachograph.metrics.specs import METRICS
from tachograph.outcomes import EventOutcomes
from tachograph.recording.provider import find_provider
from tachograph.recording.recorder import Recorder
from tachograph.recording.setup import adopt, release
from tachograph.spans.listener import SpanListener
from tachograph.spans.propagation import propagation
from tachograph.workflow.executor import Executor
from tachograph.workflow.handlers import HandlerRegistry
from tachograph.workflow.handlers import registry as default_handlers
from tachograph_exporter.api import (
    executions,
    guard,
    health,
    jaeger,
    metrics,
    openapi,
    otlp,
    page,
    scrape,
    stream,
    tempo,
    timeline,
    trends,
    workflows,
    workspaces,
)
from tachograph_exporter.api.caching import deliver
from tachograph_exporter.api.problems import problems
from tachograph_exporter.api.request import CONFIG, DATABASE, EXECUTOR, RECORDER, WORKSPACES
from tachograph_exporter.api.routes import Route
from tachograph_exporter.config import Config, ConfigError
from tachograph_exporter.ingest.built_in_rules import BUILT_IN
from tachograph_exporter.ingest.receiver import Receiver
from tachograph_exporter.ingest.rule_file import read_rules
from tachograph_exporter.ingest.span_store import SpanStore, has_due
from tachograph_exporter.store import archive, partitions, recovery
from tachograph_exporter.store import executions as execution_rows
from tachograph_exporter.store import tokens as token_rows
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.workspaces import add_project, add_workspace
from tachograph_exporter.store.writer import StoreWriter
from tachograph_exporter.stream.feed import Feed
from tachograph_exporter.stream.hub import Hub

log = logging.getLogger(__name__)

SWEEP_SECONDS: Final = 10.0
KEEP_SECONDS: Final = 3600.0
LOOK_SECONDS: Final = 0.5
ROUTES: Final[tuple[Route, ...]] = (
    *trends.ROUTES,
    *executions.ROUTES,
    *timeline.ROUTES,
    *metrics.ROUTES,
    *workflows.ROUTES,
    *workspaces.ROUTES,
    *health.ROUTES,
    *otlp.ROUTES,
    *jaeger.ROUTES,
    *tempo.ROUTES,
    *stream.ROUTES,
    *page.ROUTES,
    *openapi.ROUTES,
)
"""Every route, the more special ones first. A trailing slash is accepted too."""


class Others(Collector):
    """What this process registered with prometheus_client itself: CPU, memory, GC, and whatever its handlers count."""

    def collect(self) -> Iterator[Metric]:
        """See `prometheus_client.registry.Collector`; a name that is ours is left out, for nothing may come twice."""
        ours = {spec.name.removesuffix("_total") for spec in (*METRICS, *SELF_METRICS)}
        return (metric for metric in REGISTRY.collect() if metric.name not in ours)

    def describe(self) -> list[Metric]:
        """Nothing: its names may come and go."""
        return []


class Service:
    """All parts of the service, made in order and closed in the reverse.

    Args:
        config: the settings; checked here.
        handlers: the step handlers it can run.
    """

    def __init__(self, config: Config, handlers: HandlerRegistry = default_handlers) -> None:
        self.config = config
        self.database = Database(config.database)
        try:
            config.check(has_tokens=self.database.look(token_rows.any_token))
        except ConfigError:
            self.database.close()
            raise
        self.registry = CollectorRegistry()
        self.recorder = Recorder()
        adopt(self.recorder, config.workspace)
        spans = SpanListener(find_provider())
        self.recorder.set_spans(spans)
        self.metrics = MetricsListener(
            self.registry,
            series=SeriesRegistry(family_limit=config.series_limit, expire_seconds=config.series_expire_seconds),
            is_sampled=spans.is_sampled,
            measures=config.measures,
        )
        self.recorder.add("metrics", self.metrics)
        self.own = SelfMetrics(self.registry)
        self.feed = Feed(self.database)
        self.hub = Hub(self.feed, self.database, self.own.told)
        self.writer = StoreWriter(self.database, self.own.wrote, self.feed.committed)
        self.recorder.add("store", self.writer)
        book = read_rules(config.mapping) if config.mapping is not None else BUILT_IN
        self.span_store = SpanStore(self.writer, book)
        self.receiver = Receiver(self.span_store, self._tell)
        self.recorder.add("events", EventOutcomes())
        self.registry.register(SelfMetricsCollector(self.recorder, self.metrics.series))
        self.registry.register(Others())
        self.executor = Executor(
            self.recorder, handlers=handlers, max_executions=config.max_executions, carrier=propagation
        )
        self.life = health.Life()
        self._sweeper: asyncio.Task[None] | None = None
        self.database.run(self._prepare)

    def _tell(self, events: Sequence[Event]) -> None:
        """What arrived goes to the metrics as any event does; it is stored, and its spans were exported elsewhere."""
        queue = self.recorder.queues["metrics"]
        for event in events:
            queue.put(event)
        if events:
            self.feed.committed()

    def _prepare(self, connection: Connection) -> None:
        now = time.time_ns()
        add_workspace(connection, self.config.workspace, now)
        add_project(connection, self.config.workspace, "default", now)
        # A gauge that vanished at a restart would hide that a workflow stopped succeeding.
        for workspace, workflow, finished_ns in execution_rows.last_successes(connection):
            self.metrics.restore_last_success(workspace, workflow, finished_ns)

    def application(self) -> web.Application:
        """The aiohttp application; it starts and stops the service's background work."""
        app = web.Application(middlewares=[deliver, problems, guard.guard], client_max_size=self.config.max_body_bytes)
        app[guard.GUARDED] = self.config
        app[guard.DOORKEEPER] = guard.Doorkeeper(self.config, self.database)
        app[guard.ROUTE_OF] = {route.handler: route for route in ROUTES} | {
            handler: Route(method="GET", path=path, handler=handler, scope=None, in_workspace=False)
            for path, handler in page.PAGES
        }
        app[openapi.DOCUMENT] = msgspec.json.encode(openapi.document(ROUTES))
        app[CONFIG] = self.config
        app[DATABASE] = self.database
        app[RECORDER] = self.recorder
        app[EXECUTOR] = self.executor
        app[WORKSPACES] = {}
        app[otlp.RECEIVER] = self.receiver
        app[metrics.ANSWERS] = metrics.Answers()
        app[scrape.SCRAPER] = scrape.Scraper(self.registry, self.recorder, self.own)
        app[health.LIFE] = self.life
        app[stream.HUB] = self.hub
        app[stream.OWN] = self.own
        app.on_shutdown.append(self._let_go)
        for path, handler in page.PAGES:
            app.router.add_get(path, handler)
        for route in ROUTES:
            app.router.add_route(route.method, route.path, route.handler)
            app.router.add_route(route.method, route.path + "/", route.handler)
        app.cleanup_ctx.append(self._background)
        return app

    async def _background(self, _app: web.Application) -> AsyncIterator[None]:
        await self.sweep()
        self._sweeper = asyncio.create_task(self._sweep_now_and_then(), name="tachograph sweep")
        others = [
            asyncio.create_task(self._keep_small(), name="tachograph retention"),
            asyncio.create_task(self._look_again(), name="tachograph traces"),
        ]
        yield
        for task in (self._sweeper, *others):
            task.cancel()
        await asyncio.gather(self._sweeper, *others, return_exceptions=True)
        await self.close()

    async def _let_go(self, _app: web.Application) -> None:
        """Tell who follows that the service stops."""
        await self.hub.close()

    async def sweep(self) -> int:
        """Close executions whose process died; how many there were."""
        lost = await self.database.read(lambda c: recovery.find_lost(c, time.time_ns()))
        for execution, steps in lost:
            events = list(recovery.lost_events(execution, steps))
            if execution.process == recovery.INGESTED:
                # Its spans are others'; ours tell nothing of it.
                await asyncio.to_thread(self.writer.apply, events)
            else:
                for event in events:
                    self.recorder(event)
            log.warning("execution %s of %s was lost", execution.execution_id, execution.workflow)
        if lost:
            await asyncio.to_thread(self.recorder.queues["store"].flush, 10.0)
        return len(lost)

    async def _sweep_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            try:
                await self.sweep()
            except Exception:
                log.exception("looking for lost executions failed; trying again later")

    async def _look_again(self) -> None:
        """Read the executions of long traces, and of those that miss a span, when they are due."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await self.reassemble_due_traces()
            except Exception:
                log.exception("executions could not be read from traces; trying again later")

    async def reassemble_due_traces(self) -> int:
        """Read the executions of the traces that are due; how many traces there were."""
        if not await self.database.read(has_due):
            return 0
        found = await self.database.write(self.span_store.claim_due)
        for due in found:
            self._tell(await asyncio.to_thread(self.span_store.reassemble_due_traces, due))
        return len(found)

    async def _keep_small(self) -> None:
        """Archive or delete what is old enough, as the configuration says, now and every hour."""
        config = self.config
        days = config.archive_after_days if config.archive_after_days is not None else config.delete_after_days
        while True:
            try:
                await asyncio.to_thread(self.database.run, partitions.ensure_coming)
                if days is not None:
                    before = time.time_ns() - round(days * 86_400 * NS)
                    moved = await asyncio.to_thread(archive.archive, self.database, before, config.archive_directory)
                    if moved.executions:
                        log.info("%d old execution(s) left the tables", moved.executions)
            except Exception:
                log.exception("old executions could not be archived; trying again later")
            await asyncio.sleep(KEEP_SECONDS)

    async def stop_work(self) -> None:
        """Take no more work and let running steps finish within the grace period; what is left is cancelled."""
        self.life.is_stopping = True
        await self.executor.drain(self.config.grace_seconds)

    async def close(self) -> None:
        """Stop work, deliver what was recorded, close the database."""
        await self.stop_work()
        await asyncio.to_thread(self.receiver.close)
        await self.feed.close()
        release(self.recorder)
        await asyncio.to_thread(self.recorder.close)
        await self.database.aclose()


async def serve(service: Service, on_ready: Callable[[str], None] | None = None) -> None:
    """Serve until SIGTERM or SIGINT; then stop gracefully. A second signal stops at once.

    ``on_ready`` is told the address once requests are answered. Raises `OSError` when the address cannot be had.
    """
    config = service.config
    runner = web.AppRunner(service.application(), access_log=None, handle_signals=False)
    await runner.setup()
    try:
        site = web.TCPSite(runner, config.host, config.port, reuse_address=True, ssl_context=config.tls())
        await site.start()
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(NotImplementedError, ValueError):
                loop.add_signal_handler(number, stop.set)
        port = site._server.sockets[0].getsockname()[1] if site._server is not None else config.port  # type: ignore[attr-defined]
        host = f"[{config.host}]" if ":" in config.host else config.host
        if on_ready is not None:
            on_ready(f"{config.scheme}://{host}:{port}")
        await stop.wait()
        log.info("stopping: running steps have %g s to finish", config.grace_seconds)
        stop.clear()
        work = asyncio.create_task(service.stop_work())
        again = asyncio.create_task(stop.wait())
        await asyncio.wait({work, again}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            await service.executor.drain(0)
        again.cancel()
        await work
    finally:
        await runner.cleanup()
