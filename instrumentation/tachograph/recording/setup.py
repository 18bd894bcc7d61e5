"""The process's recorder: set up once, from arguments or the environment, at the latest when something is recorded.

Environment: the standard ``OTEL_*`` variables configure span export (see `provider_from_environment`),
``TACHOGRAPH_DATABASE_URL`` the durable timeline, or ``TACHOGRAPH_URL`` the service that keeps it (with
``TACHOGRAPH_TOKEN``, if that asks for a token), ``TACHOGRAPH_WORKSPACE`` the workspace that runs belong to,
``TACHOGRAPH_MEASURES`` the step measures that become metrics, ``TACHOGRAPH_SPOOL_DIR`` where events go that neither
could take, ``TACHOGRAPH_MAX_STEP_REPETITIONS`` how often a step may be repeated before its repetitions are
folded.

Each part (spans, metrics, store) is set up on its own. What the environment configures wrongly is said once, kept in
`Recorder.problems`, and costs no other part. Only wrong arguments raise.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import threading
from collections.abc import Iterable
from functools import partial
from importlib import metadata
from typing import Any, Final, cast

from opentelemetry import trace
from prometheus_client import REGISTRY, CollectorRegistry

from tachograph import folding
from tachograph.errors import BadDatabaseURL, SetupError, StoreError, StoreUnavailable
from tachograph.metrics.listener import MetricsListener
from tachograph.metrics.self_metrics import SelfMetricsCollector
from tachograph.metrics.series_registry import SeriesRegistry
from tachograph.recording import log_handler
from tachograph.recording.listener_queue import BatchListener
from tachograph.recording.log_handler import LOGS_VARIABLE
from tachograph.recording.problems import Problem, Problems, Report
from tachograph.recording.provider import find_provider
from tachograph.recording.recorder import Recorder, close_all
from tachograph.recording.relay import RelayAddress
from tachograph.recording.service_store import is_service, open_service
from tachograph.recording.spooled_store import Opener, SpooledStore
from tachograph.spans.listener import SpanListener
from tachograph.variables import DATABASE_VARIABLE, URL_VARIABLE, WORKSPACE_VARIABLE

log = logging.getLogger(__name__)

MEASURES_VARIABLE: Final = "TACHOGRAPH_MEASURES"
MULTIPROCESS_VARIABLES: Final = ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir")
REPETITIONS_VARIABLE: Final = "TACHOGRAPH_MAX_STEP_REPETITIONS"
_STORE_ENTRY_POINTS: Final = "tachograph.stores"

_lock = threading.RLock()
_recorder: Recorder | None = None
_workspace = ""
_database: str | None = None
_token: str | None = None
_self_metrics: tuple[CollectorRegistry, SelfMetricsCollector] | None = None


def configure(
    *,
    database: str | None = None,
    url: str | None = None,
    token: str | None = None,
    workspace: str | None = None,
    provider: trace.TracerProvider | None = None,
    registry: CollectorRegistry | None = REGISTRY,
    spans: bool = True,
    measures: Iterable[str] | None = None,
    max_step_repetitions: int | None = None,
    logs: str | int | None = None,
) -> Recorder:
    """Set up the process's recorder, closing an earlier one. All arguments are optional.

    Args:
        database: URL of the durable timeline's database, such as ``sqlite:///runs.db`` (default:
            ``TACHOGRAPH_DATABASE_URL``). Needs the ``exporter`` extra. Without a database and a service, or with empty
            ones, no timeline is kept.
        url: URL of the service that keeps the timeline, such as ``http://host:9923`` (default: ``TACHOGRAPH_URL``,
            if no database is named).
        token: the service's token, with the scope ``ingest`` (default: ``TACHOGRAPH_TOKEN``).
        workspace: slug of the workspace that runs belong to (default: ``TACHOGRAPH_WORKSPACE``, else ``default``).
        provider: records spans (default: OpenTelemetry's global one, else one built from ``OTEL_*`` if those name a
            destination, else none).
        registry: the prometheus_client registry for metrics; None: no metrics.
        spans: False leaves OpenTelemetry alone.
        measures: names of step measures that become metrics (default: ``TACHOGRAPH_MEASURES``, comma-separated).
        max_step_repetitions: how often a step may be repeated in one execution, or inside one step, before further
            repetitions share one entry of its timeline (default: ``TACHOGRAPH_MAX_STEP_REPETITIONS``, else 1,000).
        logs: level, such as ``"INFO"``, from which records of `logging` are kept as lines of the steps that emit them
            (default: ``TACHOGRAPH_LOGS``, else none are; so does ``"off"``).

    Raises `SetupError` or `StoreError` when an argument is wrong. A database that is locked, or a database or service
    that cannot be reached now, is not: it is tried again, and what it cannot take meanwhile is spooled. Faults of the
    environment never raise: they are logged once and listed in the recorder's ``problems``.
    """
    global _database, _token
    with _lock:
        problems = Problems()
        # Before the earlier recorder is closed: when an argument is wrong, that one stays.
        repetitions = _max_step_repetitions(max_step_repetitions, problems)
        log_level = _log_level(logs, problems)
        store = _store(database, url, token, problems)
        sink = _span_listener(provider, problems) if spans else None
        folding.set_limits(folding.limits()._replace(repetitions=repetitions))
        recorder = _adopt_new(store, sink, registry, measures, workspace, problems)
        _database, _token = (store.url, token) if isinstance(store, SpooledStore) else (None, None)
        log_handler.install(log_level)
        return recorder


def _adopt_new(
    store: BatchListener | None,
    sink: SpanListener | None,
    registry: CollectorRegistry | None,
    measures: Iterable[str] | None,
    workspace: str | None,
    problems: Problems,
) -> Recorder:
    global _recorder, _workspace, _self_metrics
    if _recorder is not None:
        _recorder.close()
        _recorder = None
    if _self_metrics is not None:
        old_registry, old_collector = _self_metrics
        with contextlib.suppress(KeyError):
            old_registry.unregister(old_collector)
        _self_metrics = None
    recorder = Recorder()
    recorder.problems = problems
    if sink is not None:
        recorder.set_spans(sink)
    if registry is not None:
        names = _clean(os.environ.get(MEASURES_VARIABLE, "")).split(",") if measures is None else measures
        _add_metrics(recorder, sink, registry, [name.strip() for name in names if name.strip()], problems)
    if store is not None:
        recorder.add("store", store)
    # Exit handlers run last in, first out: the recorder must close before the provider does.
    atexit.unregister(close_all)
    atexit.register(close_all)
    _workspace = workspace or _clean(os.environ.get(WORKSPACE_VARIABLE, "")) or "default"
    _recorder = recorder
    return recorder


def _add_metrics(
    recorder: Recorder,
    sink: SpanListener | None,
    registry: CollectorRegistry,
    measures: Iterable[str],
    report: Report,
) -> None:
    global _self_metrics
    try:
        listener = MetricsListener(registry, is_sampled=_sampling(sink), measures=measures)
        recorder.add("metrics", listener)
        collector = SelfMetricsCollector(recorder, listener.series)
        registry.register(collector)
        _self_metrics = (registry, collector)
    except ValueError as error:
        # A metric of the program has one of our names, or another copy of this library runs in the process.
        if registry is not REGISTRY:
            raise SetupError(f"the registry refuses the metrics: {error}") from error
        report("metrics", f"prometheus_client's registry refuses them: {error}; configure(registry=...) takes another")
    if registry is REGISTRY and (variable := next((v for v in MULTIPROCESS_VARIABLES if os.environ.get(v)), None)):
        report(
            "metrics",
            f"{variable} is set, and what prometheus_client's MultiProcessCollector serves does not contain "
            "Tachograph's metrics: read them from /metrics of `tachograph serve` on the same database, or give "
            "configure(registry=...) a CollectorRegistry of this process and expose that",
        )


def _sampling(sink: SpanListener | None) -> Any:
    return sink.is_sampled if sink is not None else lambda _: False


def _span_listener(provider: trace.TracerProvider | None, report: Report) -> SpanListener:
    if provider is not None:
        return SpanListener(provider)
    try:
        return SpanListener(find_provider(report))
    except Exception as error:
        report("spans", f"no spans are exported: OpenTelemetry's tracer provider cannot be used: {error!r}")
        return SpanListener(None)


def _store(database: str | None, url: str | None, token: str | None, problems: Problems) -> BatchListener | None:
    """The store at an explicit or configured URL; None if there is none, or none that could ever be opened."""
    if database and url:
        raise SetupError("configure() takes the URL of a database or that of a service, not both")
    variable = DATABASE_VARIABLE
    if database is None and not url:
        database_here = os.environ.get(DATABASE_VARIABLE, "") if url is None else ""
        variable = DATABASE_VARIABLE if database_here or url is not None else URL_VARIABLE
        address = database_here or (os.environ.get(URL_VARIABLE, "").strip() if url is None else "")
    else:
        address = database or url or ""
    if not address:
        return None
    is_explicit = database is not None or url is not None
    try:
        store = open_store(address, token=token, retry=not is_explicit)
    except Exception as error:
        if is_explicit:
            raise
        why = str(error) if isinstance(error, (SetupError, StoreError)) else repr(error)
        problems("store", f"no durable timeline is kept: {why} ({variable})")
        return None
    if store.problem:
        # Not logged: the queue says so when the first event has to wait.
        problems.append(Problem("store", store.problem))
    return store


def _max_step_repetitions(value: int | None, report: Report) -> int:
    if value is not None:
        if value < 1:
            raise SetupError(f"max_step_repetitions must be 1 or more, not {value}")
        return value
    text = os.environ.get(REPETITIONS_VARIABLE, "").strip()
    if text.isascii() and text.isdecimal() and int(text[:10]) >= 1:
        return int(text[:10])
    default = folding.Limits().repetitions
    if text:
        report("steps", f"{REPETITIONS_VARIABLE} is {text[:50]!a}, not a number of 1 or more: taking {default}")
    return default


def _log_level(value: str | int | None, report: Report) -> int | None:
    try:
        return log_handler.level_of(os.environ.get(LOGS_VARIABLE) if value is None else value)
    except ValueError as error:
        if value is not None:
            raise SetupError(f"logs: {error}") from None
        report("logs", f"no log records are kept: {LOGS_VARIABLE}: {error}")
        return None


def _clean(text: str) -> str:
    """Text of a variable that can be encoded; bytes that are no text are replaced."""
    return text.encode("utf-8", "replace").decode()


def build_recorder(
    *,
    provider: trace.TracerProvider | None = None,
    spans: bool = True,
    registry: CollectorRegistry | None = None,
    series: SeriesRegistry | None = None,
    measures: Iterable[str] = (),
    store: BatchListener | None = None,
) -> Recorder:
    """Assemble a recorder from its listeners: ``spans``, ``metrics`` and ``store``.

    Args:
        provider: records spans; None: steps get span ids and a current span, but nothing is exported.
        spans: False: no span listener.
        registry: where metrics are registered; None: no metrics.
        series: the limits on metrics' series (default: the default limits).
        measures: names of step measures that become metrics.
        store: the durable store; None: no timeline.
    """
    recorder = Recorder()
    sink = None
    if spans:
        sink = SpanListener(provider)
        recorder.set_spans(sink)
    if registry is not None:
        recorder.add("metrics", MetricsListener(registry, series=series, is_sampled=_sampling(sink), measures=measures))
    if store is not None:
        recorder.add("store", store)
    return recorder


def set_up_once(**options: Any) -> Recorder | None:
    """`configure`, unless the process already has a recorder (then None).

    Never raises, because telemetry never breaks the workflow: an option that is wrong is logged and left out.
    """
    with _lock:
        if _recorder is not None:
            return None
        failures: list[Problem] = []
        without = {"database": "", "url": ""}
        for attempt in (options, {**options, **without}, {**without, "spans": False, "registry": None}):
            try:
                recorder = configure(**attempt)
            except Exception as error:
                log.warning("recording is not set up as asked: %s", error)
                failures.append(Problem("setup", str(error)))
            else:
                recorder.problems = [*failures, *recorder.problems]
                return recorder
        return _adopt_new(None, None, None, (), None, Problems(failures))


def adopt(recorder: Recorder, workspace: str = "default") -> None:
    """Make this the process's recorder, so that plain functions record to it too; see `configure` for log records."""
    global _recorder, _workspace
    with _lock:
        _recorder, _workspace = recorder, workspace
        problems = Problems()
        log_handler.install(_log_level(None, problems))
        recorder.problems = [*recorder.problems, *problems]


