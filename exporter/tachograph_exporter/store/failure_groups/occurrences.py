"""Occurrences of failures: rows that are written in the transaction that stores the failure.

What the occurrences of an execution are follows from its rows alone, so it does not matter how often, in which order
or in which batches its events arrive: `note` adds what a batch says, `settle` compares with the tables once the
execution has ended, and `rebuild` begins again. The caller has the writers' lock.

A failure counts where it began. An enclosing step, or the execution, that failed with the failure of something inside
it belongs to the same group, and is no origin.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Final, NamedTuple, TypeAlias
from weakref import WeakKeyDictionary

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Connection,
    Text,
    bindparam,
    case,
    cast,
    delete,
    func,
    literal_column,
    null,
    select,
    union_all,
)
from sqlalchemy.engine import Dialect, Engine

from tachograph.events import UNSUCCESSFUL
from tachograph_exporter.store import state
from tachograph_exporter.store.driver_select import DriverSelect
from tachograph_exporter.store.failure_groups import groups
from tachograph_exporter.store.failure_groups.failing import (
    ATTEMPT,
    CHUNK,
    EXECUTION,
    STEP,
    Failing,
    Key,
    cause_of,
    chunks,
    failing_in,
    stored_failing,
)
from tachograph_exporter.store.failure_groups.fingerprint import Fingerprint, fingerprint, tells_nothing
from tachograph_exporter.store.inserting import insert_absent, insert_many, upsert
from tachograph_exporter.store.schema import (
    EXECUTION_ROWS,
    failure_groups,
    failure_occurrences,
    workflow_executions,
    workflow_step_attempts,
    workflow_step_executions,
)

_occurrences = failure_occurrences.c
_executions = workflow_executions.c
_steps = workflow_step_executions.c
_attempts = workflow_step_attempts.c
_groups = failure_groups.c
_STATUSES: Final = tuple(sorted(UNSUCCESSFUL))
_IDS: Final[BindParameter[Any]] = bindparam("ids", expanding=True)
_OWNERS: Final = DriverSelect(
    select(
        _executions.execution_id,
        _executions.workspace_id,
        _executions.workflow_id,
        _executions.workflow,
        _executions.version,
    ).where(_executions.execution_id.in_(_IDS))
)
_STORED: Final = select(
    _occurrences.execution_id, _occurrences.step_id, _occurrences.attempt, _occurrences.kind, _occurrences.step,
    _occurrences.parent_step_id, _occurrences.cause, _occurrences.group_id, _occurrences.is_origin,
    _occurrences.count, _occurrences.time_ns,
).where(_occurrences.execution_id.in_(_IDS))  # fmt: skip
_STORED_OF: Final = DriverSelect(_STORED)
_STORED_INSIDE: Final = _STORED.where(_occurrences.parent_step_id.in_(bindparam("parents", expanding=True)))
_WITH_OCCURRENCES: Final = DriverSelect(
    select(_occurrences.execution_id).where(_occurrences.execution_id.in_(_IDS)).distinct()
)
_COUNTS: Final = (
    select(_occurrences.execution_id, _occurrences.group_id, func.sum(_occurrences.count))
    .where(_occurrences.execution_id.in_(_IDS), _occurrences.is_origin == 1)
    .group_by(_occurrences.execution_id, _occurrences.group_id)
)
_GROUPS: Final = select(_occurrences.execution_id, _occurrences.group_id).where(
    _occurrences.execution_id.in_(_IDS), _occurrences.kind == EXECUTION
)
COUNTED_SINCE: Final = "failures_counted_since_ns"
"""State: executions that ended before are not counted in the series of groups, because there were none."""
_HAVE_FAILED: Final[list[ColumnElement[str]]] = [literal_column(f"'{status}'") for status in _STATUSES]
_NO_TEXT: Final = cast(null(), Text)
_NO_GROUP: Final[ColumnElement[str]] = literal_column("''")
_OF_STEP: Final = (_steps.execution_id, _steps.step_id, _steps.attempt)
_OF_ATTEMPT: Final = (_attempts.execution_id, _attempts.step_id, _attempts.attempt)
# In the columns of an occurrence: what failed, as `_Stored` without a group; ``is_origin``: whether it is folded.
_FAILED_STEPS: Final = select(
    *_OF_STEP, literal_column(str(STEP)), _NO_TEXT, _NO_TEXT, _NO_TEXT, _NO_GROUP,
    case((_steps.folded.is_(None), literal_column("0")), else_=literal_column("1")), literal_column("0"),
    _steps.finished_ns,
).where(_steps.execution_id.in_(_IDS), _steps.status.in_(_HAVE_FAILED))  # fmt: skip
_FAILED_ATTEMPTS: Final = select(
    *_OF_ATTEMPT, literal_column(str(ATTEMPT)), _NO_TEXT, _NO_TEXT, _NO_TEXT, _NO_GROUP,
    literal_column("0"), literal_column("0"), _attempts.finished_ns,
).where(_attempts.execution_id.in_(_IDS), _attempts.status.in_(_HAVE_FAILED))  # fmt: skip
_FAILED_EXECUTIONS: Final = select(
    _executions.execution_id, literal_column("''"), literal_column("0"), literal_column(str(EXECUTION)), _NO_TEXT,
    _NO_TEXT, _NO_TEXT, _NO_GROUP, literal_column("0"), literal_column("0"), _executions.finished_ns,
).where(_executions.execution_id.in_(_IDS), _executions.status.in_(_HAVE_FAILED))  # fmt: skip
_FAILED: Final = DriverSelect(union_all(_STORED, _FAILED_STEPS, _FAILED_ATTEMPTS, _FAILED_EXECUTIONS))
"""Occurrences of executions and, in one statement, what failed in them."""
_FAILED_INSIDE: Final = DriverSelect(union_all(_FAILED_STEPS, _FAILED_ATTEMPTS))
_GROUP_KIND: Final = -1
_KNOWN_GROUPS: Final = select(
    _groups.group_id, literal_column("''"), literal_column("0"), literal_column(str(_GROUP_KIND)), _NO_TEXT, _NO_TEXT,
    _NO_TEXT, _NO_GROUP, literal_column("0"), literal_column("0"), literal_column("0"),
).where(_groups.workspace_id == bindparam("workspace"), _groups.group_id.in_(_IDS))  # fmt: skip
_FAILED_INSIDE_AND_GROUPS: Final = DriverSelect(union_all(_FAILED_STEPS, _FAILED_ATTEMPTS, _KNOWN_GROUPS), "workspace")
"""What failed in executions and, in one way to the database and back, which groups there are: ids of both."""


Counts: TypeAlias = dict[str, dict[str, int]]
"""How many failures began in executions, by execution and group."""


class _Owner(NamedTuple):
    """The execution that something failed in."""

    execution_id: str
    workspace_id: str
    workflow_id: str
    workflow: str
    version: str


_OWNER_PLACES: Final = tuple(EXECUTION_ROWS.columns.index(name) for name in _Owner._fields)


def _owner_of(row: Sequence[Any]) -> _Owner:
    """The owner that an execution's row is, of a batch."""
    return _Owner(*[row[i] for i in _OWNER_PLACES])


