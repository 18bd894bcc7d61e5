"""The process's recorder: set up once, from arguments or the environment, at the latest when something is recorded.

Environment: the standard ``OTEL_*`` variables configure span export (see `provider_from_environment`),
``TACHOGRAPH_DATABASE_URL`` the durable timeline, ``TACHOGRAPH_WORKSPACE`` the workspace that runs belong to,
``TACHOGRAPH_MEASURES`` the step measures that become metrics, ``TACHOGRAPH_MAX_STEP_REPETITIONS`` how often a step may
be repeated before its repetitions are folded.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections.abc import Iterable, Sequence
from importlib import metadata
from typing import Any, Final, cast

from opentelemetry import trace
from prometheus_client import REGISTRY, CollectorRegistry

from tachograph import folding
from tachograph.errors import SetupError
from tachograph.events import Event
from tachograph.metrics.listener import MetricsListener
from tachograph.metrics.series_registry import SeriesRegistry
from tachograph.recording.listener_queue import BatchListener
from tachograph.recording.provider import find_provider
from tachograph.recording.recorder import Recorder, close_all
from tachograph.recording.relay import RelayAddress
from tachograph.spans.listener import SpanListener

log = logging.getLogger(__name__)

DATABASE_VARIABLE: Final = "TACHOGRAPH_DATABASE_URL"
WORKSPACE_VARIABLE: Final = "TACHOGRAPH_WORKSPACE"
MEASURES_VARIABLE: Final = "TACHOGRAPH_MEASURES"
REPETITIONS_VARIABLE: Final = "TACHOGRAPH_MAX_STEP_REPETITIONS"
_STORE_ENTRY_POINTS: Final = "tachograph.stores"

_lock = threading.RLock()
_recorder: Recorder | None = None
_workspace = ""
_database: str | None = None


def configure(
    *,
    database: str | None = None,
    workspace: str | None = None,
    provider: trace.TracerProvider | None = None,
    registry: CollectorRegistry | None = REGISTRY,
    spans: bool = True,
    measures: Iterable[str] | None = None,
    max_step_repetitions: int | None = None,
) -> Recorder:
    """Set up the process's recorder, closing an earlier one. All arguments are optional.

    Args:
        database: URL of the durable timeline's database, such as ``sqlite:///runs.db`` (default:
            ``TACHOGRAPH_DATABASE_URL``). Without one, or with an empty one, no timeline is kept. Needs the ``exporter``
            extra.
        workspace: slug of the workspace that runs belong to (default: ``TACHOGRAPH_WORKSPACE``, else ``default``).
        provider: records spans (default: OpenTelemetry's global one, else one built from ``OTEL_*`` if those name a
            destination, else none).
        registry: the prometheus_client registry for metrics; None: no metrics.
        spans: False leaves OpenTelemetry alone.
        measures: names of step measures that become metrics (default: ``TACHOGRAPH_MEASURES``, comma-separated).
        max_step_repetitions: how often a step may be repeated in one execution, or inside one step, before further
            repetitions share one entry of its timeline (default: ``TACHOGRAPH_MAX_STEP_REPETITIONS``, else 1,000).

    Raises `SetupError` when a requested part is not available.
    """
    global _recorder, _workspace, _database
    with _lock:
        repetitions = _max_step_repetitions(max_step_repetitions)
        if _recorder is not None:
            _recorder.close()
            _recorder = None
        folding.set_limits(folding.limits()._replace(repetitions=repetitions))
        url = os.environ.get(DATABASE_VARIABLE) if database is None else database
        names = os.environ.get(MEASURES_VARIABLE, "").split(",") if measures is None else measures
        recorder = build_recorder(
            provider=(provider or find_provider()) if spans else None,
            spans=spans,
            registry=registry,
            measures=[name.strip() for name in names if name.strip()],
            store=open_store(url) if url else None,
        )
        # Exit handlers run last in, first out: the recorder must close before the provider does.
        atexit.unregister(close_all)
        atexit.register(close_all)
        _workspace = workspace or os.environ.get(WORKSPACE_VARIABLE) or "default"
        _database = url or None
        _recorder = recorder
        return recorder


def _max_step_repetitions(value: int | None) -> int:
    if value is not None:
        if value < 1:
            raise SetupError(f"max_step_repetitions must be 1 or more, not {value}")
        return value
    text = os.environ.get(REPETITIONS_VARIABLE, "").strip()
    if text.isascii() and text.isdecimal() and int(text[:10]) >= 1:
        return int(text[:10])
    default = folding.Limits().repetitions
    if text:
        log.warning("%s is %.50r, not a number of 1 or more: taking %d", REPETITIONS_VARIABLE, text, default)
    return default


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
        is_sampled = sink.is_sampled if sink is not None else lambda _: False
        recorder.add("metrics", MetricsListener(registry, series=series, is_sampled=is_sampled, measures=measures))
    if store is not None:
        recorder.add("store", store)
    return recorder


def set_up_once(**options: Any) -> Recorder | None:
    """`configure`, unless the process already has a recorder (then None).

    Telemetry never breaks the workflow: when the database is not available, that is logged and no timeline is kept.
    """
    with _lock:
        if _recorder is not None:
            return None
        try:
            return configure(**options)
        except Exception:
            log.exception("recording without a durable timeline")
            return configure(**{**options, "database": ""})


def adopt(recorder: Recorder, workspace: str = "default") -> None:
    """Make this the process's recorder, so that plain functions record to it too."""
    global _recorder, _workspace
    with _lock:
        _recorder, _workspace = recorder, workspace


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
    """The database that the process's recorder writes to, as it was configured; None: none."""
    return _database


def recorder_for_child(relay: RelayAddress | None, database: str | None, workspace: str) -> Recorder:
    """The recorder of a process in which work of another process's run is done.

    It sends events to that process; where that one takes none, or is gone, it writes to the same database.
    """
    global _recorder, _workspace, _database
    with _lock:
        recorder = _recorder
        if recorder is None:
            recorder = _recorder = build_recorder(provider=find_provider())
            _workspace, _database = workspace, database
            atexit.unregister(close_all)
            atexit.register(close_all)
        if database and "store" not in recorder.queues:
            recorder.add("store", LateStore(database))
        if relay is not None:
            recorder.relay_to(relay)
        return recorder


class LateStore:
    """The store at a database URL, opened when the first batch arrives: most processes that have one never use it."""

    takes_folded: Final = False

    def __init__(self, url: str) -> None:
        self._url = url
        self._store: BatchListener | None = None

    def apply(self, events: Sequence[Event]) -> None:
        """See `BatchListener.apply`."""
        if self._store is None:
            self._store = open_store(self._url)
        self._store.apply(events)

    def after_fork(self) -> None:
        """In a forked child: leave the parent's connections alone."""
        if (reset := getattr(self._store, "after_fork", None)) is not None:
            reset()

    def close(self) -> None:
        """Close the store, if it was opened."""
        if (close := getattr(self._store, "close", None)) is not None:
            close()


def default_workspace() -> str:
    """Slug of the workspace that runs belong to by default."""
    get_recorder()
    return _workspace


def open_store(url: str) -> BatchListener:
    """Open the durable store at a database URL, found by entry point so that this package never imports the service."""
    for entry in metadata.entry_points(group=_STORE_ENTRY_POINTS):
        try:
            opener = entry.load()
        except ImportError as error:
            raise SetupError(
                f"a durable timeline needs the service's libraries ({error.name} is missing): "
                "pip install 'tachograph[exporter]'"
            ) from error
        store: BatchListener = opener(url)
        return store
    raise SetupError("no store is installed: pip install 'tachograph[exporter]'")
