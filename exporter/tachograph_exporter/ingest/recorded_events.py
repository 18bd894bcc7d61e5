"""The receiver of events that other processes recorded: batches wait in a queue, one thread commits many at once.

A batch is answered once its events are committed, so nothing acknowledged is lost. A batch that arrives again is not
stored again (see `store.senders`). An event that is not valid, or that the store refuses, costs no other.
"""

from __future__ import annotations

import logging
import queue
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Final, NamedTuple

from msgspec.structs import replace
from sqlalchemy import Connection

from tachograph.clock import MAX_NS, NS
from tachograph.errors import StoreUnavailable
from tachograph.events import Event, ExecutionEvent, Heartbeat, StepFinished, StepLines, StepRetrying, StepStacks
from tachograph.folded_stacks import StackWish
from tachograph.folded_stacks import cleaned as cleaned_stacks
from tachograph.identity import ExecutionRef, workflow_id
from tachograph.names import clean_name
from tachograph.quiet_log import QuietLog
from tachograph.resources import cleaned
from tachograph_exporter.ingest.recorded_lines import cleaned_lines
from tachograph_exporter.ingest.request_queue import RequestQueue
from tachograph_exporter.store import executions, locking, partitions, senders
from tachograph_exporter.store.batch import Batch
from tachograph_exporter.store.locking import Claim
from tachograph_exporter.store.writer import StoreWriter

quiet = QuietLog(logging.getLogger(__name__))

_BATCH_EVENTS: Final = 10_000
_BATCH_REQUESTS: Final = 256
_AHEAD_SECONDS: Final = 86_400
"""How far a clock of another machine may be ahead."""
_ID: Final = re.compile(r"[0-9A-Za-z._-]{1,36}", re.ASCII)
_TRACE_ID: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)
_SPAN_ID: Final = re.compile(r"[0-9a-f]{16}", re.ASCII)
_FOREIGN: Final = "its execution belongs to another workspace"


class Stored(NamedTuple):
    """What became of a batch: how many of its events were stored, and why others were refused, by their place.

    ``wishes``: what is asked of its sender.
    """

    stored: int
    refused: Mapping[int, str]
    is_repeated: bool = False
    wishes: Sequence[StackWish] = ()


class _Request(NamedTuple):
    workspace_id: str
    workspace: str
    sender: str
    sequence: int
    events: Sequence[tuple[int, Event]]
    answer: Future[Stored]


