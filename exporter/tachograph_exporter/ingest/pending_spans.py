"""Pending spans: how logfire says that a span has started.

When a span starts, logfire exports another one beside it, of no length and with an id of its own: its parent is the
span that has started, and an attribute names the real parent of that one (`PendingSpanProcessor` in
https://github.com/pydantic/logfire, logfire/_internal/tracer.py). It is read as the span itself, which has not ended.
"""

from __future__ import annotations

import re
from typing import Final

from opentelemetry.proto.trace.v1.trace_pb2 import Span

SPAN_TYPE: Final = "logfire.span_type"
PENDING: Final = "pending_span"
REAL_PARENT: Final = "logfire.pending_parent_id"
_SPAN_ID: Final = re.compile(r"[0-9a-fA-F]{16}")


def real_span(pending: Span) -> Span | None:
    """The open span that a pending span announces; None if it does not say which, so that it is a span like others."""
    values = {item.key: item.value.string_value for item in pending.attributes if item.key == REAL_PARENT}
    parent = values.get(REAL_PARENT, "")
    if not any(pending.parent_span_id) or not _SPAN_ID.fullmatch(parent):
        return None
    real = Span()
    real.CopyFrom(pending)
    real.span_id = pending.parent_span_id
    real.parent_span_id = bytes.fromhex(parent) if parent.strip("0") else b""
    real.end_time_unix_nano = 0
    kept = [item for item in pending.attributes if item.key != REAL_PARENT]
    del real.attributes[:]
    for item in kept:
        added = real.attributes.add()
        added.CopyFrom(item)
        if item.key == SPAN_TYPE:
            added.value.string_value = "span"
    return real
