"""The receiver of OTLP requests: they wait in a queue, and one thread reads and stores them, many in a transaction.

A large request is stored in several transactions, because its spans take many times its length in memory.

One thread, because reading spans and writing rows both hold the interpreter lock: more threads would only contend for
it. A request is answered once its spans are committed, so nothing acknowledged is lost.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Final, NamedTuple

from sqlalchemy import Connection

from tachograph.errors import StoreUnavailable
from tachograph.events import Event
from tachograph.quiet_log import QuietLog
from tachograph_exporter.ingest.envelope import PIECE_BYTES, BadRequest, ScopeOfSpans, scopes_of
from tachograph_exporter.ingest.otlp_json import scopes_of_json
from tachograph_exporter.ingest.span_store import MAX_TRACE_SPANS, SpanStore
from tachograph_exporter.ingest.spans import MAX_SPANS, SpanRecord, records_of

quiet = QuietLog(logging.getLogger(__name__))

MAX_BYTES: Final = 64 << 20
"""Bytes of requests that may wait; further requests are asked to retry."""
CLOSE_SECONDS: Final = 3.0
_BATCH_BYTES: Final = 4 << 20
_BATCH_SPANS: Final = 5_000
_PART_BYTES: Final = 2 << 20
_BATCH_REQUESTS: Final = 64
_MAX_REASONS: Final = 5


class Answer(NamedTuple):
    """What became of a request: the numbers of new and of rejected spans, and why some were rejected."""

    stored: int
    rejected: int
    why: str


class _Request(NamedTuple):
    workspace_id: str
    workspace: str
    body: bytes
    is_json: bool
    answer: Future[Answer]
    since: float = 0.0


class _ReadRequest(NamedTuple):
    """A request that was read, or a part of one, with an ``answer`` of its own."""

    request: _Request
    spans: list[SpanRecord]
    rejections: list[str]


class Receiver:
    """Takes requests and stores their spans in ``store``."""

    def __init__(self, store: SpanStore) -> None:
        self.store = store
        self._queue: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._waiting = 0
        self._thread: threading.Thread | None = None
        # When the oldest request arrived (monotonic) that is being stored; None while there is none.
        self._oldest: float | None = None
        self.stored = 0
        """Spans stored so far."""
        self.rejected = 0
        """Spans rejected so far."""

    def reserve(self, size: int) -> bool:
        """Reserve room for ``size`` bytes that arrived; False when there is not enough."""
        with self._lock:
            if self._waiting and self._waiting + size > MAX_BYTES:
                return False
            self._waiting += size
            return True

    def release(self, size: int) -> None:
        """Release reserved room."""
        with self._lock:
            self._waiting -= size

    def submit(self, workspace_id: str, workspace: str, body: bytes, *, is_json: bool) -> Future[Answer]:
        """Queue a request's body. The future raises `BadRequest` or `StoreUnavailable`.

        Raises `StoreUnavailable` when no thread can be started.
        """
        if self._thread is None or not self._thread.is_alive():
            thread = threading.Thread(target=self._work, name="tachograph-receiver", daemon=True)
            try:
                thread.start()
            except (RuntimeError, MemoryError) as error:
                raise StoreUnavailable(f"no thread can be started now: {error}") from error
            self._thread = thread
        answer: Future[Answer] = Future()
        self._queue.put(_Request(workspace_id, workspace, body, is_json, answer, time.monotonic()))
        return answer

    def behind_seconds(self) -> float:
        """How long the oldest request has waited that is being stored."""
        oldest = self._oldest
        return 0.0 if oldest is None else max(0.0, time.monotonic() - oldest)

    def close(self) -> None:
        """Store what waits, then stop; what is not stored within `CLOSE_SECONDS` has not been acknowledged."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(CLOSE_SECONDS)
            self._thread = None

    def _work(self) -> None:
        is_open = True
        while is_open:
            requests: list[_Request] = []
            try:
                is_open = self._store_next(requests)
            except BaseException as error:
                # Out of memory, for instance. Whoever waits must get an answer.
                for request in requests:
                    if not request.answer.done():
                        request.answer.set_exception(error)
                quiet.exception(type(error), "a batch of spans could not be stored")
            self._oldest = None

    def _store_next(self, requests: list[_Request]) -> bool:
        """Store a batch of waiting requests, which are added to ``requests``. Returns False when it is time to stop."""
        batch: list[_ReadRequest] = []
        size = count = 0
        is_open = True
        request = self._queue.get()
        while True:
            if request is None:
                is_open = False
                break
            if self._oldest is None:
                self._oldest = request.since
            requests.append(request)
            size += len(request.body)
            if len(request.body) > PIECE_BYTES:
                self._store(batch)
                batch = []
                self._store_in_parts(request)
                break
            if (read := _read(request)) is not None:
                batch.append(read)
                count += len(read.spans)
            if size >= _BATCH_BYTES or count >= _BATCH_SPANS or len(batch) >= _BATCH_REQUESTS:
                break
            try:
                request = self._queue.get_nowait()
            except queue.Empty:
                break
        self._store(batch)
        return is_open

    def _store_in_parts(self, request: _Request) -> None:
        """Read and store a large request, a few thousand spans at a time. It is answered when all are committed."""
        if not request.answer.set_running_or_notify_cancel():
            return
        stored = rejected = count = 0
        reasons: list[str] = []
        try:
            for spans, rejections in _parts(_scopes(request)):
                count += len(spans)
                if count > MAX_SPANS:
                    over = min(len(spans), count - MAX_SPANS)
                    del spans[len(spans) - over :]
                    rejections += [_TOO_MANY] * over
                part = _ReadRequest(request._replace(answer=Future()), spans, rejections)
                self._store([part] if spans else ())
                answer = part.request.answer.result() if spans else _answer(0, rejections)
                stored, rejected = stored + answer.stored, rejected + answer.rejected
                reasons += [answer.why] if answer.why else []
        except Exception as error:
            if not isinstance(error, BadRequest | StoreUnavailable):
                quiet.exception(("read", type(error)), "a request could not be read")
            _fail(request, error)
            return
        why = "; ".join(list(dict.fromkeys(reasons))[:_MAX_REASONS])
        request.answer.set_result(Answer(stored, rejected, why))

    def _store(self, batch: Sequence[_ReadRequest]) -> None:
        """Commit a batch and answer its requests. If something in it is refused, find it by storing the halves."""
        if not batch:
            return
        try:
            answers = self.store.commit(lambda connection: self._take(connection, batch))
        except StoreUnavailable as error:
            quiet.warning("unavailable", "spans could not be stored: %s", error)
            for read in batch:
                read.request.answer.set_exception(StoreUnavailable(str(error)))
        except Exception:
            if len(batch) > 1:
                self._store(batch[: len(batch) // 2])
                self._store(batch[len(batch) // 2 :])
            else:
                self._store_by_trace(batch[0])
        else:
            for read, answer in zip(batch, answers, strict=True):
                self.stored += answer.stored
                self.rejected += answer.rejected
                read.request.answer.set_result(answer)

    def _store_by_trace(self, read: _ReadRequest) -> None:
        """Store each trace of a request by itself. One that is refused is set aside, and its spans are rejected."""
        spans_by_trace: dict[str, list[SpanRecord]] = {}
        for span in read.spans:
            spans_by_trace.setdefault(span.trace_id, []).append(span)
        stored, rejections = 0, list(read.rejections)
        try:
            for trace_id, spans in spans_by_trace.items():
                part = read._replace(spans=spans, rejections=[])
                try:
                    (answer,) = self.store.commit(lambda c, part=part: self._take(c, [part]))  # type: ignore[misc]
                except StoreUnavailable:
                    raise
                except Exception as error:
                    quiet.exception(("refused", type(error)), "trace %s could not be stored", trace_id)
                    self.store.set_aside(read.request.workspace, spans, error)
                    why = f"trace {trace_id} could not be stored and was set aside: {type(error).__name__}"
                    rejections += [why] * len(spans)
                else:
                    stored += answer.stored
                    rejections += [answer.why] * answer.rejected
        except Exception as error:
            _fail(read.request, error)
            return
        self.stored += stored
        self.rejected += len(rejections)
        read.request.answer.set_result(_answer(stored, rejections))

    def _take(self, connection: Connection, batch: Sequence[_ReadRequest]) -> tuple[list[Answer], list[Event]]:
        by_workspace: dict[tuple[str, str], list[_ReadRequest]] = {}
        for read in batch:
            by_workspace.setdefault((read.request.workspace_id, read.request.workspace), []).append(read)
        answers: dict[int, Answer] = {}
        events: list[Event] = []
        for (workspace_id, workspace), reads in by_workspace.items():
            spans = [span for read in reads for span in read.spans]
            taken = self.store.take(connection, workspace_id, workspace, spans)
            events += taken.events
            for i, read in enumerate(reads):
                rejections = list(read.rejections)
                if taken.refused:
                    refused = [span for span in read.spans if (span.trace_id, span.span_id) in taken.refused]
                    rejections += [
                        f"trace {span.trace_id} has {MAX_TRACE_SPANS} spans, and no room for more" for span in refused
                    ]
                # The spans of these requests were stored together; the first one counts them.
                answers[id(read)] = _answer(taken.stored if i == 0 else 0, rejections)
        return [answers[id(read)] for read in batch], events


def _answer(stored: int, rejections: Sequence[str]) -> Answer:
    return Answer(stored, len(rejections), "; ".join(dict.fromkeys(rejections[:_MAX_REASONS])))


_TOO_MANY: Final = f"a request may carry at most {MAX_SPANS} spans"


def _scopes(request: _Request) -> list[ScopeOfSpans]:
    return scopes_of_json(request.body) if request.is_json else scopes_of(request.body)


def _fail(request: _Request, error: BaseException) -> None:
    """Answer a request with an error. Its traceback would keep the request, which keeps the error: for minutes."""
    request.answer.set_exception(error.with_traceback(None))


def _parts(scopes: Sequence[ScopeOfSpans]) -> Iterator[tuple[list[SpanRecord], list[str]]]:
    """Spans, and reasons why others are rejected, as many as may be in memory at a time."""
    spans: list[SpanRecord] = []
    rejections: list[str] = []
    size = 0
    resource_id = ""
    for span in records_of(scopes):
        if isinstance(span, str):
            rejections.append(span)
            continue
        size += len(span.payload)
        if span.resource_id != resource_id:
            resource_id = span.resource_id
            size += len(span.resource)
        spans.append(span)
        if len(spans) + len(rejections) >= _BATCH_SPANS or size >= _PART_BYTES:
            yield spans, rejections
            spans, rejections, size, resource_id = [], [], 0, ""
    yield spans, rejections


def _read(request: _Request) -> _ReadRequest | None:
    """A request's spans; None when it has already been answered."""
    if not request.answer.set_running_or_notify_cancel():
        return None
    spans: list[SpanRecord] = []
    rejections: list[str] = []
    try:
        for span in records_of(_scopes(request)):
            if isinstance(span, str):
                rejections.append(span)
            else:
                spans.append(span)
    except Exception as error:
        if not isinstance(error, BadRequest):
            quiet.exception(("read", type(error)), "a request could not be read")
        _fail(request, error)
        return None
    if not spans:
        request.answer.set_result(_answer(0, rejections))
        return None
    return _ReadRequest(request, spans, rejections)
