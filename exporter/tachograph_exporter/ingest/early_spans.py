"""What a span that is still open will say of itself when it ends.

An instrumentation may set the attributes that tell what a span is when it ends. Until then other facts must do: the
span's name and scope, and what its parent says.

Celery (opentelemetry-instrumentation-celery, `CeleryInstrumentor._trace_prerun` and `_trace_postrun`): the span of a
task's run is named ``run/`` and the task; the span that sent the task is its parent and has the message's id.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from tachograph_exporter.ingest.spans import SpanRecord

_CELERY: Final = "opentelemetry.instrumentation.celery"
_RUN: Final = "run/"
_MESSAGE: Final = ("messaging.message.id", "messaging.message_id")


def with_early_attributes(spans: Sequence[SpanRecord]) -> list[SpanRecord]:
    """The spans of a trace, the open ones with the attributes that they will have, as far as they are known."""
    if not any(_is_early(span) for span in spans):
        return list(spans)
    by_id = {span.span_id: span for span in spans}
    return [_completed(span, by_id.get(span.parent_span_id)) if _is_early(span) else span for span in spans]


def _is_early(span: SpanRecord) -> bool:
    return not span.end_ns and span.scope == _CELERY and span.name.startswith(_RUN)


def _completed(span: SpanRecord, sender: SpanRecord | None) -> SpanRecord:
    early: dict[str, Any] = {"celery.action": "run", "celery.task_name": span.name.removeprefix(_RUN)}
    if sender is not None and sender.scope == _CELERY:
        early |= {name: sender.attributes[name] for name in _MESSAGE if name in sender.attributes}
    return msgspec.structs.replace(span, attributes=early | span.attributes)
