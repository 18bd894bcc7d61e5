"""Runs whose workers, and on Temporal the service too, are killed at any time; and a fan-out of a thousand steps."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tools.local_service import LocalService, eventually

from tachograph.events import Event, StepFinished, StepRetrying
from tachograph.workflow import LocalRunner, Workflow
from tachograph_exporter import handler_sources
from tests.engines import processes
from tests.runners import definitions
from tests.runners.test_runners import HANDLERS, opened, play, scheduler, worker

STEP = definitions.step
STEPS = 1_000
WORKERS = 3
KILLS = 8

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.timeout(1_800),
    pytest.mark.xdist_group("runners"),
    # Celery's backend calls it.
    pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def handlers() -> None:
    handler_sources.load(str(HANDLERS))


@pytest.fixture(params=["celery", "dask"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An engine without workers."""
    if request.param == "dask":
        pytest.importorskip("distributed", reason="needs distributed")
        with scheduler(tmp_path) as url:
            yield url
        return
    if not processes.has_redis():
        pytest.skip("needs redis-server (apt-get install redis-server)")
    with processes.redis(tmp_path) as address:
        yield f"celery+{address}"


class Workers:
    """Workers of which one is killed now and then, and followed by another.

    Args:
        start: starts one.
        seed: of what is killed when.
    """

    def __init__(self, start: Callable[[], Any], seed: int) -> None:
        self._start, self._random = start, random.Random(seed)
        self._running: list[tuple[Any, Any]] = []
        self._end = threading.Event()
        self.kills = 0

    def __enter__(self) -> Workers:
        for _ in range(WORKERS):
            self.add()
        return self

    def add(self) -> None:
        """Start another one."""
        context = self._start()
        self._running.append((context, context.__enter__()))

    def kill(self) -> None:
        """Kill one with all its processes, and start another."""
        context, process = self._running.pop(self._random.randrange(len(self._running)))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        context.__exit__(None, None, None)
        self.kills += 1
        self.add()

    def pause(self) -> float:
        """How long until the next one, in seconds."""
        return self._random.uniform(0.5, 4)

    def __exit__(self, *_: object) -> None:
        for context, _ in self._running:
            context.__exit__(None, None, None)


def three_layers(width: int, seconds: float, retries: int) -> Workflow:
    more: dict[str, Any] = {"max_retries": retries, "retry_backoff": definitions.FAST}
    config = {"seconds": seconds}
    first = [STEP(f"a{i}", "slow_add", config=config, **more) for i in range(width)]
    second = [STEP(f"b{i}", "slow_add", f"a{i}", f"a{(i + 1) % width}", config=config, **more) for i in range(width)]
    last = STEP("z", "slow_add", *[step["name"] for step in second], config=config, **more)
    return definitions.case("layers", *first, *second, last).workflow


def check(events: list[Event], steps: int) -> int:
    """Each step ended once, and all attempts that failed lost their workers. Returns how many did."""
    ends = Counter(event.step.step_id for event in events if isinstance(event, StepFinished))
    assert ends.total() == len(ends) == steps
    lost = [event for event in events if isinstance(event, StepRetrying)]
    assert {event.failure.type for event in lost} <= {"WorkerLost"}
    attempts = Counter((event.step.step_id, event.attempt) for event in lost)
    assert attempts.total() == len(attempts)
    for event in events:
        if isinstance(event, StepFinished):
            assert event.attempt == 1 + sum(1 for step_id, _ in attempts if step_id == event.step.step_id)
    return len(lost)


