"""The ``OTEL_*`` variables that OpenTelemetry refuses when they are malformed, some already when it is imported.

The package imports this module first. It imports what reads such variables, without the malformed ones, so that a
program does not fail because of its environment. `malformed` says which they are.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import metadata
from typing import Final, NamedTuple

PROPAGATORS: Final = "OTEL_PROPAGATORS"
LIMITS: Final[Mapping[str, str]] = {
    "OTEL_ATTRIBUTE_COUNT_LIMIT": "max_attributes",
    "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "max_span_attributes",
    "OTEL_SPAN_EVENT_COUNT_LIMIT": "max_events",
    "OTEL_SPAN_LINK_COUNT_LIMIT": "max_links",
    "OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT": "max_event_attributes",
    "OTEL_LINK_ATTRIBUTE_COUNT_LIMIT": "max_link_attributes",
    "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": "max_attribute_length",
    "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT": "max_span_attribute_length",
}
"""The variables of the SDK's span limits, and its names for them."""
_BUILT_IN_PROPAGATORS: Final = frozenset({"none", "tracecontext", "baggage"})


class Malformed(NamedTuple):
    """What is wrong with a variable, and the value to use instead (None: as if it was not set)."""

    message: str
    instead: str | None = None


def malformed(environment: Mapping[str, str]) -> dict[str, Malformed]:
    """The malformed variables among those that this module knows."""
    bad: dict[str, Malformed] = {}
    for name in LIMITS:
        text = environment.get(name, "unset").strip()
        if text.lower() != "unset" and not _is_count(text):
            bad[name] = Malformed(f"{name}={text!r} is ignored: expected a non-negative integer")
    names = [name.strip() for name in environment.get(PROPAGATORS, "").split(",") if name.strip()]
    known = [name for name in names if _is_propagator(name)]
    if known != names or (not names and environment.get(PROPAGATORS)):
        missing = ", ".join(repr(name) for name in names if name not in known) or "an empty name"
        message = f"{PROPAGATORS} names {missing}, which is not installed; it is ignored"
        bad[PROPAGATORS] = Malformed(message, ",".join(known) or None)
    return bad


def _is_count(text: str) -> bool:
    try:
        return int(text) >= 0
    except ValueError:
        return False


def _is_propagator(name: str) -> bool:
    if name in _BUILT_IN_PROPAGATORS:
        return True
    try:
        for entry in metadata.entry_points(group="opentelemetry_propagator", name=name):
            entry.load()()
            return True
    except Exception:
        return False
    return False


def _import_without_malformed() -> None:
    bad = malformed(os.environ)
    before = {name: os.environ[name] for name in bad}
    try:
        for name, (_, instead) in bad.items():
            if instead is None:
                del os.environ[name]
            else:
                os.environ[name] = instead
        import opentelemetry.propagate
        import opentelemetry.sdk.trace  # noqa: F401
    finally:
        os.environ.update(before)


_import_without_malformed()
