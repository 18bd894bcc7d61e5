"""What processes on this machine spooled for this service while it was away: it delivers that to itself."""

from __future__ import annotations

import logging
import socket
from collections.abc import Sequence
from functools import partial
from typing import Final

from sqlalchemy import Connection

from tachograph.events import Event
from tachograph.quiet_log import QuietLog
from tachograph.recording.spool import Spool
from tachograph_exporter.config import Config
from tachograph_exporter.ingest.recorded_events import EventReceiver, in_workspace
from tachograph_exporter.store import workspaces
from tachograph_exporter.store.database import Database

quiet = QuietLog(logging.getLogger(__name__))

_SPOOLED: Final = "spool"


class Neighbours:
    """The spools of processes that know this service by an address of this machine.

    Only those of its own user are read, or for root those of the directory that root's processes spool into.
    """

    def __init__(self, receiver: EventReceiver, database: Database, config: Config) -> None:
        self._receiver = receiver
        self._database = database
        self._default = config.workspace
        names = {"127.0.0.1", "localhost", "[::1]", socket.gethostname(), config.host}
        # Behind a proxy, clients know another address: they deliver themselves.
        self._spools = [Spool(f"{config.scheme}://{name}:{config.port}") for name in sorted(names)]

    def deliver(self, seconds: float) -> int:
        """Store what was spooled, for at most about this long; returns the number of events."""
        return sum(
            spool.deliver(self._apply, seconds=seconds, apply_batch=self._apply_batch)
            for spool in self._spools
            if not spool.is_empty
        )

    def _apply(self, events: Sequence[Event]) -> None:
        self._apply_batch(_SPOOLED, 0, events)

    def _apply_batch(self, sender: str, sequence: int, events: Sequence[Event]) -> None:
        by_workspace: dict[str, list[tuple[int, Event]]] = {}
        for index, event in enumerate(events):
            by_workspace.setdefault(event.execution.workspace, []).append((index, event))
        for name, own in by_workspace.items():
            workspace_id, slug = self._database.look(partial(self._workspace, name=name))
            placed = [(index, in_workspace(event, slug)) for index, event in own]
            stored = self._receiver.submit(workspace_id, slug, sender, sequence, placed).result()
            for reason in stored.refused.values():
                quiet.warning(reason, "a spooled event was refused: %s", reason)

    def _workspace(self, connection: Connection, name: str) -> tuple[str, str]:
        """(id, slug) of the workspace that a sender named, or of the service's own: the sender may mean that."""
        row = workspaces.workspace(connection, identifier=None, slug=name)
        if row is None:
            row = workspaces.workspace(connection, identifier=None, slug=self._default)
        assert row is not None  # noqa: S101 - the service made it when it started
        return str(row.id), str(row.slug)
