"""arq jobs as users write them, instrumented only with opentelemetry-instrumentation-arq.

python arq_kinds.py redis://… [SCENE …]       plays scenes, with a worker in the same process

The truth is from the results that arq keeps in Redis; the tries that did not end well are from the program.
"""

import asyncio
import sys

from arq import Retry, create_pool
from arq.connections import RedisSettings
from arq.worker import Worker, func
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


SCENES = [two, alone, deferred, failed, timed_out]


async def main(address, names):
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(), schedule_delay_millis=200))
    trace.set_tracer_provider(provider)
    ArqInstrumentor().instrument()
    pool = await create_pool(RedisSettings.from_dsn(address))
    functions = [extract, flaky, broken, func(hang, timeout=1)]
    worker = Worker(functions, redis_pool=pool, handle_signals=False, poll_delay=0.05)
    running = asyncio.create_task(worker.async_run())
    for scene in SCENES:
        if not names or scene.__name__ in names:
            executions, unknowable = await scene(pool)
            provider.force_flush()
            more = {"index_from": None, "edges_from": "recording", "unknowable": unknowable,
                    "truth_from": "the results in Redis; tries before the last from the program"}  # fmt: skip
            await asyncio.to_thread(tell, f"arq_{scene.__name__}", executions, **more)
    running.cancel()
    await worker.close()


if __name__ == "__main__":
    stop_at_sigterm()
    asyncio.run(main(sys.argv[1], sys.argv[2:]))
