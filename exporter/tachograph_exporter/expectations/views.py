"""What the API shows of expectations and notices."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row

from tachograph_exporter.expectations.evaluation import Evaluation, evaluate
from tachograph_exporter.expectations.history import History
from tachograph_exporter.expectations.reading import Expectations, Expected, read_history
from tachograph_exporter.store import expectations as expectation_rows
from tachograph_exporter.store import facts
from tachograph_exporter.store.rollups.counting import Key
from tachograph_exporter.times import rfc3339, rfc3339_or_none
from tachograph_exporter.views.schemas.expectations import (
    DeliveryInfo,
    ExpectedOf,
    FindingInfo,
    NoticeInfo,
    WorkflowExpectation,
)


def expectation_info(expected: Expected, workflow_id: str | None, evaluation: Evaluation) -> WorkflowExpectation:
    """What is expected of a workflow, and whether it holds."""
    limits = expected.limits
    fields = {name: getattr(limits, name) for name in ExpectedOf.__struct_fields__ if name != "steps"}
    steps = {name: step.deadline_seconds for name, step in limits.steps.items() if step.deadline_seconds is not None}
    current = [finding for finding in evaluation.findings if finding.until_ns is None]
    state = "paused" if limits.is_paused else current[0].kind if current else "ok"
    return WorkflowExpectation(
        workspace_id=expected.workspace_id,
        workflow=expected.workflow,
        workflow_id=workflow_id,
        state=state,
        schedule_text=evaluation.schedule.text if evaluation.schedule is not None else None,
        schedule_source=expected.schedule_source,
        expected_start_at=rfc3339_or_none(evaluation.expected_start_ns),
        expected=ExpectedOf(**fields, steps=steps),
        said=dict(expected.said),
        findings=[
            FindingInfo(kind=f.kind, severity=f.severity, text=f.text, since=rfc3339(f.since_ns),
                        execution_id=f.execution_id or None)
            for f in current
        ],
    )  # fmt: skip


def workflow_places(
    connection: Connection, workspace_id: str, own_workspace_id: str
) -> tuple[Expectations, list[tuple[str, Key | None]]]:
    """What is said in a workspace, and its workflows by name, each with its key if it has a row.

    ``own_workspace_id``: the service's own workspace, in which workflows are expected that only a file knows.
    """
    expectations = Expectations(expectation_rows.said(connection, workspace_id))
    places: dict[str, Key | None] = {entry.name: entry.key for entry in facts.workflow_names(connection, workspace_id)}
    elsewhere = (
        {entry.name for entry in facts.workflow_names(connection)} if workspace_id == own_workspace_id else set()
    )
    for place, name in expectations.names():
        if place == workspace_id or (workspace_id == own_workspace_id and name not in elsewhere):
            places.setdefault(name, None)
    return expectations, sorted(places.items())


def read_expectation_info(
    connection: Connection, expected: Expected, key: Key | None, running: dict[Key, list[Row[Any]]], now_ns: int
) -> WorkflowExpectation:
    """What is expected of a workflow, and whether it holds now."""
    history = History()
    if key is not None:
        history = read_history(connection, key, expected.limits, running.get(key, ()), now_ns)
    evaluation = evaluate(expected.limits, history, now_ns, now_ns, known_ns=expected.known_ns)
    return expectation_info(expected, key[1] if key is not None else None, evaluation)


def read_workflow_expectation(connection: Connection, workspace_id: str, name: str) -> WorkflowExpectation:
    """What is expected of one workflow of a workspace (an id), and whether it holds now."""
    expectations, places = workflow_places(connection, workspace_id, workspace_id)
    key = dict(places).get(name)
    running = facts.open_executions(connection) if key is not None else {}
    return read_expectation_info(connection, expectations.of(workspace_id, name), key, running, time.time_ns())


def notice_info(row: Row[Any], messages: Sequence[Row[Any]]) -> NoticeInfo:
    """A notice with what became of its messages."""
    return NoticeInfo(
        id=row.id,
        workspace=row.workspace or "",
        workflow=row.workflow,
        kind=row.kind,
        severity=row.severity,
        text=row.text,
        since=rfc3339(row.opened_ns),
        told_at=rfc3339(row.told_ns),
        recovered_at=rfc3339_or_none(row.resolved_ns),
        recovery=row.recovery or None,
        execution_id=row.execution_id,
        silence_id=row.silence_id,
        deliveries=[
            DeliveryInfo(phase=m.phase, receiver=m.target, state=m.state, tries=m.tries,
                         changed_at=rfc3339(m.changed_ns), reason=m.reason or None)
            for m in messages
        ],
    )  # fmt: skip
