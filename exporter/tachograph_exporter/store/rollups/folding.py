"""Rollups brought up to date with the executions of a commit."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import Connection

from tachograph_exporter.store.rollups.counting import Ended, Key, count, ended
from tachograph_exporter.store.rollups.rows import RollupRows
from tachograph_exporter.store.totals import WorkflowTotals


def fold(connection: Connection, before: Mapping[str, Ended], ids: Iterable[str]) -> None:
    """Bring the rollups up to date with executions whose rows were written.

    ``before``: those among them that had ended already, as they were. What was added is added. Where something that
    was counted has changed (a run given up as lost that ended after all), the rows it is in are made anew from the
    executions.
    """
    added: dict[Key, dict[int, WorkflowTotals]] = defaultdict(lambda: defaultdict(WorkflowTotals))
    stale: dict[Key, set[int]] = defaultdict(set)
    count(connection, [one for one in ids if one not in before], lambda key, bucket: added[key][bucket])
    after = ended(connection, before) if before else {}
    for execution_id, old in before.items():
        now = after.get(execution_id)
        if now is None:
            stale[old.key].add(old.bucket)
            continue
        if old == now:
            continue
        if old.execution == now.execution and _is_part(old.steps, now.steps) and _is_part(old.reports, now.reports):
            pack = added[now.key][now.bucket]
            for step_id, step in now.steps.items():
                if step_id not in old.steps:
                    pack.add_step(*step, now.execution.status)
            for name, report in now.reports.items():
                if name not in old.reports:
                    pack.add_report(report)
        else:
            stale[old.key].add(old.bucket)
            if (now.key, now.bucket) != (old.key, old.bucket):
                now.add_to(added[now.key][now.bucket])
    for key in added.keys() | stale.keys():
        book = RollupRows(connection, key)
        for bucket, pack in sorted(added.get(key, {}).items()):
            book.add(bucket, pack)
        if key in stale:
            book.correct(stale[key])
        book.close()


def _is_part(old: Mapping[Any, Any], new: Mapping[Any, Any]) -> bool:
    return all(new.get(key) == value for key, value in old.items())
