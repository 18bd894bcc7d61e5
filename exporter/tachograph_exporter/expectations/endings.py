"""The end of an execution or a step that took too long and is not found by what is usual now, as it is stored."""

from __future__ import annotations

from sqlalchemy import Connection

from tachograph_exporter.expectations.findings import OVERDUE, STUCK
from tachograph_exporter.expectations.long_running import ended_text
from tachograph_exporter.expectations.transitions import Recovery
from tachograph_exporter.store import facts
from tachograph_exporter.times import format_duration


def ending_of(connection: Connection, recovery: Recovery) -> Recovery:
    """The recovery with the moment and the words of its end, if nothing has said them yet.

    An execution that took far longer than usual makes that more usual, so it may look like any other when it has ended.
    """
    if recovery.text or recovery.told.kind not in (OVERDUE, STUCK):
        return recovery
    execution_id, _, step = recovery.told.key.partition("/")
    ended = facts.ended(connection, execution_id, step)
    if ended is None:
        return recovery
    started_ns, finished_ns, status = ended
    took = format_duration(finished_ns - started_ns)
    text = f"Its step “{step}” ended after {took}." if step else ended_text(took, status)
    until_ns = max(finished_ns, recovery.told.opened_ns)
    return recovery._replace(until_ns=until_ns, text=text, execution_id=execution_id)
