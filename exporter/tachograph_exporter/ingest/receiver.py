"""The receiver of OTLP requests: they wait in a queue, and one thread reads and stores them, many in a transaction.

A large request is stored in several transactions, because its spans take many times its length in memory.

One thread, because reading spans and writing rows both hold the interpreter lock: more threads would only contend for
it. A request is answered once its spans are committed, so nothing acknowledged is lost. When many arrive at once, their
executions are assembled after that (see `deferred`).
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import Future
from typing import Any, Final, NamedTuple, TypeAlias

from sqlalchemy import Connection

from tachograph.errors import StoreUnavailable
from tachograph.events import Event
from tachograph.quiet_log import QuietLog
from tachograph_exporter.ingest.deferred import MAX_AT_ONCE, PAUSE_SECONDS, DeferredTraces
from tachograph_exporter.ingest.envelope import PIECE_BYTES, BadRequest, ScopeOfSpans, scopes_of
from tachograph_exporter.ingest.log_records import log_records
from tachograph_exporter.ingest.log_store import LogStore
from tachograph_exporter.ingest.otlp_json import scopes_of_json
from tachograph_exporter.ingest.process_metrics import measurements
from tachograph_exporter.ingest.process_store import ProcessStore
from tachograph_exporter.ingest.request_queue import RequestQueue
from tachograph_exporter.ingest.signals import LOGS, METRICS, TRACES, Signal
from tachograph_exporter.ingest.span_store import MAX_TRACE_SPANS, SpanStore, Taken
from tachograph_exporter.ingest.spans import MAX_SPANS, SpanRecord, records_of

quiet = QuietLog(logging.getLogger(__name__))

MAX_BYTES: Final = 64 << 20
"""Bytes of requests that may wait; further requests are asked to retry."""
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
    signal: Signal
    is_json: bool
    answer: Future[Answer]
    since: float = 0.0


class _ReadRequest(NamedTuple):
    """A request that was read, or a part of one, with an ``answer`` of its own. ``items``: what its signal has."""

    request: _Request
    items: list[Any]
    rejections: list[str]


class Receiver:
    """Takes requests and stores their spans in ``store``, with log records and metrics of processes.

    ``dropped`` is told the signal, the reason and the number of what is taken and not kept.
    """

    def __init__(self, store: SpanStore, dropped: Callable[[str, str, int], None] = lambda *_: None) -> None:
        self.store = store
        self._logs = LogStore(store, store.database.dialect)
        self._processes = ProcessStore(store.database.dialect)
        self._dropped = dropped
        self._queue: RequestQueue[_Request] = RequestQueue("tachograph-receiver", "spans", self._store_in_turn)
        self._lock = threading.Lock()
        self._deferred = DeferredTraces(store)
        self._waiting = 0
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

    def submit(
        self, workspace_id: str, workspace: str, body: bytes, signal: Signal = TRACES, *, is_json: bool
    ) -> Future[Answer]:
        """Queue a request's body. The future raises `BadRequest` or `StoreUnavailable`.

        Raises `StoreUnavailable` when no thread can be started.
        """
        answer: Future[Answer] = Future()
        self._queue.put(_Request(workspace_id, workspace, body, signal, is_json, answer, time.monotonic()))
        return answer

    def behind_seconds(self) -> float:
        """How long the oldest request has waited that is being stored."""
        oldest = self._oldest
        return 0.0 if oldest is None else max(0.0, time.monotonic() - oldest)

    def close(self) -> None:
        """Store what waits, then stop. See `RequestQueue.close`."""
        self._queue.close()

    def _store_in_turn(self, requests: list[_Request]) -> bool:
        try:
            return self._store_next(requests)
        finally:
            self._oldest = None

    def _store_next(self, requests: list[_Request]) -> bool:
        """Store a batch of waiting requests, which are added to ``requests``. Returns False when it is time to stop."""
        batch: list[_ReadRequest] = []
        size = count = 0
        is_open = True
        before = self.stored
        try:
            request = self._queue.get(PAUSE_SECONDS if self._deferred else None)
        except queue.Empty:
            self._deferred.work()
            return True
        while True:
            if request is None:
                is_open = False
                break
            if self._oldest is None:
                self._oldest = request.since
            requests.append(request)
            size += len(request.body)
            if len(request.body) > PIECE_BYTES:
                self._store(batch, is_hurried=bool(self._deferred))
                batch = []
                self._store_in_parts(request)
                break
            if (read := _read(request)) is not None:
                batch.append(read)
                count += len(read.items)
            if size >= _BATCH_BYTES or count >= _BATCH_SPANS or len(batch) >= _BATCH_REQUESTS:
                break
            try:
                request = self._queue.get(0)
            except queue.Empty:
                break
        self._store(batch, is_hurried=bool(self._deferred) or (len(batch) > 1 and count > MAX_AT_ONCE))
        if is_open:
            self._deferred.catch_up(self.stored - before)
        else:
            self._deferred.finish()
        return is_open

    def _store_in_parts(self, request: _Request) -> None:
        """Read and store a large request, a few thousand spans at a time. It is answered when all are committed."""
        if not request.answer.set_running_or_notify_cancel():
            return
        stored = rejected = count = 0
        reasons: list[str] = []
        try:
            for items, rejections in _parts(_items(request)):
                count += len(items)
                if count > MAX_SPANS:
                    over = min(len(items), count - MAX_SPANS)
                    del items[len(items) - over :]
                    rejections += [f"a request may carry at most {MAX_SPANS} {request.signal.item}s"] * over
                part = _ReadRequest(request._replace(answer=Future()), items, rejections)
                self._store([part] if items else (), is_hurried=bool(self._deferred))
                answer = part.request.answer.result() if items else _answer(0, rejections)
                stored, rejected = stored + answer.stored, rejected + answer.rejected
                reasons += [answer.why] if answer.why else []
        except Exception as error:
            if not isinstance(error, BadRequest | StoreUnavailable):
                quiet.exception(("read", type(error)), "a request could not be read")
            _fail(request, error)
            return
        why = "; ".join(list(dict.fromkeys(reasons))[:_MAX_REASONS])
        request.answer.set_result(Answer(stored, rejected, why))

    def _store(self, batch: Sequence[_ReadRequest], *, is_hurried: bool = False) -> None:
        """Commit a batch and answer its requests. If something in it is refused, find it by storing the halves.

        ``is_hurried``: executions are assembled later.
        """
        if not batch:
            return
        try:
            answers, dropped, deferred = self.store.commit(
                lambda connection: self._take(connection, batch, is_hurried=is_hurried)
            )
        except StoreUnavailable as error:
            quiet.warning("unavailable", "spans could not be stored: %s", error)
            for read in batch:
                read.request.answer.set_exception(StoreUnavailable(str(error)))
        except Exception:
            if len(batch) > 1:
                self._store(batch[: len(batch) // 2], is_hurried=is_hurried)
                self._store(batch[len(batch) // 2 :], is_hurried=is_hurried)
            else:
                self._store_by_trace(batch[0])
        else:
            self._note_dropped(dropped)
            for workspace_id, workspace, taken in deferred:
                for trace_id, kept in taken.deferred.items():
                    self._deferred.add(workspace_id, workspace, trace_id, kept)
            for read, answer in zip(batch, answers, strict=True):
                self.stored += answer.stored
                self.rejected += answer.rejected
                read.request.answer.set_result(answer)

    def _note_dropped(self, dropped: _Dropped) -> None:
        for (signal, reason), count in dropped.items():
            self._dropped(signal, reason, count)

    def _store_by_trace(self, read: _ReadRequest) -> None:
        """Store each trace of a request by itself. One that is refused is rejected, and its spans are set aside."""
        items_by_trace: dict[str, list[Any]] = {}
        for item in read.items:
            items_by_trace.setdefault(item.trace_id, []).append(item)
        stored, rejections = 0, list(read.rejections)
        try:
            for trace_id, items in items_by_trace.items():
                part = read._replace(items=items, rejections=[])
                try:
                    (answer,), dropped, _ = self.store.commit(lambda c, part=part: self._take(c, [part]))  # type: ignore[misc]
                except StoreUnavailable:
                    raise
                except Exception as error:
                    what = f"trace {trace_id}" if read.request.signal is TRACES else f"{read.request.signal.item}s"
                    quiet.exception(("refused", type(error)), "%s could not be stored", what)
                    if read.request.signal is TRACES:
                        self.store.set_aside(read.request.workspace, items, error)
                        what += " could not be stored and was set aside"
                    else:
                        what += " could not be stored"
                    rejections += [f"{what}: {type(error).__name__}"] * len(items)
                else:
                    self._note_dropped(dropped)
                    stored += answer.stored
                    rejections += [answer.why] * answer.rejected
        except Exception as error:
            _fail(read.request, error)
            return
        self.stored += stored
        self.rejected += len(rejections)
        read.request.answer.set_result(_answer(stored, rejections))

    def _take(
        self, connection: Connection, batch: Sequence[_ReadRequest], *, is_hurried: bool = False
    ) -> tuple[tuple[list[Answer], _Dropped, _Deferred], list[Event]]:
        by_workspace: dict[tuple[str, str], list[_ReadRequest]] = {}
        for read in batch:
            by_workspace.setdefault((read.request.workspace_id, read.request.workspace), []).append(read)
        answers: dict[int, Answer] = {}
        dropped: _Dropped = Counter()
        deferred: _Deferred = []
        events: list[Event] = []
        for (workspace_id, workspace), reads in by_workspace.items():
            by_signal: dict[Signal, list[_ReadRequest]] = {}
            for read in reads:
                by_signal.setdefault(read.request.signal, []).append(read)
            # Logs before spans: then executions are assembled once, with the exceptions that were sent as logs.
            for signal in sorted(by_signal, key=lambda signal: signal is TRACES):
                of_signal = by_signal[signal]
                items = [item for read in of_signal for item in read.items]
                refused: AbstractSet[tuple[str, str]] = frozenset()
                new: Sequence[Event]
                if signal is TRACES:
                    taken = self.store.take(connection, workspace_id, workspace, items, is_hurried=is_hurried)
                    deferred.append((workspace_id, workspace, taken))
                    stored, refused, new = taken.stored, taken.refused, taken.events
                else:
                    stored, reasons, new = self._take_others(connection, signal, workspace_id, workspace, items)
                    dropped.update({(signal.name, reason): count for reason, count in reasons.items()})
                events.extend(new)
                for i, read in enumerate(of_signal):
                    # What these requests carry was stored together; the first one counts it.
                    answers[id(read)] = _answer(stored if i == 0 else 0, [*read.rejections, *_full(read, refused)])
        return ([answers[id(read)] for read in batch], dropped, deferred), events

    def _take_others(
        self, connection: Connection, signal: Signal, workspace_id: str, workspace: str, items: Sequence[Any]
    ) -> tuple[int, Counter[str], Sequence[Event]]:
        """Store what are no spans: the number of new items, that of others by reason, and new events."""
        if signal is LOGS:
            return self._logs.take(connection, workspace_id, workspace, items)
        taken = self._processes.take(connection, workspace_id, items)
        return taken.stored, taken.dropped, ()


_Dropped: TypeAlias = Counter[tuple[str, str]]
"""Numbers of what is not kept, by signal and reason."""
_Deferred: TypeAlias = list[tuple[str, str, Taken]]
"""What was stored of spans, each with its workspace's id and the workspace."""


