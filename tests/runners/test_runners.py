"""Steps done by an engine's workers: what comes out is what comes out here."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tools.local_service import eventually, free_port

from tachograph.clock import AnchoredClock
from tachograph.errors import SetupError
from tachograph.events import (
    Event,
    StepCost,
    StepFinished,
    StepLogged,
    StepMeasured,
    StepRetrying,
    StepSkipped,
    StepStacks,
    StepStarted,
)
from tachograph.folded_stacks import StackWish
from tachograph.recording.setup import build_recorder
from tachograph.runners import runner_of
from tachograph.runners.celery import app_of
from tachograph.stacks.passing_on import attempts_elsewhere
from tachograph.stacks.wishes import fulfil, long_attempts, tell
from tachograph.workflow import Executor, LocalRunner, Runner, Workflow
from tachograph_exporter import handler_sources
from tests.engines import processes
from tests.runners import definitions

HANDLERS = Path(__file__).with_name("elsewhere.py")
STEP = definitions.step

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.xdist_group("runners"),
    # Celery's backend calls it.
    pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning"),
]


class Told(NamedTuple):
    """A run as its events tell of it, without what differs from run to run."""

    status: str
    failure: tuple[str, str] | None
    outputs: dict[str, Any]
    steps: dict[str, Any]
    edges: dict[str, list[str]]


@contextlib.asynccontextmanager
async def opened(url: str) -> AsyncIterator[Runner]:
    runner = runner_of(url)
    try:
        yield runner
    finally:
        await runner.close()


async def play(runner: Runner, workflow: Workflow, inputs: dict[str, Any] | None = None) -> tuple[Told, list[Event]]:
    events: list[Event] = []
    executor = Executor(events.append, runner=runner, clock=AnchoredClock)
    result = await executor.run(workflow, inputs)
    names, steps, edges = dict[str, str](), dict[str, Any](), dict[str, list[str]]()
    for event in events:
        ref = getattr(event, "step", None)
        if ref is not None:
            names[ref.step_id] = f"{names.get(ref.parent_step_id, '')}/{ref.name}"
    for event in events:
        if isinstance(event, StepFinished | StepSkipped | StepRetrying):
            ref = event.step
            key = f"{names[ref.step_id]}#{ref.index}{'!' if isinstance(event, StepRetrying) else ''}"
            failure = getattr(event, "failure", None)
            told = [
                str(getattr(event, "status", "skipped")),
                getattr(event, "attempt", 0),
                getattr(event, "reason", None),
            ]
            steps.setdefault(key, []).append((*told, (failure.type, failure.message) if failure else None))
            edges[key] = sorted(names[step_id] for step_id in ref.depends_on)
    failure = (result.failure.type, result.failure.message) if result.failure else None
    return Told(str(result.status), failure, dict(result.outputs), steps, edges), events


@pytest.fixture(scope="module", autouse=True)
def handlers() -> None:
    handler_sources.load(str(HANDLERS))


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if not processes.has_redis():
        pytest.skip("needs redis-server (apt-get install redis-server)")
    with processes.redis(tmp_path_factory.mktemp("redis")) as address:
        yield f"celery+{address}"


def worker(url: str, directory: Path, *options: str) -> Any:
    command = [str(Path(sys.executable).with_name("tachograph")), "worker", url, "--handlers", str(HANDLERS), *options]
    return processes.running(command, directory / "worker.log", {})


def is_there(url: str) -> bool:
    return bool(app_of(url).control.ping(timeout=1, limit=1))


@pytest.fixture(scope="module")
def celery(broker: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with worker(broker, tmp_path_factory.mktemp("worker"), "--concurrency", "2"):
        eventually(lambda: is_there(broker))
        yield broker


@contextlib.contextmanager
def scheduler(directory: Path) -> Iterator[str]:
    """The URL of a real scheduler of Dask."""
    port, program = free_port(), Path(sys.executable).with_name("dask")
    command = [str(program), "scheduler", "--host", "127.0.0.1", "--port", str(port), "--dashboard-address", ":0"]
    with processes.running(command, directory / "scheduler.log", {}):
        eventually(lambda: processes.is_listening(port))
        yield f"dask://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def dask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    pytest.importorskip("distributed", reason="needs distributed")
    directory = tmp_path_factory.mktemp("dask")
    with scheduler(directory) as url, worker(url, directory, "--concurrency", "2"):
        yield url


@pytest.fixture(params=["celery", "dask"])
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param))


async def test_definitions_end_alike_wherever_their_steps_are_done(engine: str) -> None:
    cases, local = list(definitions.cases()), LocalRunner()
    assert len(cases) >= 30
    async with opened(engine) as runner:
        for case in cases:
            here, _ = await play(local, case.workflow, case.inputs)
            there, _ = await play(runner, case.workflow, case.inputs)
            assert there == here, case.name


async def test_what_a_handler_reports_and_uses_comes_back(engine: str) -> None:
    steps = [STEP("a", "parts"), STEP("b", "burns"), STEP("c", "headers")]
    async with opened(engine) as runner:
        _, events = await play(runner, definitions.case("reports", *steps).workflow)
    reports = [event for event in events if isinstance(event, StepMeasured | StepCost | StepLogged)]
    assert [type(event) for event in reports] == [StepMeasured, StepCost, StepLogged]
    told = [
        (event.name, event.value, event.unit)
        if isinstance(event, StepMeasured)
        else (event.usd, event.tokens_in, event.model)
        if isinstance(event, StepCost)
        else (event.level, "hunter22" in event.message)
        for event in reports
    ]
    assert told == [("rows", 12.0, "row"), (0.25, 10, "m"), ("warning", False)]
    ended = {event.step.name: event for event in events if isinstance(event, StepFinished)}
    inside = [event for event in events if isinstance(event, StepFinished) and event.step.name == "part"]
    assert [event.step.index for event in inside] == [0, 1, 2, 3]
    assert {event.step.parent_step_id for event in inside} == {ended["a"].step.step_id}
    used = ended["b"].resources
    assert used is not None
    assert used.cpu_seconds is not None
    assert used.cpu_seconds >= 0.19
    assert str(os.getpid()) not in (ended["c"].output or "")


async def test_the_spans_of_a_step_go_on_in_the_worker(engine: str) -> None:
    from tachograph.spans.propagation import propagation

    recorder = build_recorder()
    try:
        executor = Executor(recorder, runner=runner_of(engine), carrier=propagation)
        result = await executor.run(definitions.case("traced", STEP("c", "headers")).workflow)
        await executor.drain(0)
    finally:
        recorder.close()
    assert result.outputs["c"]["traceparent"].split("-")[1] == result.execution.trace_id
    assert result.outputs["c"]["pid"] != os.getpid()


async def test_what_is_not_json_or_too_large_is_refused_by_name(engine: str) -> None:
    steps = [STEP("a", "not_json", max_retries=2), STEP("b", "large", max_retries=2)]
    async with opened(engine) as runner:
        told, _ = await play(runner, definitions.case("too much", *steps).workflow)
    (_, attempt, _, failure), *more = told.steps["/a#0"]
    assert (attempt, more, failure[0]) == (1, [], "tachograph.errors.DoNotRetry")
    assert 'what step "a" returned is not JSON' in failure[1]
    assert 'what step "b" returned takes 9 MiB' in told.steps["/b#0"][0][3][1]


async def cancelled(engine: str) -> str:
    events: list[Event] = []
    executor = Executor(events.append, runner=runner_of(engine))
    workflow = definitions.case("cancelled", STEP("a", "long", config={"seconds": 60}), STEP("b", "add", "a")).workflow
    ref, task = executor.submit(workflow)
    await asyncio.to_thread(eventually, lambda: any(isinstance(event, StepStarted) for event in events))
    await asyncio.sleep(0.5)
    executor.cancel(ref.execution_id)
    result = await task
    await executor.drain(0)
    return str(result.status)


async def test_the_stacks_of_a_step_are_those_of_its_worker(engine: str) -> None:
    events: list[Event] = []
    async with opened(engine) as runner:
        executor = Executor(events.append, runner=runner, clock=AnchoredClock)
        steps = [STEP("a", "long", config={"seconds": 60}), STEP("b", "long", config={"seconds": 60})]
        ref, task = executor.submit(definitions.case("asked", *steps).workflow)

        def stacks(kind: str, request: str = "") -> dict[str, StepStacks]:
            told = [each for each in events if isinstance(each, StepStacks)]
            return {each.step.name: each for each in told if each.kind == kind and each.request == request}

        def all_told(request: str) -> bool:
            return len(stacks("now", request)) == 2

        # Until workers have the steps, there are no stacks to tell.
        for number in range(12):
            request = f"r{number}"
            tell(ref.execution_id, request)
            with contextlib.suppress(TimeoutError):
                await asyncio.to_thread(eventually, partial(all_told, request), 5)
                break
        now = stacks("now", request)
        assert {each.attempt for each in now.values()} == {1}
        (stack,) = now["a"].stacks
        first, *_, last = [frame.partition(" (")[0] for frame in stack.stack.split(";")]
        # Nothing of the engine is around it.
        assert first.endswith(".long")
        assert last in ("time.sleep", first)
        # Steps that workers do are told to be late, too.
        await asyncio.to_thread(eventually, lambda: len(long_attempts(ref.execution_id)) == 2, 60)
        late = tuple(each.step_id for each in long_attempts(ref.execution_id))
        fulfil([StackWish(ref.execution_id, step_ids=late)])
        assert long_attempts(ref.execution_id) == ()
        await asyncio.to_thread(eventually, lambda: stacks("profile").keys() == {"a", "b"}, 60)
        assert stacks("profile")["b"].samples > 0
        executor.cancel(ref.execution_id)
        await task
        await executor.drain(0)
    assert attempts_elsewhere(ref.execution_id) == []


async def test_a_cancelled_step_gives_its_worker_back(celery: str) -> None:
    for _ in range(3):  # There are two places.
        assert await cancelled(celery) == "cancelled"
    async with opened(celery) as runner:
        told, _ = await asyncio.wait_for(play(runner, definitions.case("after", STEP("a")).workflow), 60)
    assert told.status == "completed"


async def test_a_child_process_that_is_killed_is_a_failed_attempt(celery: str) -> None:
    steps = [STEP("a", "dies", max_retries=1, retry_backoff=definitions.FAST), STEP("b", "dies", config={"times": 9})]
    async with opened(celery) as runner:
        told, _ = await play(runner, definitions.case("killed", *steps).workflow)
    ((_, attempt, _, failure),) = told.steps["/a#0!"]
    assert (attempt, failure[0]) == (1, "WorkerLost")
    assert "WorkerLostError" in failure[1]
    assert told.steps["/a#0"][0][:2] == ("completed", 2)
    assert told.steps["/b#0"][0][:2] == ("failed", 1)


@pytest.mark.parametrize("kind", ["celery", "dask"])
async def test_a_worker_that_is_killed_is_a_failed_attempt(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole worker: nobody is left to tell of it but those who miss it."""
    monkeypatch.setattr("tachograph.runners.celery.PING_SECONDS", 1.0)
    url, begun = await asyncio.to_thread(_own_engine, kind, request, tmp_path), tmp_path / "begun"
    config = {"file": str(begun), "seconds": 60}
    step = STEP("a", "waits_once", max_retries=1, retry_backoff=definitions.FAST, config=config)
    async with opened(url) as runner:
        stack = contextlib.ExitStack()
        first = stack.enter_context(worker(url, tmp_path, "--concurrency", "1"))
        task = asyncio.ensure_future(play(runner, definitions.case("killed", step).workflow))
        await asyncio.to_thread(eventually, begun.exists, 60)
        os.killpg(first.pid, signal.SIGKILL)
        with stack, worker(url, tmp_path, "--concurrency", "1"):
            told, _ = await asyncio.wait_for(task, 120)
    ((_, attempt, _, failure),) = told.steps["/a#0!"]
    assert (attempt, failure[0]) == (1, "WorkerLost")
    assert told.steps["/a#0"][0][:2] == ("completed", 2)


