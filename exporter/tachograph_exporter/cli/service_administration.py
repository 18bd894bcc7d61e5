"""A service as an `Administration`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeVar

import msgspec

from tachograph_exporter.cli.service_client import NotFound, ServiceClient, quoted
from tachograph_exporter.views.schemas.expectations import NoticeInfo, ReceiverTest, ReceiverTests
from tachograph_exporter.views.schemas.silences import NewSilence, SilenceInfo
from tachograph_exporter.views.schemas.workspaces import ProjectInfo, TokenInfo, WorkspaceInfo

T = TypeVar("T")

_PAGE: Final = 200
_DAY_SECONDS: Final = 86_400.0


class ServiceAdministration(ServiceClient):
    """See `Administration`."""

    def __init__(self, url: str) -> None:
        super().__init__(url, None)

    def notices(self, workspace: str | None, limit: int, *, is_open: bool) -> Sequence[NoticeInfo]:
        """See `Administration`."""
        items: list[NoticeInfo] = []
        asked = {"open": "true"} if is_open else {}
        for slug in self._slugs(workspace):
            items += self._items("/api/notices", NoticeInfo, {**asked, "workspace_slug": slug}, limit)
        items.sort(key=lambda notice: (notice.told_at, notice.id), reverse=True)
        return items[:limit]

    def test_receivers(self, receiver: str | None) -> Sequence[ReceiverTest]:
        """Have the service send a test message to its receivers, or to one of them."""
        asked = {} if receiver is None else {"receiver": receiver}
        return self._read(self._found("/api/notices/test", asked, "POST"), ReceiverTests).receivers

    def silences(self, *, with_ended: bool) -> Sequence[SilenceInfo]:
        """See `Administration`."""
        asked = {"ended": "true"} if with_ended else {}
        silences: dict[str, SilenceInfo] = {}
        for slug in self._slugs(None):
            # What counts in all workspaces is listed in each.
            of_workspace = self._items("/api/silences", SilenceInfo, {**asked, "workspace_slug": slug})
            silences |= {silence.id: silence for silence in of_workspace}
        return sorted(silences.values(), key=lambda silence: (silence.is_over, silence.until, silence.id))

    def add_silence(self, asked: NewSilence, workspace: str | None) -> SilenceInfo:
        """See `Administration`."""
        body = {name: value for name, value in msgspec.structs.asdict(asked).items() if value is not None}
        parameters = {"workspace_slug": self._slugs(workspace)[0]} if workspace is not None else {}
        body["all_workspaces"] = workspace is None
        return self._read(self._found("/api/silences", parameters, "POST", body), SilenceInfo)

    def end_silence(self, silence_id: str) -> bool:
        """See `Administration`."""
        for slug in self._slugs(None):
            try:
                self._get(f"/api/silences/{quoted(silence_id)}", {"workspace_slug": slug}, "DELETE")
            except NotFound:
                continue
            return True
        return False

    def tokens(self) -> Sequence[TokenInfo]:
        """See `Administration`."""
        return self._items("/api/tokens", TokenInfo)

    def create_token(
        self, name: str, scopes: list[str], workspace: str | None, expires_seconds: float | None
    ) -> tuple[str, str]:
        """See `Administration`."""
        body: dict[str, Any] = {"name": name, "scopes": scopes}
        if workspace is not None:
            body["workspace"] = workspace
        if expires_seconds is not None:
            body["expires_in_days"] = expires_seconds / _DAY_SECONDS
        answer = self._found("/api/tokens", {}, "POST", body)
        return str(answer["id"]), str(answer["token"])

    def revoke_token(self, token_id: str) -> bool:
        """See `Administration`."""
        try:
            self._get(f"/api/tokens/{quoted(token_id)}", {}, "DELETE")
        except NotFound:
            return False
        return True

    def workspaces(self) -> Sequence[WorkspaceInfo]:
        """See `Administration`."""
        return self._items("/api/workspaces", WorkspaceInfo)

    def create_workspace(self, slug: str, name: str | None) -> WorkspaceInfo:
        """See `Administration`."""
        return self._read(self._found("/api/workspaces", {}, "POST", _new(slug, name)), WorkspaceInfo)

    def projects(self, workspace: str) -> Sequence[ProjectInfo]:
        """See `Administration`."""
        return self._items(f"/api/workspaces/{quoted(workspace)}/projects", ProjectInfo)

    def create_project(self, workspace: str, slug: str, name: str | None) -> None:
        """See `Administration`."""
        self._found(f"/api/workspaces/{quoted(workspace)}/projects", {}, "POST", _new(slug, name))

    def _slugs(self, workspace: str | None) -> list[str]:
        """The slug of a workspace, named by slug or id; None: those of all that the token may see."""
        if workspace is None:
            return [info.slug for info in self.workspaces()]
        return [self._read(self._found(f"/api/workspaces/{quoted(workspace)}"), WorkspaceInfo).slug]

    def _items(self, path: str, kind: type[T], parameters: Mapping[str, str] = {}, limit: int | None = None) -> list[T]:
        """The first items of a list, or all of them."""
        items: list[T] = []
        while True:
            asked = _PAGE if limit is None else min(_PAGE, limit - len(items))
            page = self._found(path, {**parameters, "skip": str(len(items)), "limit": str(asked)})
            items += [self._read(item, kind) for item in page["items"]]
            if len(page["items"]) < asked or (limit is not None and len(items) >= limit):
                return items


def _new(slug: str, name: str | None) -> dict[str, str]:
    return {"slug": slug, **({"name": name} if name is not None else {})}
