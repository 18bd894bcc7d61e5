"""The tracer provider: the one the user set, or one built from the standard ``OTEL_*`` variables."""

from __future__ import annotations

import atexit
import os
import threading
import urllib.parse
from importlib import metadata
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

from tachograph.errors import SetupError
from tachograph.otel_variables import LIMITS, PROPAGATORS, malformed
from tachograph.recording.problems import Report, warn
from tachograph.redaction import mask_text

EXIT_SECONDS: Final = 1.5
"""How long the process waits at exit for spans to be exported."""

_SPAN_QUEUE: Final = 65_536
_SPAN_BATCH: Final = 512
_LIMIT: Final = 128
_FILE_VARIABLE: Final = "OTEL_CONFIG_FILE"
_EXPORTERS_VARIABLE: Final = "OTEL_TRACES_EXPORTER"
_ENDPOINT_VARIABLES: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_EXPORTER_ENTRY_POINTS: Final = "opentelemetry_traces_exporter"
# The SDK's defaults, but for the first: ten thousand short steps must fit in the queue while a batch is exported.
_BATCHING: Final = {
    "OTEL_BSP_MAX_QUEUE_SIZE": ("max_queue_size", _SPAN_QUEUE),
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": ("max_export_batch_size", _SPAN_BATCH),
    "OTEL_BSP_SCHEDULE_DELAY": ("schedule_delay_millis", 5_000),
    "OTEL_BSP_EXPORT_TIMEOUT": ("export_timeout_millis", 30_000),
}


def find_provider(report: Report = warn) -> trace.TracerProvider | None:
    """The provider the user set, else one built from the environment and set as the global one, else None.

    ``OTEL_CONFIG_FILE`` comes before the other variables, which are ignored then, as the SDK does it. Faults of the
    environment are reported, never raised.
    """
    if (wrong := malformed(os.environ).get(PROPAGATORS)) is not None:
        report("spans", wrong.message)
    try:
        current = trace.get_tracer_provider()
    except Exception as error:
        report("spans", f"OpenTelemetry's own provider cannot be made: {error!r}")
    else:
        if not isinstance(current, trace.ProxyTracerProvider):
            return None if isinstance(current, trace.NoOpTracerProvider) else current
    if file := os.environ.get(_FILE_VARIABLE):
        return _configured_by(file, report)
    try:
        provider = provider_from_environment(report)
        if provider is not None:
            trace.set_tracer_provider(provider)
    except Exception as error:
        report("spans", f"no spans are exported: the OTEL_* variables are refused: {error!r}")
        return None
    return provider


def _configured_by(file: str, report: Report) -> trace.TracerProvider | None:
    """The provider that a file of declarative configuration describes, if it does.

    A file without a tracer provider is left to whoever uses the rest of it. Format:
    https://opentelemetry.io/docs/specs/otel/configuration/sdk/
    """
    try:
        # Optional, as it is for the SDK.
        from opentelemetry.configuration import configure_sdk, load_config_file
    except ImportError:
        way_out = "pip install opentelemetry-configuration"
        report(
            "spans", f"{_FILE_VARIABLE} is set, but what reads it is not installed; no spans are exported: {way_out}"
        )
        return None
    try:
        configuration = load_config_file(file)
        if configuration.disabled or configuration.tracer_provider is None:
            return None
        configure_sdk(configuration)
    except Exception as error:
        # It may quote the file, and headers with tokens from it.
        report("spans", f"{_FILE_VARIABLE} cannot be used; no spans are exported: {mask_text(str(error), 500)}")
        return None
    return trace.get_tracer_provider()


