"""Celery Beat's schedules, taken over as what is expected of the tasks that it sends."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any, Final

from tachograph.report import expect, expect_no_more

log = logging.getLogger(__name__)

SOURCE: Final = "celery beat"


def take_over_schedules(app: Any, service: Any = None) -> list[str]:
    """Take over what Beat sends; returns the names of the tasks that a schedule was taken over for.

    Of a task with several entries, and of one that is sent by the sun's position, none is; a line of the log says so.
    """
    schedule = getattr(getattr(service, "scheduler", None), "schedule", None) or app.conf.beat_schedule or {}
    by_task: dict[str, list[tuple[str, Any]]] = {}
    for name, entry in schedule.items():
        task = entry.get("task") if isinstance(entry, dict) else getattr(entry, "task", None)
        when = entry.get("schedule") if isinstance(entry, dict) else getattr(entry, "schedule", None)
        if task and not str(task).startswith("celery."):
            by_task.setdefault(str(task), []).append((str(name), when))
    taken = []
    for task, entries in by_task.items():
        reason = ""
        if len(entries) > 1:
            text, reason = None, f"{len(entries)} entries send it"
        else:
            text, reason = schedule_text(entries[0][1])
        if text is not None and expect(task, text, timezone=_zone(app, entries[0][1]), source=SOURCE):
            taken.append(task)
        else:
            log.warning("the schedule of %s is not taken over: %s", task, reason or "it cannot be written as cron")
            expect_no_more(task, source=SOURCE)
    for task in app.tasks:
        if not task.startswith("celery.") and task not in by_task:
            expect_no_more(task, source=SOURCE)
    return taken


def schedule_text(schedule: Any) -> tuple[str | None, str]:
    """A schedule of Celery as an expectation's; or None, and why it cannot be."""
    from celery.schedules import crontab, solar
    from celery.schedules import schedule as interval

    if isinstance(schedule, crontab):
        _, fields, *_rest = schedule.__reduce__()
        minute, hour, day_of_week, day_of_month, month = [_field(field) for field in fields]
        if day_of_month != "*" and day_of_week != "*":
            # Celery asks for both, cron for either of them.
            return None, "it names days of the month and of the week, which cron reads otherwise"
        return f"{minute} {hour} {day_of_month} {month} {day_of_week}", ""
    if isinstance(schedule, solar):
        return None, "schedules by the sun's position are not taken over"
    seconds = getattr(schedule, "total_seconds", None)
    if isinstance(schedule, interval):
        return f"every {schedule.run_every.total_seconds():g}s", ""
    if seconds is not None or isinstance(schedule, int | float):
        return f"every {seconds() if seconds is not None else schedule:g}s", ""
    return None, f"a {type(schedule).__name__} is neither a crontab nor an interval"


def _field(value: Any) -> str:
    if isinstance(value, str):
        return value.replace(" ", "")
    if isinstance(value, Iterable):
        return ",".join(str(part) for part in sorted(value, key=str))
    return str(value)


def _zone(app: Any, schedule: Any) -> str:
    from celery.schedules import crontab

    # A class of somebody else's may have a zone of its own; Celery's own follows the app.
    zone = (None if type(schedule) is crontab else getattr(schedule, "tz", None)) or app.timezone
    return str(getattr(zone, "key", None) or zone)
