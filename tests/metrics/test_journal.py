"""The journal knows which execution changed which series, by how much, and stays small."""

from __future__ import annotations

import random
import threading
from collections import defaultdict

import pytest
from prometheus_client import CollectorRegistry
from tests.conftest import make_execution, make_step

from tachograph import run_notes
from tachograph.events import Event, ExecutionFinished, ExecutionStarted, ExecutionStatus, StepFinished, StepStatus
from tachograph.identity import ExecutionRef
from tachograph.metrics import journal as journal_module
from tachograph.metrics.journal import Change
from tachograph.metrics.listener import MetricsListener
from tachograph.run_notes import RunNotes

ATTEMPTS = "workflow_step_attempts_total"
DURATION = "workflow_step_duration_seconds"


def finished(execution: ExecutionRef, name: str, duration_ns: int) -> StepFinished:
    return StepFinished(step=make_step(execution, name), time_ns=duration_ns, status=StepStatus.COMPLETED, attempt=1,
                        started_ns=0, attempt_started_ns=0)  # fmt: skip


@pytest.mark.parametrize("fold_at", [2, 10, journal_module.FOLD_AT])
@pytest.mark.parametrize("pending", [1, 7, journal_module.PENDING])
def test_interleaved_executions_are_told_apart_however_often_changes_are_added_up(
    fold_at: int, pending: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "FOLD_AT", fold_at)
    monkeypatch.setattr("tachograph.metrics.listener.PENDING", pending)
    rng = random.Random(5)
    listener = MetricsListener(CollectorRegistry())
    runs = [make_execution("w") for _ in range(3)]
    due: dict[tuple[str, str], list[int]] = defaultdict(list)
    for run in runs[:2]:
        listener(ExecutionStarted(execution=run, time_ns=1))
    for _ in range(300):
        run, name = rng.choice(runs), rng.choice("ab")
        due[run.execution_id, name].append(rng.randrange(10**9))
        listener(finished(run, name, due[run.execution_id, name][-1]))
    for run in runs:
        changes = listener.journal.by_series(run.execution_id)
        for name in "ab":
            durations = due[run.execution_id, name]
            labels = ("default", "w", name, "completed")
            assert changes[ATTEMPTS, labels] == Change(len(durations), len(durations))
            times, total = changes[DURATION, labels]
            assert times == len(durations)
            assert total == pytest.approx(sum(durations) / 1e9, rel=1e-12)
    assert [listener.journal.is_whole(run.execution_id) for run in runs] == [True, True, False]
    assert listener.journal.is_whole("another") is None
    assert listener.journal.by_series("another") == {}


def test_only_the_newest_executions_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_notes, "MAX_EXECUTIONS", 5)
    listener = MetricsListener(CollectorRegistry())
    runs = [make_execution("w") for _ in range(9)]
    for run in runs:
        listener(ExecutionStarted(execution=run, time_ns=1))
        listener(ExecutionFinished(execution=run, time_ns=2, status=ExecutionStatus.COMPLETED, started_ns=1,
                                   step_count=0))  # fmt: skip
    kept = [listener.journal.is_whole(run.execution_id) for run in runs]
    assert kept == [None] * 4 + [True] * 5


def test_executions_with_many_changes_displace_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "MAX_VALUES", 100)
    listener = MetricsListener(CollectorRegistry())
    runs = [make_execution("w") for _ in range(4)]
    for run in runs:
        for i in range(20):
            listener(finished(run, f"s{i}", 5))
    kept = [listener.journal.is_whole(run.execution_id) for run in runs]
    assert kept[0] is None
    assert kept[-1] is False


def test_an_execution_that_is_forgotten_while_it_runs_is_not_whole_when_it_comes_back() -> None:
    class Notes:
        is_whole = False

    notes = RunNotes(Notes, 10)
    assert notes.begin("a", is_whole=True).is_whole
    notes.begin("b")
    notes.grown("a", 11)
    assert notes.of("a") is None
    assert not notes.begin("a").is_whole


def test_a_reader_sees_whole_changes_while_they_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "FOLD_AT", 50)
    monkeypatch.setattr("tachograph.metrics.listener.PENDING", 20)
    listener = MetricsListener(CollectorRegistry())
    a, b = make_execution("w"), make_execution("w")
    events: list[Event] = [finished(run, "s", 10**9) for _ in range(3_000) for run in (a, a, b)]
    written = threading.Event()

    def write() -> None:
        for event in events:
            listener(event)
        written.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = [0]
    key = (DURATION, ("default", "w", "s", "completed"))
    while not written.is_set():
        times, total = listener.journal.by_series(a.execution_id).get(key, Change())
        assert times == total
        seen.append(times)
    writer.join()
    assert seen == sorted(seen)
    assert listener.journal.by_series(a.execution_id)[key] == Change(6_000, 6_000)
    assert listener.journal.by_series(b.execution_id)[key] == Change(3_000, 3_000)
