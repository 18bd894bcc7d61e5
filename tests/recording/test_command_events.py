"""What `tachograph exec` writes by itself is what the library would have written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from tachograph import identity
from tachograph.clock import NS
from tachograph.events import (
    OUTPUT_WRITER,
    Event,
    ExecutionFinished,
    StepFinished,
    StepLines,
    StepRetrying,
    StepStarted,
)
from tachograph.recorded_command import STEP_VARIABLE
from tachograph.recording.spool import Spool
from tachograph.workflow.attempts import StepAttempts
from tachograph_exporter.command import events
from tachograph_exporter.command.child import Ended, Line
from tachograph_exporter.command.options import Options, parse
from tachograph_exporter.command.recording import RunRecording, recording

URL = "http://127.0.0.1:1"


@pytest.fixture(autouse=True)
def spools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TACHOGRAPH_SPOOL_DIR", str(tmp_path))
    monkeypatch.setenv("TACHOGRAPH_URL", URL)
    monkeypatch.delenv("TACHOGRAPH_DATABASE_URL", raising=False)
    return tmp_path


class Clock:
    """Unix nanoseconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 1_732_520_000 * NS

    def __call__(self) -> int:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += round(seconds * NS)


def written() -> list[Event]:
    """What is in the spool, decoded strictly, in the order of its files."""
    found: list[Event] = []
    Spool(URL).deliver(found.extend)
    return found


def quiet(_text: str) -> None: ...


def ended(code: int) -> Ended:
    return Ended(code, 0, os.wait4(os.spawnlp(os.P_NOWAIT, "true", "true"), 0)[2], timed_out=False)


def test_ids_are_those_of_the_library() -> None:
    workflow = events.derived_id(None, "team/nightly")
    assert workflow == identity.workflow_id("team", "nightly")
    assert events.derived_id(workflow, "load") == identity.step_id(workflow, "load")
    assert events.derived_id(workflow, "load#2") == identity.step_id(workflow, "load", 2)
    ids = [events.new_id() for _ in range(100)]
    assert len(set(ids)) == 100
    assert all(len(i) == 36 and i[14] == "7" and i[19] in "89ab" for i in ids)
    assert abs(int(ids[0].replace("-", "")[:12], 16) - int(identity.new_id().replace("-", "")[:12], 16)) < 60_000


def test_attempts_are_accounted_for_as_the_library_does() -> None:
    clock = Clock()
    run = RunRecording(["make", "all"], "make", {}, clock, quiet)
    clock.wait(0.25)
    run.began()
    clock.wait(1)
    lines = [Line(1, clock.now, b"\xe8 caf\xc3\xa9 token=hunter2", False), Line(2, clock.now, b"oh", True)]
    run.retrying(ended(2), lines, 0.5, None)
    clock.wait(0.5)
    run.began()
    clock.wait(2)
    run.finished(ended(0), [], None, 0)
    run.close()
    recorded = written()
    kinds = [type(event) for event in recorded if not isinstance(event, StepLines)][1:]
    assert kinds == [StepStarted, StepRetrying, StepStarted, StepFinished, ExecutionFinished]
    started, retrying, again, finished = [
        e for e in recorded if isinstance(e, StepStarted | StepRetrying | StepFinished)
    ]
    assert isinstance(retrying, StepRetrying)
    assert isinstance(finished, StepFinished)
    step, begun = started.step, recorded[0].time_ns
    reference = StepAttempts(step, begun)
    assert isinstance(started, StepStarted)
    expected = [reference.started(started.time_ns, started.inputs, ready_ns=begun)]
    expected.append(reference.retrying(retrying.time_ns, retrying.status, retrying.delay_ns, retrying.failure))  # type: ignore[arg-type]
    expected.append(reference.started(again.time_ns, started.inputs))
    expected.append(reference.finished(finished.time_ns, finished.status, None, finished.output))  # type: ignore[arg-type]
    plain = [msgspec.structs.replace(e, resources=None) if not isinstance(e, StepStarted) else e
             for e in (started, retrying, again, finished)]  # fmt: skip
    assert plain == expected
    assert finished.resources is not None
    (lines_of_first,) = [e for e in recorded if isinstance(e, StepLines)]
    assert [(line.number, line.severity, line.message) for line in lines_of_first.lines] == [
        (1, 9, "\ufffd café token=[masked]"), (2, 13, "oh"),
    ]  # fmt: skip
    assert (lines_of_first.writer, lines_of_first.attempt) == (OUTPUT_WRITER, 1)
    assert step.step_id == identity.step_id(step.execution.workflow_id, "make")


