"""A database as an `Administration`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from sqlalchemy import Connection, Row

from tachograph.clock import NS
from tachograph_exporter.cli.common import fail
from tachograph_exporter.expectations.silencing import read_silence, silence_info
from tachograph_exporter.expectations.views import notice_info
from tachograph_exporter.store import notices as notice_rows
from tachograph_exporter.store import silences as silence_rows
from tachograph_exporter.store import tokens as token_rows
from tachograph_exporter.store import workspaces as workspace_rows
from tachograph_exporter.store.database import Database
from tachograph_exporter.views.schemas.expectations import NoticeInfo
from tachograph_exporter.views.schemas.silences import NewSilence, SilenceInfo
from tachograph_exporter.views.schemas.workspaces import ProjectInfo, TokenInfo, WorkspaceInfo
from tachograph_exporter.views.workspaces import project_info, token_info, workspace_info

_OPTIONS: Final = {"duration": "--for", "until": "--until", "kind": "--kind", "severity": "--severity"}


class DatabaseAdministration:
    """See `Administration`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def notices(self, workspace: str | None, limit: int, *, is_open: bool) -> Sequence[NoticeInfo]:
        """See `Administration`."""

        def work(connection: Connection) -> list[NoticeInfo]:
            workspace_id = _workspace(connection, workspace).id if workspace is not None else None
            rows = notice_rows.listed(connection, workspace_id, is_open=is_open, limit=limit)
            return [notice_info(*row) for row in rows]

        return self._database.look(work)

    def silences(self, *, with_ended: bool) -> Sequence[SilenceInfo]:
        """See `Administration`."""
        now_ns = time.time_ns()
        rows = self._database.look(lambda c: silence_rows.listed_silences(c, None, now_ns, with_ended=with_ended))
        return [silence_info(row, now_ns) for row in rows]

    def add_silence(self, asked: NewSilence, workspace: str | None) -> SilenceInfo:
        """See `Administration`."""
        now_ns = time.time_ns()

        def work(connection: Connection) -> SilenceInfo:
            workspace_id = _workspace(connection, workspace).id if workspace is not None else None
            entry, faults = read_silence(asked, workspace_id, asked.created_by or "", now_ns)
            if entry is None:
                fail("; ".join(f"{_OPTIONS.get(fault.at, fault.at)}: {fault.message}" for fault in faults))
            if not silence_rows.add_silence(connection, entry, now_ns):
                fail(f"there are {silence_rows.MAX_SILENCES} silences already; end some with `tachograph notices "
                     "unsilence ID`")  # fmt: skip
            rows = silence_rows.listed_silences(connection, None, now_ns)
            return next(silence_info(row, now_ns) for row in rows if row.id == entry.id)

        return self._database.run(work)

    def end_silence(self, silence_id: str) -> bool:
        """See `Administration`."""
        return self._database.run(lambda c: silence_rows.end_silence(c, silence_id, time.time_ns()))

    def tokens(self) -> Sequence[TokenInfo]:
        """See `Administration`."""
        now_ns = time.time_ns()
        return self._database.look(lambda c: [token_info(row, now_ns) for row in token_rows.tokens(c)])

    def create_token(
        self, name: str, scopes: list[str], workspace: str | None, expires_seconds: float | None
    ) -> tuple[str, str]:
        """See `Administration`."""
        expires_ns = time.time_ns() + round(expires_seconds * NS) if expires_seconds is not None else None

        def work(connection: Connection) -> tuple[str, str]:
            owner = _workspace(connection, workspace).id if workspace is not None else None
            return token_rows.create_token(
                connection, name=name, scopes=scopes, workspace_id=owner, expires_ns=expires_ns
            )

        return self._database.run(work)

    def revoke_token(self, token_id: str) -> bool:
        """See `Administration`."""
        return self._database.run(lambda c: token_rows.revoke_token(c, token_id))

    def workspaces(self) -> Sequence[WorkspaceInfo]:
        """See `Administration`."""
        return self._database.look(lambda c: [workspace_info(row) for row in workspace_rows.list_workspaces(c)])

    def create_workspace(self, slug: str, name: str | None) -> WorkspaceInfo:
        """See `Administration`."""
        row = self._database.run(lambda c: workspace_rows.create_workspace(c, slug, time.time_ns(), name))
        if row is None:
            fail(f'workspace "{slug}" already exists')
        return workspace_info(row)

    def projects(self, workspace: str) -> Sequence[ProjectInfo]:
        """See `Administration`."""

        def work(connection: Connection) -> list[ProjectInfo]:
            rows = workspace_rows.list_projects(connection, _workspace(connection, workspace).id)
            return [project_info(row) for row in rows]

        return self._database.look(work)

    def create_project(self, workspace: str, slug: str, name: str | None) -> None:
        """See `Administration`."""

        def work(connection: Connection) -> None:
            owner = _workspace(connection, workspace)
            if workspace_rows.create_project(connection, owner.slug, slug, time.time_ns(), name) is None:
                fail(f'project "{slug}" already exists in workspace "{workspace}"')

        self._database.run(work)


def _workspace(connection: Connection, workspace: str) -> Row[tuple[str, str]]:
    row = workspace_rows.find_workspace(connection, workspace)
    if row is None:
        fail(f'no workspace "{workspace}"; create it with: tachograph workspaces create {workspace}')
    return row
