"""arq jobs as users write them, instrumented with opentelemetry-instrumentation-arq, or told of by Tachograph's hooks.

python arq_kinds.py redis://… [SCENE …]       plays scenes, with a worker in the same process
python arq_kinds.py redis://… --worker        a worker that is killed

The truth is from the results that arq keeps in Redis; the tries that did not end well are from the program.
"""

import asyncio
import contextlib
import os
import signal
import sys
import time

from arq import Retry, create_pool
from arq.connections import RedisSettings
from arq.jobs import Job, JobStatus
from arq.worker import JobExecutionFailed, Worker, func
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.arq import ArqInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from telling import at, execution, for_later, spawn, step, stop_at_sigterm, tell

# Then the jobs are told of by arq's own methods, beside spans or without.
HOOKS = os.environ.get("HOOKS") == "1"
PREFIX = "arq_hooks" if HOOKS else "arq"
if HOOKS:
    import tachograph
    import tachograph.integrations.arq


async def extract(ctx):
    await asyncio.sleep(0.1)


async def flaky(ctx):
    await asyncio.sleep(0.05)
    if ctx["job_try"] == 1:
        raise Retry(defer=0.5)


async def broken(ctx):
    raise RuntimeError("no item 1")


async def hang(ctx):
    await asyncio.sleep(60)


async def work(ctx, number):
    await asyncio.sleep(0.05)
    return number


async def order(ctx, number):
    await ctx["redis"].enqueue_job("work", number)
    await ctx["redis"].enqueue_job("extract")
    await asyncio.sleep(0.05)


async def insist(ctx):
    await asyncio.sleep(0.05)
    raise Retry(defer=0.2)


async def hopeless(ctx):
    raise Retry


@contextlib.contextmanager
def together(name):
    """What is sent in the block is one run: by a span around it, or without any."""
    with contextlib.ExitStack() as stack:
        if HOOKS:
            stack.enter_context(tachograph.integrations.arq.together(name))
        else:
            stack.enter_context(trace.get_tracer("shop").start_as_current_span(name))
        yield


async def told(job, **more):
    """A step by the result of a job."""
    try:
        await job.result(timeout=60, poll_delay=0.05)
        error = None
    except TimeoutError:
        error = "TimeoutError: "
    except RuntimeError as caught:
        error = f"{type(caught).__name__}: {caught}"
    except asyncio.CancelledError:
        error = "Aborted: the job was aborted"
    info = await job.result_info()
    tries = [{"attempt": number, "status": "failed"} for number in range(1, info.job_try)]
    tries.append({"attempt": info.job_try, "status": "completed" if info.success else "failed"})
    times = {"started_at": info.start_time} if info.job_try == 1 else {}
    times["ended_at"] = info.finish_time
    return step(
        info.function, "completed" if info.success else "failed", info.job_try, [], tries=tries, run_id=job.job_id,
        error=error, **{key: value.isoformat().replace("+00:00", "Z") for key, value in times.items()}, **more,
    )  # fmt: skip


async def two(pool):
    with together("arq nightly"):
        jobs = [await pool.enqueue_job("extract"), await pool.enqueue_job("flaky")]
    return [execution("arq nightly", "completed", [await told(job) for job in jobs])], []


async def alone(pool):
    job = await pool.enqueue_job("extract")
    return [execution("extract", "completed", [await told(job)])], []


async def deferred(pool):
    job = await pool.enqueue_job("extract", _defer_by=1)
    score = (await job.info()).score
    asked = f"{(await job.info()).enqueue_time:%Y-%m-%dT%H:%M:%S.%f}Z"
    # By the hooks, a run starts with its first step; before, it is pending.
    times = {} if HOOKS else {"asked_at": asked, "scheduled_at": at(score / 1000)}
    return [execution("extract", "completed", [await told(job, **times)])], []


async def later_in_block(pool):
    """A job that is deferred, in a run that has begun."""
    with together("arq later"):
        soon = await pool.enqueue_job("extract")
        later = await pool.enqueue_job("work", 1, _defer_by=1.5)
    info = await later.info()
    asked = f"{info.enqueue_time:%Y-%m-%dT%H:%M:%S.%f}Z"
    first, second = await told(soon), await told(later)
    second = for_later(second, asked, at(info.score / 1000), first["started_at"])
    return [execution("arq later", "completed", [first, second])], []


async def failed(pool):
    job = await pool.enqueue_job("broken")
    return [execution("broken", "failed", [await told(job)], error="RuntimeError: no item 1")], []


async def timed_out(pool):
    job = await pool.enqueue_job("hang")
    entry = await told(job, status_or=["timeout"] if HOOKS else ["timeout", "cancelled"])
    del entry["error"], entry["tries"]
    # arq cancels the job's task: its span has no error, but neither does it say OK, as that of a good one does.
    return [execution("hang", "failed", [entry], status_or=entry["status_or"])], []


async def batch(pool):
    """Five of a kind, and one that is sent twice under the same id: arq sends it once."""
    with together("arq batch"):
        jobs = [await pool.enqueue_job("work", i, _job_id=f"batch-{os.getpid()}-{i}") for i in range(5)]
        assert await pool.enqueue_job("work", 0, _job_id=f"batch-{os.getpid()}-0") is None
    return [execution("arq batch", "completed", [await told(job) for job in jobs])], []