class _Stored(NamedTuple):
    """An occurrence, as far as others depend on it."""

    execution_id: str
    step_id: str
    attempt: int
    kind: int
    step: str
    parent_step_id: str | None
    cause: str
    group_id: str
    is_origin: int
    times: int
    time_ns: int


class Noted(dict[str, list[_Stored]]):
    """Occurrences by execution. ``inside``: what failed in those of ``read``, as rows have it."""

    read: frozenset[str] = frozenset()
    inside: Sequence[_Stored] = ()


def note(
    connection: Connection,
    executions: Mapping[Any, Sequence[Any]],
    steps: Mapping[Any, Sequence[Any]],
    attempts: Mapping[Any, Sequence[Any]],
    new: AbstractSet[str] = frozenset(),
) -> Noted:
    """Store what failed, of the rows of a batch, which are in the tables already. Returns it by execution.

    ``new``: executions that had no row before the batch, so that there are no occurrences of them.
    """
    failing = failing_in(executions, steps, attempts)
    noted = Noted((entry.execution_id, []) for entry in failing)
    if failing:
        of_batch = {key: _owner_of(executions[key]) for key in new & noted.keys()}
        for stored in _store(connection, failing, of_batch, noted):
            noted[stored.execution_id].append(stored)
    return noted


def settle(
    connection: Connection,
    ended: Iterable[str],
    changed: Collection[str] = (),
    new: AbstractSet[str] = frozenset(),
    noted: Noted | None = None,
) -> Counts:
    """Make the occurrences of executions that have ended what their rows say. Returns what is counted of them.

    ``changed``: those that had ended before, and whose rows may be others now. ``new``: see `note`; of these only the
    ``noted`` ones have any, and those are all.
    """
    counts: Counts = {}
    again = rebuild(connection, changed) if changed else set[str]()
    ids = set(ended).difference(changed)
    with_occurrences = set[str]()
    for chunk in chunks(ids - new):
        with_occurrences.update(row[0] for row in _WITH_OCCURRENCES.rows(connection, chunk))
    of_batch = ids & new & noted.keys() if noted is not None else set[str]()
    for candidates, known in ((of_batch, noted), (with_occurrences, None)):
        for chunk in chunks(candidates):
            of_right = _counts_if_right(connection, chunk, known)
            counts |= of_right
            again |= rebuild(connection, [key for key in chunk if key not in of_right])
    return counts | counts_of(connection, again)


