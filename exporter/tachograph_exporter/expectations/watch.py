"""Evaluates expectations while the service runs, and stores what is to be told.

Of several services on a database one does. What it tells depends on stored facts, and what has been told is stored with
them: a restart, or another service that goes on, tells nothing twice and leaves nothing out.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Row

from tachograph.clock import NS
from tachograph.errors import StoreUnavailable
from tachograph.quiet_log import QuietLog
from tachograph_exporter.expectations.endings import ending_of
from tachograph_exporter.expectations.evaluation import IT_FAILED, Evaluation, evaluate
from tachograph_exporter.expectations.findings import COST, OVERDUE, REGRESSION, STUCK, Finding
from tachograph_exporter.expectations.history import History
from tachograph_exporter.expectations.reading import Expectations, Expected, read_history
from tachograph_exporter.expectations.routing import Target
from tachograph_exporter.expectations.transitions import Told, Transitions, open_kinds, transitions
from tachograph_exporter.store import executions as execution_rows
from tachograph_exporter.store import expectations as expectation_rows
from tachograph_exporter.store import facts, locking, notices, state
from tachograph_exporter.store import silences as silence_rows
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.notices import Message, NewNotice
from tachograph_exporter.store.rollups.counting import Key
from tachograph_exporter.store.silences import Silence
from tachograph_exporter.store.workspaces import list_workspaces
from tachograph_exporter.views.comparison import BASELINE_SECONDS, read_baseline_comparison

quiet = QuietLog(logging.getLogger(__name__))

LOOK_SECONDS: Final = 5.0
SETTLE_SECONDS: Final = 60.0
"""So long after a start, after an outage of the database or a step of the clock, nothing new is late: what happened
meanwhile may still arrive."""
STEP_SECONDS: Final = 15.0
"""A clock that differs by more from the time that passed was set."""
UNUSUAL_NS: Final = 300 * NS
"""How often a workflow is compared with what is usual by the hour."""
EVALUATED: Final = "expectations_evaluated_ns"
_BY_THE_HOUR: Final = (COST, REGRESSION)
_CHUNK: Final = 200
_NOTE_NS: Final = 30 * NS
_PRUNE_NS: Final = 3600 * NS


class Watched(NamedTuple):
    """What was found of a workflow, from which facts, and when.

    ``unusual`` was found by the hours that were read at ``hours_ns``, and what is usual of steps was read at
    ``usual_ns``. ``open_kinds``: what is told of it and is not over.
    """

    expected: Expected
    evaluation: Evaluation
    signature: object
    evaluated_ns: int
    unusual: Sequence[Finding]
    hours_ns: int
    usual_steps: Mapping[str, float]
    usual_ns: int
    open_kinds: frozenset[str] = frozenset()


class Watch:
    """Evaluates what is expected of all workflows.

    Args:
        database: where the facts are.
        workspace: id of the workspace of workflows that only a file knows.
        targets: who is told.
        is_leader: whether this service evaluates now.
        told: called when there are new messages.
        settle_seconds: see `SETTLE_SECONDS`.
        clock: unix nanoseconds.
        monotonic: seconds that pass whatever is done to the clock.
    """

    def __init__(
        self,
        database: Database,
        workspace: str,
        targets: Sequence[Target] = (),
        is_leader: Callable[[], bool] = lambda: True,
        told: Callable[[], None] = lambda: None,
        *,
        settle_seconds: float = SETTLE_SECONDS,
        clock: Callable[[], int] = time.time_ns,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._workspace = workspace
        self._targets = targets
        self._is_leader = is_leader
        self._told = told
        self._settle_ns = round(settle_seconds * NS)
        self._clock = clock
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._was_leader = False
        self._last: tuple[int, float] | None = None
        self._settled_ns = 0
        self._since_ns = 0
        self._noted_ns = self._pruned_ns = 0
        self.watched: dict[tuple[str, str], Watched] = {}
        """By (workspace id, name). Replaced as a whole: it may be read from any thread."""
        self.slugs: Mapping[str, str] = {}
        """Of workspaces, by id."""

    async def run(self) -> None:
        """Evaluate every few seconds, until cancelled."""
        while True:
            try:
                await asyncio.to_thread(self.look)
            except StoreUnavailable as error:
                self._last = None
                quiet.warning("away", "expectations cannot be evaluated now: %s", error)
            except Exception:
                quiet.exception("evaluation", "expectations cannot be evaluated; trying again later")
            await asyncio.sleep(LOOK_SECONDS)

    def look(self) -> None:
        """Evaluate what may have changed; blocks."""
        with self._lock:
            self._look()

    def _look(self) -> None:
        if not self._is_leader():
            self._was_leader, self._last = False, None
            self.watched = {}
            return
        now_ns = self._clock()
        if not self._was_leader:
            stored = self._database.look(lambda c: state.state_of(c, EVALUATED))
            self._since_ns = min(int(stored), now_ns) if stored and stored.isdecimal() else now_ns
            self._was_leader = True
        self._notice_steps(now_ns)
        read = self._database.look(lambda c: _Facts.read(c, self._workspace))
        self.slugs = read.slugs
        places = list(read.places)
        is_news = False
        watched = {place: value for place, value in self.watched.items() if place in read.places}
        for i in range(0, len(places), _CHUNK):
            chunk = places[i : i + _CHUNK]
            for value, change in self._database.look(lambda c, p=chunk: list(self._evaluate(c, p, read, now_ns))):  # type: ignore[misc]
                watched[value.expected.workspace_id, value.expected.workflow] = value
                if change.opened or change.recovered:
                    tell = partial(self._tell, expected=value.expected, change=change, now_ns=now_ns)
                    is_news = self._database.run(tell) or is_news
        self.watched = watched
        is_news = self._release(now_ns) or is_news
        if is_news:
            self._told()
        if now_ns - self._noted_ns > _NOTE_NS or now_ns < self._noted_ns:
            self._note(now_ns)

    def _release(self, now_ns: int) -> bool:
        """Tell of what still holds and is silenced no more. Returns whether that was news."""
        silenced = self._database.look(notices.open_silenced)
        if not silenced:
            return False
        silences = self._database.look(lambda c: silence_rows.silences(c, now_ns))
        is_news = False
        for row in silenced:
            if _covering(silences, row.workspace_id, row.workflow, row.kind, row.severity) is None:
                times = {target.name: target.not_before(row.severity, now_ns) for target in self._targets}
                tell = partial(notices.release, notice_id=row.id, next_ns=times, now_ns=now_ns)
                is_news = self._database.run(tell) or is_news
        return is_news

    def _note(self, now_ns: int) -> None:
        """Remember until when everything was evaluated, and clean up."""

        def work(connection: Connection) -> None:
            state.set_state(connection, EVALUATED, str(now_ns))
            notices.abandon(connection, now_ns)
            if abs(now_ns - self._pruned_ns) > _PRUNE_NS:
                notices.prune(connection, now_ns)

        self._database.run(work)
        self._noted_ns = now_ns
        if abs(now_ns - self._pruned_ns) > _PRUNE_NS:
            self._pruned_ns = now_ns

    def _notice_steps(self, now_ns: int) -> None:
        """See whether the clock was set, or this process did not run for a while."""
        now = self._monotonic()
        if self._last is not None:
            passed, shown = now - self._last[1], (now_ns - self._last[0]) / NS
            if abs(passed - shown) <= STEP_SECONDS and passed <= SETTLE_SECONDS:
                self._last = (now_ns, now)
                return
        self._last = (now_ns, now)
        self._settled_ns = now_ns + self._settle_ns

    def _evaluate(
        self, connection: Connection, places: Sequence[tuple[str, str]], read: _Facts, now_ns: int
    ) -> Iterator[tuple[Watched, Transitions]]:
        for place in places:
            key, expected = read.places[place], read.expectations.of(*place)
            has_open = place in read.with_open
            signature = (read.signature(key), expected.limits, expected.known_ns, has_open)
            before = self.watched.get(place)
            if before is not None and before.signature == signature and not _is_due(before, now_ns):
                continue
            watched = self._evaluate_one(connection, (expected, key, signature), has_open, read, now_ns)
            told: Sequence[Told] = ()
            if watched.evaluation.findings or has_open:
                rows = notices.of_workflow(connection, *place)
                told = [Told(r.id, r.kind, r.key, r.opened_ns, r.resolved_ns) for r in rows]
            change = transitions(told, watched.evaluation.findings, now_ns)
            ended = [ending_of(connection, recovery) for recovery in change.recovered]
            yield watched._replace(open_kinds=open_kinds(told, change)), change._replace(recovered=ended)

    def _evaluate_one(
        self,
        connection: Connection,
        subject: tuple[Expected, Key | None, object],
        has_open: bool,
        read: _Facts,
        now_ns: int,
    ) -> Watched:
        expected, key, signature = subject
        before = self.watched.get((expected.workspace_id, expected.workflow))
        history, hours_ns = History(), before.hours_ns if before is not None else 0
        usual_ns = before.usual_ns if before is not None else 0
        usual_steps = before.usual_steps if before is not None and 0 <= now_ns - usual_ns < UNUSUAL_NS else None
        # What is usual is read when executions have ended since the service started: reading it takes a while.
        reads_hours = (before is not None or has_open) and not 0 <= now_ns - hours_ns < UNUSUAL_NS
        if key is not None:
            running = read.running.get(key, ())
            history = read_history(
                connection, key, expected.limits, running, now_ns, hours=reads_hours, usual_steps=usual_steps or None
            )
            if history.usual_steps and not usual_steps:
                usual_ns = now_ns
        since_ns = before.evaluated_ns if before is not None else self._since_ns
        evaluation = evaluate(
            expected.limits, history, min(since_ns, now_ns), now_ns,
            known_ns=expected.known_ns, settled_ns=self._settled_ns,
        )  # fmt: skip
        unusual = [f for f in evaluation.findings if f.kind in _BY_THE_HOUR]
        if reads_hours:
            hours_ns = now_ns
        elif before is not None and not expected.limits.is_paused:
            unusual = [*before.unusual]
            evaluation = evaluation._replace(findings=[*evaluation.findings, *unusual])
        if unusual:
            again = now_ns + UNUSUAL_NS
            evaluation = evaluation._replace(next_ns=min(evaluation.next_ns or again, again))
        usual = (unusual, hours_ns, history.usual_steps, usual_ns)
        return Watched(expected, evaluation, signature, now_ns, *usual)

    def _tell(self, connection: Connection, *, expected: Expected, change: Transitions, now_ns: int) -> bool:
        """Store what is to be told, with the messages. Returns whether that was news."""
        # A service that takes over may find the same at the same time, and say it in other words.
        locking.lock(connection)
        slug = self.slugs.get(expected.workspace_id, "")
        silences = silence_rows.silences(connection, now_ns)
        is_news = False
        no_recovery = {target.name for target in self._targets if not target.recoveries}
        not_before = partial(self._not_before, now_ns)
        for recovery in change.recovered:
            text = recovery.text
            if recovery.told.kind in (OVERDUE, STUCK):
                text = _with_reason(connection, expected.workspace_id, text, recovery.execution_id)
            told_id, until_ns = recovery.told.id, recovery.until_ns
            resolved = notices.resolve(connection, told_id, until_ns, text, now_ns, no_recovery, not_before)
            is_news = resolved or is_news
        for finding in change.opened:
            place = (expected.workspace_id, expected.workflow, finding.kind)
            if finding.until_ns is None and notices.is_open(connection, *place):
                continue
            text = _with_reason(connection, expected.workspace_id, finding.text, finding.execution_id)
            silence = _covering(silences, expected.workspace_id, expected.workflow, finding.kind, finding.severity)
            new = NewNotice(
                expected.workspace_id, expected.workflow, finding.kind, finding.key, finding.severity,
                finding.since_ns, finding.until_ns, text, finding.recovery if finding.until_ns is not None else "",
                finding.execution_id or None, silence.id if silence is not None else None,
            )  # fmt: skip
            messages = self._messages(slug, expected, finding, silence is not None, now_ns)
            is_news = notices.tell(connection, new, now_ns, messages, no_recovery) is not None or is_news
        return is_news

    def _not_before(self, now_ns: int, target: str, severity: str) -> int:
        """When a receiver may be told; one that is not known here at once, by the service that has it."""
        mine = next((entry for entry in self._targets if entry.name == target), None)
        return now_ns if mine is None else mine.not_before(severity, now_ns)

    def _messages(
        self, workspace: str, expected: Expected, finding: Finding, is_silent: bool, now_ns: int
    ) -> list[Message]:
        return [
            Message(target.name, notices.SILENCED, now_ns)
            if is_silent
            else Message(target.name, notices.PENDING, target.not_before(finding.severity, now_ns))
            for target in self._targets
            if target.takes(workspace, expected.workflow, finding.kind, finding.severity)
        ]


class _Facts(NamedTuple):
    """What all workflows have, read at once. ``places``: the key of each workflow that has a row, else None."""

    expectations: Expectations
    places: Mapping[tuple[str, str], Key | None]
    revisions: Mapping[Key, int]
    running: Mapping[Key, Sequence[Row[Any]]]
    with_open: set[tuple[str, str]]
    slugs: Mapping[str, str]

    @classmethod
    def read(cls, connection: Connection, workspace: str) -> _Facts:
        expectations = Expectations(expectation_rows.said(connection))
        places: dict[tuple[str, str], Key | None] = {
            (entry.key[0], entry.name): entry.key for entry in facts.workflow_names(connection)
        }
        known = {name for _, name in places}
        for workspace_id, name in expectations.names():
            if workspace_id != expectation_rows.ANY:
                places.setdefault((workspace_id, name), None)
            elif name not in known:
                # One that has never run anywhere is expected in the service's own workspace.
                places[workspace, name] = None
        with_open = notices.workflows_with_open(connection)
        for place in with_open:
            # Those of a workflow that has been renamed are over.
            places.setdefault(place, None)
        running = facts.open_executions(connection)
        slugs = {row.id: row.slug for row in list_workspaces(connection)}
        return cls(expectations, places, facts.revisions(connection), running, with_open, slugs)

    def signature(self, key: Key | None) -> object:
        """Changes when facts of a workflow do."""
        if key is None:
            return None
        running = self.running.get(key, ())
        return (self.revisions.get(key), tuple((row.execution_id, row.started_ns) for row in running))


def _covering(
    silences: Sequence[Silence], workspace_id: str, workflow: str, kind: str, severity: str
) -> Silence | None:
    """The silence that lasts longest of those that are about this, or None."""
    subject = (workspace_id, workflow, kind, severity)
    return next((silence for silence in reversed(silences) if silence.covers(*subject)), None)


def _is_due(watched: Watched, now_ns: int) -> bool:
    next_ns = watched.evaluation.next_ns
    if now_ns < watched.evaluated_ns:
        return True  # The clock was set back.
    return next_ns is not None and next_ns <= now_ns


def _with_reason(connection: Connection, workspace_id: str, text: str, execution_id: str | None) -> str:
    """The text, and the sentence of the execution's comparison with what is usual."""
    if not execution_id:
        return text
    run = execution_rows.run(connection, workspace_id, execution_id)
    if run is None or run.execution.finished_ns is None:
        return text
    sentence = read_baseline_comparison(connection, workspace_id, run, BASELINE_SECONDS * NS).sentence
    return sentence if text == IT_FAILED else f"{text} {sentence}".strip()