def release(recorder: Recorder) -> None:
    """Undo `adopt` before the recorder is closed; the next thing recorded sets up a new recorder."""
    global _recorder
    with _lock:
        if _recorder is recorder:
            _recorder = None


def get_recorder() -> Recorder:
    """The process's recorder, set up from the environment if `configure` was not called; see `set_up_once`."""
    if _recorder is not None:
        return _recorder
    set_up_once()
    return cast(Recorder, _recorder)


def database_url() -> str | None:
    """The database or service that the process's recorder writes to, as it was configured; None: none."""
    return _database


def service_token() -> str | None:
    """The service's token, as it was configured; None: that of the environment."""
    return _token


def recorder_for_child(
    relay: RelayAddress | None,
    database: str | None,
    workspace: str,
    token: str | None = None,
    log_level: int | None = None,
) -> Recorder:
    """The recorder of a process in which work of another process's run is done.

    It sends events to that process; where that one takes none, or is gone, to the same database or service.
    """
    global _recorder, _workspace, _database, _token
    with _lock:
        recorder = _recorder
        if recorder is None:
            recorder = _recorder = build_recorder(provider=find_provider())
            _workspace, _database, _token = workspace, database, token
            log_handler.install(log_level)
            atexit.unregister(close_all)
            atexit.register(close_all)
        if database and "store" not in recorder.queues:
            recorder.add("store", _unopened_store(database, token))
        if relay is not None:
            recorder.relay_to(relay)
        return recorder


