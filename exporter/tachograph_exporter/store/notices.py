"""Rows of notices, and of the messages about them.

A message is `PENDING` until it is claimed (`SENDING`) in a transaction of its own, before it is sent. So no two
processes send it, and none sends it again after a restart. One whose sender died after claiming it is `UNKNOWN`: it may
have been sent, and is not sent again.
One that a silence covers is `SILENCED`. It is sent when the silence is over, if what it is about still holds by then.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import ColumnElement, Connection, Row, and_, delete, exists, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from tachograph.clock import NS
from tachograph.identity import new_id
from tachograph.process import identity, is_alive
from tachograph_exporter.store.schema import notice_deliveries, notices, workspaces
from tachograph_exporter.store.silences import prune_silences, silences

OPENED: Final = "opened"
RECOVERED: Final = "recovered"

PENDING: Final = "pending"
SENDING: Final = "sending"
SENT: Final = "sent"
FAILED: Final = "failed"
UNKNOWN: Final = "unknown"
SILENCED: Final = "silenced"
QUIET: Final = "quiet"
STATES: Final = (PENDING, SENDING, SENT, FAILED, UNKNOWN, SILENCED, QUIET)

ABANDONED_NS: Final = 600 * NS
"""A claim is given up so long after it was made, whoever made it."""
LEFT_NS: Final = 2 * 86_400 * NS
"""A message that no service has sent for so long is given up: its receiver is no longer configured."""
KEPT_NS: Final = 90 * 86_400 * NS
"""How long notices are kept after they were told."""
NEWEST: Final = 50
"""So many notices of a workflow are read, beside those that are open."""

_notices = notices.c
_deliveries = notice_deliveries.c


class NewNotice(NamedTuple):
    """A notice to be told, or that a silence keeps from being told. Times are unix nanoseconds."""

    workspace_id: str
    workflow: str
    kind: str
    key: str
    severity: str
    opened_ns: int
    resolved_ns: int | None
    text: str
    recovery: str
    execution_id: str | None
    silence_id: str | None = None


class Message(NamedTuple):
    """A message to one receiver, in a state; sent no earlier than ``next_ns`` (unix ns)."""

    target: str
    state: str
    next_ns: int


def of_workflow(connection: Connection, workspace_id: str, workflow: str) -> list[Row[Any]]:
    """The open notices of a workflow, and its newest others (id, kind, key, opened_ns, resolved_ns)."""
    mine = (_notices.workspace_id == workspace_id) & (_notices.workflow == workflow)
    columns = (_notices.id, _notices.kind, _notices.key, _notices.opened_ns, _notices.resolved_ns)
    newest = select(*columns).where(mine).order_by(_notices.told_ns.desc()).limit(NEWEST)
    still_open = select(*columns).where(mine, _notices.resolved_ns.is_(None))
    rows: list[Any] = [*connection.execute(newest).all(), *connection.execute(still_open).all()]
    return list({row.id: row for row in rows}.values())


def workflows_with_open(connection: Connection) -> set[tuple[str, str]]:
    """(workspace id, workflow) of all open notices."""
    statement = select(_notices.workspace_id, _notices.workflow).where(_notices.resolved_ns.is_(None))
    return {(row[0], row[1]) for row in connection.execute(statement)}


def is_open(connection: Connection, workspace_id: str, workflow: str, kind: str) -> bool:
    """Whether a notice of a kind about a workflow is open; there is one at a time."""
    mine = (_notices.workspace_id == workspace_id) & (_notices.workflow == workflow) & (_notices.kind == kind)
    statement = select(_notices.id).where(mine, _notices.resolved_ns.is_(None)).limit(1)
    return connection.execute(statement).first() is not None


def tell(
    connection: Connection,
    new: NewNotice,
    now_ns: int,
    messages: Sequence[Message],
    no_recovery: Collection[str] = (),
) -> str | None:
    """Store a notice with its messages. Returns its id, or None if it was told before.

    ``no_recovery``: receivers that are not told that it is over. Those whose quiet hours outlast it are told nothing.
    """
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    identifier = new_id(now_ns)
    statement = dialect.insert(notices).values(id=identifier, told_ns=now_ns, **new._asdict())
    if connection.execute(statement.on_conflict_do_nothing()).rowcount != 1:
        return None
    if new.resolved_ns is None:
        _add(connection, identifier, OPENED, messages, now_ns)
        return identifier
    opened = [m._replace(state=QUIET) if m.state == PENDING and m.next_ns > now_ns else m for m in messages]
    _add(connection, identifier, OPENED, opened, now_ns)
    told = [m for m in opened if m.state != QUIET and m.target not in no_recovery]
    _add(connection, identifier, RECOVERED, told, now_ns + 1)
    return identifier


def resolve(
    connection: Connection,
    notice_id: str,
    until_ns: int,
    text: str,
    now_ns: int,
    no_recovery: Collection[str] = (),
    next_ns: Callable[[str, str], int] | None = None,
) -> bool:
    """Note that what was told is over, and tell whoever was told. Returns False if that was noted before.

    ``no_recovery``: receivers that are not told. ``next_ns``: when a receiver may be told, by its name and the severity
    of the notice; now, if it is left out.
    """
    row_is = (_notices.id == notice_id) & _notices.resolved_ns.is_(None)
    values = {"resolved_ns": until_ns, "recovery": text}
    if connection.execute(update(notices).where(row_is).values(values)).rowcount != 1:
        return False
    severity = connection.execute(select(_notices.severity).where(_notices.id == notice_id)).scalar_one()
    opened = (_deliveries.notice_id == notice_id) & (_deliveries.phase == OPENED)
    messages = []
    for row in connection.execute(select(notice_deliveries).where(opened)).all():
        if row.state == PENDING and row.tries == 0 and row.next_ns > max(now_ns, row.created_ns):
            # It waits for the end of quiet hours, and there is nothing to say any more.
            mine = opened & (_deliveries.target == row.target) & (_deliveries.state == PENDING)
            connection.execute(update(notice_deliveries).where(mine).values(state=QUIET, changed_ns=now_ns))
        elif row.state in (PENDING, SENDING, SENT, UNKNOWN) and row.target not in no_recovery:
            at_ns = now_ns if next_ns is None else max(now_ns, next_ns(row.target, severity))
            messages.append(Message(row.target, PENDING, at_ns))
    _add(connection, notice_id, RECOVERED, messages, now_ns)
    return True


def open_silenced(connection: Connection) -> list[Row[Any]]:
    """Open notices that a silence keeps from being told."""
    statement = select(notices).where(_notices.resolved_ns.is_(None), _notices.silence_id.is_not(None))
    return [*connection.execute(statement).all()]


def release(connection: Connection, notice_id: str, next_ns: Mapping[str, int], now_ns: int) -> bool:
    """Tell of what still holds when its silence is over. Returns False if it is over itself, or has been told.

    ``next_ns``: by receiver, when it may be told.
    """
    row_is = (_notices.id == notice_id) & _notices.resolved_ns.is_(None) & _notices.silence_id.is_not(None)
    if connection.execute(update(notices).where(row_is).values(silence_id=None)).rowcount != 1:
        return False
    for target, time_ns in next_ns.items():
        is_mine = Key(notice_id, OPENED, target).where & (_deliveries.state == SILENCED)
        # Receivers are tried for a day from now on.
        values = {"state": PENDING, "next_ns": time_ns, "created_ns": now_ns, "changed_ns": now_ns}
        connection.execute(update(notice_deliveries).where(is_mine).values(values))
    return True


def _add(connection: Connection, notice_id: str, phase: str, messages: Sequence[Message], now_ns: int) -> None:
    if messages:
        rows = [
            {"notice_id": notice_id, "phase": phase, "tries": 0, "created_ns": now_ns, "changed_ns": now_ns,
             **message._asdict()}
            for message in messages
        ]  # fmt: skip
        connection.execute(insert(notice_deliveries), rows)


class Key(NamedTuple):
    """Which message of which notice."""

    notice_id: str
    phase: str
    target: str

    @property
    def where(self) -> ColumnElement[bool]:
        """Selects its row."""
        return and_(*(_deliveries[name] == value for name, value in self._asdict().items()))


def due(connection: Connection, target: str, now_ns: int) -> Row[Any] | None:
    """The next message to a receiver, with its notice and its workspace's slug, or None.

    A recovery waits for the message that it is about. What was due when it was stored is due, whatever was done to the
    clock since.
    """
    earlier = notice_deliveries.alias()
    is_first = ~exists().where(
        earlier.c.notice_id == _deliveries.notice_id, earlier.c.target == _deliveries.target,
        earlier.c.phase == OPENED, earlier.c.state.in_([PENDING, SENDING]), _deliveries.phase == RECOVERED,
    )  # fmt: skip
    statement = (
        select(notice_deliveries, *(c for c in notices.columns if c.name != "id"), workspaces.c.slug.label("workspace"))
        .join(notices, _notices.id == _deliveries.notice_id)
        .outerjoin(workspaces, workspaces.c.id == _notices.workspace_id)
        .where(_deliveries.target == target, _deliveries.state == PENDING, is_first)
        .where((_deliveries.next_ns <= now_ns) | (_deliveries.next_ns <= _deliveries.created_ns))
        .order_by(_deliveries.created_ns, _deliveries.phase)
        .limit(1)
    )
    return connection.execute(statement).first()


def take(connection: Connection, row: Row[Any], now_ns: int) -> bool:
    """Claim a message of `due`, unless a silence covers it, or kept what it is the end of from being told.

    Returns whether it is to be sent, after the commit.
    """
    key = Key(row.notice_id, row.phase, row.target)
    if row.phase == OPENED:
        subject = (row.workspace_id, row.workflow, row.kind, row.severity)
        covering = next((entry for entry in silences(connection, now_ns) if entry.covers(*subject)), None)
        if covering is None:
            return claim(connection, key, now_ns)
        if _set_aside(connection, key, now_ns):
            is_mine = _notices.id == row.notice_id
            connection.execute(update(notices).where(is_mine).values(silence_id=covering.id))
        return False
    opening = select(_deliveries.state).where(key._replace(phase=OPENED).where)
    if connection.execute(opening).scalar() in (SILENCED, QUIET):
        _set_aside(connection, key, now_ns)
        return False
    return claim(connection, key, now_ns)


def _set_aside(connection: Connection, key: Key, now_ns: int) -> bool:
    statement = update(notice_deliveries).where(key.where, _deliveries.state == PENDING)
    return connection.execute(statement.values(state=SILENCED, changed_ns=now_ns)).rowcount == 1


def claim(connection: Connection, key: Key, now_ns: int) -> bool:
    """Claim a message, to send it after the commit. Returns False if another process did."""
    statement = update(notice_deliveries).where(key.where, _deliveries.state == PENDING)
    values = {"state": SENDING, "sender": identity(), "changed_ns": now_ns, "tries": _deliveries.tries + 1}
    return connection.execute(statement.values(values)).rowcount == 1


def settle(connection: Connection, key: Key, state: str, now_ns: int, next_ns: int = 0, reason: str = "") -> None:
    """Note what became of a message that this process claimed."""
    statement = update(notice_deliveries).where(key.where, _deliveries.state == SENDING)
    connection.execute(statement.values(state=state, changed_ns=now_ns, next_ns=next_ns, reason=reason))


def abandon(connection: Connection, now_ns: int) -> int:
    """Note that messages may have been sent whose sender is gone, and give those up that nobody sends.

    Returns how many may have been sent.
    """
    is_left = (_deliveries.state == PENDING) & (_deliveries.created_ns < now_ns - LEFT_NS)
    reason = "no service has this receiver"
    connection.execute(update(notice_deliveries).where(is_left).values(state=FAILED, changed_ns=now_ns, reason=reason))
    rows = connection.execute(select(notice_deliveries).where(_deliveries.state == SENDING)).all()
    count = 0
    for row in rows:
        is_gone = row.sender != identity() and is_alive(row.sender) is False
        if is_gone or now_ns - row.changed_ns > ABANDONED_NS:
            key = Key(row.notice_id, row.phase, row.target)
            settle(connection, key, UNKNOWN, now_ns, reason="its sender ended while it was being sent")
            count += 1
    return count


def listed(
    connection: Connection, workspace_id: str | None, *, is_open: bool = False, skip: int = 0, limit: int = 50
) -> list[tuple[Row[Any], list[Row[Any]]]]:
    """Notices, the newest first, each with its messages."""
    statement = select(notices, workspaces.c.slug.label("workspace")).outerjoin(
        workspaces, workspaces.c.id == _notices.workspace_id
    )
    if workspace_id is not None:
        statement = statement.where(_notices.workspace_id == workspace_id)
    if is_open:
        statement = statement.where(_notices.resolved_ns.is_(None))
    page = statement.order_by(_notices.told_ns.desc(), _notices.id.desc()).offset(skip).limit(limit)
    rows = connection.execute(page).all()
    of_notice: dict[str, list[Row[Any]]] = {row.id: [] for row in rows}
    messages = select(notice_deliveries).where(_deliveries.notice_id.in_(list(of_notice)))
    for message in connection.execute(messages.order_by(_deliveries.phase, _deliveries.target)):
        of_notice[message.notice_id].append(message)
    return [(row, of_notice[row.id]) for row in rows]


def forget_workflow(connection: Connection, workspace_id: str, workflow: str) -> None:
    """Delete the notices of a workflow that are over, and have been told.

    Whoever was told of what is open waits for its end: the service that evaluates tells it next.
    """
    waits = exists().where(_deliveries.notice_id == _notices.id, _deliveries.state.in_([PENDING, SENDING]))
    is_its = (_notices.workspace_id == workspace_id) & (_notices.workflow == workflow)
    _delete(connection, is_its & _notices.resolved_ns.is_not(None) & ~waits)


def prune(connection: Connection, now_ns: int) -> None:
    """Delete notices that are long over, and silences."""
    # One that lasted for long is kept after its end, too: its recovery may not have been told yet.
    before_ns = now_ns - KEPT_NS
    _delete(connection, and_(_notices.told_ns < before_ns, _notices.resolved_ns < before_ns))
    prune_silences(connection, now_ns - KEPT_NS)


def _delete(connection: Connection, where: ColumnElement[bool]) -> None:
    ids = select(_notices.id).where(where)
    connection.execute(delete(notice_deliveries).where(_deliveries.notice_id.in_(ids)))
    connection.execute(delete(notices).where(where))