def _full(read: _ReadRequest, refused: AbstractSet[tuple[str, str]]) -> list[str]:
    """Why spans of a request were refused."""
    if not refused:
        return []
    return [
        f"trace {span.trace_id} has {MAX_TRACE_SPANS} spans, and no room for more"
        for span in read.items
        if (span.trace_id, span.span_id) in refused
    ]


def _answer(stored: int, rejections: Sequence[str]) -> Answer:
    return Answer(stored, len(rejections), "; ".join(dict.fromkeys(rejections[:_MAX_REASONS])))


def _items(request: _Request) -> Iterator[Any]:
    """What a request carries, a few items in memory at a time; for one that is not valid, the reason as text."""
    read = scopes_of_json if request.is_json else scopes_of
    scopes = read(request.body, request.signal)
    if request.signal is TRACES:
        return records_of(scopes)
    return _read_groups(scopes, _READERS[request.signal])


def _read_groups(scopes: Sequence[ScopeOfSpans], items_of: Callable[[Any], Iterator[Any]]) -> Iterator[Any]:
    for scope in scopes:
        for piece in scope.pieces():
            if isinstance(piece, str):
                yield piece
            else:
                yield from items_of(piece)


_READERS: Final[Mapping[Signal, Callable[[Any], Iterator[Any]]]] = {LOGS: log_records, METRICS: measurements}


