"""Every kind of callable as a step, in every way it can end, in one place it can run; prints what each view says.

``python matrix_program.py PLACE DIRECTORY``: PLACE is one of `PLACES`. Each case is a run of its own whose workflow is
called ``KIND OUTCOME`` and which has one step, KIND. What the views say is printed as JSON for the test to compare with
what plain Python says must have happened.
"""

from __future__ import annotations

import asyncio
import functools
import json
import multiprocessing
import os
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

import tachograph
from tachograph.workflow.definition import Backoff

OUTCOMES = ("returns", "raises", "cancelled", "retries")
PLACES = (
    "main", "thread_pool", "thread", "multiprocessing_thread_pool", "fork", "spawn", "forkserver", "process_pool_fork",
    "process_pool_spawn", "process_fork", "process_spawn", "process_forkserver", "os_fork", "asyncio_task",
    "task_group", "to_thread",
)  # fmt: skip
AT_ONCE = Backoff(initial_seconds=0.001, jitter=0.0)


class SpanFile(SpanExporter):
    """Appends ended spans to a file: one for all processes."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        lines = "".join(
            json.dumps({
                "name": span.name, "trace": span.context.trace_id, "span": span.context.span_id,
                "parent": span.parent.span_id if span.parent else None, "attributes": dict(span.attributes or {}),
            }) + "\n"
            for span in spans if span.context is not None
        )  # fmt: skip
        descriptor = os.open(
            Path(os.environ["MATRIX_DIRECTORY"]) / "spans.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT
        )
        os.write(descriptor, lines.encode())
        os.close(descriptor)
        return SpanExportResult.SUCCESS


class Failing(Exception):
    """The planned failure."""


def act(outcome: str, calls: dict[str, int], key: str) -> str:
    """The body of a plain callable."""
    calls[key] = calls.get(key, 0) + 1
    if outcome == "raises" or (outcome == "retries" and calls[key] == 1):
        raise Failing(key)
    if outcome == "cancelled":
        raise asyncio.CancelledError
    return key


CALLS: dict[str, int] = {}


async def act_async(outcome: str, key: str) -> str:
    CALLS[key] = CALLS.get(key, 0) + 1
    if outcome == "raises" or (outcome == "retries" and CALLS[key] == 1):
        raise Failing(key)
    if outcome == "cancelled":
        await asyncio.sleep(60)
    await asyncio.sleep(0)
    return key


def steps_of(outcome: str) -> dict[str, Callable[[], Any]]:
    """One decorated callable of every kind."""
    retries = 1 if outcome == "retries" else 0

    def step(name: str) -> Callable[[Any], Any]:
        return tachograph.step(name=name, max_retries=retries, backoff=AT_ONCE)

    @step("function")
    def function() -> str:
        return act(outcome, CALLS, f"function {outcome}")

    class Thing:
        @step("method")
        def method(self) -> str:
            return act(outcome, CALLS, f"method {outcome}")

        @step("staticmethod")
        @staticmethod
        def static() -> str:
            return act(outcome, CALLS, f"staticmethod {outcome}")

        @step("classmethod")
        @classmethod
        def of_class(cls) -> str:
            assert cls is Thing
            return act(outcome, CALLS, f"classmethod {outcome}")

        @staticmethod
        @step("static_outside")
        def static_outside() -> str:
            return act(outcome, CALLS, f"static_outside {outcome}")

    class PlainCallable:
        def __call__(self) -> str:
            return act(outcome, CALLS, f"callable {outcome}")

    class AsyncCallable:
        async def __call__(self) -> str:
            return await act_async(outcome, f"async_callable {outcome}")

    @step("generator")
    def generator() -> Iterator[int]:
        key = f"generator {outcome}"
        CALLS[key] = CALLS.get(key, 0) + 1
        if outcome == "retries" and CALLS[key] == 1:
            raise Failing(key)
        yield 1
        if outcome == "raises":
            raise Failing(key)
        yield 2

    @step("async_function")
    async def async_function() -> str:
        return await act_async(outcome, f"async_function {outcome}")

    @step("async_generator")
    async def async_generator() -> AsyncIterator[int]:
        key = f"async_generator {outcome}"
        CALLS[key] = CALLS.get(key, 0) + 1
        if outcome == "retries" and CALLS[key] == 1:
            raise Failing(key)
        yield 1
        await asyncio.sleep(0)
        if outcome == "raises":
            raise Failing(key)
        yield 2

    @step("coroutine_returning")
    def coroutine_returning() -> Coroutine[Any, Any, str]:
        return act_async(outcome, f"coroutine_returning {outcome}")

    async def inner() -> str:
        return await act_async(outcome, f"wrapped {outcome}")

    @step("wrapped")
    @functools.wraps(inner)
    def wrapped() -> Any:
        return inner()

    return {
        "function": function,
        "method": Thing().method,
        "staticmethod": Thing.static,
        "classmethod": Thing.of_class,
        "static_outside": Thing().static_outside,
        "partial": step("partial")(functools.partial(act, outcome, CALLS, f"partial {outcome}")),
        "async_partial": step("async_partial")(functools.partial(act_async, outcome, f"async_partial {outcome}")),
        "callable": step("callable")(PlainCallable()),
        "async_callable": step("async_callable")(AsyncCallable()),
        "generator": generator,
        "async_function": async_function,
        "async_generator": async_generator,
        "coroutine_returning": coroutine_returning,
        "wrapped": wrapped,
    }


STEPS = {outcome: steps_of(outcome) for outcome in OUTCOMES}
KINDS = tuple(STEPS["returns"])
FEW_KINDS = ("function", "async_generator")


def kinds_in(place: str) -> tuple[str, ...]:
    """The kinds that are run in a place: few where each call takes a new process; pools of those run them all."""
    return FEW_KINDS if place in ("process_fork", "process_spawn", "process_forkserver", "os_fork") else KINDS


async def use_async(outcome: str, result: Any) -> Any:
    """Await, or iterate, as a user would; cancelled runs are cancelled from outside once they have begun."""
    if hasattr(result, "__anext__"):
        if outcome == "cancelled":
            await anext(result)
            await result.aclose()
            raise asyncio.CancelledError
        return [item async for item in result]
    if outcome != "cancelled":
        return await result
    task = asyncio.ensure_future(result)
    await asyncio.sleep(0.02)
    task.cancel()
    return await task


def use(outcome: str, result: Any) -> Any:
    """What a call returned, used to its end."""
    if hasattr(result, "__next__"):
        if outcome == "cancelled":
            next(result)
            result.close()
            raise asyncio.CancelledError
        return list(result)
    if hasattr(result, "__await__") or hasattr(result, "__anext__"):
        return asyncio.run(use_async(outcome, result))
    return result


def do(kind: str, outcome: str) -> str:
    """Call one, and say how it ended as seen by plain Python."""
    try:
        use(outcome, STEPS[outcome][kind]())
    except Failing:
        return "raised"
    except asyncio.CancelledError:
        return "cancelled"
    return "returned"


async def do_async(kind: str, outcome: str) -> str:
    try:
        result = STEPS[outcome][kind]()
        if hasattr(result, "__await__") or hasattr(result, "__anext__"):
            await use_async(outcome, result)
        else:
            use(outcome, result)
    except Failing:
        return "raised"
    except asyncio.CancelledError:
        return "cancelled"
    return "returned"


def do_in_process(kind: str, outcome: str, queue: Any) -> None:
    queue.put(do(kind, outcome))


def run(place: str, kind: str, outcome: str, pool: Any) -> str:
    """One run whose only step is done in the place."""
    if place in ("asyncio_task", "task_group", "to_thread"):
        return asyncio.run(run_async(place, kind, outcome))
    with tachograph.workflow(f"{kind} {outcome}"):
        if place == "main":
            return do(kind, outcome)
        if place == "thread":
            import threading

            said: list[str] = []
            worker = threading.Thread(target=lambda: said.append(do(kind, outcome)))
            worker.start()
            worker.join()
            return said[0]
        if place in ("thread_pool", "process_pool_fork", "process_pool_spawn"):
            return str(pool.submit(do, kind, outcome).result(60))
        if place in ("multiprocessing_thread_pool", "fork", "spawn", "forkserver"):
            if KINDS.index(kind) % 2:
                return str(pool.apply(do, (kind, outcome)))
            return str(pool.starmap(do, [(kind, outcome)])[0])
        if place.startswith("process_"):
            context = multiprocessing.get_context(place.removeprefix("process_"))
            queue = context.SimpleQueue()
            process = context.Process(target=do_in_process, args=(kind, outcome, queue))  # type: ignore[attr-defined]
            process.start()
            answer = str(queue.get())
            process.join()
            return answer
        if place == "os_fork":
            reading, writing = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.write(writing, do(kind, outcome).encode())
                os._exit(0)
            os.close(writing)
            answer = os.read(reading, 100).decode()
            os.close(reading)
            os.waitpid(pid, 0)
            return answer
        raise AssertionError(place)


async def run_async(place: str, kind: str, outcome: str) -> str:
    async with tachograph.workflow(f"{kind} {outcome}"):
        if place == "asyncio_task":
            return await asyncio.create_task(do_async(kind, outcome))
        if place == "to_thread":
            return await asyncio.to_thread(do, kind, outcome)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(do_async(kind, outcome))
        return task.result()


def pool_for(place: str) -> Any:
    if place == "thread_pool":
        return ThreadPoolExecutor(1)
    if place == "multiprocessing_thread_pool":
        return multiprocessing.pool.ThreadPool(1)
    if place in ("fork", "spawn", "forkserver"):
        return multiprocessing.get_context(place).Pool(1)
    if place.startswith("process_pool_"):
        return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(place.removeprefix("process_pool_")))
    return None


def views(directory: Path) -> dict[str, Any]:
    """What each view says of each run."""
    import time

    from prometheus_client import REGISTRY

    from tachograph.identity import workspace_id
    from tachograph_exporter.store import execution_list, executions
    from tachograph_exporter.store.database import Database
    from tachograph_exporter.views.timeline import build_timeline

    spans: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for line in (directory / "spans.jsonl").read_text().splitlines():
        span = json.loads(line)
        spans[span["trace"]].append(span)
    samples: dict[str, dict[str, float]] = defaultdict(dict)
    for family in REGISTRY.collect():
        for sample in family.samples:
            if "workflow" in sample.labels:
                rest = {k: v for k, v in sample.labels.items() if k not in ("workspace", "workflow")}
                if "le" not in rest and not sample.name.endswith(("_created", "_sum")):
                    key = sample.name + "".join(f" {name}={rest[name]}" for name in sorted(rest))
                    samples[sample.labels["workflow"]][key] = sample.value
    database = Database(f"sqlite:///{directory}/runs.db")
    workspace = workspace_id("default")
    said: dict[str, Any] = {}
    rows = database.look(
        lambda c: execution_list.executions(c, execution_list.ExecutionFilter(workspace=workspace), 0, 10_000)
    )
    for row in rows:
        stored = database.look(lambda c, row=row: executions.run(c, workspace, row.execution_id))  # type: ignore[misc]
        assert stored is not None
        timeline = build_timeline(stored, now_ns=time.time_ns())
        said.setdefault(row.workflow, []).append({
            "list": [row.status, row.step_count, row.completed_step_count, row.failed_step_count],
            "work": row.work_ns == sum(step.run_ns or 0 for step in stored.steps),
            "timeline": [
                [step.step_name, step.status, len(step.attempts), step.on_critical_path]
                for step in timeline.step_timeline
            ],
            "duration": timeline.total_duration_seconds,
            "steps_within": all(
                (step.run_seconds or 0) <= (timeline.total_duration_seconds or 0) + 1e-9
                and (step.wait_seconds or 0) >= 0
                for step in timeline.step_timeline
            ),
            "metrics": samples.get(row.workflow, {}),
            "spans": [
                [span["name"], span["parent"], span["span"], True] for span in spans.get(int(row.trace_id, 16), [])
            ],
            "root": int(row.span_id, 16),
        })  # fmt: skip
    return said


def main(place: str, directory: Path) -> None:
    tachograph.configure(database=f"sqlite:///{directory}/runs.db")
    # A pool that is made before any run, and outlives many, belongs to none of them.
    pool = pool_for(place)
    ended = {f"{kind} {outcome}": run(place, kind, outcome, pool) for outcome in OUTCOMES for kind in kinds_in(place)}
    if hasattr(pool, "shutdown"):
        pool.shutdown()
    elif pool is not None:
        pool.terminate()
        pool.join()
    assert tachograph.get_recorder().flush(60)
    print(json.dumps({"ended": ended, "views": views(directory)}))


if "MATRIX_DIRECTORY" in os.environ:
    # At the top, where a spawned child runs it, too.
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(SpanFile()))
    trace.set_tracer_provider(provider)

if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