def _own_engine(kind: str, request: pytest.FixtureRequest, directory: Path) -> str:
    """The URL of an engine that no other worker listens to."""
    if kind == "celery":
        return f"{str(request.getfixturevalue('broker')).rpartition('/')[0]}/7"
    running = scheduler(directory)
    request.addfinalizer(lambda: running.__exit__(None, None, None))
    return running.__enter__()


@pytest.mark.slow
async def test_a_broker_that_forgets_everything_loses_an_attempt_and_no_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tachograph.runners.celery.PING_SECONDS", 1.0)
    if not processes.has_redis():
        pytest.skip("needs redis-server (apt-get install redis-server)")
    port, begun = free_port(), tmp_path / "begun"
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    url, config = f"celery+redis://127.0.0.1:{port}/0", {"file": str(begun), "seconds": 5}
    step = STEP("a", "waits_once", max_retries=2, retry_backoff=definitions.FAST, config=config)
    broker = processes.running(command, tmp_path / "redis.log", {})
    first = broker.__enter__()
    try:
        with worker(url, tmp_path, "--concurrency", "1"):
            async with opened(url) as runner:
                task = asyncio.ensure_future(play(runner, definitions.case("forgotten", step).workflow))
                await asyncio.to_thread(eventually, begun.exists, 60)
                first.kill()
                await asyncio.to_thread(first.wait)
                with processes.running(command, tmp_path / "redis.log", {}):
                    told, _ = await asyncio.wait_for(task, 120)
    finally:
        broker.__exit__(None, None, None)
    assert told.status == "completed"
    # Celery's worker may end with its connection, or go on and store the result.
    assert {failure[0] for *_, failure in told.steps.get("/a#0!", [])} <= {"WorkerLost"}


def test_a_run_of_the_command_line_has_its_steps_done_elsewhere(celery: str, tmp_path: Path) -> None:
    document = {"name": "elsewhere", "steps": [STEP("a", "headers"), STEP("b", "parts", "a")]}
    (tmp_path / "w.json").write_text(json.dumps(document))
    command = [str(Path(sys.executable).with_name("tachograph")), "run", "w.json", "--handlers", str(HANDLERS)]
    options = ["--runner", celery, "--database", "sqlite:///runs.db", "--json"]
    answer = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, check=True, timeout=60)
    timeline = json.loads(answer.stdout)
    steps = {step["step_name"]: step for step in timeline["step_timeline"]}
    assert (timeline["status"], steps["a"]["status"]) == ("completed", "completed")
    assert steps["part"]["parent_step_id"] == steps["b"]["step_id"]


def test_a_url_that_names_no_runner_says_which_there_are() -> None:
    with pytest.raises(
        SetupError, match=r"celery\+redis://localhost:6379/0\), dask://HOST:PORT or temporal://HOST:PORT"
    ):
        runner_of("ray://x")
    with pytest.raises(SetupError, match="backend=redis://"):
        runner_of("celery+amqp://guest@localhost")
