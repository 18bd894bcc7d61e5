"""What is administrated in a database, or by asking the service that has it: notices, silences, tokens, workspaces.

`open_administration` chooses; a command asks the `Administration` and never knows which it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from tachograph_exporter.cli.common import open_database, report_errors
from tachograph_exporter.cli.opening import chosen

if TYPE_CHECKING:
    from tachograph_exporter.views.schemas.expectations import NoticeInfo
    from tachograph_exporter.views.schemas.silences import NewSilence, SilenceInfo
    from tachograph_exporter.views.schemas.workspaces import ProjectInfo, TokenInfo, WorkspaceInfo


class Administration(Protocol):
    """A database, or a service. Each method prints an error and exits if it cannot do what it should.

    ``workspace`` is a slug or id; None: all workspaces.
    """

    def notices(self, workspace: str | None, limit: int, *, is_open: bool) -> Sequence[NoticeInfo]:
        """The newest notices."""

    def silences(self, *, with_ended: bool) -> Sequence[SilenceInfo]:
        """The silences of all workspaces, the first to end first."""

    def add_silence(self, asked: NewSilence, workspace: str | None) -> SilenceInfo:
        """Add a silence."""
        ...

    def end_silence(self, silence_id: str) -> bool:
        """End a silence; False if there is none with this id."""
        ...

    def tokens(self) -> Sequence[TokenInfo]:
        """The tokens, the newest first."""

    def create_token(
        self, name: str, scopes: list[str], workspace: str | None, expires_seconds: float | None
    ) -> tuple[str, str]:
        """(id, secret) of a new token."""

    def revoke_token(self, token_id: str) -> bool:
        """Revoke a token; False if there is none with this id."""
        ...

    def workspaces(self) -> Sequence[WorkspaceInfo]:
        """The workspaces, by slug."""

    def create_workspace(self, slug: str, name: str | None) -> WorkspaceInfo:
        """Create a workspace."""
        ...

    def projects(self, workspace: str) -> Sequence[ProjectInfo]:
        """The projects of a workspace, by slug."""

    def create_project(self, workspace: str, slug: str, name: str | None) -> None:
        """Create a project."""


@contextlib.contextmanager
def open_administration(database: str | None, url: str | None, *, must_exist: bool = True) -> Iterator[Administration]:
    """What options and environment name. Its errors end the command. ``must_exist``: a missing SQLite file is one."""
    path, address = chosen(database, url)
    with report_errors():
        if address is not None:
            # Who asks a service needs no database, and the other way round.
            from tachograph_exporter.cli.service_administration import ServiceAdministration

            yield ServiceAdministration(address)
            return
        with open_database(path, must_exist=must_exist) as store:
            from tachograph_exporter.cli.database_administration import DatabaseAdministration

            yield DatabaseAdministration(store)
