"""procrastinate jobs as users write them, told of by its middleware and its job manager's methods.

python procrastinate_kinds.py postgresql://… [SCENE …]       plays scenes, with a worker in the same process
python procrastinate_kinds.py postgresql://… --worker        a worker that is killed

The truth is from procrastinate's own tables: its jobs, and its events with their times.
"""

import asyncio
import os
import signal
import sys
import time

import procrastinate
from telling import at, execution, for_later, spawn, step, stop_at_sigterm, tell

import tachograph
import tachograph.integrations.procrastinate

tachograph.integrations.procrastinate.instrument()
ADDRESS = sys.argv[1] if len(sys.argv) > 1 else ""
app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=ADDRESS))


@app.task(name="extract")
async def extract():
    await asyncio.sleep(0.1)
    return 3


@app.task(name="work")
def work(number):
    time.sleep(0.05)
    return number


@app.task(name="flaky", retry=procrastinate.RetryStrategy(max_attempts=2, wait=1))
async def flaky(path):
    if not os.path.exists(path):
        with open(path, "w"):
            raise ConnectionError("no route to the shop")


@app.task(name="broken", retry=1)
async def broken():
    raise RuntimeError("no item 1")


@app.task(name="order")
async def order():
    await work.defer_async(number=1)
    await extract.defer_async()


@app.task(name="order_sync")
def order_sync():
    work.defer(number=2)


@app.task(name="hang", queue="hanging")
async def hang():
    await asyncio.sleep(60)


STATUSES = {"succeeded": "completed", "failed": "failed", "cancelled": "cancelled", "aborted": "cancelled",
            "doing": "lost"}  # fmt: skip


async def ended(job_id):
    deadline = time.monotonic() + 60
    while (status := (await app.job_manager.get_job_status_async(job_id)).value) in ("todo", "doing"):
        if time.monotonic() > deadline:
            raise TimeoutError(f"job {job_id} is {status}")
        await asyncio.sleep(0.02)
    return status


async def told(job_id, depends_on=(), **more):
    """A step by the row of a job and its events."""
    (job,) = await app.job_manager.list_jobs_async(id=job_id)
    events = await app.connector.execute_query_all_async(
        "SELECT type::text AS type, at FROM procrastinate_events WHERE job_id = %(job_id)s ORDER BY id", job_id=job_id
    )
    tries = []
    for event in events:
        moment = at(event["at"].timestamp())
        if event["type"] == "started":
            tries.append({"attempt": len(tries) + 1, "started_at": moment})
        elif event["type"] in ("succeeded", "failed", "deferred_for_retry", "aborted") and tries:
            status = {"succeeded": "completed", "aborted": "cancelled"}.get(event["type"], "failed")
            tries[-1].update(status=status, ended_at=moment)
    times = {"started_at": tries[0]["started_at"], "ended_at": tries[-1].get("ended_at")} if tries else {}
    known = tries if "status" in (tries or [{}])[-1] else None
    return step(job.task_name, STATUSES[job.status], len(tries), [*depends_on], tries=known, **times, **more)


async def batch():
    """Five deferred at once."""
    ids = await work.batch_defer_async(*[{"number": number} for number in range(5)])
    for job_id in ids:
        await ended(job_id)
    return [execution("work", "completed", [await told(job_id, index=i) for i, job_id in enumerate(ids)])]


async def together():
    path = os.path.abspath(f"flaky-{time.time_ns()}")
    with tachograph.integrations.procrastinate.together("nightly"):
        ids = [await extract.defer_async(), await flaky.defer_async(path=path)]
    for job_id in ids:
        await ended(job_id)
    return [execution("nightly", "completed", [await told(job_id) for job_id in ids])]


async def failed():
    job_id = await broken.defer_async()
    await ended(job_id)
    entry = await told(job_id)
    entry["error"] = "RuntimeError: no item 1"
    return [execution("broken", "failed", [entry], error="RuntimeError: no item 1")]


async def locked():
    """Jobs with queueing locks of their own are runs of their own."""
    job_id = await extract.configure(queueing_lock="mine").defer_async()
    await ended(job_id)
    return [execution("extract", "completed", [await told(job_id)])]


