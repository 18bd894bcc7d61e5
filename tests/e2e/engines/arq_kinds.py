"""arq jobs as users write them, instrumented only with opentelemetry-instrumentation-arq.

python arq_kinds.py redis://… [SCENE …]       plays scenes, with a worker in the same process

The truth is from the results that arq keeps in Redis; the tries that did not end well are from the program.
"""

import asyncio
import contextlib
import sys

from arq import Retry, create_pool
from arq.connections import RedisSettings
from arq.jobs import Job, JobStatus
from arq.worker import JobExecutionFailed, Worker, func
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.arq import ArqInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from telling import at, execution, step, stop_at_sigterm, tell


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


async def order(ctx):
    await ctx["redis"].enqueue_job("extract", _job_id=f"{ctx['job_id']}-first")
    await asyncio.sleep(0.05)
    await ctx["redis"].enqueue_job("flaky", _job_id=f"{ctx['job_id']}-second")


async def insist(ctx):
    await asyncio.sleep(0.05)
    raise Retry(defer=0.2)


async def told(job, **more):
    """A step by the result of a job."""
    try:
        await job.result(timeout=60, poll_delay=0.05)
        error = None
    except TimeoutError:
        error = "TimeoutError: "
    except RuntimeError as caught:
        error = f"RuntimeError: {caught}"
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
    with trace.get_tracer("shop").start_as_current_span("arq nightly"):
        jobs = [await pool.enqueue_job("extract"), await pool.enqueue_job("flaky")]
    return [execution("arq nightly", "completed", [await told(job) for job in jobs])], []


async def alone(pool):
    job = await pool.enqueue_job("extract")
    return [execution("extract", "completed", [await told(job)])], []


async def deferred(pool):
    job = await pool.enqueue_job("extract", _defer_by=1)
    score = (await job.info()).score
    asked = f"{(await job.info()).enqueue_time:%Y-%m-%dT%H:%M:%S.%f}Z"
    return [execution("extract", "completed", [await told(job, asked_at=asked, scheduled_at=at(score / 1000))])], []


async def failed(pool):
    job = await pool.enqueue_job("broken")
    return [execution("broken", "failed", [await told(job)], error="RuntimeError: no item 1")], []


async def timed_out(pool):
    job = await pool.enqueue_job("hang")
    entry = await told(job, status_or=["timeout", "cancelled"])
    del entry["error"], entry["tries"]
    # arq cancels the job's task: its span has no error, but neither does it say OK, as that of a good one does.
    return [execution("hang", "failed", [entry], status_or=["timeout", "cancelled"])], []


async def nested(pool):
    """A job that asks for two others."""
    job = await pool.enqueue_job("order")
    entry = await told(job)
    others = [await told(Job(f"{job.job_id}-{name}", pool)) for name in ("first", "second")]
    for other in others:
        # They run beside the job that asked for them, or after it.
        del other["depends_on"]
    return [execution("order", "completed", [entry, *others])], []


async def exhausted(pool):
    """A job that wants to be tried again more often than it may: arq gives up without another try."""
    job = await pool.enqueue_job("insist")
    with contextlib.suppress(JobExecutionFailed):
        await job.result(timeout=60, poll_delay=0.05)
    info = await job.result_info()
    tries = [{"attempt": number, "status": "failed"} for number in range(1, info.job_try)]
    entry = step("insist", "failed", info.job_try - 1, [], tries=tries, run_id=job.job_id)
    # That arq gave up no span tells: the last one says that it is to be tried again.
    unknowable = [{"execution": 0, "field": "status"}, {"step": "insist", "field": "status"}]
    return [execution("insist", "failed", [entry])], unknowable


async def aborted(pool):
    job = await pool.enqueue_job("sleep")
    while await job.status() != JobStatus.in_progress:  # noqa: ASYNC110 - only Redis knows
        await asyncio.sleep(0.02)
    assert await job.abort(timeout=30)
    entry = step("sleep", "cancelled", 1, [], run_id=job.job_id, status_or=["failed"])
    return [execution("sleep", "cancelled", [entry], status_or=["failed"])], []


SCENES = [two, alone, deferred, failed, timed_out, nested, exhausted, aborted]


async def main(address, names):
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(), schedule_delay_millis=200))
    trace.set_tracer_provider(provider)
    ArqInstrumentor().instrument()
    pool = await create_pool(RedisSettings.from_dsn(address))
    functions = [
        extract, flaky, broken, func(hang, timeout=1), order, func(insist, max_tries=2), func(hang, name="sleep"),
    ]  # fmt: skip
    worker = Worker(functions, redis_pool=pool, handle_signals=False, poll_delay=0.05, allow_abort_jobs=True)
    running = asyncio.create_task(worker.async_run())
    for scene in SCENES:
        if not names or scene.__name__ in names:
            executions, unknowable = await scene(pool)
            provider.force_flush()
            unknown = ["that arq gave a job up: its last span says that it is to be tried again"]
            more = {"index_from": None, "edges_from": "recording", "unknowable": unknowable,
                    "unknown": unknown if scene is exhausted else [],
                    "truth_from": "the results in Redis; tries before the last from the program"}  # fmt: skip
            await asyncio.to_thread(tell, f"arq_{scene.__name__}", executions, **more)
    running.cancel()
    await worker.close()


if __name__ == "__main__":
    stop_at_sigterm()
    asyncio.run(main(sys.argv[1], sys.argv[2:]))
