"""The parts of the Celery integration that need no worker; `tests/e2e/test_engines.py` has real ones."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any, cast

import pytest
from celery import Celery, beat, chain, chord, group, signals
from celery.contrib.testing.worker import start_worker
from celery.schedules import crontab, schedule, solar
from kombu.exceptions import EncodeError
from opentelemetry import trace
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from tests.conftest import Api

import tachograph
from tachograph import meter
from tachograph.clock import NS
from tachograph.events import Event, StepFinished, StepReady, StepRetrying
from tachograph.integrations import celery as integration
from tachograph.integrations import places
from tachograph.integrations.celery_schedules import schedule_text
from tachograph.report.safely import moment_ns

# Made without the library that computes it.
SUNSET = solar.__new__(solar)
SIGNALS = [value for value in vars(signals).values() if isinstance(value, signals.Signal)]


@pytest.fixture
def app() -> Iterator[Celery]:
    app = Celery("shop", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.timezone = "Europe/Berlin"

    def identity(number: int) -> int:
        return number

    for name in ("shop.fetch", "shop.store"):
        app.task(name=name, shared=False)(identity)

    integration.instrument(app)
    yield app
    integration.uninstrument(app)
    app.close()


@pytest.mark.parametrize(
    ("when", "text"),
    [
        (crontab(), "* * * * *"),
        (crontab(minute="*/15", hour="8-18"), "*/15 8-18 * * *"),
        (crontab(minute=0, hour=3, day_of_week="mon,fri"), "0 3 * * mon,fri"),
        (crontab(minute=[0, 30], hour={6}, day_of_month="1"), "0,30 6 1 * *"),
        (crontab(minute=0, hour=0, day_of_month="13", day_of_week="fri"), None),
        (schedule(timedelta(minutes=5)), "every 300s"),
        (timedelta(hours=1), "every 3600s"),
        (90.0, "every 90s"),
        (SUNSET, None),
        ("tomorrow", None),
    ],
)
def test_schedules_of_beat(when: Any, text: str | None) -> None:
    assert schedule_text(when)[0] == text


async def test_what_beat_sends_is_expected_until_it_no_longer_does(api: Api, app: Celery) -> None:
    async def said() -> dict[str, Any]:
        await asyncio.to_thread(api.service.recorder.flush, 60)
        page = await api.get("/api/expectations")
        return {item["workflow"]: item["said"].get("celery beat") for item in page["items"]}

    def start_beat(**entries: Any) -> None:
        app.conf.beat_schedule = entries
        signals.beat_init.send(sender=beat.Service(app, scheduler_cls="celery.beat:Scheduler"))

    nightly = {"task": "shop.fetch", "schedule": crontab(minute=0, hour=3), "args": (1,)}
    start_beat(nightly=nightly, dusk={"task": "shop.store", "schedule": SUNSET})
    assert await said() == {
        "shop.fetch": {"schedule": "0 3 * * *", "timezone": "Europe/Berlin"}, "shop.store": None,
    }  # fmt: skip
    info = await api.get("/api/expectations/shop.fetch")
    assert (info["expected"]["schedule"], info["schedule_source"]) == ("0 3 * * *", "celery beat")
    assert info["expected_start_at"] is not None
    # What is said by hand is stronger.
    status, info = await api.call("PUT", "/api/expectations/shop.fetch", {"schedule": "@daily", "grace": "1h"})
    assert (status, info["expected"]["schedule"], info["schedule_source"]) == (200, "@daily", "api")
    start_beat(often={"task": "shop.store", "schedule": timedelta(minutes=5)})
    assert await said() == {"shop.fetch": None, "shop.store": {"schedule": "every 300s", "timezone": "Europe/Berlin"}}


def header_of(app: Celery) -> Any:
    """What a message that is sent now has of ours."""
    seen: list[Any] = []

    def look(headers: Any = None, **_: Any) -> None:
        seen.append(headers.get(places.HEADER))

    signals.after_task_publish.connect(look)
    app.tasks["shop.fetch"].delay(1)
    signals.after_task_publish.disconnect(look)
    return seen[0]


def test_an_integration_that_is_broken_does_not_break_celery(
    app: Celery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert json.loads(header_of(app))[0] == "shop.fetch"

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr(places, "run", broken)
    header_of(app)
    for headers in ("no json", "[]", '["a"]', json.dumps([1] * 9), json.dumps([*"wr", "", "k", "", "n", -1, "x", "e"])):
        assert places.place_in({places.HEADER: headers}) is None
    for signal in SIGNALS:
        for _, receiver in signal.receivers or ():
            if getattr(receiver, "__module__", "") == integration.__name__:
                receiver(sender=None, anything=object())
    assert any("broken on purpose" in str(record.exc_info) for record in caplog.records)


def test_a_countdown_is_scheduled_until_the_eta(app: Celery) -> None:
    etas: list[str] = []
    recorded: list[Event] = []
    recorder = tachograph.get_recorder()
    recorder.add("noted", recorded.append)

    def look(headers: Any = None, **_: Any) -> None:
        etas.append(headers["eta"])

    signals.after_task_publish.connect(look)
    app.tasks["shop.fetch"].apply_async((1,), countdown=300)
    signals.after_task_publish.disconnect(look)
    assert recorder.flush(60)
    recorder.remove("noted")
    (ready,) = [event for event in recorded if isinstance(event, StepReady)]
    due_ns = moment_ns(datetime.fromisoformat(etas[0]), 0)
    assert ready.asked_ns is not None
    assert abs(ready.time_ns - due_ns) <= 1_000  # Seconds in a header are a float.
    assert ready.asked_ns <= due_ns - 299 * NS


def test_uninstrumented_nothing_is_left(app: Celery) -> None:
    def ours() -> list[Any]:
        return [
            receiver
            for signal in SIGNALS
            for _, receiver in signal.receivers or ()
            if getattr(receiver, "__module__", "").startswith("tachograph.integrations")
        ]

    integration.instrument(app)
    assert len(ours()) == len(integration._handlers())
    integration.uninstrument(app)
    assert ours() == []
    assert header_of(app) is None


def test_what_is_sent_together_is_one_run(app: Celery) -> None:
    fetch, store = app.tasks["shop.fetch"], app.tasks["shop.store"]
    sent: list[places.Place] = []

    def look(headers: Any = None, **_: Any) -> None:
        place = places.place_in(headers)
        assert place is not None
        sent.append(place)

    signals.after_task_publish.connect(look)
    try:
        # The message of a chain's first task does not say the group.
        group(chain(fetch.s(i), store.s()) for i in range(3)).apply_async()
        assert [(place.workflow, place.key, place.number) for place in sent] == [
            ("shop.fetch", "shop.fetch", number) for number in range(3)
        ]
        assert len({place.run_id for place in sent}) == 1
        sent.clear()
        # The header of a chord has another chord.
        inner = chord([fetch.s(0), fetch.s(1)], store.s())
        chord([inner, fetch.s(2)], store.s()).apply_async()
        assert [(place.key, place.number) for place in sent] == [
            ("shop.fetch", 0), ("shop.fetch", 1), ("shop.fetch#2", 1)
        ]  # fmt: skip
        assert len({place.run_id for place in sent}) == 1
        sent.clear()
        with integration.together("nightly", run_id="monday"):
            chain(fetch.s(1), group(store.s(), store.s())).apply_async()
            fetch.delay(2)
        fetch.delay(3)
        assert [(place.workflow, place.key) for place in sent] == [
            ("nightly", "shop.fetch"), ("nightly", "shop.fetch#2"), ("shop.fetch", "shop.fetch")
        ]  # fmt: skip
        assert {place.run_id for place in sent[:2]} == {"monday"}
    finally:
        signals.after_task_publish.disconnect(look)


def test_spans_of_messages_are_in_the_trace_of_their_run(app: Celery) -> None:
    traces: list[Any] = []

    def look(headers: Any = None, **_: Any) -> None:
        traces.append(trace.get_current_span().get_span_context().trace_id)

    spans: Any = cast(Any, CeleryInstrumentor)()
    spans.instrument(tracer_provider=TracerProvider())
    try:
        integration.instrument(app)
        signals.before_task_publish.connect(look)
        group(app.tasks["shop.fetch"].s(i) for i in range(3)).apply_async()
        assert len(set(traces)) == 1
        assert not trace.get_current_span().get_span_context().is_valid
        chain(app.tasks["shop.fetch"].s(1), app.tasks["shop.store"].s()).apply_async()
        assert len(set(traces)) == 2
        with pytest.raises(EncodeError):
            app.tasks["shop.fetch"].apply_async((object(),))
        app.tasks["shop.fetch"].apply_async((1,))
        assert not trace.get_current_span().get_span_context().is_valid
    finally:
        signals.before_task_publish.disconnect(look)
        spans.uninstrument()


@pytest.mark.filterwarnings("ignore")  # Of Celery's own, in the thread of its worker.
def test_a_task_says_what_it_used_of_its_worker_and_what_runs_inside_it_is_part_of_that() -> None:
    app = Celery("used", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.task_default_queue = "used"  # The broker is one for all tests.
    events: list[StepFinished | StepRetrying] = []

    def note(event: Event) -> None:
        if isinstance(event, StepFinished | StepRetrying):
            events.append(event)

    def burn(seconds: float) -> None:
        end = time.thread_time() + seconds
        while time.thread_time() < end:
            sum(range(1000))

    def work(task: Any) -> None:
        burn(0.03)
        tachograph.step(name="inner")(burn)(0.05)
        if not task.request.retries:
            raise task.retry(countdown=0)

    def fail() -> None:
        burn(0.03)
        raise ValueError

    tasks = [
        app.task(name="used.work", bind=True, max_retries=1, shared=False)(work),
        app.task(name="used.fail", shared=False)(fail),
    ]
    recorder = tachograph.get_recorder()
    recorder.add("used", note)
    integration.instrument(app)

    def leave_logging(**_settings: Any) -> None:
        """Where something listens, a worker does not change the levels of this process's loggers."""

    signals.setup_logging.connect(leave_logging)
    try:
        with start_worker(app, pool="solo", perform_ping_check=False, shutdown_timeout=60):
            for result in [task.delay() for task in tasks]:
                result.get(timeout=60, propagate=False)
        assert recorder.flush(60)
    finally:
        signals.setup_logging.disconnect(leave_logging)
        integration.uninstrument(app)
        recorder.remove("used")
        app.close()
    used = [(type(e).__name__, e.step.name, e.resources.cpu_seconds if e.resources else None) for e in events]
    assert sorted(entry[:2] for entry in used) == [
        ("StepFinished", "inner"), ("StepFinished", "inner"), ("StepFinished", "used.fail"),
        ("StepFinished", "used.work"), ("StepRetrying", "used.work"),
    ]  # fmt: skip
    least = {"inner": 0.05, "used.fail": 0.03, "used.work": 0.08}
    assert all(cpu is not None and least[name] <= cpu < least[name] + 0.5 for _, name, cpu in used), used
    assert not meter._active
