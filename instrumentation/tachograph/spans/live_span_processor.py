"""Shows spans while they run: a span processor that sends them when they start, and again as long as they are open.

For programs of any kind, beside the exporter that sends spans when they have ended:

    provider.add_span_processor(LiveSpanProcessor())

The program's threads only note what is open; a daemon thread sends it. Nothing here raises into the program or waits
for the network, except `LiveSpanProcessor.force_flush` and `shutdown`, for a bounded time.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping
from typing import Any, Final

from opentelemetry.context import Context
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor

from tachograph.quiet_log import QuietLog
from tachograph.spans import celery_tasks
from tachograph.spans.open_span_requests import (
    Answer,
    Destination,
    destination,
    ended_spans_request,
    in_parts,
    open_spans_request,
)

log = logging.getLogger(__name__)

DELAY_SECONDS: Final = 0.1
"""A span is sent when it has been open for this long; one that ends before is only sent as it ended."""
HEARTBEAT_SECONDS: Final = 10.0
"""How often open spans are sent again, unless the receiver's lease asks for more: a third of it."""
MAX_SPANS: Final = 10_000
"""How many spans may be open at a time, and how many that have ended may wait; more are not sent."""
SHUTDOWN_SECONDS: Final = 2.0
"""How long `LiveSpanProcessor.shutdown` waits at most."""
ASK_AGAIN_SECONDS: Final = 300.0
"""After how long a receiver that does not take open spans is asked again."""
_MAX_RETRY_SECONDS: Final = 30.0
_SPANS_PER_REQUEST: Final = 5_000
_BYTES_PER_REQUEST: Final = 4 << 20
_IS_SAMPLED: Final = 1


