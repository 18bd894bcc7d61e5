"""A real APScheduler: its jobs' runs, and its triggers as what is expected."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.combining import OrTrigger
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.date import DateTrigger
from apscheduler.triggers.interval import IntervalTrigger
from tests.conftest import Api

from tachograph.integrations import apscheduler as integration

BERLIN = ZoneInfo("Europe/Berlin")


@pytest.fixture
def scheduler() -> Iterator[BackgroundScheduler]:
    scheduler = BackgroundScheduler(timezone=BERLIN, executors={"default": {"type": "threadpool", "max_workers": 4}})
    yield scheduler
    if scheduler.running:
        scheduler.shutdown(wait=True)


@pytest.mark.parametrize(
    ("trigger", "text"),
    [
        (CronTrigger(hour=3, timezone=BERLIN), "0 3 * * *"),
        (CronTrigger(minute="*/15", hour="8-18", day_of_week="mon-fri", timezone=BERLIN), "*/15 8-18 * * mon-fri"),
        (CronTrigger(minute=5, hour=4, day_of_week="0,6", timezone=BERLIN), "5 4 * * mon,sun"),
        (CronTrigger.from_crontab("0 12 1 */3 *", timezone=BERLIN), "0 12 1 */3 *"),
        (CronTrigger(day_of_week="mon", day=1, hour=0, timezone=BERLIN), None),
        (CronTrigger(day="last", hour=0, timezone=BERLIN), None),
        (CronTrigger(second="*/10", timezone=BERLIN), None),
        (CronTrigger(year=2030, timezone=BERLIN), None),
        (IntervalTrigger(minutes=5, timezone=BERLIN), "every 300s"),
        (DateTrigger(datetime(2030, 1, 1, tzinfo=UTC)), None),
        (OrTrigger([CronTrigger(hour=3, timezone=BERLIN)]), None),
    ],
)
def test_triggers(trigger: Any, text: str | None) -> None:
    assert integration.schedule_of(trigger) == (None if text is None else (text, "Europe/Berlin"))


async def test_jobs_are_runs_and_their_triggers_are_expected(api: Api, scheduler: BackgroundScheduler) -> None:
    release, entered = threading.Event(), threading.Event()

    def slow() -> str:
        entered.set()
        assert release.wait(60)
        return "password=hunter2"

    def broken() -> None:
        raise RuntimeError("kaboom")

    async def settled() -> list[tuple[str, str]]:
        await asyncio.to_thread(api.service.recorder.flush, 60)
        page = await api.get("/api/workflows/executions")
        return sorted((item["workflow_name"].rpartition(".")[2], item["status"]) for item in page["items"])

    async def until(runs: list[tuple[str, str]]) -> None:
        for _ in range(1200):
            if await settled() == runs:
                return
            await asyncio.sleep(0.05)
        raise AssertionError(await settled())

    async def expected() -> dict[str, Any]:
        await asyncio.to_thread(api.service.recorder.flush, 60)
        page = await api.get("/api/expectations")
        return {item["workflow"]: item["said"]["apscheduler"] for item in page["items"] if item["said"]}

    now = datetime.now(UTC)
    scheduler.add_job(slow, "interval", hours=1, id="s", next_run_time=now, max_instances=1)
    scheduler.add_job(broken, "date", run_date=now, id="b", misfire_grace_time=600)
    scheduler.add_job(broken, "date", run_date=now - timedelta(days=1), name="too late", misfire_grace_time=1)
    scheduler.add_job(print, "cron", hour=3, minute=30, id="c", name="nightly")
    integration.instrument(scheduler)
    integration.instrument(scheduler)
    scheduler.start()
    assert await asyncio.to_thread(entered.wait, 60)
    scheduler.modify_job("s", next_run_time=datetime.now(UTC))
    await until([("broken", "failed"), ("slow", "cancelled"), ("slow", "running"), ("too late", "failed")])
    release.set()
    await until([("broken", "failed"), ("slow", "cancelled"), ("slow", "completed"), ("too late", "failed")])
    page = await api.get("/api/workflows/executions")
    errors = {item["workflow_name"].rpartition(".")[2]: item["error_message"] for item in page["items"]}
    assert errors["broken"] == "kaboom"
    assert errors["too late"] == "it was not started in time"
    (done,) = [item for item in page["items"] if item["status"] == "completed"]
    timeline = await api.get(f"/api/workflows/executions/{done['execution_id']}/timeline")
    assert [step["step_name"] for step in timeline["step_timeline"]] == [done["workflow_name"]]
    assert "hunter2" not in str(timeline)
    every = {"schedule": "every 3600s", "timezone": "Europe/Berlin"}
    assert await expected() == {
        done["workflow_name"]: every,
        "nightly": {"schedule": "30 3 * * *", "timezone": "Europe/Berlin"},
    }
    scheduler.pause_job("c")
    scheduler.remove_job("s")
    assert await expected() == {}
    scheduler.resume_job("c")
    scheduler.add_job(print, "cron", hour=4, name="nightly")
    assert await expected() == {}  # Which of the two is it?
    integration.uninstrument(scheduler)
    assert not scheduler._listeners
