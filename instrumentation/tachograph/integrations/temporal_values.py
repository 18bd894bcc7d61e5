"""What Temporal's messages say: moments, values, failures, and how long a retry policy waits."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Final

MAX_VALUE_BYTES: Final = 64 << 10
"""Longer values are told by their size."""
_MAX_CAUSES: Final = 50
_TRACER_HEADER: Final = "_tracer-data"


def seconds_of(stamp: Any) -> float:
    """Unix seconds of a ``google.protobuf.Timestamp``, or the seconds of a ``Duration``."""
    return float(stamp.seconds) + float(stamp.nanos) / 1e9


def moment_of(message: Any, field: str) -> float | None:
    """Unix seconds of a field; None if it is not set."""
    return seconds_of(getattr(message, field)) if message.HasField(field) else None


def value_of(payload: Any) -> Any:
    """A value, if it is plain JSON; else what kind of value it is."""
    encoding = bytes(payload.metadata.get("encoding", b"")).decode(errors="replace")
    if encoding == "binary/null":
        return None
    if encoding == "json/plain" and len(payload.data) <= MAX_VALUE_BYTES:
        try:
            return json.loads(payload.data)
        except ValueError:
            pass
    return f"{len(payload.data)} bytes, {encoding or 'of no known encoding'}"


def values_of(payloads: Iterable[Any]) -> list[Any]:
    return [value_of(payload) for payload in payloads]


def text_of(payload: Any) -> str:
    """A text, such as the summary of a timer; else ""."""
    value = value_of(payload)
    return value if isinstance(value, str) and payload.data else ""


def trace_of(header: Any) -> str | None:
    """The id of the trace that a workflow was started in, as the SDKs' tracing interceptors write it."""
    if _TRACER_HEADER not in header.fields:
        return None
    carrier = value_of(header.fields[_TRACER_HEADER])
    parts = str(carrier.get("traceparent") or "").split("-") if isinstance(carrier, dict) else []
    return parts[1] if len(parts) >= 4 else None


def error_of(failure: Any, default: str = "Failed") -> str:
    """What went wrong first, with its type: of a failure that was caused by another one, the cause."""
    for _ in range(_MAX_CAUSES):
        if not failure.HasField("cause"):
            break
        failure = failure.cause
    kind = failure.WhichOneof("failure_info")
    if kind == "application_failure_info":
        name = failure.application_failure_info.type or "ApplicationError"
    elif kind == "timeout_failure_info":
        name = "Timeout"
    elif kind is not None:
        name = "".join(part.title() for part in kind.removesuffix("_failure_info").split("_")) + "Error"
    else:
        name = default
    return f"{name}: {failure.message or 'no message'}"


def is_timeout(failure: Any) -> bool:
    return bool(failure.WhichOneof("failure_info") == "timeout_failure_info")


def backoff_of(policy: Any, attempt: int) -> float:
    """Seconds that a retry policy waits after an attempt, as the server computes it.

    Source: https://docs.temporal.io/encyclopedia/retry-policies.
    """
    interval = seconds_of(policy.initial_interval) or 1.0
    limit = seconds_of(policy.maximum_interval) or 100.0 * interval
    coefficient = policy.backoff_coefficient or 2.0
    if attempt > 1 and coefficient > 1.0:
        for _ in range(min(attempt - 1, 1_000)):
            interval *= coefficient
            if interval >= limit:
                break
    return float(min(interval, limit))
