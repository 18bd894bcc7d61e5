"""What to tell: the difference between what was told and what was found, each fault once, and its recovery once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from tachograph_exporter.expectations.findings import OVERDUE, STUCK, Finding

_MANY: Final = frozenset({OVERDUE, STUCK})
"""Kinds of which several may overlap, one for an execution: they are told as one."""


class Told(NamedTuple):
    """What has been told of a workflow. Times are unix nanoseconds."""

    id: str
    kind: str
    key: str
    opened_ns: int
    resolved_ns: int | None


class Recovery(NamedTuple):
    """Something that was told is over since a moment."""

    told: Told
    until_ns: int
    text: str
    execution_id: str | None = None


class Transitions(NamedTuple):
    """What to tell: new findings (those with an end have recovered already), and recoveries of what was told."""

    opened: Sequence[Finding]
    recovered: Sequence[Recovery]


def transitions(told: Sequence[Told], findings: Sequence[Finding], now_ns: int) -> Transitions:
    """What is new about a workflow.

    ``told``: all that is open, and the newest that are not. A finding whose key has been told is not told again.
    """
    opened: list[Finding] = []
    recovered: list[Recovery] = []
    kinds = {finding.kind for finding in findings} | {entry.kind for entry in told if entry.resolved_ns is None}
    for kind in sorted(kinds):
        entries = [entry for entry in told if entry.kind == kind]
        known = {entry.key for entry in entries}
        current = next((e for e in entries if e.resolved_ns is None), None)
        over = [finding for finding in findings if finding.kind == kind and finding.until_ns is not None]
        lasting = min(
            (finding for finding in findings if finding.kind == kind and finding.until_ns is None),
            key=lambda finding: finding.since_ns, default=None,
        )  # fmt: skip
        if current is not None:
            ended = next((finding for finding in over if finding.key == current.key), None)
            if ended is None and kind in _MANY:
                # What was told of a step went on as that of its execution.
                ended = next((f for f in over if f.execution_id == current.key.partition("/")[0]), None)
            # What began later than now began before the clock was set back: nothing says yet that it is over.
            is_ahead = ended is None and lasting is None and current.opened_ns > now_ns
            if not is_ahead and not _goes_on(kind, ended, lasting):
                until = (ended.until_ns if ended is not None else None) or now_ns
                text = ended.recovery if ended is not None else ""
                last = ended.execution_id if ended is not None else None
                recovered.append(Recovery(current, max(until, current.opened_ns), text, last))
            elif lasting is not None:
                known.add(lasting.key)
        for finding in over:
            if finding.key not in known and not (kind in _MANY and _is_part_of(finding, entries)):
                opened.append(finding)
                known.add(finding.key)
        if lasting is not None and lasting.is_certain and lasting.key not in known:
            opened.append(lasting)
    return Transitions(opened, recovered)


def open_kinds(told: Sequence[Told], change: Transitions) -> frozenset[str]:
    """The kinds of what is told and not over, after a change."""
    over = {recovery.told.id for recovery in change.recovered}
    before = {entry.kind for entry in told if entry.resolved_ns is None and entry.id not in over}
    return frozenset(before | {finding.kind for finding in change.opened if finding.until_ns is None})


def _goes_on(kind: str, ended: Finding | None, lasting: Finding | None) -> bool:
    """Whether what was told still holds: by itself, or because another execution took over before it ended."""
    if lasting is None:
        return False
    return ended is None or (kind in _MANY and lasting.since_ns <= (ended.until_ns or 0))


def _is_part_of(finding: Finding, told: Sequence[Told]) -> bool:
    """Whether a finding overlaps with what was told of the same kind."""
    end = finding.until_ns or finding.since_ns
    return any(
        entry.opened_ns <= end and (entry.resolved_ns is None or entry.resolved_ns >= finding.since_ns)
        for entry in told
    )
