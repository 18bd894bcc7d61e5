"""The receiver of OpenLineage events: requests wait in a queue, and one thread stores many of them in a transaction.

Clients send an event a request, so a transaction for each would cost more than the events. A request is answered once
its events are committed, so nothing acknowledged is lost. When many events arrive at once, their executions are
assembled right after that; what a process could not assemble any more is found by the next one (see `resume`).
"""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from typing import Final, NamedTuple

from sqlalchemy import Connection

from tachograph.clock import NS
from tachograph.errors import StoreUnavailable
from tachograph.events import Event
from tachograph.quiet_log import QuietLog
from tachograph_exporter.ingest.lineage.lineage_store import MAX_TRACE_EVENTS, Arrived
from tachograph_exporter.ingest.request_queue import RequestQueue
from tachograph_exporter.ingest.span_store import SpanStore
from tachograph_exporter.store.lineage import UnreadTrace

quiet = QuietLog(logging.getLogger(__name__))

MAX_AT_ONCE: Final = 200
"""With so many events in a transaction, executions are assembled in it; with more, right after."""
MAX_DELAY_SECONDS: Final = 5.0
"""How long executions may lack events that were acknowledged while further ones keep arriving."""
PAUSE_SECONDS: Final = 0.25
"""How long nothing has to arrive until deferred executions are assembled."""
RESUME_SECONDS: Final = 5.0
"""How long events wait that were found without an execution: another service may be about to assemble it."""
_BATCH_TRACES: Final = 25
_BATCH_REQUESTS: Final = 256
_BATCH_EVENTS: Final = 5_000


class Stored(NamedTuple):
    """What became of the events of a request: how many were new, and why others were refused, by their id."""

    stored: int
    refused: dict[str, str]


class _Request(NamedTuple):
    workspace_id: str
    workspace: str
    events: Sequence[Arrived]
    answer: Future[Stored]


class _Resumed(NamedTuple):
    """Traces with events that their executions do not have, and when to bring them up to date."""

    traces: dict[UnreadTrace, int]


