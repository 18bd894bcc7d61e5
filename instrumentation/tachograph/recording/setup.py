"""The process's recorder: configured once, from arguments or from the environment, when the first thing is recorded.

Environment: the standard ``OTEL_*`` variables say where spans go (see `provider_from_environment`),
``TACHOGRAPH_DATABASE_URL`` where the durable timeline is kept, ``TACHOGRAPH_WORKSPACE`` which workspace runs belong to.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections.abc import Iterable
from importlib import metadata
from typing import Any, Final, cast

from opentelemetry import trace
from prometheus_client import REGISTRY, CollectorRegistry

from tachograph.errors import SetupError
from tachograph.metrics.listener import MetricsListener
from tachograph.recording.listener_queue import BatchListener
from tachograph.recording.provider import find_provider
from tachograph.recording.recorder import Recorder, close_all
from tachograph.spans.listener import SpanListener

log = logging.getLogger(__name__)

DATABASE_VARIABLE: Final = "TACHOGRAPH_DATABASE_URL"
WORKSPACE_VARIABLE: Final = "TACHOGRAPH_WORKSPACE"
MEASURES_VARIABLE: Final = "TACHOGRAPH_MEASURES"
_STORE_ENTRY_POINTS: Final = "tachograph.stores"

_lock = threading.RLock()
_recorder: Recorder | None = None
_workspace = ""


def configure(
    *,
    database: str | None = None,
    workspace: str | None = None,
    provider: trace.TracerProvider | None = None,
    registry: CollectorRegistry | None = REGISTRY,
    spans: bool = True,
    measures: Iterable[str] | None = None,
) -> Recorder:
    """Set up the process's recorder, closing an earlier one. All arguments are optional.

    Args:
        database: a URL such as ``sqlite:///runs.db`` (default: ``TACHOGRAPH_DATABASE_URL``; without one no timeline is
            kept; an empty one turns it off). Needs the ``exporter`` extra.
        workspace: slug of the workspace that runs belong to (default: ``TACHOGRAPH_WORKSPACE``, else ``default``).
        provider: records spans (default: the one set in OpenTelemetry, else one made from ``OTEL_*`` if those name a
            destination, else none).
        registry: the prometheus_client registry for metrics; None: no metrics.
        spans: False leaves OpenTelemetry alone.
        measures: names of step measures that become metrics (default: ``TACHOGRAPH_MEASURES``, with commas between).

    Raises `SetupError` when something asked for cannot be had.
    """
    global _recorder, _workspace
    with _lock:
        if _recorder is not None:
            _recorder.close()
            _recorder = None
        recorder = Recorder()
        sink = SpanListener(provider or find_provider()) if spans else None
        if sink is not None:
            recorder.set_spans(sink)
        if registry is not None:
            names = os.environ.get(MEASURES_VARIABLE, "").split(",") if measures is None else measures
            listener = MetricsListener(
                registry,
                is_sampled=sink.is_sampled if sink else lambda _: False,
                measures=[name.strip() for name in names if name.strip()],
            )
            recorder.add("metrics", listener)
        if url := os.environ.get(DATABASE_VARIABLE) if database is None else database:
            recorder.add("store", open_store(url))
        # Handlers run last in, first out: ours must come before that of whatever provider there is by now.
        atexit.unregister(close_all)
        atexit.register(close_all)
        _workspace = workspace or os.environ.get(WORKSPACE_VARIABLE) or "default"
        _recorder = recorder
        return recorder


def set_up_once(**options: Any) -> Recorder | None:
    """`configure`, unless the process has a recorder already (then None).

    Telemetry never breaks the workflow: where a timeline is asked for that cannot be had, that is logged and left out.
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
    """Make a recorder the process's, so that plain functions in it record where everything else does."""
    global _recorder, _workspace
    with _lock:
        _recorder, _workspace = recorder, workspace


def release(recorder: Recorder) -> None:
    """Take an adopted recorder back, before it is closed; the next thing recorded sets up another."""
    global _recorder
    with _lock:
        if _recorder is recorder:
            _recorder = None


def get_recorder() -> Recorder:
    """The process's recorder; set up from the environment when nobody has done so.

    Telemetry never breaks the workflow: where the environment asks for what cannot be had, that is logged and left out.
    """
    if _recorder is not None:
        return _recorder
    set_up_once()
    return cast(Recorder, _recorder)


def default_workspace() -> str:
    """Slug of the workspace that runs belong to unless they say otherwise."""
    get_recorder()
    return _workspace


def open_store(url: str) -> BatchListener:
    """The durable store at a database URL, found by entry point (so that nothing here imports the service)."""
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
