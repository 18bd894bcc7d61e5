"""Admission: an execution starts once its `ExecutionQueued` is committed, and not if that cannot be done.

Executions that ask to be admitted while a commit is under way are committed together by the next one. Whoever waits
holds no thread.

When the connection is lost during the commit, or the commit takes too long, nobody knows whether the execution is
stored. Its request is told so (`AdmissionUnknown`), and once it is known, an execution that is stored ends as cancelled
before any step of it begins. If the service dies before that, the execution is lost, as every pending one is.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from sqlalchemy import Connection

from tachograph.errors import QueryTimeout, StoreUnavailable
from tachograph.events import Event
from tachograph.workflow.executor import Accepted, Executor
from tachograph_exporter.store import executions as execution_rows
from tachograph_exporter.store import idempotency, locking
from tachograph_exporter.store.batch import Batch
from tachograph_exporter.store.database import Lane
from tachograph_exporter.store.idempotency import Answer, KeyedRequest, KeyReused
from tachograph_exporter.store.locking import Claim
from tachograph_exporter.store.writer import StoreWriter

log = logging.getLogger(__name__)

ADMIT_SECONDS: Final = 5.0
"""How long a request waits to be admitted."""
_CLOSE_SECONDS: Final = 1.0
_MAX_GROUP: Final = 500
_SETTLE_SECONDS: Final = 1.0
_NOT_IN_TIME: Final = "it was not accepted: the database did not store it in time"


class AdmissionUnknown(StoreUnavailable):
    """It is not known whether the execution was stored. Without a key, no step of it ever begins; with one, it may."""


class _Candidate:
    """An execution that waits to be admitted, and what its request is answered then."""

    def __init__(self, accepted: Accepted, answer: Answer, request: KeyedRequest | None) -> None:
        self.accepted = accepted
        self.answer = answer
        self.request = request
        self.result: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.is_withdrawn = False
        self._is_claimed = False
        # SQLite's transaction is in another thread.
        self._lock = threading.Lock()

    def claim(self) -> bool:
        """Called by the transaction that stores it: whether it may. From then on it may be stored."""
        with self._lock:
            self._is_claimed = not self.is_withdrawn
            return self._is_claimed

    def withdraw(self) -> bool:
        """Give it up; whether it is certain that it is not stored and never will be."""
        with self._lock:
            self.is_withdrawn = True
            return not self._is_claimed

    @property
    def execution_id(self) -> str:
        """The id of its execution."""
        return self.accepted.queued.execution.execution_id

    @property
    def is_wanted(self) -> bool:
        """Whether it runs if it is stored: with a key, the request comes again and gets the answer that is stored."""
        return not self.is_withdrawn or self.request is not None

    def settle(self, result: Answer | BaseException) -> None:
        """Tell the request, if it still waits."""
        if self.result.done():
            return
        if isinstance(result, BaseException):
            self.result.set_exception(result)
        else:
            self.result.set_result(result)


class Admission:
    """Admits executions of ``executor``.

    Args:
        executor: has accepted them, and cancels those that turn out to be stored though their request was refused.
        writer: commits their events.
        publish: receives the events that were committed.
    """

    def __init__(self, executor: Executor, writer: StoreWriter, publish: Callable[[Sequence[Event]], None]) -> None:
        self._executor = executor
        self._writer = writer
        self._publish = publish
        self._waiting: list[_Candidate] = []
        self._unsure: dict[str, _Candidate] = {}
        self._committing: asyncio.Task[None] | None = None
        self._settling: asyncio.Task[None] | None = None

    async def admit(self, accepted: Accepted, answer: Answer, request: KeyedRequest | None = None) -> Answer:
        """Commit the execution's `ExecutionQueued`, with the answer if there is a key, then start the execution.

        Returns the answer: ``answer``, or the one that an earlier request with the same key got, and then nothing
        starts. Raises `StoreUnavailable`, or `KeyReused`; then nothing starts, and the execution is withdrawn. Raises
        `AdmissionUnknown` if it may be stored.
        """
        candidate = _Candidate(accepted, answer, request)
        self._waiting.append(candidate)
        if self._committing is None:
            self._committing = asyncio.create_task(self._commit_all(), name="tachograph admission")
        done, _ = await asyncio.wait({candidate.result}, timeout=ADMIT_SECONDS)
        if done:
            return candidate.result.result()
        # If its commit is under way and goes through, the execution is cancelled.
        is_certain = candidate.withdraw()
        if candidate in self._waiting:
            self._waiting.remove(candidate)
            accepted.withdraw()
        if is_certain:
            raise StoreUnavailable("the database did not store the execution in time")
        raise AdmissionUnknown("the database has not stored the execution in time")

    async def close(self) -> None:
        """Wait until what is under way has been committed or has failed."""
        for task in (self._committing, self._settling):
            if task is not None:
                await asyncio.wait({task}, timeout=_CLOSE_SECONDS)
                task.cancel()

    async def _commit_all(self) -> None:
        try:
            while self._waiting:
                group, self._waiting = self._waiting[:_MAX_GROUP], self._waiting[_MAX_GROUP:]
                await self._commit(group)
        finally:
            self._committing = None
            for candidate in self._waiting:
                self._refuse(candidate, StoreUnavailable("the service is shutting down"))
            self._waiting = []

    async def _commit(self, group: Sequence[_Candidate]) -> None:
        """Commit a group and start it; if it cannot be stored, find out whose fault that is."""
        work = _Work(self._writer, group)
        try:
            try:
                await self._writer.database.write(work, Lane.WRITE)
            except locking.NotAlone:
                await self._writer.database.write(locking.alone(work), Lane.WRITE)
        except StoreUnavailable as error:
            for candidate in group:
                if work.may_be_committed and candidate in work.admitted:
                    self._keep_unsure(candidate, error)
                else:
                    self._refuse(candidate, error)
            return
        except BaseException as error:
            if len(group) > 1 and isinstance(error, Exception):
                for candidate in group:
                    await self._commit([candidate])
                return
            if not isinstance(error, Exception):
                # The service stops, and the commit may go through without it: then the execution is lost.
                for candidate in group:
                    self._refuse(candidate, AdmissionUnknown("the service is shutting down"))
                raise
            for candidate in group:
                self._refuse(candidate, error)
            return
        self._writer.stored(work.batch)
        waiting = deque(group)
        try:
            while waiting:
                self._admitted(waiting.popleft(), work)
                # A run of many steps takes milliseconds to start; others have their turn meanwhile.
                await asyncio.sleep(0)
        finally:
            for candidate in waiting:
                self._admitted(candidate, work)

    def _admitted(self, candidate: _Candidate, work: _Work) -> None:
        if candidate in work.admitted:
            self._start(candidate)
        else:
            self._refuse(candidate, work.outcomes.get(candidate.execution_id))

    def _start(self, candidate: _Candidate) -> None:
        self._publish([candidate.accepted.queued])
        if not candidate.is_wanted:
            # Before the start, so that no step begins.
            self._executor.cancel(candidate.execution_id, _NOT_IN_TIME)
        candidate.accepted.start()
        candidate.settle(candidate.answer)

    def _refuse(self, candidate: _Candidate, result: Answer | BaseException | None) -> None:
        candidate.is_withdrawn = True
        candidate.accepted.withdraw()
        candidate.settle(result if result is not None else StoreUnavailable("the execution was withdrawn"))

    def _keep_unsure(self, candidate: _Candidate, error: StoreUnavailable) -> None:
        """The connection was lost during the commit: whether it went through is seen when the database is back."""
        candidate.is_withdrawn = True
        candidate.settle(AdmissionUnknown(str(error)))
        self._unsure[candidate.execution_id] = candidate
        if self._settling is None:
            self._settling = asyncio.create_task(self._settle_unsure(), name="tachograph admission settling")

    async def _settle_unsure(self) -> None:
        try:
            while self._unsure:
                await asyncio.sleep(_SETTLE_SECONDS)
                ids = list(self._unsure)[:_MAX_GROUP]
                database = self._writer.database
                try:
                    # A commit may go on after its connection was lost. It is over when its lock is free.
                    await database.read(locking.lock, Lane.WRITE)
                    stored = await database.read(partial(execution_rows.stored_among, ids=ids), Lane.WRITE)
                except (StoreUnavailable, QueryTimeout):
                    continue
                for execution_id in ids:
                    candidate = self._unsure.pop(execution_id)
                    if execution_id in stored:
                        self._start(candidate)
                    else:
                        candidate.accepted.withdraw()
        finally:
            self._settling = None


class _Work:
    """The transaction that admits a group."""

    def __init__(self, writer: StoreWriter, group: Sequence[_Candidate]) -> None:
        self._writer = writer
        self._group = group
        self.admitted: set[_Candidate] = set()
        self.outcomes: dict[str, Answer | KeyReused] = {}
        """What those get that are not admitted, by execution id."""
        self.batch = Batch()
        self.may_be_committed = False

    def __call__(self, connection: Connection) -> None:
        # From the start: the driver may call it again on another connection.
        self.admitted, self.outcomes, self.may_be_committed = set(), {}, False
        self._writer.share(connection, [candidate.accepted.queued for candidate in self._group])
        keys = {f"{c.request.scope}/{c.request.digest}" for c in self._group if c.request is not None}
        if keys:
            locking.claim(connection, Claim.SENDER, keys)
        for candidate in self._group:
            # Whoever waited too long for the lock has been told that it was not accepted.
            if not candidate.claim() or self._is_answered(connection, candidate):
                continue
            self.admitted.add(candidate)
        events: list[Event] = [c.accepted.queued for c in self._group if c in self.admitted]
        if events:
            self.batch = self._writer.put(connection, events)
        self.may_be_committed = True

    def _is_answered(self, connection: Connection, candidate: _Candidate) -> bool:
        request = candidate.request
        if request is None:
            return False
        try:
            earlier = idempotency.find(connection, request)
        except KeyReused as error:
            self.outcomes[candidate.execution_id] = error
            return True
        if earlier is not None:
            self.outcomes[candidate.execution_id] = earlier
            return True
        idempotency.remember(connection, request, candidate.answer)
        return False
