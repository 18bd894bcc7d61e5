"""The service: one aiohttp process that runs workflows, records them, and serves what was recorded."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Final

from aiohttp import web
from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from sqlalchemy import Connection

from tachograph import meter
from tachograph.clock import NS
from tachograph.errors import StoreUnavailable, TachographError
from tachograph.events import Event
from tachograph.identity import workspace_id
from tachograph.metrics.self_metrics import SELF_METRICS, SelfMetrics, SelfMetricsCollector
from tachograph.metrics.series_registry import SeriesRegistry
from tachograph.metrics.specs import EXPECTATION_METRICS, METRICS, QUEUE_METRICS
from tachograph.quiet_log import QuietLog
from tachograph.recording.provider import find_provider
from tachograph.recording.recorder import LEASE_SECONDS
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
    comparison,
    connections,
    events,
    executions,
    expectations,
    exports,
    guard,
    health,
    jaeger,
    jaeger_monitor,
    jaeger_v3,
    lineage,
    logs,
    mcp,
    metrics,
    night,
    openapi,
    otlp,
    overview,
    page,
    pings,
    queues,
    reconciliation,
    report,
    scrape,
    silences,
    stacks,
    stream,
    tempo,
    timeline,
    tokens,
    trends,
    why,
    workflows,
    workspaces,
)
from tachograph_exporter.api import failures as failure_routes
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
from tachograph_exporter.ingest.reassembly import DueTrace, claim_due, has_due, reassemble
from tachograph_exporter.ingest.receiver import Receiver
from tachograph_exporter.ingest.recorded_events import EventReceiver
from tachograph_exporter.ingest.rule_file import read_rules
from tachograph_exporter.ingest.rules import Rulebook
from tachograph_exporter.ingest.span_store import SpanStore
from tachograph_exporter.metrics.workflow_metrics import WorkflowMetrics
from tachograph_exporter.queues.metrics import QueueMetrics
from tachograph_exporter.queues.watch import QueueWatch
from tachograph_exporter.store import (
    archiving,
    failures,
    idempotency,
    log_rows,
    numbers,
    open_spans,
    partitions,
    process_rows,
    recovery,
    reported,
    senders,
)
from tachograph_exporter.store import lineage as lineage_rows
from tachograph_exporter.store import tokens as token_rows
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.expectations import replace_file
from tachograph_exporter.store.failure_groups import backfill
from tachograph_exporter.store.failure_groups import groups as failure_groups
from tachograph_exporter.store.probing import Probe
from tachograph_exporter.store.workspaces import add_project, add_workspace
from tachograph_exporter.store.writer import StoreWriter
from tachograph_exporter.stream.feed import Feed
from tachograph_exporter.stream.hub import Hub

if TYPE_CHECKING:
    from tachograph_exporter.api.otlp_grpc import GrpcDoor
    from tachograph_exporter.mcp.http_door import HttpDoor

log = logging.getLogger(__name__)
quiet = QuietLog(log)

SHUTDOWN_SECONDS: Final = 5.0
"""How long requests that are being answered have to end when the service stops."""
SWEEP_SECONDS: Final = 10.0
SPOOL_SECONDS: Final = 5.0
"""How long a sweep delivers what other processes spooled."""
RETENTION_SECONDS: Final = 3600.0
SUCCESSION_SECONDS: Final = 10.0
"""How often a service looks whether it is the one that looks after old rows now."""
REASSEMBLY_SECONDS: Final = 0.5
GROUPING_PAUSE: Final = 3.0
"""How long grouping old failures pauses, in times that its last part took."""
LOOKS_PER_LEASE: Final = 6
"""How often open spans are looked at while their lease runs."""
ROUTES: Final[tuple[Route, ...]] = (
    *comparison.ROUTES,
    *trends.ROUTES,
    *executions.ROUTES,
    *expectations.ROUTES,
    *night.ROUTES,
    *silences.ROUTES,
    *failure_routes.ROUTES,
    *timeline.ROUTES,
    *why.ROUTES,
    *logs.ROUTES,
    *stacks.ROUTES,
    *report.ROUTES,
    *reconciliation.ROUTES,
    *queues.ROUTES,
    *metrics.ROUTES,
    *scrape.ROUTES,
    *overview.ROUTES,
    *workflows.ROUTES,
    *workspaces.ROUTES,
    *tokens.ROUTES,
    *health.ROUTES,
    *otlp.ROUTES,
    *lineage.ROUTES,
    *events.ROUTES,
    *pings.ROUTES,
    *jaeger.ROUTES,
    *jaeger_v3.ROUTES,
    *jaeger_monitor.ROUTES,
    *tempo.ROUTES,
    *stream.ROUTES,
    *page.ROUTES,
    *openapi.ROUTES,
    *mcp.ROUTES,
)
"""Every route, the more specific ones first. A trailing slash is accepted too."""


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
        self._reassembling = asyncio.Lock()
        # Traces that are claimed and could not be assembled, because the database was unavailable.
        self._claimed: list[DueTrace] = []
        self._silences = recovery.Silences()
        self._closing = recovery.Closing()
        # Time between two looks counts at most twice: nobody could be heard while this process was held up.
        self._look_seconds = min(SWEEP_SECONDS, config.lease_seconds / LOOKS_PER_LEASE)
        self._reported_silences = recovery.Silences(max_gap_seconds=2 * reported.QUIET_SECONDS)
        self._span_silences = recovery.Silences(max_gap_seconds=2 * self._look_seconds)
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
        try:
            await self.sweep()
        except StoreUnavailable as error:
            log.warning("starting although %s", error)
        await self.workflow_metrics.start()
        tasks = [
            asyncio.create_task(self.workflow_metrics.run(), name="tachograph workflow metrics"),
            _every(SWEEP_SECONDS, lambda: self.sweep(), "looking for lost executions"),
            _every(self._look_seconds, lambda: self.expire_leases(), "looking for lost spans"),
            _every(reported.QUIET_SECONDS, lambda: self.end_quiet(), "looking for reported runs that are over"),
            _every(REASSEMBLY_SECONDS, lambda: self.reassemble_due_traces(), "assembling executions from traces"),
            asyncio.create_task(self._apply_retention(), name="tachograph retention"),
            asyncio.create_task(self.watch.run(), name="tachograph expectations"),
            asyncio.create_task(self.queues.run(), name="tachograph queues"),
            asyncio.create_task(self._group_failures(), name="tachograph failures"),
        ]
        self.courier.start()
        for task in tasks[:-1]:  # The last one ends when nothing is left to group.
            task.add_done_callback(_note_end)
        yield
        self.courier.close()
        for task in tasks:
            task.remove_done_callback(_note_end)
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.close()

    async def _disconnect_followers(self, _app: web.Application) -> None:
        await self.hub.close()

    async def sweep(self) -> int:
        """Store what others left behind, then close executions whose process died as ``lost``; returns their number."""
        await asyncio.to_thread(self.store.deliver_spooled, SPOOL_SECONDS)
        await asyncio.to_thread(self.neighbours.deliver, SPOOL_SECONDS)
        self.lineage.resume(await self.database.read(lineage_rows.unread))
        lease = max(self.config.lease_seconds, LEASE_SECONDS)
        lost = await self.database.read(
            lambda c: recovery.find_lost(c, time.time_ns(), lease_seconds=lease, silences=self._silences)
        )
        for run in lost:
            # In a thread: a run may have thousands of steps.
            closing: list[Event] = await asyncio.to_thread(self._closing.events, run)
            for event in closing:
                self.recorder(event)
            log.warning("execution %s of %s was lost", run.execution.execution_id, run.execution.workflow)
        if lost:
            queue = self.recorder.queues["store"]
            goal = queue.delivered + len(queue)
            await asyncio.to_thread(queue.flush, 10.0)
            if queue.delivered >= goal:  # Or refused; while the database is away, they wait.
                self._closing.delivered(lost)
        return len(lost)

    async def expire_leases(self) -> int:
        """Give up open spans that nothing was heard of for their lease; returns how many.

        Their traces are assembled again. Spans that wait in the receiver's queue have been heard of, but not stored.
        """
        rows = await self.database.read(open_spans.leased)
        silent = self._span_silences.look((span.key, span.seen_ns) for span in rows)
        limit = self.config.lease_seconds + self.receiver.behind_seconds()
        expired = [span for span in rows if silent[span.key] >= limit]
        if not expired:
            return 0
        lost = await self.database.write(lambda c: open_spans.lose(c, expired, time.time_ns()))
        if lost:
            log.warning("%d span(s) are lost: nothing was heard of them for %g s", lost, self.config.lease_seconds)
        return lost

    async def end_quiet(self) -> int:
        """End executions that engines report and of which nothing goes on; returns how many."""
        runs = await self.database.read(lambda c: reported.find_quiet(c, self._reported_silences))
        for run in runs:
            for event in reported.quiet_events(run):
                self.recorder(event)
        return len(runs)

    async def reassemble_due_traces(self) -> int:
        """Assemble the executions of traces that are due again; returns the number of traces."""
        async with self._reassembling:
            traces, self._claimed = self._claimed, []
            if not traces:
                if not await self.database.read(has_due):
                    return 0
                traces = await self.database.write(claim_due)
            for i, trace in enumerate(traces):
                try:
                    await asyncio.to_thread(reassemble, self.span_store, trace)
                except BaseException as error:
                    # Claims hold for minutes, and nobody else looks at these. What failed by itself is left out.
                    self._claimed = traces[i if failures.is_away(error) else i + 1 :]
                    raise
            return len(traces)

    async def _group_failures(self) -> None:
        """Group what failed before there were groups, in small parts, so that writers hardly wait."""
        while True:
            began = time.monotonic()
            try:
                if not await asyncio.to_thread(self.database.run, backfill.group_some):
                    return
            except StoreUnavailable as error:
                quiet.warning("failures", "grouping failures has to wait: %s", error)
                await asyncio.sleep(SWEEP_SECONDS)
            except Exception:
                quiet.exception("failures", "grouping failures failed; trying again later")
                await asyncio.sleep(SWEEP_SECONDS)
            await asyncio.sleep(GROUPING_PAUSE * (time.monotonic() - began))

    async def _apply_retention(self) -> None:
        """Archive or delete old executions as configured, and whatever else is due once an hour; now and every hour.

        Of several services on the database, the one that shows the workflow metrics does it.
        """
        config = self.config
        days = config.archive_after_days if config.archive_after_days is not None else config.delete_after_days
        while True:
            if not self.workflow_metrics.is_leader:
                # It takes over within this time.
                await asyncio.sleep(SUCCESSION_SECONDS)
                continue
            try:
                await asyncio.to_thread(self.database.run, partitions.ensure_coming)
                await asyncio.to_thread(self.database.run, idempotency.prune)
                await asyncio.to_thread(self.database.run, senders.prune)
                await asyncio.to_thread(self.database.run, numbers.fill)
                await asyncio.to_thread(self._prune_logs)
                await asyncio.to_thread(self._prune_failures)
                oldest_ns = time.time_ns() - process_rows.KEPT_SECONDS * NS
                await asyncio.to_thread(self.database.run, partial(process_rows.prune, before_ns=oldest_ns))
                if days is not None:
                    before = time.time_ns() - round(days * 86_400 * NS)
                    moved = await asyncio.to_thread(archiving.archive, self.database, before, config.archive_directory)
                    if moved.executions:
                        log.info("archived or deleted %d old execution(s)", moved.executions)
            except StoreUnavailable as error:
                log.warning("archiving or deleting old executions has to wait: %s", error)
            except Exception:
                log.exception("archiving or deleting old executions failed; trying again later")
            await asyncio.sleep(RETENTION_SECONDS)

    def _prune_logs(self) -> None:
        while self.database.run(lambda c: log_rows.prune_unknown(c, time.time_ns())):
            pass

    def _prune_failures(self) -> None:
        while self.database.run(lambda c: failure_groups.prune(c, time.time_ns())):
            pass

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


def _every(seconds: float, work: Callable[[], Awaitable[object]], what: str) -> asyncio.Task[None]:
    """Do something periodically. While the database is away it waits; another failure is told, and tried again."""

    async def repeat() -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                await work()
            except StoreUnavailable as error:
                quiet.warning(what, f"{what} has to wait: %s", error)
            except Exception:
                quiet.exception(what, f"{what} failed; trying again later")

    return asyncio.create_task(repeat(), name=f"tachograph {what}")


async def _opened(door: HttpDoor, _app: web.Application) -> AsyncIterator[None]:
    await door.open()
    yield
    await door.close()


def _note_end(task: asyncio.Task[None]) -> None:
    """Say that a background task has ended, which none does while the service runs."""
    reason = "it was cancelled" if task.cancelled() else repr(task.exception())
    log.critical('the task "%s" has ended: %s; restart the service', task.get_name(), reason)


class CannotListen(TachographError):
    """The address to listen on is not available."""


async def serve(service: Service, on_ready: Callable[[str], None] | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then stop gracefully; a second signal stops at once.

    ``on_ready`` is called with the address once requests are accepted. Raises `CannotListen` when an address is not
    available.
    """
    config = service.config
    connections.raise_descriptor_limit()
    runner = connections.Runner(
        service.application(),
        # A request that never ends must not keep the process from ending.
        shutdown_timeout=SHUTDOWN_SECONDS,
        max_connections_per_peer=config.max_connections_per_peer,
        tls=config.tls(),
        access_log=None,
        handle_signals=False,
    )
    try:
        await runner.setup()
        site = connections.Site(runner, config.host, config.port)
        try:
            await site.start()
        except OSError as error:
            raise CannotListen(f"cannot listen on {config.host}:{config.port}: {error.strerror or error}") from error
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(NotImplementedError, ValueError):
                loop.add_signal_handler(number, stop.set)
        host = f"[{config.host}]" if ":" in config.host else config.host
        # What the service consists of stays; a collection of garbage, which stops every thread, need not go through it.
        gc.collect()
        gc.freeze()
        if on_ready is not None:
            on_ready(f"{config.scheme}://{host}:{site.bound_port}")
        await stop.wait()
        log.info("stopping: running steps have %g s to finish", config.grace_seconds)
        stop.clear()
        work = asyncio.create_task(service.stop_work())
        second_signal = asyncio.create_task(stop.wait())
        await asyncio.wait({work, second_signal}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            await service.executor.drain(0)
        second_signal.cancel()
        await work
    finally:
        await runner.cleanup()
