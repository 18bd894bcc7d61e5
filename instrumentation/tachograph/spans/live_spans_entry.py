"""Support for ``opentelemetry-instrument``: shows spans while they run, if ``TACHOGRAPH_LIVE_SPANS`` asks for it.

The entry point ``opentelemetry_pre_instrument`` runs after the distribution has configured the provider, whichever it
is, and before any library is instrumented, so every span is seen. A failure here would end the instrumentation of the
whole program: it is logged, never raised.
"""

from __future__ import annotations

import logging
import os
from typing import Final

log = logging.getLogger(__name__)

VARIABLE: Final = "TACHOGRAPH_LIVE_SPANS"
ALWAYS: Final = "always"
"""The value that sends open spans without asking whether the receiver takes them."""
_ON: Final = frozenset({"1", "true", "yes", "on", ALWAYS})


def install() -> None:
    """Add a `LiveSpanProcessor` to the program's tracer provider if the variable is set."""
    value = os.environ.get(VARIABLE, "").strip().lower()
    if value not in _ON:
        return
    try:
        from opentelemetry import trace

        from tachograph.spans.live_span_processor import LiveSpanProcessor

        add = getattr(trace.get_tracer_provider(), "add_span_processor", None)
        if add is None:
            log.warning("%s is set, but no OpenTelemetry SDK is configured: no open spans are sent", VARIABLE)
            return
        add(LiveSpanProcessor(asks=value != ALWAYS))
    except Exception:
        log.exception("%s is set, but open spans cannot be sent", VARIABLE)
