"""OTLP traces as another program sends them."""

from __future__ import annotations

import secrets
import time
from typing import Any

NS = 10**9


def trace(workflow: str, steps: tuple[str, ...]) -> dict[str, Any]:
    """An `ExportTraceServiceRequest` in JSON: a root span and a child for every step, that have just ended."""
    trace_id, root = secrets.token_hex(16), secrets.token_hex(8)
    end = time.time_ns()
    start = end - NS // 10

    def span(name: str, span_id: str, parent: str, begin: int, until: int) -> dict[str, Any]:
        return {
            "traceId": trace_id, "spanId": span_id, "parentSpanId": parent, "name": name, "kind": 1,
            "startTimeUnixNano": str(begin), "endTimeUnixNano": str(until), "status": {"code": 1},
        }  # fmt: skip

    share = (end - start) // len(steps)
    spans = [span(workflow, root, "", start, end)]
    spans += [
        span(step, secrets.token_hex(8), root, start + i * share, start + (i + 1) * share)
        for i, step in enumerate(steps)
    ]
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": "imports"}}]}
    return {"resourceSpans": [{"resource": resource, "scopeSpans": [{"scope": {"name": "test"}, "spans": spans}]}]}
