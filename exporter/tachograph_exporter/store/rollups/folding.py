"""Bringing the rollups up to date with the executions of a commit."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import Connection

from tachograph_exporter.store.rollups.counting import (
    EndedExecution,
    Key,
    Observer,
    count,
    ended_executions,
)
from tachograph_exporter.store.rollups.fresh import NOTHING_FRESH, Fresh
from tachograph_exporter.store.rollups.rows import RollupRows
from tachograph_exporter.store.totals import PackedTotals


def fold(
    connection: Connection,
    before: Mapping[str, EndedExecution],
    ids: Iterable[str],
    observer: Observer | None = None,
    fresh: Fresh = NOTHING_FRESH,
) -> None:
    """Bring the rollups up to date with executions whose rows were written.

    ``before``: those of them that had already ended, as they were counted. What is new is added. If something already
    counted has changed (an execution given up as lost that ended after all), the rows it is in are counted again from
    the executions. ``observer``: sees the rows of all of them that have ended, as they are now.
    ``fresh``: those of ``ids`` that need not be read.
    """
    added: dict[Key, dict[int, PackedTotals]] = defaultdict(lambda: defaultdict(PackedTotals))
    stale: dict[Key, set[int]] = defaultdict(set)
    newly_ended = [execution_id for execution_id in ids if execution_id not in before]
    count(connection, newly_ended, lambda key, bucket: added[key][bucket], observer, fresh)
    after = ended_executions(connection, before, observer) if before else {}
    for execution_id, old in before.items():
        new = after.get(execution_id)
        if new is None:
            stale[old.key].add(old.bucket)
            continue
        if old == new:
            continue
        is_same = old.key == new.key and old.execution == new.execution
        if is_same and _is_part(old.steps, new.steps) and _is_part(old.reports, new.reports):
            totals = added[new.key][new.bucket]
            for step_id, step in new.steps.items():
                if step_id not in old.steps:
                    totals.add_step(*step, new.execution.status)
            for report_id, report in new.reports.items():
                if report_id not in old.reports:
                    totals.add_report(report)
        else:
            stale[old.key].add(old.bucket)
            if (new.key, new.bucket) != (old.key, old.bucket):
                new.add_to(added[new.key][new.bucket])
    for key in added.keys() | stale.keys():
        rows = RollupRows(connection, key)
        for bucket, totals in sorted(added.get(key, {}).items()):
            rows.add(bucket, totals)
        if key in stale:
            rows.recount(stale[key])
        rows.close()


def _is_part(old: Mapping[Any, Any], new: Mapping[Any, Any]) -> bool:
    return all(new.get(key) == value for key, value in old.items())