def test_what_is_told_while_a_command_runs_is_new_and_bounded() -> None:
    clock = Clock()
    run = RunRecording(["x"], "x", {}, clock, quiet)
    run.began()
    lines = [Line(number, clock.now, b"line %d" % number, False) for number in range(1, 6)]
    run.tell(lines[:2])
    run.tell(lines)
    run.tell(lines)
    long = [Line(number, clock.now, b"y" * 2_000, False) for number in range(6, 206)]
    for _ in range(300):
        run._told = 0
        run.tell(long)
    run.close()
    told = [event for event in written() if isinstance(event, StepLines)]
    assert [[line.number for line in event.lines] for event in told[:2]] == [[1, 2], [3, 4, 5]]
    assert {len(event.lines) for event in told[2:]} == {len(told[2].lines)}
    assert told[2].lines[-1].number == 205
    assert 20 < len(told[2].lines) < 40
    assert sum(len(line.message) for event in told for line in event.lines) < 9 << 20


def test_steps_inside_wait_for_those_that_ended_before() -> None:
    clock = Clock()
    outer = RunRecording(["sh"], "sh", {}, clock, quiet)
    outer.began()
    around = outer.environment()

    def begin(name: str) -> Callable[[int], None]:
        inner = recording(["x"], name, around, clock, quiet)
        clock.wait(1)
        inner.began()

        def end(code: int) -> None:
            clock.wait(1)
            inner.finished(ended(code), [], None, 0)
            inner.close()

        return end

    begin("a")(0)
    left, right = begin("b"), begin("c")
    left(0)
    right(1)
    begin("d")
    outer.finished(ended(0), [], None, 0)
    outer.close()
    # The run is over: whatever comes later is a run of its own.
    assert isinstance(recording(["x"], "late", around, clock, quiet), RunRecording)
    recorded = written()
    steps = {event.step.name: event for event in recorded if isinstance(event, StepFinished)}
    names = {event.step.step_id: name for name, event in steps.items()}
    assert {name: sorted(names[i] for i in event.step.depends_on) for name, event in steps.items()} == {
        "sh": [], "a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"],
    }  # fmt: skip
    assert {name: event.status.value for name, event in steps.items()} == {
        "sh": "completed", "a": "completed", "b": "completed", "c": "failed", "d": "lost",
    }  # fmt: skip
    (finished,) = [event for event in recorded if isinstance(event, ExecutionFinished)]
    assert (finished.step_count, finished.completed_step_count, finished.failed_step_count) == (5, 3, 1)


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (["mysql", "--password", "hunter2", "-u", "me"], ["mysql", "--password", "[masked]", "-u", "me"]),
        (["curl", "https://me:hunter2@host/x"], ["curl", "https://me:[masked]@host/x"]),
        (["x", "--api-key=hunter2"], ["x", "--api-key=[masked]"]),
        (["x", "--token", "--verbose"], ["x", "--token", "--verbose"]),
        (["x", "caf\udce9"], ["x", "caf?"]),
    ],
)
def test_secrets_of_a_command_are_masked(command: list[str], shown: list[str]) -> None:
    said = events.masked_command(command)
    assert "hunter2" not in said
    assert json.loads(said)["command"] == shown
    assert len(events.masked_command(["x" * 3000] * 3000)) < 10_000


@pytest.mark.parametrize("variable", ["", "{", "[]", '{"notes": null}', '{"notes": "/nowhere", "execution": 1}'])
def test_a_broken_variable_costs_nothing(variable: str) -> None:
    clock = Clock()
    run = recording(["x"], "x", {STEP_VARIABLE: variable, "TRACEPARENT": "00-zz-yy-01"}, clock, quiet)
    assert isinstance(run, RunRecording)
    run.close()


def test_options() -> None:
    options = parse("exec", ["--name=n", "--timeout", "1.5h", "--retries", "3", "--", "sh", "-c", "--", "x"])
    assert options == Options(["sh", "-c", "--", "x"], "n", 5400, 3, 1)
    assert parse("step", ["a", "sh", "--version"]) == Options(["sh", "--version"], "a", None, 0, 1)
    limits = (["--timeout", "0", "--", "x"], ["--timeout", "soon", "--", "x"], ["--retries=-1", "x"])
    for wrong in (*limits, ["--new", "x"], [], ["--"], ["--name"]):
        with pytest.raises(SystemExit) as raised:
            parse("exec", wrong)
        assert raised.value.code == 2


def test_running_a_command_imports_little() -> None:
    source = "import sys, tachograph_exporter.command.run; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    heavy = ("msgspec", "opentelemetry", "sqlalchemy", "aiohttp", "typer", "http", "ssl", "asyncio", "email", "logging")
    loaded = {name.partition(".")[0] for name in ran.stdout.split()}
    assert [name for name in heavy if name in loaded] == []
