"""Asking the processes of a run what they do now: by a row that the answers to their heartbeats are read from."""

from __future__ import annotations

import time
from typing import Final

from sqlalchemy import Connection

from tachograph.identity import new_id
from tachograph_exporter.store import locking, stacks
from tachograph_exporter.views.stacks import Request, answers_of, is_open

WAIT_SECONDS: Final = 5.0
"""How long an answer is waited for: heartbeats come every two seconds."""
REST_SECONDS: Final = 2.0
"""How long other processes of the run are waited for, once one has answered: children and workers ask every second."""
POLL_SECONDS: Final = 0.1


class Asking:
    """One request for the stacks of an execution of a workspace (an id): ask, then look until it `is_done`."""

    def __init__(self, workspace: str, execution_id: str) -> None:
        self._workspace = workspace
        self.execution_id = execution_id
        self.id = new_id()
        self._until = time.monotonic() + WAIT_SECONDS
        self._told = self._running = 0
        self.is_done = False

    def is_open(self, connection: Connection) -> bool:
        """Whether the execution runs. Raises `ExecutionNotFound` and `ArchiveError`."""
        return is_open(connection, self._workspace, self.execution_id)

    def ask(self, connection: Connection) -> None:
        """Ask, on a connection that writes."""
        locking.lock(connection)
        stacks.ask(connection, self.execution_id, self.id, time.time_ns())

    def look(self, connection: Connection) -> None:
        """See who has answered."""
        told, self._running = answers_of(connection, self.execution_id, self.id)
        now = time.monotonic()
        if told > self._told:
            self._told = told
            self._until = min(self._until, now + REST_SECONDS)
        self.is_done = self._told >= self._running or now >= self._until

    @property
    def request(self) -> Request:
        """What came of it."""
        return Request(self.id, self._told > 0, self._running > 0)
