"""What a notice says: for people, and as JSON for webhooks."""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from tachograph.clock import NS
from tachograph_exporter.expectations.findings import KINDS
from tachograph_exporter.store.notices import RECOVERED
from tachograph_exporter.times import rfc3339, rfc3339_or_none

TEST: Final = "test"
MAX_TEXT: Final = 4_000
_CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_MENTION: Final = re.compile(r"[@!](?=(?:everyone|here|channel|all|subteam)\b)|<(?=[@!#&])", re.IGNORECASE)


class NoticeData(msgspec.Struct, kw_only=True):
    """A notice in a message. Times are RFC 3339; ``link`` leads to the execution, or to the workflow."""

    id: str
    workspace: str
    workflow: str
    kind: str
    severity: str
    text: str
    since: str
    recovered_at: str | None = None
    recovery: str | None = None
    execution_id: str | None = None
    link: str | None = None


class NoticeMessage(msgspec.Struct, kw_only=True):
    """The body of a webhook. ``type`` is ``notice.opened``, ``notice.recovered`` or ``notice.test``."""

    type: str
    timestamp: str
    data: NoticeData

    @property
    def title(self) -> str:
        """One line for people."""
        data = self.data
        name = _CONTROLS.sub(" ", _harmless(data.workflow))
        where = name if data.workspace == "default" else f"{name} ({data.workspace})"
        if self.type == f"notice.{RECOVERED}":
            return f"✔ {where} has recovered"
        if self.type == f"notice.{TEST}":
            return "A test of Tachograph's notices"
        return f"{'✖' if data.severity == 'critical' else '⚠'} {where}: {KINDS.get(data.kind, data.kind)}"

    @property
    def text(self) -> str:
        """What happened, since when, and where to look."""
        data = self.data
        parts = [data.text]
        if data.recovered_at is not None and self.type == f"notice.{RECOVERED}":
            parts = [data.recovery or "It no longer holds.", f"It was: {data.text}"]
        parts.append(f"Since {data.since}" + (f" until {data.recovered_at}." if data.recovered_at else "."))
        if data.link:
            parts.append(data.link)
        return _harmless("\n".join(parts)[:MAX_TEXT])


def _harmless(text: str) -> str:
    """A text that calls nobody: chats read ``@everyone``, ``<!channel>`` and the like also in names and errors."""
    return _MENTION.sub("\\g<0>\N{WORD JOINER}", text)


def message_of(row: Any, link: str, now_ns: int) -> NoticeMessage:
    """The message about a notice (a row of `store.notices.due`); ``link``: the address of the service."""
    is_over = row.phase == RECOVERED
    workspace = row.workspace or ""
    return NoticeMessage(
        type=f"notice.{row.phase}",
        timestamp=rfc3339(now_ns),
        data=NoticeData(
            id=row.notice_id,
            workspace=workspace,
            workflow=row.workflow,
            kind=row.kind,
            severity=row.severity,
            text=row.text,
            since=rfc3339(row.opened_ns),
            recovered_at=rfc3339_or_none(row.resolved_ns) if is_over else None,
            recovery=(row.recovery or None) if is_over else None,
            execution_id=row.execution_id or None,
            link=f"{link}/#/executions/{row.execution_id}" if link and row.execution_id else link or None,
        ),
    )


def message_of_test(link: str, now_ns: int) -> NoticeMessage:
    """A message to see that messages arrive."""
    return NoticeMessage(
        type=f"notice.{TEST}",
        timestamp=rfc3339(now_ns),
        data=NoticeData(
            id=f"test-{now_ns // NS}", workspace="default", workflow="test", kind=TEST, severity="info",
            text="This is a test. If you can read it, notices will reach you.", since=rfc3339(now_ns),
            link=link or None,
        ),
    )  # fmt: skip
