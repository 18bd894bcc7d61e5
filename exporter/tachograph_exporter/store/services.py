"""Which service runs a workflow."""

from __future__ import annotations

from typing import Final, NamedTuple

from sqlalchemy import Connection, select

from tachograph_exporter.store.merging import INGESTED_PROCESS
from tachograph_exporter.store.schema import rollup_heads, traces, workflow_definitions, workflow_executions

MAX_WORKFLOWS: Final = 500
"""Workflows looked at, those first that ended something last."""

_executions = workflow_executions.c


class ServiceWorkflow(NamedTuple):
    """A workflow and the service of its newest execution's root span; None for one recorded here."""

    workflow_id: str
    name: str
    service: str | None


def active_workflows(connection: Connection, workspace_id: str, since_s: int) -> list[ServiceWorkflow]:
    """The workflows of a workspace of which executions ended since a moment (unix seconds)."""
    heads, definitions = rollup_heads.c, workflow_definitions.c
    statement = (
        select(heads.workflow_id, definitions.name)
        .join(workflow_definitions, definitions.id == heads.workflow_id)
        .where(heads.workspace_id == workspace_id, heads.head_s >= since_s)
        .order_by(heads.head_s.desc(), definitions.name)
        .limit(MAX_WORKFLOWS)
    )
    workflows = []
    for workflow_id, name in connection.execute(statement).all():
        newest = connection.execute(
            select(_executions.trace_id, _executions.process)
            .where(_executions.workspace_id == workspace_id, _executions.workflow_id == workflow_id)
            .order_by(_executions.created_ns.desc())
            .limit(1)
        ).first()
        service = None
        if newest is not None and newest.process == INGESTED_PROCESS:
            service = connection.execute(
                select(traces.c.root_service).where(
                    traces.c.workspace_id == workspace_id, traces.c.trace_id == newest.trace_id
                )
            ).scalar()
        workflows.append(ServiceWorkflow(workflow_id, name, service))
    return workflows
