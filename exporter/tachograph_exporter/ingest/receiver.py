"""The door for OTLP: requests wait in line, are read and stored by one thread, and many go into one transaction.

One thread, because reading spans and writing rows both hold the interpreter: more of them only stand in each other's
way. A request is answered when its spans are committed, so what was acknowledged is not lost.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Final, NamedTuple

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from tachograph.errors import StoreUnavailable
from tachograph.events import Event
from tachograph_exporter.ingest.span_store import MAX_OF_TRACE, SpanStore
from tachograph_exporter.ingest.spans import MAX_SPANS, BadRequest, SpanRecord, parse, records

log = logging.getLogger(__name__)

MAX_BYTES: Final = 64 << 20
"""Bytes of requests that may wait; further ones are asked to come again."""
_GROUP_BYTES: Final = 4 << 20
_GROUP_REQUESTS: Final = 64


class Answer(NamedTuple):
    """What became of a request: spans that were new, spans that could not be kept, and why the first of those not."""

    stored: int
    rejected: int
    why: str


class _Waiting(NamedTuple):
    workspace_id: str
    workspace: str
    body: bytes
    is_json: bool
    answer: Future[Answer]


class _Read(NamedTuple):
    request: _Waiting
    kept: list[SpanRecord]
    rejected: list[str]


class Receiver:
    """Takes requests in.

    Args:
        store: where spans go.
        tell: told of events that nobody was told before, after they are committed, from the intake's thread.
    """

    def __init__(self, store: SpanStore, tell: Callable[[Sequence[Event]], None]) -> None:
        self.store = store
        self._tell = tell
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._waiting = 0
        self._thread: threading.Thread | None = None
        self.stored = 0
        """Spans stored so far."""
        self.rejected = 0
        """Spans that could not be kept."""

    def reserve(self, size: int) -> bool:
        """Make room for a request of so many bytes, before it is read; False: there is none now."""
        with self._lock:
            if self._waiting and self._waiting + size > MAX_BYTES:
                return False
            self._waiting += size
            return True

    def release(self, size: int) -> None:
        """Give room back."""
        with self._lock:
            self._waiting -= size

    def submit(self, workspace_id: str, workspace: str, body: bytes, *, is_json: bool) -> Future[Answer]:
        """Take a request's body. The future raises `BadRequest` or `StoreUnavailable`."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="tachograph-intake", daemon=True)
            self._thread.start()
        answer: Future[Answer] = Future()
        self._queue.put(_Waiting(workspace_id, workspace, body, is_json, answer))
        return answer

    def close(self) -> None:
        """Finish what waits and stop."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None

    def _work(self) -> None:
        is_open = True
        while is_open:
            group: list[_Read] = []
            size = 0
            one = self._queue.get()
            while True:
                if one is None:
                    is_open = False
                    break
                size += len(one.body)
                if (read := _read(one)) is not None:
                    group.append(read)
                if size >= _GROUP_BYTES or len(group) >= _GROUP_REQUESTS:
                    break
                try:
                    one = self._queue.get_nowait()
                except queue.Empty:
                    break
            if group:
                self._store(group)

    def _store(self, group: Sequence[_Read]) -> None:
        """Commit a group and answer each; where something unforeseen happens, each by itself."""
        try:
            answers, events = self.store.writer.database.run(lambda c: self._take(c, group))
        except Exception as error:
            if is_unavailable(error):
                log.warning("spans could not be stored: %s", error)
                for one in group:
                    one.request.answer.set_exception(StoreUnavailable(str(error)))
            elif len(group) > 1:
                for one in group:
                    self._store([one])
            else:
                group[0].request.answer.set_exception(error)
            return
        try:
            self._tell(events)
        except Exception:
            log.exception("what arrived is stored, but could not be told to the metrics")
        for one, answer in zip(group, answers, strict=True):
            self.stored += answer.stored
            self.rejected += answer.rejected
            one.request.answer.set_result(answer)

    def _take(self, connection: Connection, group: Sequence[_Read]) -> tuple[list[Answer], list[Event]]:
        workspaces: dict[tuple[str, str], list[_Read]] = {}
        for one in group:
            workspaces.setdefault((one.request.workspace_id, one.request.workspace), []).append(one)
        answers: dict[int, Answer] = {}
        events: list[Event] = []
        for (workspace_id, workspace), several in workspaces.items():
            taken = self.store.take(connection, workspace_id, workspace, [span for one in several for span in one.kept])
            events += taken.events
            for i, one in enumerate(several):
                why = list(one.rejected)
                if taken.refused:
                    refused = [span for span in one.kept if (span.trace_id, span.span_id) in taken.refused]
                    why += [f"trace {span.trace_id} has {MAX_OF_TRACE} spans, and no room for more" for span in refused]
                # Spans of several requests were stored at once; they are counted with the first.
                answers[id(one)] = Answer(taken.stored if i == 0 else 0, len(why), "; ".join(dict.fromkeys(why[:5])))
        return [answers[id(one)] for one in group], events


def _read(request: _Waiting) -> _Read | None:
    """A request's spans; None: it is answered already."""
    if not request.answer.set_running_or_notify_cancel():
        return None
    kept: list[SpanRecord] = []
    rejected: list[str] = []
    try:
        for one in records(parse(request.body, is_json=request.is_json)):
            if isinstance(one, str):
                rejected.append(one)
            elif len(kept) >= MAX_SPANS:
                rejected.append(f"a request may carry {MAX_SPANS} spans")
            else:
                kept.append(one)
    except Exception as error:
        if not isinstance(error, BadRequest):
            log.exception("a request could not be read")
        request.answer.set_exception(error)
        return None
    if not kept:
        request.answer.set_result(Answer(0, len(rejected), "; ".join(dict.fromkeys(rejected[:5]))))
        return None
    return _Read(request, kept, rejected)


def is_unavailable(error: BaseException) -> bool:
    """Whether it is the database's state, not the spans, that an error comes from."""
    if isinstance(error, OperationalError | InterfaceError | OSError):
        return True
    return isinstance(error, DBAPIError) and error.connection_invalidated