def rebuild(connection: Connection, ids: Collection[str]) -> set[str]:
    """Write the occurrences of executions anew, from their rows. Returns those that have any."""
    failed: set[str] = set()
    for chunk in chunks(ids):
        connection.execute(delete(failure_occurrences).where(_occurrences.execution_id.in_(chunk)))
        if failing := stored_failing(connection, chunk):
            _store(connection, failing, {}, Noted())
            failed |= {entry.execution_id for entry in failing}
    return failed


def remove(connection: Connection, ids: Iterable[str]) -> None:
    """Remove the occurrences of executions that are stored anew in this transaction."""
    for chunk in chunks(ids):
        connection.execute(delete(failure_occurrences).where(_occurrences.execution_id.in_(chunk)))


def leave(connection: Connection, ids: Iterable[str]) -> None:
    """Remove the occurrences of executions that are deleted. Their groups remember when they were seen."""
    for chunk in chunks(ids):
        is_gone = _occurrences.execution_id.in_(chunk)
        groups.remember(connection, is_gone)
        connection.execute(delete(failure_occurrences).where(is_gone))


def forget_workflow(connection: Connection, workspace_id: str, workflow_id: str) -> None:
    """Remove the occurrences of a workflow that is deleted, and groups that have no others."""
    of_workflow = (_occurrences.workspace_id == workspace_id) & (_occurrences.workflow_id == workflow_id)
    touched = connection.execute(select(_occurrences.group_id).where(of_workflow).distinct()).scalars().all()
    connection.execute(delete(failure_occurrences).where(of_workflow))
    groups.forget_empty(connection, workspace_id, touched)


def counts_of(connection: Connection, ids: Iterable[str]) -> Counts:
    """How many failures of which groups began in executions."""
    counts: Counts = {}
    for chunk in chunks(ids):
        for execution_id, group_id, count in connection.execute(_COUNTS, {"ids": chunk}):
            counts.setdefault(execution_id, {})[group_id] = int(count)
    return counts


def counted_since(connection: Connection) -> int:
    """Failures of executions that ended before (unix ns) are not counted."""
    since = _since.get(connection.engine)
    if since is None:
        # Only the upgrade to a schema that has the table sets it.
        since = _since[connection.engine] = int(state.state_of(connection, COUNTED_SINCE) or 0)
    return since


def groups_of(connection: Connection, ids: Iterable[str]) -> dict[str, str]:
    """The groups in which executions failed, by execution; without those that are not told from others."""
    of_executions: dict[str, str] = {}
    for chunk in chunks(ids):
        of_executions |= {row[0]: row[1] for row in connection.execute(_GROUPS, {"ids": chunk})}
    return {execution_id: group_id for execution_id, group_id in of_executions.items() if group_id != groups.OTHER}


