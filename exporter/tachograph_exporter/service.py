"""The service: one aiohttp process that runs workflows, records them, and serves what was recorded."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import TYPE_CHECKING, Final

from aiohttp import web
from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from sqlalchemy import Connection

from tachograph import meter
from tachograph.errors import TachographError
from tachograph.identity import workspace_id
from tachograph.metrics.self_metrics import SELF_METRICS, SelfMetrics, SelfMetricsCollector
from tachograph.metrics.series_registry import SeriesRegistry
from tachograph.metrics.specs import EXPECTATION_METRICS, METRICS, QUEUE_METRICS
from tachograph.quiet_log import QuietLog
from tachograph.recording.provider import find_provider
from tachograph.recording.setup import adopt, build_recorder, release
from tachograph.recording.spooled_store import SpooledStore
from tachograph.runners import runner_of
from tachograph.spans.propagation import propagation
from tachograph.workflow.builtin.addresses import AddressPolicy
from tachograph.workflow.builtin.http import restricted
from tachograph.workflow.executor import Executor
from tachograph.workflow.handlers import HandlerRegistry
from tachograph.workflow.handlers import registry as default_handlers
from tachograph_exporter.admission import Admission
from tachograph_exporter.api import (
    events,
    expectations,
    exports,
    guard,
    health,
    lineage,
    mcp,
    metrics,
    openapi,
    page,
    pings,
    queues,
    report,
    scrape,
    stream,
)
from tachograph_exporter.api.all_routes import ROUTES
from tachograph_exporter.api.caching import caching_middleware
from tachograph_exporter.api.problems import problem_middleware
from tachograph_exporter.api.request import ADMISSION, CONFIG, DATABASE, EXECUTOR, RECORDER, WORKERS, WORKSPACE_CACHE
from tachograph_exporter.api.room import ROOM, Room, room_middleware
from tachograph_exporter.api.routes import ROUTE_BY_HANDLER, Route
from tachograph_exporter.api.workers import Workers
from tachograph_exporter.config import Config, ConfigError
from tachograph_exporter.expectations.courier import Courier
from tachograph_exporter.expectations.file import NOTHING, all_targets, read_file
from tachograph_exporter.expectations.metrics import ExpectationMetrics
from tachograph_exporter.expectations.watch import Watch
from tachograph_exporter.ingest.built_in_rules import BUILT_IN
from tachograph_exporter.ingest.lineage.receiver import LineageReceiver
from tachograph_exporter.ingest.neighbours import Neighbours
from tachograph_exporter.ingest.pings import PingReceiver
from tachograph_exporter.ingest.prices import read_prices
from tachograph_exporter.ingest.receiver import Receiver
from tachograph_exporter.ingest.recorded_events import EventReceiver
from tachograph_exporter.ingest.rule_file import read_rules
from tachograph_exporter.ingest.rules import Rulebook
from tachograph_exporter.ingest.span_store import SpanStore
from tachograph_exporter.metrics.workflow_metrics import WorkflowMetrics
from tachograph_exporter.queues.metrics import QueueMetrics
from tachograph_exporter.queues.watch import QueueWatch
from tachograph_exporter.store import tokens as token_rows
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.expectations import replace_file
from tachograph_exporter.store.probing import Probe
from tachograph_exporter.store.workspaces import add_project, add_workspace
from tachograph_exporter.store.writer import StoreWriter
from tachograph_exporter.stream.feed import Feed
from tachograph_exporter.stream.hub import Hub
from tachograph_exporter.upkeep import Upkeep, note_end

if TYPE_CHECKING:
    from tachograph_exporter.api.otlp_grpc import GrpcDoor
    from tachograph_exporter.mcp.http_door import HttpDoor

log = logging.getLogger(__name__)
quiet = QuietLog(log)

SHUTDOWN_SECONDS: Final = 5.0
"""How long requests that are being answered have to end when the service stops."""


class DefaultRegistryCollector(Collector):
    """The metrics in prometheus_client's default registry: CPU, memory, GC, and whatever step handlers register."""

    def collect(self) -> Iterator[Metric]:
        """The default registry's families, without those named like ours: a family must not appear twice."""
        ours = {
            spec.name.removesuffix("_total") for spec in (*METRICS, *EXPECTATION_METRICS, *QUEUE_METRICS, *SELF_METRICS)
        }
        return (metric for metric in REGISTRY.collect() if metric.name not in ours)

    def describe(self) -> list[Metric]:
        """No names: they may change at any time."""
        return []