class EventReceiver:
    """Takes batches of events and stores them.

    Args:
        writer: stores them.
        publish: receives events that were stored, once they are committed.
    """

    def __init__(self, writer: StoreWriter, publish: Callable[[Sequence[Event]], None]) -> None:
        self._writer = writer
        self._publish = publish
        self._queue: RequestQueue[_Request] = RequestQueue("tachograph-events", "events", self._store_next)

    def submit(
        self, workspace_id: str, workspace: str, sender: str, sequence: int, events: Sequence[tuple[int, Event]]
    ) -> Future[Stored]:
        """Queue a batch: events with their places in it, of that workspace (see `in_workspace`).

        The future raises `StoreUnavailable`. Raises `StoreUnavailable` when no thread can be started.
        """
        answer: Future[Stored] = Future()
        self._queue.put(_Request(workspace_id, workspace, sender, sequence, events, answer))
        return answer

    def close(self) -> None:
        """Store what waits, then stop. See `RequestQueue.close`."""
        self._queue.close()

    def _store_next(self, requests: list[_Request]) -> bool:
        is_open = self._next(requests)
        self._store([request for request in requests if request.answer.set_running_or_notify_cancel()])
        return is_open

    def _next(self, requests: list[_Request]) -> bool:
        """Add the requests that wait, at least one, to ``requests``. Returns False when it is time to stop."""
        count = 0
        while count < _BATCH_EVENTS and len(requests) < _BATCH_REQUESTS:
            try:
                request = self._queue.get(0 if requests else None)
            except queue.Empty:
                break
            if request is None:
                return False
            requests.append(request)
            count += len(request.events)
        return True

    def _store(self, requests: Sequence[_Request]) -> None:
        """Commit requests and answer them. If something in them is refused, find it by storing parts."""
        if not requests:
            return
        try:
            batch, events, answers = self._writer.run(lambda connection: self._take(connection, requests))
        except StoreUnavailable as error:
            quiet.warning("unavailable", "events could not be stored: %s", error)
            for request in requests:
                request.answer.set_exception(StoreUnavailable(str(error)))
        except Exception as error:
            if len(requests) > 1:
                self._store(requests[: len(requests) // 2])
                self._store(requests[len(requests) // 2 :])
            else:
                self._store_parts(requests[0], error)
        else:
            if batch is not None:
                self._writer.stored(batch)
            if events:
                self._publish(events)
            wishes = {wish.execution_id: wish for wish in batch.wishes} if batch is not None else {}
            for request, answer in zip(requests, answers, strict=True):
                request.answer.set_result(_with_wishes(answer, request, wishes) if wishes else answer)

    def _store_parts(self, request: _Request, error: Exception) -> None:
        """Store the halves of a request's events by themselves, down to the one that is refused; answer for all.

        They have no number of their own: if this is interrupted, all of them are sent again, and applying events twice
        gives the same rows.
        """
        stored, refused = 0, dict[int, str]()
        parts = [(request.events, error)]
        try:
            while parts:
                events, why = parts.pop()
                if len(events) == 1:
                    ((index, event),) = events
                    quiet.exception(("refused", type(why)), "a %s could not be stored", type(event).__name__)
                    self._writer.set_aside(event, why)
                    refused[index] = f"the store refused it, and it was set aside: {type(why).__name__}"
                    continue
                for half in (events[: len(events) // 2], events[len(events) // 2 :]):
                    part = request._replace(events=half, sequence=0, answer=Future())
                    try:
                        batch, new, answers = self._writer.run(partial(self._take, requests=[part]))
                    except StoreUnavailable:
                        raise
                    except Exception as failure:
                        parts.append((half, failure))
                        continue
                    if batch is not None:
                        self._writer.stored(batch)
                    self._publish(new)
                    stored += answers[0].stored
                    refused |= answers[0].refused
            last = {request.sender: request.sequence}
            self._writer.database.run(lambda connection: senders.note(connection, request.workspace_id, last))
        except Exception as failure:
            request.answer.set_exception(failure.with_traceback(None))
        else:
            request.answer.set_result(Stored(stored, refused))

    def _take(
        self, connection: Connection, requests: Sequence[_Request]
    ) -> tuple[Batch | None, list[Event], list[Stored]]:
        """Store what is new of these requests: (what was written, the events, an answer to each request)."""
        self._writer.share(connection, (event for request in requests for _, event in request.events))
        # A batch that is sent again, maybe to another service, waits until the first one is committed.
        locking.claim(connection, Claim.SENDER, {f"{request.workspace_id}/{request.sender}" for request in requests})
        by_workspace: dict[str, list[_Request]] = {}
        for request in requests:
            by_workspace.setdefault(request.workspace_id, []).append(request)
        answers: dict[int, Stored] = {}
        events: list[Event] = []
        for workspace_id, own in by_workspace.items():
            known = senders.sequences(connection, workspace_id, {request.sender for request in own})
            last: dict[str, int] = {}
            ids = sorted({event.execution.execution_id for request in own for _, event in request.events})
            foreign = executions.foreign_among(connection, workspace_id, ids)
            for request in own:
                if 0 < request.sequence <= max(known.get(request.sender, 0), last.get(request.sender, 0)):
                    answers[id(request)] = Stored(0, {}, is_repeated=True)
                    continue
                if request.sequence and any(type(event) is not Heartbeat for _, event in request.events):
                    # Heartbeats may come twice, and those of a command have a sender of their own.
                    last[request.sender] = request.sequence
                chosen = [event for _, event in request.events if event.execution.execution_id not in foreign]
                refused = {i: _FOREIGN for i, event in request.events if event.execution.execution_id in foreign}
                events += chosen
                answers[id(request)] = Stored(len(chosen), refused)
            senders.note(connection, workspace_id, last)
        batch = self._writer.put(connection, events) if events else None
        return batch, events, [answers[id(request)] for request in requests]


def _with_wishes(answer: Stored, request: _Request, wishes: Mapping[str, StackWish]) -> Stored:
    """An answer with what is asked of the executions that its request has heartbeats of."""
    alive = {
        event.execution.execution_id: None
        for index, event in request.events
        if type(event) is Heartbeat and index not in answer.refused
    }
    return answer._replace(wishes=tuple(wishes[key] for key in alive if key in wishes))


def in_workspace(event: Event, workspace: str) -> Event:
    """The event as one of this workspace, whatever its sender takes for its workspace; names are cleaned.

    Raises `ValueError` if the event cannot be one of a run that is stored: its message says why.
    """
    ref = event.execution
    _check_ref(ref)
    if not 0 <= event.time_ns <= MAX_NS:
        raise ValueError("its time_ns is no time in unix nanoseconds")
    own_id = ref.workflow_id == workflow_id(ref.workspace, ref.workflow)
    execution = replace(
        ref,
        workspace=workspace,
        workflow=clean_name(ref.workflow),
        workflow_id=workflow_id(workspace, ref.workflow) if own_id else ref.workflow_id,
        version=clean_name(ref.version),
        project=clean_name(ref.project),
    )
    if isinstance(event, ExecutionEvent):
        return replace(event, execution=execution)
    step = event.step
    if not _ID.fullmatch(step.step_id) or not (step.parent_step_id is None or _ID.fullmatch(step.parent_step_id)):
        raise ValueError("a step_id or parent_step_id is no id of at most 36 letters, digits, dots and dashes")
    if not _SPAN_ID.fullmatch(step.span_id) or not _SPAN_ID.fullmatch(step.parent_span_id):
        raise ValueError("a span_id of the step is not 16 lower-case hex digits")
    step = replace(step, execution=execution, name=clean_name(step.name))
    if isinstance(event, StepLines):
        return cleaned_lines(replace(event, step=step))
    if isinstance(event, StepFinished | StepRetrying) and event.resources is not None:
        return replace(event, step=step, resources=cleaned(event.resources))
    if isinstance(event, StepStacks):
        return _stacks(replace(event, step=step))
    return replace(event, step=step)


def _stacks(event: StepStacks) -> StepStacks:
    numbers = (event.attempt, event.started_ns, event.samples, event.interval_ns, event.dropped, event.cut)
    if not all(0 <= number <= MAX_NS for number in numbers) or event.attempt >= 1 << 31:
        raise ValueError("a number in it is negative or too large")
    if event.request and not _ID.fullmatch(event.request):
        raise ValueError("its request is no id of at most 36 letters, digits, dots and dashes")
    return replace(event, stacks=cleaned_stacks(event.stacks))


def _check_ref(ref: ExecutionRef) -> None:
    for name in ("execution_id", "workflow_id", "parent_execution_id", "parent_step_id"):
        value = getattr(ref, name)
        if value is not None and not _ID.fullmatch(value):
            raise ValueError(f"its {name} is no id of at most 36 letters, digits, dots and dashes")
    if not _TRACE_ID.fullmatch(ref.trace_id) or not _SPAN_ID.fullmatch(ref.span_id):
        raise ValueError("trace_id or span_id of the execution are not 32 and 16 lower-case hex digits")
    if partitions.seconds_of_id(ref.execution_id) > time.time_ns() // NS + _AHEAD_SECONDS:
        # Each month has tables of its own.
        raise ValueError("its execution_id is a UUID of a time to come")