def _counts_if_right(connection: Connection, ids: Sequence[str], noted: Noted | None = None) -> Counts:
    """Counts of those of the executions whose occurrences are what their rows say.

    ``noted``: the occurrences, and so the rows of the executions themselves, if they need not be read.
    """
    by_execution: dict[str, dict[Key, _Stored]] = {execution_id: {} for execution_id in ids}
    due: dict[str, set[Key]] = {execution_id: set() for execution_id in ids}
    if noted is not None:
        for execution_id in ids:
            by_execution[execution_id] = {stored[:4]: stored for stored in noted[execution_id]}
            due[execution_id] = {stored[:4] for stored in noted[execution_id] if stored.kind == EXECUTION}
    wrong: set[str] = set()
    attempts: list[_Stored] = []
    ends: set[tuple[str, str, int, int | None]] = set()
    if noted is not None and noted.read >= set(ids):
        rows: Iterable[_Stored] = [row for row in noted.inside if row.execution_id in due]
    else:
        rows = map(_Stored._make, (_FAILED if noted is None else _FAILED_INSIDE).rows(connection, ids))
    for row in rows:
        if row.group_id:
            by_execution[row.execution_id][row[:4]] = row
        elif row.kind == ATTEMPT:
            attempts.append(row)
        else:
            due[row.execution_id].add(row[:4])
            if row.kind == STEP:
                ends.add((row.execution_id, row.step_id, row.attempt, row.time_ns))
            if row.is_origin:
                wrong.add(row.execution_id)  # A fold, whose count may have grown.
    for row in attempts:
        # Otherwise the step ended with it.
        if (row.execution_id, row.step_id, row.attempt, row.time_ns) not in ends:
            due[row.execution_id].add(row[:4])
    counts: Counts = {}
    for execution_id, stored in by_execution.items():
        if execution_id in wrong or stored.keys() != due[execution_id] or not _is_consistent(list(stored.values())):
            continue
        of_groups = counts[execution_id] = dict[str, int]()
        for occurrence in stored.values():
            if occurrence.is_origin:
                of_groups[occurrence.group_id] = of_groups.get(occurrence.group_id, 0) + occurrence.times
    return counts


def _is_consistent(stored: Sequence[_Stored]) -> bool:
    """Whether each occurrence of an execution is an origin exactly if nothing inside it failed with the same cause."""
    inside = {(entry.parent_step_id, entry.cause) for entry in stored if entry.parent_step_id is not None}
    return all(
        bool(entry.is_origin) != ((entry.step_id, entry.cause) in inside) for entry in stored if entry.kind != EXECUTION
    )


def _store(
    connection: Connection, failing: Sequence[Failing], new: Mapping[str, _Owner], noted: Noted
) -> list[_Stored]:
    """Write the occurrences of what failed, and return them. ``new``: executions of which nothing is stored yet; what
    failed inside them is read into ``noted``.
    """
    owners = dict(new)
    for chunk in chunks({entry.execution_id for entry in failing} - new.keys()):
        owners |= {row[0]: _Owner(*row) for row in _OWNERS.rows(connection, chunk)}
    # Of an execution without a row nothing is known yet; its end brings it.
    failing = [entry for entry in failing if entry.execution_id in owners]
    of_steps = [entry for entry in failing if entry.kind != EXECUTION]
    ended = [entry for entry in failing if entry.kind == EXECUTION]
    stored = _stored(connection, ended, new)
    resolved = _Resolved(connection, owners, of_steps, stored)
    rows = {entry.key: resolved.row(entry) for entry in of_steps}
    if ended:
        inside = _inside(stored, rows.values())
        rows |= {entry.key: resolved.row_of_execution(entry, inside[entry.execution_id]) for entry in ended}
    by_workspace: dict[str, dict[str, Fingerprint]] = defaultdict(dict)
    for row in rows.values():
        if row.origin is not None:
            by_workspace[row.owner.workspace_id][row.group_id] = row.origin
    known = _read_inside(connection, new, by_workspace, noted)
    beyond = {
        workspace: groups.ensure(connection, workspace, prints, known)
        for workspace, prints in sorted(by_workspace.items())
    }
    written: list[_Stored] = []
    values: list[tuple[Any, ...]] = []
    for _, row in sorted(rows.items()):
        is_beyond = row.group_id in beyond.get(row.owner.workspace_id, ())
        stored_row = row.stored(groups.OTHER if is_beyond else row.group_id)
        written.append(stored_row)
        values.append(row.values(stored_row))
    insert = insert_absent if len(new) == len(owners) else insert_many
    insert(connection, _upsert_of(connection.dialect), values)
    return written


