"""The tracer provider: the one the user set, or one built from the standard ``OTEL_*`` variables."""

from __future__ import annotations

import atexit
import os
import threading
from importlib import metadata
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

from tachograph.errors import SetupError

EXIT_SECONDS: Final = 2.0
"""How long the process waits at exit for spans to be exported."""

_SPAN_QUEUE: Final = 65_536
_EXPORTER_ENTRY_POINTS: Final = "opentelemetry_traces_exporter"


def find_provider() -> trace.TracerProvider | None:
    """The provider the user set, else one built from the environment and set as the global one, else None."""
    current = trace.get_tracer_provider()
    if not isinstance(current, trace.ProxyTracerProvider):
        return None if isinstance(current, trace.NoOpTracerProvider) else current
    provider = provider_from_environment()
    if provider is not None:
        trace.set_tracer_provider(provider)
    return provider


def provider_from_environment() -> TracerProvider | None:
    """An SDK provider that exports as the standard variables say; None when they name no destination.

    Export is on when ``OTEL_TRACES_EXPORTER`` names an exporter (``otlp``, ``console``, or another installed one;
    ``none`` turns it off) or an OTLP endpoint is set (``OTEL_EXPORTER_OTLP_ENDPOINT``,
    ``OTEL_EXPORTER_OTLP_TRACES_ENDPOINT``). The SDK reads the rest: resource, sampler, limits, headers, batching.
    ``OTEL_SDK_DISABLED=true`` turns everything off. Raises `SetupError` for an exporter that is not installed.
    """
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    names = [name.strip() for name in os.environ.get("OTEL_TRACES_EXPORTER", "").split(",") if name.strip()]
    if not names:
        endpoints = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
        names = ["otlp"] if any(os.environ.get(variable) for variable in endpoints) else []
    exporters = [_exporter(name) for name in names if name != "none"]
    if not exporters:
        return None
    attributes = {} if "OTEL_SERVICE_NAME" in os.environ else {"service.name": "tachograph"}
    if "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", ""):
        attributes = {}
    provider = TracerProvider(resource=Resource.create(attributes), shutdown_on_exit=False)
    for exporter in exporters:
        # Ten thousand short steps must fit in the queue while a batch is being exported.
        sizes: dict[str, Any] = {} if "OTEL_BSP_MAX_QUEUE_SIZE" in os.environ else {"max_queue_size": _SPAN_QUEUE}
        provider.add_span_processor(BatchSpanProcessor(exporter, **sizes))
    # Bounded, because a collector that never answers must not keep the process from exiting.
    atexit.register(_shut_down, provider)
    return provider


def _exporter(name: str) -> SpanExporter:
    if name == "otlp":
        protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
        name = "otlp_proto_grpc" if protocol == "grpc" else "otlp_proto_http"
    for entry in metadata.entry_points(group=_EXPORTER_ENTRY_POINTS, name=name):
        exporter: SpanExporter = entry.load()()
        return exporter
    names = sorted({entry.name for entry in metadata.entry_points(group=_EXPORTER_ENTRY_POINTS)})
    raise SetupError(f"no span exporter named {name!r} is installed; installed: {', '.join(names)}")


def _shut_down(provider: TracerProvider) -> None:
    worker = threading.Thread(target=provider.shutdown, name="tachograph-shutdown", daemon=True)
    worker.start()
    worker.join(EXIT_SECONDS)