def default_workspace() -> str:
    """Slug of the workspace that runs belong to by default."""
    get_recorder()
    return _workspace


def open_store(url: str, *, token: str | None = None, retry: bool = False) -> SpooledStore:
    """Open the durable store at the URL of a database or a service.

    That of a database is found by entry point, so this package never imports the service's. A database that is locked
    or cannot be reached now is tried again when there is something to store. ``retry``: so is one that cannot be opened
    for another reason; only what can never be opened raises.
    """
    store = _unopened_store(url, token)
    try:
        store.open()
    except StoreError as error:
        is_wrong = isinstance(error, BadDatabaseURL) or not (retry or isinstance(error, StoreUnavailable))
        if is_wrong:
            raise
    return store


def _unopened_store(url: str, token: str | None = None) -> SpooledStore:
    """The store at the URL of a database or service, which opens when the first batch arrives."""
    if is_service(url):
        return SpooledStore(url, partial(open_service, token=token))
    for entry in metadata.entry_points(group=_STORE_ENTRY_POINTS):
        try:
            opener = entry.load()
        except ImportError as error:
            raise SetupError(
                f"a durable timeline needs the service's libraries ({error.name} is missing): "
                "pip install 'tachograph[exporter]'"
            ) from error
        return SpooledStore(url, cast(Opener, opener))
    raise SetupError("no store is installed: pip install 'tachograph[exporter]'")


def _after_fork() -> None:
    """In a forked child: the thread that held the lock is not there to release it."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