def _read_inside(
    connection: Connection, new: Collection[str], by_workspace: Mapping[str, Mapping[str, Fingerprint]], noted: Noted
) -> AbstractSet[str]:
    """Read what failed inside of new executions, together with which of the groups there are, where that is one
    statement. Returns groups that there are.
    """
    ids = [*new, *(group_id for prints in by_workspace.values() for group_id in prints)]
    if not new or len(by_workspace) != 1 or len(ids) > CHUNK:
        return frozenset()
    (workspace,) = by_workspace
    rows = list(map(_Stored._make, _FAILED_INSIDE_AND_GROUPS.rows(connection, ids, workspace=workspace)))
    noted.read = frozenset(new)
    noted.inside = [row for row in rows if row.kind != _GROUP_KIND]
    return {row.execution_id for row in rows if row.kind == _GROUP_KIND}


_since: Final[WeakKeyDictionary[Engine, int]] = WeakKeyDictionary()
_UPSERTS: Final[dict[str, str]] = {}


def _upsert_of(dialect: Dialect) -> str:
    # Compiled once: that takes longer than writing a row.
    if dialect.name not in _UPSERTS:
        _UPSERTS[dialect.name] = str(upsert(dialect, failure_occurrences).compile(dialect=dialect))
    return _UPSERTS[dialect.name]


def _stored(connection: Connection, ended: Sequence[Failing], new: Collection[str]) -> dict[str, list[_Stored]]:
    """What is stored of executions that have ended, by execution; of ``new`` ones nothing is."""
    by_execution: dict[str, list[_Stored]] = {execution_id: [] for execution_id in new}
    by_execution |= {entry.execution_id: [] for entry in ended}
    for chunk in chunks(by_execution.keys() - new):
        for row in map(_Stored._make, _STORED_OF.rows(connection, chunk)):
            by_execution[row.execution_id].append(row)
    return by_execution


def _inside(known: Mapping[str, Iterable[_Stored]], written: Iterable[_Row]) -> Mapping[str, list[_Stored]]:
    """What failed inside executions, stored before or about to be written, by execution, the first first."""
    by_key: dict[Key, _Stored] = {
        stored[:4]: stored for of_one in known.values() for stored in of_one if stored.kind != EXECUTION
    }
    for new in written:
        entry = new.failing
        by_key[entry.key] = new.stored(new.group_id)
    inside: dict[str, list[_Stored]] = defaultdict(list)
    for stored in sorted(by_key.values(), key=lambda entry: (entry.time_ns, entry.step_id, entry.attempt)):
        inside[stored.execution_id].append(stored)
    return inside


class _Row(NamedTuple):
    """An occurrence to write. ``origin``: the fingerprint of one that failed by itself."""

    owner: _Owner
    failing: Failing
    cause: str
    group_id: str
    is_origin: bool
    origin: Fingerprint | None

    def stored(self, group_id: str) -> _Stored:
        """As it is stored, in a group."""
        entry = self.failing
        return _Stored(
            *entry.key, entry.step, entry.parent_step_id, self.cause, group_id, int(self.is_origin), entry.times,
            entry.time_ns,
        )  # fmt: skip

    def values(self, stored: _Stored) -> tuple[Any, ...]:
        """In the order of the table's columns."""
        owner = self.owner
        return (
            *stored[:4], owner.workspace_id, stored.group_id, owner.workflow_id, owner.version, stored.step[:200],
            stored.parent_step_id, stored.cause, stored.is_origin, stored.times, stored.time_ns,
        )  # fmt: skip