async def nested(pool):
    """A job that sends others: they belong to its run."""
    job = await pool.enqueue_job("order", 2)
    await job.result(timeout=60, poll_delay=0.05)
    results = []
    while len(results) < 3:
        results = [r for r in await pool.all_job_results() if r.enqueue_time >= (await job.info()).enqueue_time]
        await asyncio.sleep(0.05)
    steps = [await told(Job(result.job_id, pool)) for result in results]
    return [execution("order", "completed", steps)], []


async def aborted(pool):
    job = await pool.enqueue_job("hang")
    while await job.status() is not JobStatus.in_progress:
        await asyncio.sleep(0.02)
    await asyncio.sleep(0.1)
    assert await job.abort(timeout=60, poll_delay=0.05)
    entry = await told(job)
    entry["status"] = entry["tries"][0]["status"] = "cancelled"
    before = await pool.enqueue_job("extract", _defer_by=30)
    await before.abort(timeout=60, poll_delay=0.05)
    assert not (await before.result_info()).success
    never = [step("extract", "cancelled", 0, [])]
    return [execution("hang", "cancelled", [entry]), execution("extract", "cancelled", never)], []


async def exhausted(pool):
    """A job that is retried too often: arq itself ends it when it comes up once more."""
    job = await pool.enqueue_job("hopeless")
    entry = await told(job)
    # arq counts a third try, in which it calls nothing.
    assert entry["attempts"] == 3
    entry["attempts"] -= 1
    del entry["tries"]
    return [execution("hopeless", "failed", [entry])], []


async def worker_killed(pool):
    command = [sys.executable, __file__, sys.argv[1], "--worker"]
    process = spawn(command, "worker.log")
    job = await pool.enqueue_job("hang", _queue_name="arq:killed")
    while await pool.exists(f"arq:in-progress:{job.job_id}") == 0:
        await asyncio.sleep(0.05)
    begun = time.time()
    await asyncio.sleep(0.5)
    run = execution("hang", "lost", [step("hang", "lost", 1, [], started_at=at(begun))])
    # That it has started must be with the reader before the worker is killed.
    await asyncio.to_thread(tell, f"{PREFIX}_worker_at_work", [run], goes_on=True, index_from=None, edges_from="order")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return [run], []


async def gives_up(pool):
    """A job that wants to be tried again more often than it may: no span tells that arq gave it up."""
    job = await pool.enqueue_job("insist")
    with contextlib.suppress(JobExecutionFailed):
        await job.result(timeout=60, poll_delay=0.05)
    info = await job.result_info()
    tries = [{"attempt": number, "status": "failed"} for number in range(1, info.job_try)]
    entry = step("insist", "failed", info.job_try - 1, [], tries=tries, run_id=job.job_id)
    unknowable = [{"execution": 0, "field": "status"}, {"step": "insist", "field": "status"}]
    return [execution("insist", "failed", [entry])], unknowable


async def renamed(pool):
    """A job that is aborted, of a function that is registered under another name."""
    job = await pool.enqueue_job("sleep")
    while await job.status() != JobStatus.in_progress:
        await asyncio.sleep(0.02)
    assert await job.abort(timeout=30)
    entry = step("sleep", "cancelled", 1, [], run_id=job.job_id, status_or=["failed"])
    return [execution("sleep", "cancelled", [entry], status_or=["failed"])], []


SCENES = [two, alone, deferred, failed, timed_out]
BY_SPANS = [gives_up, renamed]
HOOKED = [batch, later_in_block, nested, aborted, exhausted, worker_killed]
"""What only the hooks can tell, and no span."""


async def main(address, names):
    provider = TracerProvider()
    if os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(), schedule_delay_millis=200))
        trace.set_tracer_provider(provider)
        ArqInstrumentor().instrument()
    if HOOKS:
        tachograph.integrations.arq.instrument()
    pool = await create_pool(RedisSettings.from_dsn(address))
    functions = [
        extract, flaky, broken, work, order, func(hopeless, max_tries=2), func(hang, timeout=1),
        func(insist, max_tries=2), func(hang, name="sleep"),
    ]  # fmt: skip
    if names == ["--worker"]:
        await Worker([func(hang, timeout=60)], redis_pool=pool, queue_name="arq:killed", poll_delay=0.05).async_run()
    worker = Worker(functions, redis_pool=pool, handle_signals=False, poll_delay=0.05, allow_abort_jobs=True)
    running = asyncio.create_task(worker.async_run())
    for scene in [*SCENES, *BY_SPANS, *(HOOKED if HOOKS else ())]:
        if not names or scene.__name__ in names:
            executions, unknowable = await scene(pool)
            provider.force_flush()
            if HOOKS:
                tachograph.get_recorder().flush(60)
            unknown = ["that arq gave a job up: its last span says that it is to be tried again"]
            more = {"index_from": None, "edges_from": "order" if HOOKS else "recording", "unknowable": unknowable,
                    "unknown": unknown if scene is gives_up else [],
                    "truth_from": "the results in Redis; tries before the last from the program"}  # fmt: skip
            await asyncio.to_thread(tell, f"{PREFIX}_{scene.__name__}", executions, **more)
    running.cancel()
    await worker.close()


if __name__ == "__main__":
    stop_at_sigterm()
    asyncio.run(main(sys.argv[1], sys.argv[2:]))
