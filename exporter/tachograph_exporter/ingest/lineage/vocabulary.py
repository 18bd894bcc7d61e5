"""The attributes of spans that stand for OpenLineage runs, and the rules that read them.

Such spans are made here (see `translation`), whatever the engine: they say of a run what execution it belongs to, which
step and which try it is, and what it waited for.
"""

from __future__ import annotations

import itertools
from typing import Final

from tachograph_exporter.ingest.rules import RETRYING, Links, Role, Rule, attribute

SCOPE: Final = "openlineage"
"""The instrumentation scope of these spans."""
RUN: Final = "openlineage.run.id"
JOB: Final = "openlineage.job.name"
NAMESPACE: Final = "openlineage.job.namespace"
JOB_TYPE: Final = "openlineage.job.type"
NOMINAL: Final = "openlineage.run.nominal_start"
"""When it was scheduled to start."""
EXECUTION: Final = "openlineage.execution.id"
"""The run that is the execution which the span belongs to."""
WORKFLOW: Final = "openlineage.workflow"
"""The name of the execution's workflow."""
STEP: Final = "openlineage.step"
"""The key of the step, the same for all its tries."""
STEP_NAME: Final = "openlineage.step.name"
STEP_INDEX: Final = "openlineage.step.index"
TRY: Final = "openlineage.step.try"
READY: Final = "openlineage.step.ready"
"""When the try was queued, in unix nanoseconds, if a span of the engine says so."""
KEY: Final = "openlineage.engine.key"
"""The key of the run by its engine's own id, by which spans of the engine find it (see `keys`)."""
STATE: Final = "openlineage.state"
"""How it ended, in the engine's word."""
TRAITS: Final = "openlineage.traits"
"""Letters: see `KNOWN_EDGES`, `ROOTLESS`."""
KNOWN_EDGES: Final = "e"
"""Its links are all that the step waited for."""
ROOTLESS: Final = "o"
"""No event of its execution's own run has arrived."""
SKIPPED_ITSELF: Final = "skipped_itself"
"""The state of a try that ran, and was skipped by its own decision."""

STATES: Final = {
    "complete": "completed", "success": "completed", "completed": "completed",
    "fail": "failed", "failed": "failed", "up_for_retry": RETRYING, "error": "failed",
    "abort": "cancelled", "cancelled": "cancelled", "lost": "lost", "timeout": "timeout",
    "skipped": "skipped", "upstream_failed": "skipped", "removed": "skipped", "not_started": "skipped",
    SKIPPED_ITSELF: "skipped",
}  # fmt: skip
"""Statuses by OpenLineage's event types and by engines' words."""


def traits(*, has_edges: bool, is_rootless: bool) -> str:
    """The value of `TRAITS`."""
    return KNOWN_EDGES * has_edges + ROOTLESS * is_rootless


def _step_rule(letters: str) -> Rule:
    links = Links.COMPLETE if KNOWN_EDGES in letters else Links.UNKNOWN
    return Rule(
        engine=SCOPE, role=Role.STEP, equals={TRAITS: letters}, name=attribute(STEP_NAME), workflow=attribute(WORKFLOW),
        run_id=attribute(EXECUTION), key=attribute(STEP), attempt=attribute(TRY), index=attribute(STEP_INDEX),
        ready=attribute(READY), state=attribute(STATE), states=STATES, links=links, lasting=ROOTLESS in letters,
    )  # fmt: skip


LINEAGE_RULES: Final = (
    Rule(engine=SCOPE, role=Role.EXECUTION, has=(EXECUTION,), lacks=(STEP,), name=attribute(WORKFLOW),
         run_id=attribute(EXECUTION), state=attribute(STATE), states=STATES),
    *[_step_rule(traits(has_edges=e, is_rootless=o)) for e, o in itertools.product((False, True), repeat=2)],
)  # fmt: skip