class _Resolved:
    """The groups of failures of steps: their own, or those of what failed inside them with the same cause."""

    def __init__(
        self,
        connection: Connection,
        owners: Mapping[str, _Owner],
        failing: Sequence[Failing],
        known: Mapping[str, Iterable[_Stored]],
    ) -> None:
        self._owners = owners
        self._causes = {entry.key: entry.cause for entry in failing}
        # Failures by the step that they are inside of, and their cause.
        self._new: dict[tuple[str, str, str], Failing] = {}
        self._stored: dict[tuple[str, str, str], str] = {}
        for entry in failing:
            if entry.parent_step_id is not None:
                self._new[entry.execution_id, entry.parent_step_id, self._causes[entry.key]] = entry
        for of_one in known.values():
            self._add_stored(of_one)
        # Of the others, which may have very many, only what is inside these steps.
        ids = {entry.execution_id for entry in failing if entry.execution_id not in known}
        parents = sorted({entry.step_id for entry in failing if entry.execution_id in ids})
        for chunk in chunks(ids):
            for i in range(0, len(parents), len(chunk) * 50 + 300):
                parameters = {"ids": chunk, "parents": parents[i : i + len(chunk) * 50 + 300]}
                self._add_stored(map(_Stored._make, connection.execute(_STORED_INSIDE, parameters)))
        self._rows: dict[Key, tuple[str, Fingerprint | None]] = {}

    def _add_stored(self, occurrences: Iterable[_Stored]) -> None:
        for stored in occurrences:
            if stored.parent_step_id is not None:
                self._stored[stored.execution_id, stored.parent_step_id, stored.cause] = stored.group_id

    def row(self, entry: Failing) -> _Row:
        """The occurrence of an attempt or a step."""
        way: list[Failing] = []
        current = entry
        while current.key not in self._rows:
            way.append(current)
            below = (current.execution_id, current.step_id, self._causes[current.key])
            inner = self._new.get(below)
            if inner is None or inner in way:
                stored = self._stored.get(below)
                origin = None if stored is not None else self._own(current)
                self._rows[current.key] = (stored or (origin.id if origin is not None else ""), origin)
                break
            current = inner
        group_id, origin = self._rows[current.key]
        for passing in way:
            self._rows.setdefault(passing.key, (group_id, None))
        group_id, origin = self._rows[entry.key]
        owner = self._owners[entry.execution_id]
        return _Row(owner, entry, self._causes[entry.key], group_id, origin is not None, origin)

    def row_of_execution(self, entry: Failing, inside: Sequence[_Stored]) -> _Row:
        """The occurrence of an execution. ``inside``: what failed inside it."""
        owner, cause = self._owners[entry.execution_id], entry.cause
        origin: Fingerprint | None = None
        group_id = _group_inside(entry, cause, inside)
        if group_id is None:
            origin = self._own(entry)
            group_id = origin.id
        return _Row(owner, entry, cause, group_id, origin is not None, origin)

    def _own(self, entry: Failing) -> Fingerprint:
        owner = self._owners[entry.execution_id]
        place = f"{owner.workflow} / {entry.step}" if entry.step else owner.workflow
        return fingerprint(entry.error_type, entry.error_message, entry.error_stack, place)


def _group_inside(entry: Failing, cause: str, inside: Sequence[_Stored]) -> str | None:
    """The group of the failure inside an execution that made it fail, if that can be told."""
    message = entry.error_message or ""
    for stored in inside:
        if stored.cause == cause:
            return stored.group_id
        # What the executor says of the step that failed.
        prefix = f'step "{stored.step}": '
        if message.startswith(prefix) and cause_of(entry.error_type, message[len(prefix) :]) == stored.cause:
            return stored.group_id
    if tells_nothing(entry.error_type, entry.error_message, entry.error_stack):
        return next((stored.group_id for stored in inside if stored.kind == STEP), None)
    return None
