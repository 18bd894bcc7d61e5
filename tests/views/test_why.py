"""Why: planted causes are named first, never a wrong one as certain, and a healthy run is as usual."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
from rich.console import Console
from rich.table import Table
from sqlalchemy import Connection
from tests import programs
from tests.conftest import Api, make_execution, make_step
from tests.views.planted import END_NS, HARDER, SCENARIOS, play

from tachograph.clock import NS
from tachograph.events import (
    Event,
    ExecutionFinished,
    ExecutionQueued,
    ExecutionStarted,
    ExecutionStatus,
    Failure,
    SkipReason,
    StepFinished,
    StepReady,
    StepRetrying,
    StepSkipped,
    StepStarted,
    StepStatus,
)
from tachograph.identity import workspace_id
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.definitions import find_definition
from tachograph_exporter.store.writer import StoreWriter
from tachograph_exporter.views.causes.reading import BACK_SECONDS, read_why
from tachograph_exporter.views.causes.sets import Choice, read_differences
from tachograph_exporter.views.schemas.why import WhyAnswer, WorkflowDifferences

BACK_NS: Final = BACK_SECONDS * NS
CONTROL: Final = "nothing (the control)"


class Outcome(NamedTuple):
    """What was said of a scenario."""

    scenario: str
    why: WhyAnswer
    is_named: bool
    wrong: list[str]


def ask(database: Database, workspace: str, execution_id: str, now_ns: int = END_NS) -> WhyAnswer:
    return database.look(lambda c: read_why(c, workspace_id(workspace), execution_id, BACK_NS, now_ns))


def outcome_of(database: Database, scenario: str, seed: int) -> Outcome:
    workspace, execution_id, (accepted, facts) = play(database, scenario, seed)
    why = ask(database, workspace, execution_id)
    named = [(cause.kind, cause.subject) for cause in why.causes]
    wrong = [
        f"{cause.kind} {cause.subject}"
        for cause in why.causes
        if cause.certainty == "certain" and (cause.kind, cause.subject) not in accepted | facts
    ]
    step = (SCENARIOS | HARDER)[scenario][1]
    if step and step not in {claim.subject for claim in why.claims if claim.kind in ("step", "outcome")}:
        wrong.append(f"the step is not {step}")
    return Outcome(scenario, why, named[0] in accepted if accepted and named else not accepted and not named, wrong)


@pytest.fixture
def database(tmp_path: Path, empty_database: Path) -> Iterator[Database]:
    shutil.copy(empty_database, tmp_path / "planted.db")
    database = Database(f"sqlite:///{tmp_path}/planted.db")
    yield database
    database.close()


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 6))])
def test_planted_causes_are_named_first(database: Database, seed: int) -> None:
    outcomes = [outcome_of(database, scenario, seed) for scenario in SCENARIOS]
    table = Table("planted", "named first", "certainty", "", title=f"Planted causes, 200 runs each, seed {seed}")
    for scenario, why, is_named, wrong in outcomes:
        first = why.causes[0] if why.causes else None
        said = f"{first.kind} {first.subject}" if first else f"none ({why.verdict})"
        table.add_row(scenario, said, first.certainty if first else "", "✔" if is_named else "✘ " + "; ".join(wrong))
    Console(width=120).print(table)
    planted = [outcome for outcome in outcomes if outcome.scenario != CONTROL]
    assert len(planted) == 24
    assert sum(outcome.is_named for outcome in planted) >= 22, [o.scenario for o in planted if not o.is_named]
    assert not [outcome.wrong for outcome in outcomes if outcome.wrong]
    control = outcomes[-1].why
    assert (control.verdict, control.causes, control.differences) == ("usual", [], [])
    assert control.sentence.startswith("Nothing stands out")
    for outcome in planted:
        why = outcome.why
        assert why.verdict == ("failed" if why.status == "failed" else "slow")
        assert all(claim.evidence.url.startswith("/") and claim.text.endswith(".") for claim in why.claims + why.causes)


@pytest.mark.parametrize("scenario", HARDER)
def test_causes_are_named_that_many_runs_have_or_many_values_hide(database: Database, scenario: str) -> None:
    _, why, is_named, wrong = outcome_of(database, scenario, 1)
    assert is_named, why.sentence
    assert (why.verdict, wrong) == ("slow", [])


@pytest.mark.parametrize("seed", range(4))
def test_healthy_runs_are_as_usual(database: Database, seed: int) -> None:
    _, why, is_named, wrong = outcome_of(database, CONTROL, 100 + seed)
    assert is_named, why.sentence
    assert not wrong


class Story:
    """Events of one workflow, written as they are told. Times are seconds since the start of the story."""

    def __init__(self, database: Database) -> None:
        self.writer = StoreWriter(database)
        self.database = database
        self.at = END_NS - 86_400 * NS

    def time(self, seconds: float) -> int:
        return self.at + round(seconds * NS)

    def tell(self, *events: Event) -> None:
        self.writer.apply(events)

    def run(
        self, start: float, seconds: float, *, error: Failure | None = None, inputs: str | None = None, **fields: Any
    ) -> str:
        """One run with one step, `load`."""
        execution = make_execution(**fields)
        step = make_step(execution, "load")
        begin, end = self.time(start), self.time(start + seconds)
        status = StepStatus.COMPLETED if error is None else StepStatus.FAILED
        self.tell(
            ExecutionStarted(execution=execution, time_ns=begin, step_count=1, inputs=inputs),
            StepStarted(step=step, time_ns=begin),
            StepFinished(
                step=step, time_ns=end, status=status, attempt=1, started_ns=begin, attempt_started_ns=begin,
                run_ns=end - begin, failure=error,
            ),
            ExecutionFinished(
                execution=execution, time_ns=end, status=ExecutionStatus(status.value), started_ns=begin, step_count=1,
                failure=error,
            ),
        )  # fmt: skip
        return execution.execution_id

    def why(self, execution_id: str, now: float = 86_400) -> WhyAnswer:
        return ask(self.database, "default", execution_id, self.time(now))


def test_what_is_not_known_is_said_so(database: Database) -> None:
    story = Story(database)
    first = story.run(0, 60)
    why = story.why(first)
    assert (why.verdict, why.causes) == ("unknown", [])
    assert "there is nothing to compare it with" in why.sentence
    for i in range(1, 30):
        story.run(i * 100, 60 + i % 3)
    slow = story.run(4_000, 600)
    why = story.why(slow)
    assert why.verdict == "slow"
    assert [(cause.kind, cause.certainty) for cause in why.causes] == [("unknown", "not known")]
    assert "Why is not known" in why.sentence
    assert why.differences == []


def test_steps_that_did_not_run_and_a_trend_are_named(database: Database) -> None:
    story = Story(database)
    for i in range(40):
        is_slow = i % 8 == 7
        execution = make_execution(workflow="filtered")
        begin, at = story.time(i * 1_000), story.time(i * 1_000 + (0 if is_slow else 10))
        end = at + (400 if is_slow else 60 + i % 3) * NS
        filtering, load = make_step(execution, "filter"), make_step(execution, "load", depends_on=["filter"])
        ran = StepFinished(
            step=filtering, time_ns=at, status=StepStatus.COMPLETED, attempt=1, started_ns=begin,
            attempt_started_ns=begin, run_ns=at - begin,
        )  # fmt: skip
        story.tell(
            ExecutionStarted(execution=execution, time_ns=begin, step_count=2),
            StepSkipped(step=filtering, time_ns=at, reason=SkipReason.CONDITION) if is_slow else ran,
            StepFinished(
                step=load, time_ns=end, status=StepStatus.COMPLETED, attempt=1, started_ns=at, attempt_started_ns=at,
                run_ns=end - at,
            ),
            ExecutionFinished(
                execution=execution, time_ns=end, status=ExecutionStatus.COMPLETED, started_ns=begin, step_count=2
            ),
        )  # fmt: skip
    why = story.why(execution.execution_id)
    assert [(cause.kind, cause.subject, cause.certainty) for cause in why.causes] == [
        ("missing_step", "filter", "likely")
    ]
    assert "Likely: step “filter” did not run: slow in 4 of 4 runs without it, 0 of 35 with it." in why.sentence
    for i in range(60):
        last = story.run(i * 28_800, 60 * 1.02**i * (1.1 if i % 2 else 0.9), workflow="growing")
    why = story.why(last)
    assert (why.verdict, [(cause.kind, cause.subject) for cause in why.causes]) == ("slow", [("trend", "load")])
    assert "by 6.1 % a day" in why.sentence
    assert "since" not in {claim.kind for claim in why.claims}


def test_a_failure_is_told_with_those_before_it_and_what_followed(database: Database) -> None:
    story = Story(database)
    for i in range(20):
        story.run(i * 100, 60)
    failures = [
        story.run(3_000 + i * 100, 10, error=Failure("ValueError", f"row {i} is broken", "at load")) for i in range(3)
    ]
    why = story.why(failures[-1])
    assert (why.verdict, [claim.kind for claim in why.claims]) == ("failed", ["outcome", "before"])
    assert why.sentence.startswith("The run failed in step “load”: ValueError: row 2 is broken.")
    assert "2 of the 22 runs before failed so too, the last 2 in a row" in why.sentence
    assert [(cause.kind, cause.subject, cause.certainty) for cause in why.causes] == [
        ("error", "ValueError", "not known")
    ]
    story.run(4_000, 60)
    assert "It recovered: the 2nd run after it completed." in story.why(failures[-2]).sentence
    assert "The next run completed." in story.why(failures[-1]).sentence
    other = story.run(5_000, 10, error=Failure("KeyError", "'id'", "at load"))
    assert "It did not fail so in the 24 runs before." in story.why(other).sentence


def test_one_message_with_other_own_frames_is_another_failure(database: Database) -> None:
    stack = "Traceback (most recent call last):\n  File \"/srv/shop/{0}.py\", line 7, in {0}\nKeyError: 'id'"
    story = Story(database)
    for i in range(20):
        story.run(i * 100, 60)
    first = story.run(3_000, 10, error=Failure("KeyError", "'id'", stack.format("load")))
    other = story.run(3_100, 10, error=Failure("KeyError", "'id'", stack.format("rates")))
    again = story.run(3_200, 10, error=Failure("KeyError", "'id'", stack.format("load")))
    before = {run: next(claim for claim in story.why(run).claims if claim.kind == "before") for run in (other, again)}
    assert before[other].text == "It did not fail so in the 21 runs before."
    assert "1 of the 22 runs before failed so too" in before[again].text
    assert before[again].evidence.values["first_execution_id"] == first
    groups = {claim.evidence.values["failure_group"] for claim in before.values()}
    assert len(groups) == 2
    assert before[again].evidence.url == f"/api/failures/{before[again].evidence.values['failure_group']}"


def test_an_open_run_says_what_it_does_and_waits_for(database: Database) -> None:
    story = Story(database)
    for i in range(10):
        story.run(i * 100, 60)
    pending = make_execution()
    story.tell(ExecutionQueued(execution=pending, time_ns=story.time(2_000)))
    why = story.why(pending.execution_id, 2_030)
    assert (why.verdict, why.claims[0].certainty) == ("pending", "not known")
    assert why.sentence == "The run has waited 30 s to start; what it waits for is not known."
    execution = make_execution()
    load, wait, retry = (make_step(execution, name) for name in ("load", "wait", "retry"))
    story.tell(
        ExecutionStarted(execution=execution, time_ns=story.time(2_000), step_count=3),
        StepStarted(step=load, time_ns=story.time(2_000)),
        StepReady(step=wait, time_ns=story.time(2_010)),
        StepStarted(step=retry, time_ns=story.time(2_000)),
        StepRetrying(
            step=retry, time_ns=story.time(2_020), attempt=1, status=StepStatus.FAILED, started_ns=story.time(2_000),
            delay_ns=100 * NS, failure=Failure("TimeoutError", "read", None),
        ),
    )  # fmt: skip
    why = story.why(execution.execution_id, 2_030)
    assert (why.verdict, why.claims[0].kind) == ("running", "progress")
    assert "Step “load” has been running for 30 s, usually 60 s" in why.sentence.replace("1 m 00 s", "60 s")
    assert {cause.kind for cause in why.causes} == {"queue", "backoff"}
    assert "Step “wait” has been ready for 20 s and waits for a slot." in why.sentence
    assert "attempt 1 failed with TimeoutError" in why.sentence
    late = story.why(execution.execution_id, 2_500)
    assert late.causes[0].subject == "load"
    assert "longer than 95 % of its usual runs" in late.sentence


@pytest.mark.parametrize("scenario", ["a lock", "a slow child workflow"])
def test_both_databases_say_the_same(database: Database, postgres: Callable[..., str], scenario: str) -> None:
    other = Database(postgres())
    try:
        first, second = (outcome_of(each, scenario, 7).why for each in (database, other))
    finally:
        other.close()
    assert first.causes
    texts = [[(claim.kind, claim.text) for claim in (*why.claims, *why.causes)] for why in (first, second)]
    assert texts[0] == texts[1]
    assert first.differences == second.differences


def test_sets_of_runs_are_told_apart(database: Database) -> None:
    workspace, execution_id, _ = play(database, "a failing input value", 1)

    def read(choice: Choice) -> WorkflowDifferences:
        def look(connection: Connection) -> WorkflowDifferences:
            workflow = find_definition(connection, workspace_id(workspace), "nightly")
            assert workflow is not None
            return read_differences(connection, workspace_id(workspace), workflow, choice, 0, END_NS * 2)

        return database.look(look)

    failed = read(Choice())
    (region,) = failed.differences
    assert (region.key, region.value, region.odd_without) == ("input.region", "eu", 0)
    assert region.odd_with == region.with_count == failed.sample.odd_count > 20
    slow = read(Choice(slower_than_ns=440 * NS))
    assert {difference.key for difference in slow.differences} == {"input.rows"}
    assert slow.differences[0].text.startswith("`input.rows` is ")
    chosen = read(Choice((execution_id,)))
    assert (chosen.sample.odd_count, chosen.differences) == (1, [])
    assert read(Choice(slower_than_ns=10**15)).sample.tested == 0


def test_a_run_that_never_started_says_so(database: Database) -> None:
    story = Story(database)
    execution = make_execution()
    story.tell(
        ExecutionQueued(execution=execution, time_ns=story.time(0)),
        ExecutionFinished(
            execution=execution, time_ns=story.time(5), status=ExecutionStatus.CANCELLED, started_ns=story.time(5),
            step_count=0,
        ),
    )  # fmt: skip
    why = story.why(execution.execution_id)
    assert (why.verdict, why.causes) == ("cancelled", [])


def test_hostile_values_are_compared_and_masked(database: Database) -> None:
    story = Story(database)
    hostile = json.dumps(
        {"\x1b[31m": "\u202e", "password=hunter2 x": 1e308, "": {"": {"": []}}, "big": 10**400, "a" * 5000: "b" * 5000}
    )
    ids = [
        story.run(i * 100, 600 if i % 9 == 0 else 60, inputs=hostile if i % 9 == 0 else "[[[[[[[[[[1]]]]]]]]]")
        for i in range(60)
    ]
    why = story.why(ids[54])
    assert why.verdict == "slow"
    assert why.differences
    assert max(len(difference.text) for difference in why.differences) < 1_000


async def test_the_route_and_the_command_say_the_same(api: Api, tmp_path: Path) -> None:
    for path, status, code in (
        ("nothing/why", 404, "execution_not_found"),
        ("nothing/why?baseline=soon", 422, "invalid_parameters"),
        ("nothing/why?since=1d", 422, "invalid_parameters"),
    ):
        answer = await api.call("GET", f"/api/workflows/executions/{path}")
        assert (answer[0], answer[1]["code"]) == (status, code), path
    story = Story(api.service.database)
    ids = [await asyncio.to_thread(story.run, i * 100, 60 if i < 11 else 600) for i in range(12)]
    answer = await api.get(f"/api/workflows/executions/{ids[-1]}/why")
    assert (answer["verdict"], answer["causes"][0]["kind"]) == ("slow", "unknown")
    for path, expected in (
        (f"executions/{ids[-1]}/why?baseline=106751d", 200),
        (f"executions/{ids[-1]}/why?baseline=0s", 200),
        ("etl/differences?slower_than=106751d", 200),
        ("etl/differences?from=2200-01-01T00:00:00Z&to=1970-01-01T00:00:00Z", 200),
        ("etl/differences?execution=%F0%9F%98%80,x,,", 200),
        ("etl/differences?execution=%00", 400),
        ("etl/differences?execution=a&slower_than=1s", 422),
        ("nothing/differences", 404),
    ):
        assert (await api.call("GET", f"/api/workflows/{path}"))[0] == expected, path
    evidence = answer["claims"][0]["evidence"]
    comparison = await api.get(evidence["url"])
    assert answer["claims"][0]["text"] == comparison["sentence"]
    assert comparison["steps"][0]["seconds"] == evidence["values"]["seconds"]
    for source in (["--database", api.service.config.database], ["--url", api.address]):
        command = [sys.executable, "-m", "tachograph_exporter", "why", ids[-1], "--json", *source]
        ran = await asyncio.to_thread(programs.run, command, capture_output=True, cwd=tmp_path)
        assert json.loads(ran.stdout) == answer
