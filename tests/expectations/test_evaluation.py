"""What is found, and what is told of it."""

from __future__ import annotations

import msgspec
import pytest

from tachograph.clock import NS
from tachograph.expectation import Expectation, StepExpectation
from tachograph_exporter.expectations.evaluation import Evaluation, evaluate
from tachograph_exporter.expectations.findings import (
    COST,
    FAILED,
    FLAPPING,
    KINDS,
    LATE,
    OVERDUE,
    REGRESSION,
    STALE,
    STUCK,
    SUCCESS_RATE,
    Finding,
)
from tachograph_exporter.expectations.history import Count, History, Hour, Run, RunningStep
from tachograph_exporter.expectations.limits import combined, limits_of
from tachograph_exporter.expectations.transitions import Told, transitions

HOUR = 3600 * NS
NOW = 1_000_000 * HOUR


def run(name: str, start: float, end: float | None = None, status: str = "completed") -> Run:
    """An execution that began and ended so many hours ago."""
    finished = None if end is None else NOW - round(end * HOUR)
    return Run(name, NOW - round(start * HOUR), finished, status if end is not None else "running")


def found(history: History, since_hours: float = 0.1, **said: object) -> Evaluation:
    limits = limits_of(Expectation(**said))  # type: ignore[arg-type]
    return evaluate(limits, history, NOW - round(since_hours * HOUR), NOW)


def test_an_execution_that_runs_past_its_deadline_or_what_is_usual() -> None:
    history = History(runs=[run("a", 2)], steps=[RunningStep("a", "load", NOW - HOUR)], usual_p95_seconds=600)
    overdue = found(history, deadline_seconds=3600.0)
    assert [f.kind for f in overdue.findings] == [OVERDUE]
    assert overdue.findings[0].text == (
        "An execution has been running for 2 h 00 m; its deadline is 1 h 00 m. Running: load."
    )
    stuck = found(history)
    assert [f.kind for f in stuck.findings] == [STUCK]
    assert "95 % of its executions took no longer than 10 m 00 s; the limit is 30 m 00 s" in stuck.findings[0].text
    patient = found(History(runs=[run("a", 2)]))
    assert patient.findings == []
    # It says when to look again.
    assert patient.next_ns == NOW + 22 * HOUR + 1


def test_a_step_has_a_deadline_of_its_own() -> None:
    history = History(runs=[run("a", 2)], steps=[RunningStep("a", "load", NOW - HOUR)])
    steps = {"load": StepExpectation(deadline_seconds=1800.0)}
    (finding,) = found(history, deadline_seconds=3 * 3600.0, steps=steps).findings
    assert (finding.kind, "step “load” has been running for 1 h 00 m" in finding.text) == (OVERDUE, True)
    # Its execution is overdue: that is told, and not both.
    assert [f.key for f in found(history, deadline_seconds=3600.0, steps=steps).findings] == ["a"]


