"""What the spans of Celery's tasks do not say by themselves: which tasks belong together.

`opentelemetry-instrumentation-celery` sends neither the root nor the group of a task, so the tasks of a group that is
sent without a span around it are traces that nothing connects. Celery knows: from the message when a task is sent, and
from the request when it runs.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.sdk.trace import Span

ROOT_ID: Final = "celery.root_id"
"""The id of the first task of all that this one was sent by, its own if no task sent it."""
PARENT_ID: Final = "celery.parent_id"
"""The id of the task that sent it."""
GROUP_ID: Final = "celery.group_id"
"""The id of its group: of the header, if it is a task of a chord's."""
CHORD_ID: Final = "celery.chord_id"
"""The id of the task that starts when all of its chord's header have ended; of a run only."""
_PRODUCER: Final = trace.SpanKind.PRODUCER
_CONSUMER: Final = trace.SpanKind.CONSUMER
_SCOPE: Final = "opentelemetry.instrumentation.celery"
_MESSAGE_ID: Final = "messaging.message.id"
_MAX_ID: Final = 200
_FIELDS: Final = ((ROOT_ID, "root_id"), (PARENT_ID, "parent_id"), (GROUP_ID, "group"))
_FRESH_SECONDS: Final = 0.5
"""So soon after its headers are known the span of a message starts. One that could not be sent has none later."""
_sent: ContextVar[tuple[float, Mapping[str, Any]] | None] = ContextVar("tachograph_celery_message", default=None)
"""The headers of the message that is about to be sent, of which no span has started yet, and since when."""
_sending: ContextVar[Span | None] = ContextVar("tachograph_celery_sending", default=None)
"""The span of sending a message whose headers are not known yet."""


def watch() -> None:
    """Note what is sent from now on: as soon as the program has imported Celery, and only then. Never raises."""
    try:
        import wrapt

        wrapt.when_imported("celery.signals")(_connect)
    except Exception:  # noqa: S110 - without it, spans say what they said before
        pass


def _connect(signals: Any) -> None:
    signals.before_task_publish.connect(_note_message, weak=False, dispatch_uid="tachograph")
    signals.after_task_publish.connect(_forget_message, weak=False, dispatch_uid="tachograph")


def _forget_message(**_: Any) -> None:
    """A message was sent. If no span told of it, because it is not sampled, the next one is not of this message."""
    _sending.set(None)
    _sent.set(None)


def _note_message(headers: Any = None, **_: Any) -> None:
    """A task is being sent. The instrumentation starts its span just before or just after this is called."""
    try:
        span = _sending.get()
        _forget_message()
        if not isinstance(headers, Mapping):
            return
        if span is not None and (span.attributes or {}).get(_MESSAGE_ID) == headers.get("id"):
            if span.is_recording():
                span.set_attributes(_of_message(headers))
        else:
            _sent.set((time.monotonic(), headers))
    except Exception:  # noqa: S110 - the program must not fail because of what spans say
        pass


def describe(span: Span) -> None:
    """Say of a Celery span that has just started which tasks its task belongs to. May raise."""
    kind = span.kind
    # Every span of the program comes here, and most are of another kind.
    if (kind is not _PRODUCER and kind is not _CONSUMER) or not _is_of_celery(span):
        return
    if kind is _PRODUCER:
        sent = _sent.get()
        _sent.set(None)
        if sent is not None and time.monotonic() - sent[0] < _FRESH_SECONDS:
            span.set_attributes(_of_message(sent[1]))
        else:
            _sending.set(span)
    elif (celery := sys.modules.get("celery")) is not None:
        task = celery.current_task
        if task:
            span.set_attributes(_of_request(task.request))


def _is_of_celery(span: Any) -> bool:
    scope = getattr(span, "instrumentation_scope", None)
    return scope is not None and scope.name == _SCOPE


def _of_message(headers: Mapping[str, Any]) -> dict[str, str]:
    return {name: value[:_MAX_ID] for name, key in _FIELDS if isinstance(value := headers.get(key), str)}


def _of_request(request: Any) -> dict[str, str]:
    attributes = _of_message({key: getattr(request, key, None) for _, key in _FIELDS})
    chord = getattr(request, "chord", None)
    options = chord.get("options") if isinstance(chord, Mapping) else None
    if isinstance(options, Mapping) and isinstance(body := options.get("task_id"), str):
        attributes[CHORD_ID] = body[:_MAX_ID]
    return attributes