def provider_from_environment(report: Report = warn) -> TracerProvider | None:
    """An SDK provider that exports as the standard variables say; None when they name no destination that works.

    Export is on when ``OTEL_TRACES_EXPORTER`` names an exporter (``otlp``, ``console``, or another installed one;
    ``none`` turns it off) or an OTLP endpoint is set (``OTEL_EXPORTER_OTLP_ENDPOINT``,
    ``OTEL_EXPORTER_OTLP_TRACES_ENDPOINT``). The SDK reads the rest: resource, sampler, limits, headers, batching.
    ``OTEL_SDK_DISABLED=true`` turns everything off. An exporter that is not installed, or whose endpoint is no URL, is
    reported and left out; a malformed number is reported, and the default is used.
    """
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    names = [name.strip() for name in os.environ.get(_EXPORTERS_VARIABLE, "").split(",") if name.strip()]
    if not names:
        names = ["otlp"] if any(os.environ.get(variable) for variable in _ENDPOINT_VARIABLES) else []
    exporters = []
    for name in dict.fromkeys(names):
        if name != "none":
            try:
                exporters.append(_exporter(name))
            except SetupError as error:
                report("spans", str(error))
            except Exception as error:
                report("spans", f"the span exporter {name!r} cannot be set up: {error!r}")
    if not exporters:
        return None
    attributes = {} if "OTEL_SERVICE_NAME" in os.environ else {"service.name": "tachograph"}
    if "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", ""):
        attributes = {}
    provider = TracerProvider(
        resource=Resource.create(attributes), span_limits=_span_limits(report), shutdown_on_exit=False
    )
    sizes = _batching(report)
    for exporter in exporters:
        provider.add_span_processor(BatchSpanProcessor(exporter, **sizes))
    # Bounded, because a collector that never answers must not keep the process from exiting.
    atexit.register(_shut_down, provider)
    return provider


def _exporter(name: str) -> SpanExporter:
    variable = _EXPORTERS_VARIABLE
    if name == "otlp":
        protocols = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
        variable = next((variable for variable in protocols if os.environ.get(variable)), variable)
        protocol = os.environ.get(variable)
        name = "otlp_proto_grpc" if protocol == "grpc" else "otlp_proto_http"
    if name == "otlp_proto_http":
        _check_endpoint()
    for entry in metadata.entry_points(group=_EXPORTER_ENTRY_POINTS, name=name):
        exporter: SpanExporter = entry.load()()
        return exporter
    if name == "otlp_proto_grpc":
        way_out = "pip install opentelemetry-exporter-otlp-proto-grpc, or choose http/protobuf"
    else:
        names = sorted({entry.name for entry in metadata.entry_points(group=_EXPORTER_ENTRY_POINTS)})
        way_out = f"installed: otlp, {', '.join(names)}"
    raise SetupError(f"{variable} asks for a span exporter {name!r} that is not installed; {way_out}")


def _check_endpoint() -> None:
    for variable in _ENDPOINT_VARIABLES:
        if text := os.environ.get(variable):
            try:
                parts = urllib.parse.urlsplit(text)
                is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
            except ValueError:
                is_url = False
            if not is_url:
                raise SetupError(f"{variable} is not a URL like http://localhost:4318; no spans are exported there")
            return


def _span_limits(report: Report) -> SpanLimits | None:
    """The limits without the malformed variables; None lets the SDK read them."""
    bad = {name: wrong for name, wrong in malformed(os.environ).items() if name in LIMITS}
    for wrong in bad.values():
        report("spans", wrong.message)
    if not bad:
        return None
    return SpanLimits(**{LIMITS[name]: SpanLimits.UNSET if "LENGTH" in name else _LIMIT for name in bad})


def _batching(report: Report) -> dict[str, Any]:
    sizes: dict[str, int] = {}
    for variable, (argument, default) in _BATCHING.items():
        sizes[argument] = default
        if text := os.environ.get(variable, "").strip():
            if text.isdecimal() and 0 < int(text) < 1 << 31:
                sizes[argument] = int(text)
            else:
                report("spans", f"{variable}={text!r} is ignored: expected a positive integer; {default} is used")
    if sizes["max_export_batch_size"] > sizes["max_queue_size"]:
        if os.environ.get("OTEL_BSP_MAX_EXPORT_BATCH_SIZE"):
            report("spans", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE is larger than the queue; the queue's size is used")
        sizes["max_export_batch_size"] = sizes["max_queue_size"]
    return sizes


def _shut_down(provider: TracerProvider) -> None:
    worker = threading.Thread(target=provider.shutdown, name="tachograph-shutdown", daemon=True)
    worker.start()
    worker.join(EXIT_SECONDS)