def test_a_step_without_a_deadline_is_held_against_what_is_usual() -> None:
    steps = [RunningStep("a", "load", NOW - HOUR), RunningStep("a", "join", NOW - HOUR // 10)]
    history = History(runs=[run("a", 2)], steps=steps, usual_p95_seconds=3600, usual_steps={"load": 600, "join": 1})
    stuck = found(history)
    assert [(f.kind, f.key) for f in stuck.findings] == [(STUCK, "a/load"), (STUCK, "a/join")]
    assert stuck.findings[0].text == (
        "Its step “load” has been running for 1 h 00 m; 95 % of its executions took no longer than 10 m 00 s; the "
        "limit is 30 m 00 s."
    )
    assert stuck.long_steps == ["join", "load"]
    # Looked at now and then, because a step begins and ends without anything else to notice.
    assert stuck.next_ns == NOW + 300 * NS
    # A deadline says what is acceptable, whatever is usual; and so does one of the step.
    assert found(history, deadline_seconds=3 * 3600.0).findings == []
    patient = found(history, steps={"load": StepExpectation(deadline_seconds=7200.0)})
    assert [f.key for f in patient.findings] == ["a/join"]
    assert found(msgspec.structs.replace(history, usual_steps={})).findings == []
    # Its execution takes too long itself: that is told, and the step is still known to run for too long.
    both = found(msgspec.structs.replace(history, usual_p95_seconds=600))
    assert ([f.key for f in both.findings], both.long_steps) == (["a"], ["join", "load"])


def test_what_was_told_of_a_step_goes_on_as_that_of_its_execution() -> None:
    told = [Told("n1", STUCK, "a/load", 10, None)]
    assert transitions(told, [finding(STUCK, "a", 30)], 31) == ([], [])
    over = transitions(told, [finding(STUCK, "a", 30, 40)._replace(execution_id="a")], 41)
    assert ([(r.told.id, r.until_ns, r.text) for r in over.recovered], over.opened) == ([("n1", 40, "recovery")], [])


def test_while_it_flaps_nothing_else_is_said_of_its_failures() -> None:
    once = found(History(runs=[run("a", 3, 2.9), run("b", 2, 1.9, "failed")]))
    assert ([f.kind for f in once.findings], once.is_flapping) == ([FAILED], False)
    again = [run("a", 3, 2.9, "failed"), run("b", 2, 1.9), run("c", 1, 0.01, "failed")]
    # It is not told yet, because it may succeed in time.
    soon = found(History(runs=again))
    assert (soon.findings, soon.is_flapping) == ([], True)
    assert found(History(runs=[*again, run("d", 0.005, 0.001)])).is_flapping is False


def test_what_never_started_is_late_unless_it_is_paused_or_was_not_expected_yet() -> None:
    (finding,) = found(History(), schedule="0 * * * *", grace_seconds=60.0).findings
    assert (finding.kind, finding.text.endswith("and it has never started.")) == (LATE, True)
    assert found(History(), schedule="0 * * * *", is_paused=True).findings == ()
    limits = limits_of(Expectation(schedule="30 * * * *", grace_seconds=60.0))
    unknown = evaluate(limits, History(), 0, NOW, known_ns=NOW - HOUR // 4)
    assert (unknown.findings, unknown.expected_start_ns) == ([], NOW + HOUR // 2)
    settling = evaluate(limits, History(), 0, NOW, settled_ns=NOW + 5 * NS)
    assert ([f.is_certain for f in settling.findings], settling.next_ns) == ([False], NOW + 5 * NS)
    assert transitions([], settling.findings, NOW).opened == []
    queued = evaluate(limits, History(waiting_ns=NOW - HOUR), 0, NOW)
    assert "an execution has been queued since" in queued.findings[0].text


def test_the_first_start_ever_says_how_late_it_is() -> None:
    limits = limits_of(Expectation(schedule="0 * * * *", grace_seconds=60.0))
    known = NOW - 3 * HOUR // 2
    evaluation = evaluate(limits, History(runs=[run("a", 0.5)]), NOW - HOUR, NOW, known_ns=known)
    (late,) = evaluation.findings
    assert (late.kind, late.until_ns, late.recovery) == (LATE, NOW - HOUR // 2, "It started 30 m 00 s late.")
    before = evaluate(limits, History(), NOW - HOUR, NOW - HOUR // 2 - 1, known_ns=known)
    assert [f.key for f in before.findings] == [late.key]
    # What was long before anything was expected is no reason.
    assert evaluate(limits, History(runs=[run("a", 9), run("b", 0.99)]), NOW - HOUR, NOW, known_ns=known).findings == []


def test_a_learned_schedule_is_missed_once_although_it_is_learned_anew() -> None:
    nights = [run(str(n), 24 * n + 1 + (n % 3) / 10, 24 * n + 0.9) for n in range(10, 2, -1)]
    limits = limits_of(Expectation(schedule="learned", timezone="UTC"))
    missing = evaluate(limits, History(runs=nights), NOW - HOUR, NOW)
    assert [(f.kind, f.key) for f in missing.findings] == [(LATE, "after 3")]
    told = [Told("n1", LATE, "after 3", NOW - HOUR, None)]
    back = evaluate(limits, History(runs=[*nights, run("1", 0)]), NOW - HOUR, NOW)
    news = transitions(told, back.findings, NOW)
    assert ([r.told.id for r in news.recovered], news.opened) == (["n1"], [])


def test_a_failure_counts_if_nothing_has_succeeded_since_for_a_while() -> None:
    failed, again = run("x", 1, 0.9, "failed"), run("z", 0.5, 0.4, "timeout")
    (finding,) = found(History(runs=[run("a", 3, 2), failed])).findings
    assert (finding.kind, finding.text, finding.execution_id) == (FAILED, "It failed.", "x")
    (finding,) = found(History(runs=[failed, again])).findings
    assert (finding.key, finding.text, finding.execution_id) == ("x", "It failed 2 times in a row.", "z")
    patient = found(History(runs=[failed]), last_failed_seconds=3600.0)
    assert (patient.findings, patient.next_ns) == ([], NOW + round(0.1 * HOUR))
    assert found(History(runs=[failed, run("b", 0.8, 0.79)])).findings == []
    cancelled = run("y", 1, 0.9, "cancelled")
    assert found(History(runs=[cancelled])).findings == []


def test_one_that_fails_and_succeeds_by_turns_is_told_as_one() -> None:
    outcomes = [run(f"{n}", n + 0.5, n, "failed" if n % 2 else "completed") for n in range(9, 0, -1)]
    (finding,) = found(History(runs=outcomes)).findings
    assert (finding.kind, finding.key) == (FLAPPING, "7")
    steady = [run(f"s{n}", 0.9 - n / 10, 0.85 - n / 10) for n in range(3)]
    assert [f.kind for f in found(History(runs=[*outcomes, *steady[:2]])).findings] == [FLAPPING]
    (over,) = found(History(runs=[*outcomes, *steady]), since_hours=1).findings
    assert over.until_ns == steady[-1].finished_ns


def test_success_rate_cost_and_steps_beside_what_is_usual() -> None:
    counts = {3600: Count(100, 20), 300: Count(10, 3), 21_600: Count(600, 20), 259_200: Count(5000, 20)}
    assert found(History(counts=counts)).findings == []
    (rate,) = found(History(counts=counts), success_target=0.99).findings
    assert (rate.kind, rate.severity) == (SUCCESS_RATE, "critical")
    assert rate.text == "20 of 100 executions failed: 80 % succeed, and the target is 99 %."
    hours = [Hour(999_990 * 3600 + n * 3600, 2.0, {"load": 10.0, "join": 5.0}) for n in range(9)]
    hours.append(Hour(999_999 * 3600, 9.0, {"load": 40.0, "join": 5.1}))
    kinds = {f.kind: f.text for f in found(History(hours=hours)).findings}
    assert set(kinds) == {COST, REGRESSION}
    assert "usually costs $2.00" in kinds[COST]
    assert "“load” took 40 s on average in the last hour it ran; it usually takes 10 s." in kinds[REGRESSION]
    assert found(History(hours=hours[:-1])).findings == []


def test_a_workflow_that_has_not_succeeded_for_too_long() -> None:
    (finding,) = found(History(runs=[run("a", 10, 9)]), stale_seconds=4 * 3600.0).findings
    assert finding.kind == STALE
    assert found(History(runs=[run("a", 3, 2)]), stale_seconds=4 * 3600.0).next_ns == NOW + 2 * HOUR + 1
    assert len(found(History(), stale_seconds=60.0).findings) == 1


def finding(kind: str, key: str, since: int, until: int | None = None) -> Finding:
    return Finding(kind, key, since, until, "warning", "text", "recovery")


def test_each_fault_is_told_once_with_its_recovery() -> None:
    news = transitions([], [finding(LATE, "1", 10)], 20)
    assert [f.key for f in news.opened] == ["1"]
    told = [Told("n1", LATE, "1", 10, None)]
    assert transitions(told, [finding(LATE, "1", 10)], 20) == ([], [])
    over = transitions(told, [finding(LATE, "1", 10, 15)], 20)
    assert [(r.told.id, r.until_ns, r.text) for r in over.recovered] == [("n1", 15, "recovery")]
    resolved = [Told("n1", LATE, "1", 10, 15)]
    assert transitions(resolved, [finding(LATE, "1", 10)], 30) == ([], [])
    # One that came and went unseen is told with its end; the next one is another.
    both = transitions(resolved, [finding(LATE, "2", 30, 35), finding(LATE, "3", 40)], 50)
    assert [(f.key, f.until_ns) for f in both.opened] == [("2", 35), ("3", None)]
    # What is no longer found for another reason (it is no longer expected) is over now.
    assert transitions(told, [], 20).recovered[0].until_ns == 20


def test_many_executions_that_hang_together_are_one_fault() -> None:
    told = [Told("n1", OVERDUE, "a", 10, None)]
    assert transitions(told, [finding(OVERDUE, "a", 10), finding(OVERDUE, "b", 12)], 20) == ([], [])
    # Another one hung before the first ended; and one came and went meanwhile.
    going_on = [finding(OVERDUE, "a", 10, 30), finding(OVERDUE, "b", 12), finding(OVERDUE, "c", 13, 14)]
    assert transitions(told, going_on, 31) == ([], [])
    over = transitions(told, [finding(OVERDUE, "b", 12, 40)], 41)
    assert [r.told.id for r in over.recovered] == ["n1"]
    assert over.opened == []
    again = transitions([Told("n1", OVERDUE, "a", 10, 40)], [finding(OVERDUE, "d", 50)], 51)
    assert [f.key for f in again.opened] == ["d"]


def test_the_stronger_place_wins_field_by_field() -> None:
    said = {
        "default": Expectation(timezone="Asia/Tokyo", grace_seconds=60.0, severity="critical"),
        "code": Expectation(schedule="0 3 * * *", timezone="Europe/Berlin", deadline_seconds=10.0),
        "file": Expectation(deadline_seconds=20.0, steps={"load": StepExpectation(deadline_seconds=5.0)}),
        "api": Expectation(grace_seconds=5.0),
    }
    whole = combined(said)
    assert (whole.schedule, whole.timezone, whole.deadline_seconds, whole.grace_seconds, whole.severity) == (
        "0 3 * * *", "Europe/Berlin", 20.0, 5.0, "critical",
    )  # fmt: skip
    assert whole.steps["load"].deadline_seconds == 5.0
    # A schedule without a zone is not meant in that of a weaker place, but for the default one.
    assert combined({**said, "api": Expectation(schedule="0 4 * * *")}).timezone == "Asia/Tokyo"
    limits = limits_of(whole)
    assert (limits.has_grace, limits.has_target, limits.stuck_factor) == (True, False, 3.0)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_says_what_it_means(kind: str) -> None:
    assert KINDS[kind].startswith(("it ", "an ", "a "))