def _fail(request: _Request, error: BaseException) -> None:
    """Answer a request with an error. Its traceback would keep the request, which keeps the error: for minutes."""
    request.answer.set_exception(error.with_traceback(None))


def _parts(items: Iterator[Any]) -> Iterator[tuple[list[Any], list[str]]]:
    """Items, and reasons why others are rejected, as many as may be in memory at a time."""
    taken: list[Any] = []
    rejections: list[str] = []
    size = 0
    resource_id = ""
    for item in items:
        if isinstance(item, str):
            rejections.append(item)
            continue
        size += item.size
        if isinstance(item, SpanRecord) and item.resource_id != resource_id:
            resource_id = item.resource_id
            size += len(item.resource)
        taken.append(item)
        if len(taken) + len(rejections) >= _BATCH_SPANS or size >= _PART_BYTES:
            yield taken, rejections
            taken, rejections, size, resource_id = [], [], 0, ""
    yield taken, rejections


def _read(request: _Request) -> _ReadRequest | None:
    """A request's items; None when it has already been answered."""
    if not request.answer.set_running_or_notify_cancel():
        return None
    items: list[Any] = []
    rejections: list[str] = []
    try:
        for item in _items(request):
            (rejections if isinstance(item, str) else items).append(item)
    except Exception as error:
        if not isinstance(error, BadRequest):
            quiet.exception(("read", type(error)), "a request could not be read")
        _fail(request, error)
        return None
    if not items:
        request.answer.set_result(_answer(0, rejections))
        return None
    return _ReadRequest(request, items, rejections)