class LiveSpanProcessor(SpanProcessor):
    """Sends spans at their start, and again while they are open, so that Tachograph shows what runs.

    Spans of Celery's tasks say besides which tasks belong together (see `tachograph.spans.celery_tasks`). Only sampled
    spans are sent. How a span ended the exporter says; if this processor is the only one of its provider, it sends
    ended spans too.

    Args:
        endpoint: the URL of Tachograph. Default: where the ``OTEL_EXPORTER_OTLP_*`` variables send traces, or
            ``TACHOGRAPH_LIVE_SPANS_ENDPOINT``, for programs that send them elsewhere or by gRPC.
        headers: headers of the requests, instead of those of the variables.
        asks: whether to send open spans only to a receiver that says that it takes them. Without, they are sent to
            any: for instance to a collector that passes them on to Tachograph.
        sends_ends: whether to send spans that have ended. Default: if no other processor does.
        delay_seconds: for how long a span is open before it is sent.
        heartbeat_seconds: how often it is sent again at least.
    """

    def __init__(
        self,
        endpoint: str | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        asks: bool = True,
        sends_ends: bool | None = None,
        delay_seconds: float = DELAY_SECONDS,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
        max_spans: int = MAX_SPANS,
    ) -> None:
        self._destination: Destination | None = None
        self._begin()
        try:
            self._destination = destination(endpoint, headers)
        except Exception as error:
            self._quiet.warning("destination", "no open spans are sent: %s", error)
        self._asks = asks
        self._sends_ends = sends_ends
        self._delay = max(0.0, delay_seconds)
        self._least_heartbeat = self._heartbeat = max(0.01, heartbeat_seconds)
        self._max_spans = max_spans
        self._linger_seconds = _export_seconds()
        self.dropped = 0
        """Spans that were not sent because too many were open or waited."""
        self.is_taken: bool | None = None
        """Whether the receiver takes open spans; None: it has not been asked yet."""
        self._is_closed = False
        celery_tasks.watch()
        if hasattr(os, "register_at_fork"):
            mine = weakref.ref(self)
            os.register_at_fork(after_in_child=lambda: _after_fork(mine))

    def _begin(self) -> None:
        """Start with nothing open: at first, and in a forked child, whose parent goes on sending what it has open."""
        # A lock of another one may be held in the parent.
        self._quiet = QuietLog(log)
        # By span id: the span, and since when (monotonic) it is open.
        self._open: dict[int, tuple[weakref.ref[ReadableSpan], float]] = {}
        # The ids of those that have been sent.
        self._told: set[int] = set()
        # Told spans that have ended, until their exporter has surely sent them: the receiver must not miss them.
        self._lingering: dict[int, tuple[ReadableSpan, float]] = {}
        self._ended: deque[ReadableSpan] = deque()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._is_awake = False
        self._passed = threading.Condition()
        self._passes = 0
        self._next_beat = 0.0
        self._not_before = self._ask_at = 0.0
        self._failures = 0

    # The program's threads

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Note a span that has started."""
        try:
            context = span.get_span_context()
            if self._is_closed or not context.trace_flags & _IS_SAMPLED:
                return
            celery_tasks.describe(span)
            if len(self._open) >= self._max_spans:
                self._drop()
                return
            if self._sends_ends is None:
                self._sends_ends = _is_only(span, self)
            self._open[context.span_id] = (weakref.ref(span), time.monotonic())
            if not self._is_awake:
                self._wake_up()
        except Exception:
            self._quiet.exception("start", "a span that started could not be noted")

    def on_end(self, span: ReadableSpan) -> None:
        """Note a span that has ended."""
        try:
            context = span.get_span_context()
            if context is None or not context.trace_flags & _IS_SAMPLED:
                return
            was_open = self._open.pop(context.span_id, None)
            if self._sends_ends:
                if self._is_closed or len(self._ended) >= self._max_spans:
                    self._drop()
                    return
                self._ended.append(span)
                if not self._is_awake:
                    self._wake_up()
            elif was_open is not None and context.span_id in self._told and len(self._lingering) < self._max_spans:
                self._lingering[context.span_id] = (span, time.monotonic() + self._linger_seconds)
        except Exception:
            self._quiet.exception("end", "a span that ended could not be noted")

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Send what is open now; returns whether that was done within the time."""
        if self._is_closed or self._destination is None:
            return True
        deadline = time.monotonic() + timeout_millis / 1000
        with self._passed:
            goal = self._passes + 2  # The pass that is under way may not have seen the newest span.
        while (left := deadline - time.monotonic()) > 0:
            self._wake_up()
            with self._passed:
                if self._passed.wait_for(lambda: self._passes >= goal, min(left, self._delay or left)):
                    return True
        return False

    def shutdown(self) -> None:
        """Send spans that have ended and wait, then stop; what is open still is lost when its lease has run out."""
        self._is_closed = True
        thread = self._thread
        self._wake.set()
        if thread is not None and thread.is_alive() and thread is not threading.current_thread():
            thread.join(SHUTDOWN_SECONDS)
        self._open.clear()

    def _wake_up(self) -> None:
        self._is_awake = True
        self._wake.set()
        if self._thread is None:
            self._start_thread()

    def _start_thread(self) -> None:
        with self._lock:
            if self._thread is None and self._destination is not None:
                thread = threading.Thread(target=self._work, name="tachograph-live-spans", daemon=True)
                self._thread = thread
                try:
                    thread.start()
                except RuntimeError:  # The interpreter is about to end, or there are too many threads.
                    self._thread = None

    def _drop(self) -> None:
        self.dropped += 1
        if self.dropped == 1:
            self._quiet.warning(
                "dropped", "more than %d spans are open or wait; the others are not shown running", self._max_spans
            )

    # The thread

    def _work(self) -> None:
        with suppress_instrumentation():
            while not self._is_closed:
                self._rest(self._idle_seconds())
                self._rest(self._delay)
                self._is_awake = False
                self._try_pass()
            self._try_pass()

    def _rest(self, seconds: float | None) -> None:
        if not self._is_closed:
            self._wake.wait(seconds)
            self._wake.clear()

    def _try_pass(self) -> None:
        try:
            self._pass()
        except Exception:
            self._quiet.exception("pass", "open spans could not be sent")
        with self._passed:
            self._passes += 1
            self._passed.notify_all()

    def _idle_seconds(self) -> float | None:
        """How long there is nothing to do, unless something happens; None: until then."""
        now = time.monotonic()
        not_before = self._not_before if self.is_taken or not self._asks else max(self._not_before, self._ask_at)
        if len(self._told) < len(self._open):
            return max(0.0, not_before - now)
        if self._told or self._lingering or self._ended:
            return max(0.0, self._next_beat - now, not_before - now)
        return None

    def _pass(self) -> None:
        now = time.monotonic()
        if self._ended and (now >= self._not_before or self._is_closed):
            self._send_ended()
        open_now = self._open.copy()
        self._told.intersection_update(open_now)
        if self._is_closed or now < self._not_before or not (open_now or self._lingering):
            return
        if self._asks and self.is_taken is not True and not self._ask(now):
            return
        is_beat = now >= self._next_beat
        spans: dict[int, ReadableSpan] = {}
        for span_id, (ref, since) in open_now.items():
            if not is_beat and (span_id in self._told or now - since < self._delay):
                continue
            span = ref()
            if span is None:
                self._open.pop(span_id, None)  # Nothing can end it any more.
            elif now - since >= self._delay:
                spans[span_id] = span
        if is_beat:
            for span_id, (span, until) in self._lingering.copy().items():
                if until < now:
                    self._lingering.pop(span_id, None)
                else:
                    spans.setdefault(span_id, span)
        # Before they are sent: one that ends meanwhile has been told of.
        self._told.update(spans.keys() & self._open.keys())
        for part in in_parts(spans.values(), _SPANS_PER_REQUEST):
            if not self._send_open(part):
                self._next_beat = 0.0
                return
        if is_beat:
            self._next_beat = now + self._heartbeat

    def _send_open(self, spans: list[ReadableSpan]) -> bool:
        """Send open spans, in as many requests as their size needs."""
        body = open_spans_request(spans)
        if len(body) > _BYTES_PER_REQUEST and len(spans) > 1:
            half = len(spans) // 2
            return self._send_open(spans[:half]) and self._send_open(spans[half:])
        return self._send(body) is not None

    def _send_ended(self) -> None:
        waiting = [self._ended.popleft() for _ in range(min(len(self._ended), _SPANS_PER_REQUEST))]
        if waiting and self._send(ended_spans_request(waiting)) is None:
            self._ended.extendleft(reversed(waiting))

    def _ask(self, now: float) -> bool:
        """Ask whether the receiver takes open spans, by exporting nothing."""
        if now < self._ask_at:
            return False
        answer = self._send(b"")
        if answer is None:
            return False
        self.is_taken = answer.lease_seconds is not None
        if not self.is_taken:
            self._ask_at = now + ASK_AGAIN_SECONDS
            self._quiet.warning(
                "untaken",
                "%s does not say that it takes spans that have not ended, so none are sent; for a collector that "
                "passes them on to Tachograph set TACHOGRAPH_LIVE_SPANS=always",
                self._destination.url if self._destination is not None else "",
            )
        return self.is_taken

    def _send(self, body: bytes) -> Answer | None:
        """Send a request; None if it was not taken: then wait before the next one."""
        assert self._destination is not None  # noqa: S101 - without, there is no thread
        why: object
        try:
            answer = self._destination.send(body, timeout_seconds=SHUTDOWN_SECONDS / 2 if self._is_closed else None)
        except Exception as error:
            why = error
        else:
            if 200 <= answer.status < 300:
                self._failures = 0
                if answer.lease_seconds is not None:
                    self._heartbeat = min(self._least_heartbeat, answer.lease_seconds / 3)
                elif self.is_taken:
                    self.is_taken = None  # Another receiver has taken its place: ask it first.
                return answer
            why = f"HTTP status {answer.status}"
        self._failures += 1
        pause = min(self._heartbeat, _MAX_RETRY_SECONDS, 0.5 * 2.0 ** min(self._failures, 10))
        self._not_before = time.monotonic() + pause
        self._quiet.warning(
            "unsent", "open spans could not be sent to %s, trying again: %s", self._destination.url, why
        )
        return None


def _after_fork(processor: weakref.ref[LiveSpanProcessor]) -> None:
    if (mine := processor()) is not None:
        mine._begin()


def _is_only(span: Any, processor: SpanProcessor) -> bool:
    """Whether a span has no other processor. The SDK keeps them to itself; without knowing, each end is sent twice."""
    processors = getattr(getattr(span, "_span_processor", None), "_span_processors", ())
    return all(other is processor for other in processors)


def _export_seconds() -> float:
    """How long an exporter may take until it has sent a span that has ended."""
    try:
        delay = float(os.environ.get("OTEL_BSP_SCHEDULE_DELAY", "") or 5_000) / 1000
    except ValueError:
        delay = 5.0
    return min(max(0.0, delay), 3600.0) + 10.0