async def test_workers_that_are_killed_at_random_are_failed_attempts(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tachograph.runners.celery.PING_SECONDS", 1.0)
    width = 16
    workflow = three_layers(width, 1.5, 30)
    here, _ = await play(LocalRunner(), workflow)
    with Workers(lambda: worker(engine, tmp_path, "--concurrency", "2"), seed=5) as workers:
        async with opened(engine) as runner:
            task = asyncio.ensure_future(play(runner, workflow))
            while not task.done() and workers.kills < KILLS:
                await asyncio.wait({task}, timeout=workers.pause())
                await asyncio.to_thread(workers.kill)
            there, events = await asyncio.wait_for(task, 300)
    edges = {key: before for key, before in there.edges.items() if not key.endswith("!")}
    assert (there.status, there.outputs, edges) == (here.status, here.outputs, here.edges)
    lost = check(events, 2 * width + 1)
    assert lost > 0


@contextlib.asynccontextmanager
async def served(engine: str, directory: Path) -> AsyncIterator[Any]:
    with worker(engine, directory, "--concurrency", "2"):
        async with opened(engine) as runner:
            yield runner


async def test_a_fan_out_of_a_thousand_steps_ends_as_it_does_here(engine: str, tmp_path: Path) -> None:
    case = list(definitions.cases(STEPS))[-1]
    here, _ = await play(LocalRunner(), case.workflow)
    async with served(engine, tmp_path) as runner:
        there, events = await asyncio.wait_for(play(runner, case.workflow), 600)
    assert there == here
    assert check(events, STEPS + 2) == 0
    assert here.outputs["z"]["total"] == 2 * STEPS + 1


@pytest.fixture
def temporal(tmp_path: Path) -> Iterator[str]:
    pytest.importorskip("temporalio", reason="needs temporalio")
    with processes.temporal(tmp_path, sys.executable) as address:
        yield f"temporal://{address}"


def temporal_worker(url: str, directory: Path, service: str) -> Any:
    command = [str(Path(sys.executable).with_name("tachograph")), "worker", url, "--handlers", str(HANDLERS),
               "--concurrency", "4"]  # fmt: skip
    return processes.running(command, directory / "worker.log", {"TACHOGRAPH_URL": service})


def timeline_of(service: LocalService, path: str) -> dict[str, Any]:
    timeline: dict[str, Any] = service.get(f"{path}/timeline")
    return timeline


def begin(service: LocalService, name: str, workflow: Workflow, steps: list[dict[str, Any]]) -> str:
    service.post("/api/workflows", {"name": name, "steps": steps})
    return f"/api/workflows/executions/{service.post(f'/api/workflows/{name}/execute')['execution_id']}"


def documents(workflow: Workflow, seconds: float) -> list[dict[str, Any]]:
    """The steps of `three_layers`, as the service is sent them."""
    return [
        STEP(
            step.name, "slow_add", *step.depends_on_steps, config={"seconds": seconds},
            max_retries=30, retry_backoff=definitions.FAST,
        )
        for step in workflow.steps
    ]  # fmt: skip


def test_on_temporal_workers_and_the_service_are_killed_at_random_and_runs_are_whole(
    temporal: str, tmp_path: Path
) -> None:
    workflow = three_layers(6, 1.0, 30)
    rng = random.Random(3)
    options = ["--runner", temporal, "--handlers", str(HANDLERS)]
    with LocalService(tmp_path, *options) as service:
        start = lambda: temporal_worker(temporal, tmp_path, service.address)  # noqa: E731
        with Workers(start, seed=7) as workers:
            paths = [begin(service, f"layers-{i}", workflow, documents(workflow, 1.0)) for i in range(2)]
            for number in range(KILLS):
                time.sleep(workers.pause())
                if number % 3 == 2:
                    assert service.process is not None
                    service.process.kill()
                    service.process.wait()
                    time.sleep(rng.uniform(0, 2))
                    service.__enter__()
                else:
                    workers.kill()
            for path in paths:
                eventually(lambda path=path: service.get(f"{path}/status")["completed_at"], 600)  # type: ignore[misc]
                timeline = timeline_of(service, path)
                steps = timeline["step_timeline"]
                assert Counter(step["status"] for step in steps) == {"completed": 13}
                assert len({step["step_id"] for step in steps}) == 13
                outputs = {step["step_name"]: step["output_summary"] for step in steps}
                assert outputs["z"] == {"total": 6 * 3 + 1}
                for step in steps:
                    numbers = [attempt["attempt"] for attempt in step["attempts"]]
                    assert numbers == list(range(1, len(numbers) + 1))
                    failures = {a["error_type"] for a in step["attempts"] if a["status"] != "completed"}
                    assert failures <= {"WorkerLost"}, step["step_name"]
                eventually(lambda path=path: service.get(f"{path}/reconcile")["agrees"], 60)  # type: ignore[misc]


def test_on_temporal_a_fan_out_of_a_thousand_steps_is_whole(temporal: str, tmp_path: Path) -> None:
    names = [f"s{i}" for i in range(STEPS)]
    steps = [STEP("a"), *(STEP(name, "add", "a") for name in names), STEP("z", "add", *names)]
    options = ["--runner", temporal, "--handlers", str(HANDLERS)]
    with (
        LocalService(tmp_path, *options) as service,
        temporal_worker(temporal, tmp_path, service.address),
    ):
        service.post("/api/workflows", {"name": "fan-out", "steps": steps})
        path = f"/api/workflows/executions/{service.post('/api/workflows/fan-out/execute')['execution_id']}"
        eventually(lambda: service.get(f"{path}/status")["completed_at"], 1_500)
        timeline = timeline_of(service, path)
        done = timeline["step_timeline"]
        assert Counter(step["status"] for step in done) == {"completed": STEPS + 2}
        assert {step["step_name"]: step["output_summary"] for step in done}["z"]["total"] == 2 * STEPS + 1