async def nested():
    """Jobs that defer others: they belong to their run."""
    executions = []
    for task, count in ((order, 3), (order_sync, 2)):
        job_id = await task.defer_async()
        await ended(job_id)
        ids = [job.id for job in await app.job_manager.list_jobs_async() if job.id >= job_id]
        assert len(ids) == count
        for each in ids:
            await ended(each)
        executions.append(execution(task.name, "completed", [await told(each) for each in ids]))
    return executions


async def later():
    job_id = await extract.configure(schedule_in={"seconds": 1}).defer_async()
    await ended(job_id)
    return [execution("extract", "completed", [await told(job_id)])]


async def later_in_block():
    """A job for a later time, in a run that has begun."""
    with tachograph.integrations.procrastinate.together("later"):
        soon = await extract.defer_async()
        sent = await work.configure(schedule_in={"seconds": 2}).defer_async(number=1)
    await ended(sent)
    (job,) = await app.job_manager.list_jobs_async(id=sent)
    (asked,) = await app.connector.execute_query_all_async(
        "SELECT at FROM procrastinate_events WHERE job_id = %(job_id)s AND type = 'deferred'", job_id=sent
    )
    first, second = await told(soon), await told(sent)
    second = for_later(second, at(asked["at"].timestamp()), at(job.scheduled_at.timestamp()), first["started_at"])
    return [execution("later", "completed", [first, second])]


async def cancelled():
    job_id = await extract.configure(schedule_in={"seconds": 60}).defer_async()
    assert await app.job_manager.cancel_job_by_id_async(job_id)
    gone = await work.configure(schedule_in={"seconds": 60}).defer_async(number=1)
    assert await asyncio.to_thread(app.job_manager.cancel_job_by_id, gone, delete_job=True)
    return [execution("extract", "cancelled", [await told(job_id)]),
            execution("work", "cancelled", [step("work", "cancelled", 0, [])])]  # fmt: skip


async def aborted():
    job_id = await hang.configure(queue="default").defer_async()
    while (await app.job_manager.get_job_status_async(job_id)).value != "doing":
        await asyncio.sleep(0.02)
    await app.job_manager.cancel_job_by_id_async(job_id, abort=True)
    await ended(job_id)
    return [execution("hang", "cancelled", [await told(job_id)])]


async def unknown():
    job_id = await app.configure_task("nobody_knows", queue="default").defer_async()
    await ended(job_id)
    entry = await told(job_id)
    return [execution("nobody_knows", "failed", [entry])]


async def worker_killed():
    process = spawn([sys.executable, __file__, ADDRESS, "--worker"], "worker.log")
    job_id = await hang.defer_async()
    while (await app.job_manager.get_job_status_async(job_id)).value != "doing":
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.5)
    run = execution("hang", "lost", [await told(job_id)])
    # That it has started must be with the reader before the worker is killed.
    await asyncio.to_thread(tell, "procrastinate_worker_at_work", [run], goes_on=True)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return [run]


SCENES = [batch, together, failed, locked, nested, later, later_in_block, cancelled, aborted, unknown, worker_killed]


async def main(names):
    async with app.open_async():
        if names == ["--worker"]:
            await app.run_worker_async(queues=["hanging"])
            return
        if not await app.check_connection_async():
            await app.schema_manager.apply_schema_async()
        worker = asyncio.create_task(
            app.run_worker_async(
                queues=["default"], concurrency=5, install_signal_handlers=False, fetch_job_polling_interval=0.2
            )
        )
        # One that does not run jobs opens its own connections.
        for scene in SCENES:
            if not names or scene.__name__ in names:
                executions = await scene()
                tachograph.get_recorder().flush(60)
                await asyncio.to_thread(tell, f"procrastinate_{scene.__name__}", executions, index_from="order",
                                        edges_from="none", truth_from="procrastinate's jobs and events")  # fmt: skip
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)


if __name__ == "__main__":
    stop_at_sigterm()
    asyncio.run(main(sys.argv[2:]))