class Service:
    """All parts of the service, created in order and closed in reverse order.

    Args:
        config: the settings; checked here.
        handlers: the step handlers that workflows can use.

    Raises `ConfigError` when the settings do not fit together.
    """

    def __init__(self, config: Config, handlers: HandlerRegistry = default_handlers) -> None:
        self.config = config
        # First, because it may fail: nothing has to be closed yet.
        rules = read_rules(config.mapping) if config.mapping is not None else BUILT_IN
        if config.prices is not None:
            rules = Rulebook(rules.rules, read_prices(config.prices))
        self.database = Database(config.database)
        self.database.read_seconds = config.read_timeout_seconds
        try:
            config.check(has_tokens=self.database.look(token_rows.any_token))
        except ConfigError:
            self.database.close()
            raise
        self.registry = CollectorRegistry()
        self.self_metrics = SelfMetrics(self.registry)
        self.feed = Feed(self.database)
        self.hub = Hub(self.feed, self.database, self.self_metrics.stream_messages_sent)
        self.writer = StoreWriter(
            self.database,
            self.self_metrics.store_committed,
            self.feed.committed,
            self.self_metrics.record_refused,
        )
        series = SeriesRegistry(family_limit=config.series_limit, expire_seconds=config.series_expire_seconds)
        self.store = SpooledStore(config.database, lambda _url, *, wait_seconds: self.writer)
        self.workflow_metrics = WorkflowMetrics(self.database, series, config.measures)
        self.registry.register(self.workflow_metrics)
        # Without metrics of its own: those of a service are what the database keeps, whoever recorded it.
        self.recorder = build_recorder(provider=find_provider(), store=self.store)
        adopt(self.recorder, config.workspace)
        meter.service_starts()
        # Ingested events are stored with the spans they were read from, in the transaction that acknowledges them.
        publish = partial(self.recorder.publish, delivered_to=("store",))
        self.span_store = SpanStore(self.writer, publish, rules)
        self.receiver = Receiver(self.span_store, self.self_metrics.otlp_dropped)
        self.lineage = LineageReceiver(self.span_store)
        # Whoever recorded these has their spans, and sends their heartbeats.
        foreign = partial(self.recorder.publish, delivered_to=("store", "spans"), are_foreign=True)
        self.events = EventReceiver(self.writer, foreign)
        self.pings = PingReceiver(self.writer, foreign)
        self.neighbours = Neighbours(self.events, self.database, config)
        self.registry.register(SelfMetricsCollector(self.recorder, series))
        self.registry.register(DefaultRegistryCollector())
        self.expectations = read_file(config.expectations) if config.expectations is not None else NOTHING
        targets = all_targets(self.expectations, config.notify)
        self.receivers = expectations.Receivers(targets, self.expectations.link or config.address)
        self.courier = Courier(
            self.database,
            targets,
            self.receivers.link,
            lambda: self.workflow_metrics.is_leader,
            self.self_metrics.notice_settled,
        )
        self.watch = Watch(
            self.database,
            workspace_id(config.workspace),
            targets,
            lambda: self.workflow_metrics.is_leader,
            self.courier.wake,
        )
        self.registry.register(ExpectationMetrics(self.watch, config.series_limit))
        self.queues = QueueWatch(config.queues, lambda: self.workflow_metrics.is_leader)
        self.registry.register(QueueMetrics(self.queues, config.series_limit))
        self.executor = Executor(
            self.recorder,
            handlers=restricted(handlers, AddressPolicy(config.http_allow)),
            runner=runner_of(config.runner) if config.runner is not None else None,
            max_executions=config.max_executions,
            carrier=propagation,
        )
        self.admission = Admission(self.executor, self.writer, publish)
        self.workers = Workers("work")
        self.life = health.Lifecycle()
        self.upkeep = Upkeep(
            config,
            self.database,
            store=self.store,
            recorder=self.recorder,
            span_store=self.span_store,
            receiver=self.receiver,
            lineage=self.lineage,
            neighbours=self.neighbours,
            is_leader=lambda: self.workflow_metrics.is_leader,
        )
        self.grpc_door: GrpcDoor | None = None
        self.database.run(self._prepare)

    def _prepare(self, connection: Connection) -> None:
        now = time.time_ns()
        add_workspace(connection, self.config.workspace, now)
        add_project(connection, self.config.workspace, "default", now)
        if self.config.expectations is not None:
            replace_file(connection, self.expectations.default, self.expectations.workflows, now)

    def application(self) -> web.Application:
        """The aiohttp application, which starts and stops the service's background tasks."""
        app = web.Application(
            middlewares=[room_middleware, caching_middleware, problem_middleware, guard.guard],
            client_max_size=self.config.max_body_bytes,
            # Bodies are decoded off the event loop, see `encodings`; whoever runs the application.
            handler_args={"auto_decompress": False},
        )
        app[guard.AUTHENTICATOR] = guard.Authenticator(self.config, self.database)
        app[ROUTE_BY_HANDLER] = {route.handler: route for route in ROUTES} | {
            handler: Route(method="GET", path=path, handler=handler, scope=None, in_workspace=False)
            for path, handler in page.PAGES
        }
        app[openapi.DOCUMENT] = openapi.Document(ROUTES)
        app[CONFIG] = self.config
        app[DATABASE] = self.database
        app[RECORDER] = self.recorder
        app[EXECUTOR] = self.executor
        app[ADMISSION] = self.admission
        app[WORKSPACE_CACHE] = {}
        app[WORKERS] = self.workers
        app[expectations.RECEIVERS] = self.receivers
        app[queues.QUEUES] = self.queues
        app[report.LINK] = self.expectations.link or ""
        app[ROOM] = Room()
        app[lineage.LINEAGE] = self.lineage
        app[events.EVENTS] = self.events
        app[pings.PINGS] = self.pings
        app[exports.EXPORTS] = exports.Exports(self.receiver, self.self_metrics.otlp_answered)
        app[metrics.METRICS_CACHE] = metrics.MetricsCache()
        app[scrape.SCRAPER] = scrape.Scraper(self.registry, self.recorder, self.self_metrics, self.workflow_metrics)
        app[health.LIFECYCLE] = self.life
        app[health.PROBE] = Probe(self.database)
        app[stream.HUB] = self.hub
        app[stream.SELF_METRICS] = self.self_metrics
        app.on_shutdown.append(self._disconnect_followers)
        for path, handler in page.PAGES:
            app.router.add_get(path, handler)
        for route in ROUTES:
            for path in [path + end for path in (route.path, *route.aliases) for end in ("", "/")]:
                app.router.add_route(route.method, path, route.handler)
                if route.method == "GET":
                    # Its responses lose their body when they are sent (RFC 9110, section 9.3.2).
                    app.router.add_route("HEAD", path, route.handler)
        app.cleanup_ctx.append(self._background)
        if self.config.otlp_grpc is not None:
            app.cleanup_ctx.append(self._otlp_grpc)
            app.on_shutdown.append(self._close_otlp_grpc)
        if self.config.mcp:
            # Only here: the protocol's library is optional, and takes its time.
            from tachograph_exporter.mcp.http_door import HttpDoor

            door = HttpDoor()
            app[mcp.SERVED] = mcp.Served(door, self.expectations.link or None)
            app.cleanup_ctx.append(partial(_opened, door))
        return app

    async def _otlp_grpc(self, app: web.Application) -> AsyncIterator[None]:
        # Only here: grpcio is optional, and takes its time.
        from tachograph_exporter.api.otlp_grpc import CannotBind, GrpcDoor

        self.grpc_door = door = GrpcDoor(app)
        try:
            await door.start()
        except CannotBind as error:
            raise CannotListen(str(error)) from None
        yield
        await door.stop(0)

    async def _close_otlp_grpc(self, _app: web.Application) -> None:
        if self.grpc_door is not None:
            await self.grpc_door.stop(SHUTDOWN_SECONDS)

    async def _background(self, _app: web.Application) -> AsyncIterator[None]:
        await self.upkeep.begin()
        await self.workflow_metrics.start()
        tasks = [
            asyncio.create_task(self.workflow_metrics.run(), name="tachograph workflow metrics"),
            asyncio.create_task(self.watch.run(), name="tachograph expectations"),
            asyncio.create_task(self.queues.run(), name="tachograph queues"),
        ]
        for task in tasks:
            task.add_done_callback(note_end)
        tasks += self.upkeep.start()
        self.courier.start()
        yield
        self.courier.close()
        for task in tasks:
            task.remove_done_callback(note_end)
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.close()

    async def _disconnect_followers(self, _app: web.Application) -> None:
        await self.hub.close()

    async def stop_work(self) -> None:
        """Accept no more work, let running steps finish within the grace period, and cancel what is left."""
        self.life.is_stopping = True
        await self.admission.close()
        await self.executor.drain(self.config.grace_seconds)

    async def close(self) -> None:
        """Stop work, deliver what was recorded, and close the database."""
        await self.stop_work()
        receivers = (self.receiver, self.lineage, self.events)
        await asyncio.gather(*[asyncio.to_thread(receiver.close) for receiver in receivers], self.feed.close())
        self.workers.close()
        release(self.recorder)
        meter.service_ends()
        await asyncio.to_thread(self.recorder.close)
        await self.workflow_metrics.close()
        await self.database.aclose()


async def _opened(door: HttpDoor, _app: web.Application) -> AsyncIterator[None]:
    await door.open()
    yield
    await door.close()


class CannotListen(TachographError):
    """The address to listen on is not available."""