class LineageReceiver:
    """Takes events and stores them in ``store``."""

    def __init__(self, store: SpanStore) -> None:
        self.store = store
        self._queue: RequestQueue[_Request | _Resumed] = RequestQueue(
            "tachograph-lineage", "lineage events", self._store_next
        )
        # When to bring traces up to date that have new events, in unix nanoseconds.
        self._deferred: dict[UnreadTrace, int] = {}

    def submit(self, workspace_id: str, workspace: str, events: Sequence[Arrived]) -> Future[Stored]:
        """Queue a request's events. The future raises `StoreUnavailable`.

        Raises `StoreUnavailable` when no thread can be started.
        """
        answer: Future[Stored] = Future()
        self._queue.put(_Request(workspace_id, workspace, events, answer))
        return answer

    def close(self) -> None:
        """Store what waits, then stop. See `RequestQueue.close`."""
        self._queue.close()

    def resume(self, traces: Iterable[UnreadTrace]) -> None:
        """Bring these traces up to date unless they are waiting for it already: another service may have died."""
        due_ns = time.time_ns() + round(RESUME_SECONDS * NS)
        resumed = [trace for trace in traces if trace not in self._deferred]
        if resumed:
            self._queue.put(_Resumed(dict.fromkeys(resumed, due_ns)))

    def _store_next(self, requests: list[_Request]) -> bool:
        is_open = self._next(requests)
        self._store([request for request in requests if request.answer.set_running_or_notify_cancel()])
        self._assemble_deferred(is_idle=not requests, is_last=not is_open)
        return is_open

    def _next(self, requests: list[_Request]) -> bool:
        """Add requests that wait to ``requests``, or none when it is time for what was deferred.

        Returns False when it is time to stop.
        """
        count, seconds = 0, None
        if self._deferred:
            # A pause first: what clients have ready goes before it.
            seconds = max(PAUSE_SECONDS, (min(self._deferred.values()) - time.time_ns()) / NS)
        while True:
            try:
                request = self._queue.get(0 if requests else seconds)
            except queue.Empty:
                return True
            if request is None:
                return False
            if isinstance(request, _Resumed):
                self._deferred = {**request.traces, **self._deferred}
                return True
            requests.append(request)
            count += len(request.events)
            if count >= _BATCH_EVENTS or len(requests) >= _BATCH_REQUESTS:
                return True

    def _assemble_deferred(self, *, is_idle: bool, is_last: bool) -> None:
        """Assemble what was deferred: when nothing else waits, or when it has waited for long, or at the end."""
        now = time.time_ns()
        due = [trace for trace, due_ns in self._deferred.items() if due_ns <= now or is_last]
        late = now - round(MAX_DELAY_SECONDS * NS)
        if not due or not (is_last or is_idle or min(self._deferred.values()) < late):
            return
        by_workspace: dict[tuple[str, str], list[str]] = {}
        chosen = due if is_last else due[:_BATCH_TRACES]
        for trace in chosen:
            by_workspace.setdefault((trace.workspace_id, trace.workspace), []).append(trace.trace_id)
        for trace in chosen:
            del self._deferred[trace]
        for (workspace_id, workspace), trace_ids in by_workspace.items():
            self._refresh(workspace_id, workspace, trace_ids)

    def _refresh(self, workspace_id: str, workspace: str, trace_ids: Sequence[str]) -> None:
        """Bring traces up to date. If one cannot be, the others are; its events stay, and are tried again later."""
        try:
            self.store.commit(lambda c: (None, self.store.lineage.refresh(c, workspace_id, workspace, trace_ids)))
        except StoreUnavailable as error:
            quiet.warning("unavailable", "executions could not be assembled: %s", error)
        except Exception as error:
            if len(trace_ids) == 1:
                quiet.exception(("refresh", type(error)), "trace %s could not be assembled", trace_ids[0])
                return
            half = len(trace_ids) // 2
            self._refresh(workspace_id, workspace, trace_ids[:half])
            self._refresh(workspace_id, workspace, trace_ids[half:])

    def _store(self, requests: Sequence[_Request]) -> None:
        """Commit requests and answer them. If something in them is refused, find it by storing the halves."""
        if not requests:
            return
        try:
            answers = self.store.commit(lambda connection: self._take(connection, requests))
        except StoreUnavailable as error:
            quiet.warning("unavailable", "lineage events could not be stored: %s", error)
            for request in requests:
                request.answer.set_exception(StoreUnavailable(str(error)))
        except Exception as error:
            if len(requests) > 1:
                self._store(requests[: len(requests) // 2])
                self._store(requests[len(requests) // 2 :])
            elif len(requests[0].events) > 1:
                self._store_by_halves(requests[0])
            else:
                self._refuse(requests[0], error)
        else:
            for request, answer in zip(requests, answers, strict=True):
                request.answer.set_result(answer)

    def _store_by_halves(self, request: _Request) -> None:
        """Store the halves of a request's events by themselves, and answer for both."""
        stored, refused = 0, dict[str, str]()
        half = len(request.events) // 2
        for events in (request.events[:half], request.events[half:]):
            part = request._replace(events=events, answer=Future())
            self._store([part])
            try:
                answer = part.answer.result()
            except Exception as error:
                request.answer.set_exception(error.with_traceback(None))
                return
            stored, refused = stored + answer.stored, refused | answer.refused
        request.answer.set_result(Stored(stored, refused))

    def _refuse(self, request: _Request, error: Exception) -> None:
        (item,) = request.events
        quiet.exception(("refused", type(error)), "lineage event %s could not be stored", item.event.event_id)
        self.store.set_event_aside(request.workspace, item, error)
        why = f"the event could not be stored and was set aside: {type(error).__name__}"
        request.answer.set_result(Stored(0, {item.event.event_id: why}))

    def _take(self, connection: Connection, requests: Sequence[_Request]) -> tuple[list[Stored], list[Event]]:
        by_workspace: dict[tuple[str, str], list[_Request]] = {}
        for request in requests:
            by_workspace.setdefault((request.workspace_id, request.workspace), []).append(request)
        answers: dict[int, Stored] = {}
        events: list[Event] = []
        is_hurried = sum(len(request.events) for request in requests) > MAX_AT_ONCE
        deferred: dict[UnreadTrace, int] = {}
        for (workspace_id, workspace), own in by_workspace.items():
            arrived = [item for request in own for item in request.events]
            taken = self.store.lineage.take(connection, workspace_id, workspace, arrived, is_hurried=is_hurried)
            events += taken.events
            for trace_id, due_ns in taken.deferred.items():
                deferred[UnreadTrace(workspace_id, workspace, trace_id)] = due_ns
            why = f"its run has {MAX_TRACE_EVENTS} events, and no room for more"
            for i, request in enumerate(own):
                refused = {item.event.event_id: why for item in request.events if item.event.event_id in taken.refused}
                # The events of these requests were stored together; the first one counts them.
                answers[id(request)] = Stored(taken.stored if i == 0 else 0, refused)
        # If the transaction fails, they are looked at in vain.
        self._deferred = {**deferred, **self._deferred}
        return [answers[id(request)] for request in requests], events
