"""Spans that arrive when they start are steps that run; without a sign of life for their lease they are lost."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from sqlalchemy import select, update
from tests.api.test_otlp import T0, S, export, send, sent, span, timeline
from tests.conftest import Api, running, serve
from tests.store.test_rollups import differing
from tests.test_four_views import samples

from tachograph.errors import StoreUnavailable
from tachograph.events import Event, ExecutionFinished, StepFinished, StepStarted
from tachograph.workflow import HandlerRegistry
from tachograph_exporter.config import Config
from tachograph_exporter.ingest import span_rows, span_store
from tachograph_exporter.ingest.pending_spans import PENDING, REAL_PARENT, SPAN_TYPE
from tachograph_exporter.service import Service
from tachograph_exporter.store import archiving, recovery, refused
from tachograph_exporter.store.schema import open_spans, spans, traces

WORKFLOW = frozenset({("workspace", "default"), ("workflow", "nightly")})
ROOT = span("nightly", 1, 0, 0, None)
EXTRACT = span("extract", 2, 1, 1, None)
DONE = [span("nightly", 1, 0, 0, 10), span("extract", 2, 1, 1, 4)]


class Clock:
    """The clock by which a service measures silences; only the test advances it."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.now = 0.0
        service.upkeep._span_silences = recovery.Silences(
            lambda: self.now, max_gap_seconds=2 * service.upkeep._look_seconds
        )
        self._look = service.upkeep.expire_leases
        # The service itself does not look any more.
        service.upkeep.expire_leases = _nobody  # type: ignore[method-assign]

    async def look(self) -> int:
        """Let the service look at leases once; returns how many spans were lost."""
        return await self._look()

    async def pass_(self, seconds: float, beat: Callable[[], Any] | None = None) -> int:
        """Let time pass as the service sees it, with a ``beat`` after each look; returns how many spans were lost."""
        lost, look = 0, self.service.upkeep._look_seconds
        for _ in range(round(seconds / look)):
            self.now += look
            lost += await self._look()
            if beat is not None:
                await beat()
        return lost


@pytest.fixture
async def api(any_database_url: str, handlers: HandlerRegistry) -> AsyncIterator[Api]:
    async for api in serve(Config(database=any_database_url, grace_seconds=0.1), handlers):
        yield api


@pytest.fixture
def clock(api: Api) -> Clock:
    return Clock(api.service)


async def _nobody() -> int:
    return 0


async def eventually(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    async with asyncio.timeout(seconds):
        while True:
            if value := await condition():
                return value
            await asyncio.sleep(0.05)


async def states(api: Api) -> dict[str, str]:
    """The status of the first execution, and of its steps by name."""
    page = await api.get("/api/workflows/executions")
    if not page["items"]:
        return {}
    shown = await timeline(api, page["total"] - 1)
    return {"": shown["status"]} | {step["step_name"]: step["status"] for step in shown["step_timeline"]}


async def becomes(api: Api, **expected: str) -> None:
    wanted = {"" if name == "run" else name: status for name, status in expected.items()}

    async def is_so() -> bool:
        return await states(api) == wanted

    try:
        await eventually(is_so)
    except TimeoutError:
        assert await states(api) == wanted


async def gauges(api: Api) -> tuple[float, float]:
    await asyncio.to_thread(api.service.recorder.flush)
    shown = samples(await api.metrics())
    return shown["workflow_executions_running", WORKFLOW], shown["workflow_steps_running", WORKFLOW]


async def test_an_open_span_is_a_running_step_until_its_end_arrives(api: Api) -> None:
    subscription = api.service.recorder.subscribe()
    await sent(api, ROOT, EXTRACT)
    assert await states(api) == {"": "running", "extract": "running"}
    assert await gauges(api) == (1, 1)
    assert [type(event) for event in subscription.drain() if isinstance(event, StepStarted)] == [StepStarted]
    await sent(api, DONE[1])
    assert await states(api) == {"": "running", "extract": "completed"}
    await sent(api, DONE[0])
    assert await states(api) == {"": "completed", "extract": "completed"}
    assert await gauges(api) == (0, 0)
    later = subscription.drain()
    assert [type(event) for event in later] == [StepFinished, ExecutionFinished]
    assert api.service.database.look(lambda c: c.execute(select(open_spans)).all()) == []


async def test_a_span_without_heartbeats_is_lost_after_its_lease_and_no_sooner(api: Api, clock: Clock) -> None:
    await sent(api, ROOT, EXTRACT)
    assert await clock.pass_(30) == 0
    assert await states(api) == {"": "running", "extract": "running"}
    assert await clock.pass_(5) == 2
    await becomes(api, run="lost", extract="lost")
    assert await gauges(api) == (0, 0)
    shown = await timeline(api)
    assert "no sign of life" in shown["error_message"]
    assert differing(api.service.database) == 0


async def test_what_runs_and_what_is_lost_is_the_same_in_every_view(api: Api, clock: Clock) -> None:
    await sent(api, ROOT, EXTRACT, span("load", 3, 1, 2, 3))
    (item,) = (await api.get("/api/workflows/executions"))["items"]
    path = f"/api/workflows/executions/{item['execution_id']}/reconcile"
    for status in ("running", "lost"):
        await becomes(api, run=status, extract=status, load="completed")
        report = await api.get(path)
        assert report["differences"] == []
        await clock.pass_(40)


async def test_heartbeats_keep_spans_running_whatever_clock_their_sender_has(api: Api, clock: Clock) -> None:
    ahead = [msg(ROOT, hours=5), msg(EXTRACT, hours=5)]
    await sent(api, *ahead)
    assert await clock.pass_(300, lambda: sent(api, *ahead)) == 0
    assert await states(api) == {"": "running", "extract": "running"}
    count = select(spans.c.span_id)
    assert len(api.service.database.look(lambda c: c.execute(count).all())) == 2


def msg(original: Span, *, hours: float = 0) -> Span:
    moved = Span()
    moved.CopyFrom(original)
    now = time.time_ns() + round(hours * 3600 * S)
    moved.start_time_unix_nano = now + original.start_time_unix_nano - T0
    if original.end_time_unix_nano:
        moved.end_time_unix_nano = now + original.end_time_unix_nano - T0
    return moved


async def test_a_step_of_a_dead_process_is_lost_while_its_run_goes_on(api: Api, clock: Clock) -> None:
    await sent(api, ROOT, EXTRACT)
    assert await clock.pass_(60, lambda: sent(api, ROOT)) == 1
    await becomes(api, run="running", extract="lost")
    assert await gauges(api) == (1, 0)
    # The run says itself how it ended.
    await sent(api, DONE[0])
    assert await states(api) == {"": "completed", "extract": "lost"}


async def test_what_was_lost_becomes_what_it_was_when_its_end_arrives_after_all(api: Api, clock: Clock) -> None:
    subscription = api.service.recorder.subscribe()
    await sent(api, ROOT, EXTRACT)
    await clock.pass_(40)
    await becomes(api, run="lost", extract="lost")
    lost = [event for event in subscription.drain() if isinstance(event, StepFinished | ExecutionFinished)]
    assert [event.status.value for event in lost] == ["lost", "lost"]
    await sent(api, *DONE)
    assert await states(api) == {"": "completed", "extract": "completed"}
    ends = [event for event in subscription.drain() if isinstance(event, StepFinished | ExecutionFinished)]
    assert [event.status.value for event in ends] == ["completed", "completed"]
    page = await api.get("/api/workflows/nightly/metrics")
    assert (page["total_executions"], page["successful_executions"]) == (1, 1)
    assert await gauges(api) == (0, 0)
    assert differing(api.service.database) == 0
    # A heartbeat that comes late changes nothing.
    await sent(api, ROOT, EXTRACT)
    assert await states(api) == {"": "completed", "extract": "completed"}
    assert subscription.drain() == []


async def test_what_was_counted_as_lost_and_ends_is_made_up_for_by_the_next_that_is_lost(
    api: Api, clock: Clock
) -> None:
    async def counted() -> dict[str, tuple[float, float]]:
        """How many executions, and steps, are shown to have ended so."""
        await asyncio.to_thread(api.service.recorder.flush)
        shown = samples(await api.metrics())
        execution, step = "workflow_execution_duration_seconds_count", "workflow_step_duration_seconds_count"
        labels = {status: WORKFLOW | {("status", status)} for status in ("completed", "lost")}
        return {
            status: (shown.get((execution, of), 0), shown.get((step, of | {("step", "extract")}), 0))
            for status, of in labels.items()
        }

    async def becomes_counted(completed: float, lost: float) -> None:
        expected = {"completed": (completed, completed), "lost": (lost, lost)}

        async def is_so() -> bool:
            return await counted() == expected

        await eventually(is_so)

    await sent(api, *[span("nightly", 1, 0, 0, 5, trace=3), span("extract", 2, 1, 1, 4, trace=3)])
    await becomes_counted(1, 0)
    await sent(api, ROOT, EXTRACT)
    await clock.pass_(40)
    await becomes_counted(1, 1)
    await sent(api, *DONE)
    await becomes_counted(2, 1)
    # It is lost for good: now as many have been shown as there are.
    await sent(api, span("nightly", 1, 0, 0, None, trace=2), span("extract", 2, 1, 1, None, trace=2))
    await clock.pass_(40)

    async def lost() -> Any:
        return (await api.get("/api/workflows/executions?status=lost"))["items"]

    (item,) = await eventually(lost)
    await becomes_counted(2, 1)
    report = await api.get(f"/api/workflows/executions/{item['execution_id']}/reconcile")
    assert report["differences"] == []
    assert differing(api.service.database) == 0


async def test_what_was_lost_runs_again_when_it_is_heard_of(api: Api, clock: Clock) -> None:
    await sent(api, ROOT, EXTRACT)
    await clock.pass_(40)
    await becomes(api, run="lost", extract="lost")
    await sent(api, ROOT, EXTRACT)
    await becomes(api, run="running", extract="running")
    assert await gauges(api) == (1, 1)
    # It has a whole lease again.
    assert await clock.pass_(30) == 0
    assert await clock.pass_(5) == 2
    await becomes(api, run="lost", extract="lost")


@pytest.mark.parametrize("order", list(itertools.permutations(range(4)))[::9])
async def test_starts_and_ends_may_come_in_any_order_and_twice(api: Api, order: tuple[int, ...]) -> None:
    messages = [ROOT, EXTRACT, *DONE]
    for number in order:
        await sent(api, messages[number])
        await sent(api, messages[number], messages[number])
    await sent(api, ROOT, EXTRACT)
    assert await states(api) == {"": "completed", "extract": "completed"}
    assert (await timeline(api))["total_duration_seconds"] == 10
    assert api.service.database.look(lambda c: c.execute(select(open_spans)).all()) == []


async def test_a_heartbeat_may_say_more_than_the_one_before_in_any_order(api: Api) -> None:
    more = span("extract", 2, 1, 1, None, of={"workflow.step.name": "extract customers"})
    for messages in ([EXTRACT, more], [more, EXTRACT]):
        for message in messages:
            await sent(api, ROOT, message)
        assert "extract customers" in await states(api)


async def test_a_new_service_counts_leases_from_when_it_looks(any_database_url: str, handlers: HandlerRegistry) -> None:
    config = Config(database=any_database_url, grace_seconds=0.1)
    async with running(config, handlers) as api:
        clock = Clock(api.service)
        await sent(api, ROOT, EXTRACT)
        assert await clock.pass_(25) == 0
    async with running(config, handlers) as api:
        clock = Clock(api.service)
        # However long no service ran.
        clock.now = 1e6
        assert await clock.pass_(30) == 0
        assert await states(api) == {"": "running", "extract": "running"}
        assert await clock.pass_(10) == 2
        await becomes(api, run="lost", extract="lost")


async def test_two_services_come_to_one_verdict(postgres: Callable[..., str], handlers: HandlerRegistry) -> None:
    config = Config(database=postgres(), grace_seconds=0.1)
    async with running(config, handlers) as api, running(config, handlers) as other:
        clocks = [Clock(api.service), Clock(other.service)]
        events: list[Event] = []
        subscriptions = [each.service.recorder.subscribe() for each in (api, other)]
        await sent(api, ROOT, EXTRACT)

        async def beat() -> None:
            await sent(other, ROOT)

        async def both(seconds: float) -> int:
            lost = 0
            for _ in range(round(seconds / 5)):
                lost += sum(await asyncio.gather(*[clock.pass_(5) for clock in clocks]))
                await beat()
            return lost

        # The one hears of the root from the other.
        assert await both(60) == 1
        await becomes(other, run="running", extract="lost")
        assert await states(api) == await states(other)
        for subscription in subscriptions:
            events += subscription.drain()
        assert [event.status.value for event in events if isinstance(event, StepFinished)] == ["lost"]


async def test_time_in_which_the_service_was_held_up_counts_against_nobody(api: Api, clock: Clock) -> None:
    await sent(api, ROOT, EXTRACT)
    await clock.pass_(5)
    clock.now += 3600  # The machine slept.
    assert await clock.look() == 0
    assert await clock.pass_(10) == 0


async def test_spans_that_wait_to_be_stored_have_been_heard_of(
    api: Api, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await sent(api, ROOT, EXTRACT)
    monkeypatch.setattr(api.service.receiver, "behind_seconds", lambda: 60.0)
    assert await clock.pass_(60) == 0
    monkeypatch.undo()
    assert await clock.pass_(5) == 2


async def test_any_span_of_a_process_is_a_sign_of_its_life(api: Api, clock: Clock) -> None:
    mine: dict[str, str | int] = {"service.instance.id": "worker-1"}
    root, extract = span("nightly", 1, 0, 0, None, around=mine), span("extract", 2, 1, 1, None, around=mine)
    await sent(api, root, extract)
    # Spans of another trace, and of another worker with the same name.
    numbers = itertools.count(100)

    async def of(instance: str) -> None:
        number = next(numbers)
        await sent(api, span("probe", number, 0, 0, 1, trace=number, around={"service.instance.id": instance}))
        # Of one process a sign of life is noted once a second.
        api.service.database.run(lambda c: c.execute(open_spans.update().values(seen_ns=open_spans.c.seen_ns - S)))

    assert await clock.pass_(60, lambda: of("worker-1")) == 0
    count = select(open_spans.c.lost_ns)
    assert api.service.database.look(lambda c: c.execute(count).scalars().all()) == [None, None]


async def test_a_process_of_which_something_is_heard_again_runs_again(api: Api, clock: Clock) -> None:
    mine: dict[str, str | int] = {"process.pid": 7, "host.name": "worker"}
    root = span("nightly", 1, 0, 0, None, around=mine)
    await sent(api, root, EXTRACT)
    await clock.pass_(40)
    await becomes(api, run="lost", extract="lost")
    await sent(api, span("probe", 100, 0, 0, 1, trace=7, around={"process.pid": 8, "host.name": "worker"}))
    await sent(api, span("query", 3, 1, 2, 3, around=mine))
    await becomes(api, run="running", extract="lost", query="completed")


async def test_a_running_execution_is_not_given_up_after_an_hour_while_its_spans_live(
    api: Api, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await sent(api, ROOT, EXTRACT)
    monkeypatch.setattr("tachograph_exporter.store.recovery.INGEST_LEASE_SECONDS", -1.0)
    assert await api.service.upkeep.sweep() == 0
    await clock.pass_(40)
    await becomes(api, run="lost", extract="lost")


async def test_spans_that_only_come_when_they_have_ended_keep_their_hour(api: Api, clock: Clock) -> None:
    await sent(api, DONE[1])
    assert await clock.pass_(120) == 0
    assert await api.service.upkeep.sweep() == 0
    assert (await states(api))[""] == "running"


async def test_a_task_that_was_asked_for_and_never_heard_of_is_lost_not_skipped(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    sender: dict[str, str | int] = {"celery.action": "apply_async", "celery.task_name": "add",
                                    "messaging.message.id": "m1"}  # fmt: skip
    await sent(api, span("apply_async/add", 1, 0, 0, 0.1, of=sender))
    assert await states(api) == {"": "running", "add": "pending"}
    sweep = api.sweep_by_hand()
    monkeypatch.setattr("tachograph_exporter.store.recovery.INGEST_LEASE_SECONDS", -1.0)
    assert await sweep() == 1
    assert await states(api) == {"": "lost", "add": "lost"}
    assert differing(api.service.database) == 0


def celery_run(number: int, parent: int, start: float, end: float | None, message: str, state: str = "SUCCESS") -> Span:
    """The span of a task's run; how it ended it says when it has ended."""
    of: dict[str, str | int] = {"celery.action": "run", "celery.task_name": "add", "messaging.message.id": message}
    return span("run/add", number, parent, start, end, of=of | ({"celery.state": state} if end is not None else {}))


async def test_a_lost_attempt_is_followed_by_the_next_one(api: Api, clock: Clock) -> None:
    sender: dict[str, str | int] = {"celery.action": "apply_async", "celery.task_name": "add",
                                    "messaging.message.id": "m1"}  # fmt: skip
    await sent(api, span("apply_async/add", 1, 0, 0, 0.1, of=sender), celery_run(2, 1, 1, None, "m1"))
    await clock.pass_(40)
    await becomes(api, run="lost", add="lost")
    await sent(api, celery_run(3, 1, 60, 61, "m1"))
    await becomes(api, run="completed", add="completed")
    (step,) = (await timeline(api))["step_timeline"]
    assert [attempt["status"] for attempt in step["attempts"]] == ["lost", "completed"]


CELERY: dict[str, str | int] = {"celery.action": "apply_async", "celery.task_name": "add", "messaging.message.id": "m1"}


async def of_celery(api: Api, *messages: Span) -> None:
    request = export(messages)
    for group in request.resource_spans:
        group.scope_spans[0].scope.name = "opentelemetry.instrumentation.celery"
    assert (await send(api, request.SerializeToString()))[0] == 200


async def test_a_task_of_celery_is_seen_running_though_its_span_says_what_it_is_when_it_ends(
    api: Api, clock: Clock
) -> None:
    await of_celery(api, span("apply_async/add", 1, 0, 0, 0.1, of=CELERY))
    assert await states(api) == {"": "running", "add": "pending"}
    await of_celery(api, span("run/add", 2, 1, 1, None))
    assert await states(api) == {"": "running", "add": "running"}
    assert (await timeline(api))["workflow_name"] == "add"
    await clock.pass_(40)
    await becomes(api, run="lost", add="lost")
    await of_celery(api, celery_run(2, 1, 1, 9, "m1"))
    assert await states(api) == {"": "completed", "add": "completed"}


async def test_that_a_task_runs_is_told_at_once_and_once(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tachograph_exporter.ingest.trace_executions.QUIET_SECONDS", 0.5)
    subscription = api.service.recorder.subscribe()
    events: list[Event] = []

    def told() -> list[tuple[str, str]]:
        events.extend(subscription.drain())
        return [(type(event).__name__, str(getattr(event, "attempt", ""))) for event in events]

    await of_celery(api, span("apply_async/add", 1, 0, 0, 0.1, of=CELERY), span("run/add", 2, 1, 1, None))
    assert told() == [("ExecutionStarted", ""), ("StepStarted", "1")]
    # Another span of the trace changes nothing, nor does the end of the attempt: there may be another one.
    await of_celery(api, span("query", 3, 2, 1.1, 1.2))
    failed = celery_run(2, 1, 1, 2, "m1", "RETRY")
    failed.status.code = Status.STATUS_CODE_ERROR
    await of_celery(api, failed, span("apply_async/add", 4, 2, 1.9, 2, of=CELERY))
    assert told() == [("ExecutionStarted", ""), ("StepStarted", "1")]
    await of_celery(api, span("run/add", 5, 4, 3, None))
    assert told()[2:] == [("StepStarted", "2")]
    await of_celery(api, celery_run(5, 4, 3, 4, "m1"))

    async def has_ended() -> bool:
        return bool(told()) and told()[-1][0] == "ExecutionFinished"

    await eventually(has_ended)
    assert sorted(told()[3:]) == [("ExecutionFinished", ""), ("StepFinished", "2"), ("StepRetrying", "1")]


async def test_that_a_task_runs_is_told_once_though_its_span_came_before_its_sender(api: Api) -> None:
    subscription = api.service.recorder.subscribe()
    await of_celery(api, span("run/add", 2, 1, 1, None))
    await of_celery(api, span("apply_async/add", 1, 0, 0, 0.1, of=CELERY))
    for number in range(10, 13):
        await of_celery(api, span("query", number, 2, 1.1, 1.2))
    assert await states(api) == {"": "running", "add": "running"}
    assert [type(event).__name__ for event in subscription.drain()] == ["ExecutionStarted", "StepStarted"]


async def test_what_a_lost_run_had_asked_for_is_lost_with_it(api: Api, clock: Clock) -> None:
    second = CELERY | {"messaging.message.id": "m2"}
    await of_celery(api, span("nightly", 9, 0, 0, None), span("apply_async/add", 1, 9, 1, 1.1, of=second))
    assert await states(api) == {"": "running", "add": "pending"}
    await clock.pass_(40)
    await becomes(api, run="lost", add="lost")
    assert differing(api.service.database) == 0
    await of_celery(api, celery_run(2, 1, 60, 61, "m2"))
    assert (await states(api))["add"] == "completed"


async def test_a_second_attempt_of_a_task_is_one_while_it_runs(api: Api) -> None:
    await of_celery(api, span("apply_async/add", 1, 0, 0, 0.1, of=CELERY))
    failed = celery_run(2, 1, 1, 2, "m1", "RETRY")
    failed.status.code = Status.STATUS_CODE_ERROR
    await of_celery(api, failed, span("apply_async/add", 3, 2, 1.9, 2, of=CELERY), span("run/add", 4, 3, 3, None))
    assert await states(api) == {"": "running", "add": "running"}
    (step,) = (await timeline(api))["step_timeline"]
    assert [attempt["status"] for attempt in step["attempts"]] == ["failed", "running"]


def pending(number: int, real: int, parent: int, name: str, start: float) -> Span:
    """A pending span as logfire sends it."""
    of: dict[str, str | int] = {SPAN_TYPE: PENDING, REAL_PARENT: f"{parent:016x}", "table": "orders"}
    return span(name, number, real, start, start, of=of)


async def test_pending_spans_of_logfire_are_the_spans_they_announce_in_any_order(api: Api) -> None:
    kind: dict[str, str | int] = {SPAN_TYPE: "span", "table": "orders"}
    messages = [
        pending(101, 1, 0, "nightly", 0),
        pending(102, 2, 1, "extract", 1),
        span("extract", 2, 1, 1, 4, of=kind),
        span("nightly", 1, 0, 0, 10, of=kind),
    ]
    await sent(api, *messages[:2])
    assert await states(api) == {"": "running", "extract": "running"}
    trace = (1).to_bytes(16, "big").hex()
    shown = (await api.get(f"/jaeger/api/traces/{trace}"))["data"][0]["spans"]
    assert {(s["spanID"], tuple(r["spanID"] for r in s["references"])) for s in shown} == {
        (f"{1:016x}", ()),
        (f"{2:016x}", (f"{1:016x}",)),
    }
    # Further traces, in other orders: each becomes the same.
    for number, order in enumerate(random.Random(7).sample(list(itertools.permutations(messages)), 6), start=2):
        for message in order:
            copy = Span()
            copy.CopyFrom(message)
            copy.trace_id = number.to_bytes(16, "big")
            await sent(api, copy)
        other = number.to_bytes(16, "big").hex()
        stored = (await api.get(f"/jaeger/api/traces/{other}"))["data"][0]["spans"]
        assert sorted((s["spanID"], s["duration"]) for s in stored) == [
            (f"{1:016x}", 10_000_000),
            (f"{2:016x}", 3_000_000),
        ]
        assert not [tag for s in stored for tag in s["tags"] if tag["value"] == PENDING]
    await sent(api, *messages)
    page = await api.get("/api/workflows/executions")
    assert {item["status"] for item in page["items"]} == {"completed"}
    assert page["total"] == 7


@pytest.mark.parametrize(
    ("parent", "says"),
    [("", "no parent"), ("zz", "not an id"), ("0" * 17, "too long"), (f"{2:016x}", "itself")],
)
async def test_a_pending_span_that_names_no_real_parent_costs_no_other_span(api: Api, parent: str, says: str) -> None:
    odd = span(says, 102, 2, 1, 1, of={SPAN_TYPE: PENDING, REAL_PARENT: parent})
    status, _ = await send(api, export([ROOT, EXTRACT, odd]).SerializeToString())
    assert status == 200
    assert (await states(api))[""] == "running"
    await sent(api, *DONE)
    assert (await states(api))["extract"] == "completed"


class Reassembly:
    """Assembles due traces when the test says so, and only then."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._assemble = service.upkeep.reassemble_due_traces
        service.upkeep.reassemble_due_traces = _nobody  # type: ignore[method-assign]

    @classmethod
    async def of(cls, service: Service) -> Reassembly:
        """What the service itself has begun to assemble is done when this returns."""
        reassembly = cls(service)
        async with service.upkeep._reassembling:
            return reassembly

    async def due(self) -> int:
        """Assemble what is due by now, or will be; returns the number of traces."""
        is_due = traces.c.due_ns.is_not(None)
        self._service.database.run(lambda c: c.execute(update(traces).where(is_due).values(due_ns=1)))
        return await self._assemble()

    async def now(self) -> int:
        """Assemble what is due by now."""
        return await self._assemble()


@pytest.fixture
def few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trace of more than 20 spans is long."""
    monkeypatch.setattr(span_store, "MAX_AT_ONCE", 20)
    monkeypatch.setattr(span_rows, "MAX_AT_ONCE", 20)


MANY = [span(f"step {number % 5}", number, 1, number, number + 0.5) for number in range(10, 40)]
OTHERS = {f"step {number}": "completed" for number in range(5)}


def lost_spans(api: Api) -> set[str]:
    """The ids of the open spans whose lease has run out."""
    lost = select(open_spans.c.span_id).where(open_spans.c.lost_ns.is_not(None))
    return set(api.service.database.look(lambda c: c.execute(lost).scalars().all()))


# Slow: what may come at which moment, `test_lease_orders` has in seconds; this is the same through the whole service.
@pytest.mark.slow
async def test_open_spans_of_a_long_trace_are_read_like_others(api: Api, clock: Clock, few_at_once: None) -> None:
    reassembly = await Reassembly.of(api.service)
    await sent(api, ROOT, EXTRACT, *MANY)
    assert await reassembly.due() == 1
    assert await states(api) == {"": "running", "extract": "running"} | OTHERS
    # A heartbeat does not make it due again.
    assert await clock.pass_(25, lambda: sent(api, ROOT)) == 0
    assert await reassembly.due() == 0
    assert await clock.pass_(35, lambda: sent(api, ROOT)) == 1
    assert lost_spans(api) == {EXTRACT.span_id.hex()}
    assert await reassembly.now() == 1
    assert api.service.database.look(refused.listed) == []
    assert await states(api) == {"": "running", "extract": "lost"} | OTHERS
    await sent(api, EXTRACT)
    assert await reassembly.now() == 1
    assert await states(api) == {"": "running", "extract": "running"} | OTHERS
    assert await clock.pass_(40) == 2
    assert await reassembly.now() == 1
    assert await states(api) == {"": "lost", "extract": "lost"} | OTHERS
    await sent(api, *DONE)
    assert await reassembly.due() == 1
    assert await states(api) == {"": "completed", "extract": "completed"} | OTHERS
    assert await reassembly.due() == 0
    assert differing(api.service.database) == 0


async def test_a_span_that_is_lost_while_its_trace_is_assembled_is_lost(
    api: Api, clock: Clock, few_at_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever comes between the claim of a trace, the reading of its spans and the commit, nothing of it is missed."""
    reassembly, service = await Reassembly.of(api.service), api.service
    loop = asyncio.get_running_loop()
    await sent(api, ROOT, EXTRACT, *MANY)
    original = service.span_store.commit
    between: list[Callable[[], Any]] = []

    def commit(work: Any) -> Any:
        if between:
            asyncio.run_coroutine_threadsafe(between.pop()(), loop).result(60)
        return original(work)

    monkeypatch.setattr(service.span_store, "commit", commit)
    assert await clock.pass_(25) == 0

    async def lose() -> None:
        assert await clock.pass_(10) == 2

    between.append(lose)
    assert await reassembly.due() == 1
    while await reassembly.now():
        pass
    assert await states(api) == {"": "lost", "extract": "lost"} | OTHERS

    async def revive() -> None:
        monkeypatch.undo()
        monkeypatch.setattr(span_store, "MAX_AT_ONCE", 20)
        monkeypatch.setattr(span_rows, "MAX_AT_ONCE", 20)
        await sent(api, ROOT, EXTRACT, span("late", 50, 1, 50, 51))

    await sent(api, span("early", 51, 1, 50, 51))
    between.append(revive)
    assert await reassembly.due() == 1
    while await reassembly.due():
        pass
    assert (
        await states(api) == {"": "running", "extract": "running", "early": "completed", "late": "completed"} | OTHERS
    )
    assert differing(service.database) == 0


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), MemoryError()], ids=["thread", "memory"])
@pytest.mark.parametrize(
    "place", ["tachograph_exporter.upkeep.reassemble", "tachograph_exporter.ingest.reassembly._reassemble"]
)
async def test_a_trace_that_could_not_be_assembled_for_a_moment_is_assembled_next(
    api: Api, clock: Clock, monkeypatch: pytest.MonkeyPatch, place: str, error: Exception
) -> None:
    reassembly = await Reassembly.of(api.service)
    await sent(api, ROOT, EXTRACT)
    assert await clock.pass_(40) == 2

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(place, fail)
    with pytest.raises((StoreUnavailable, type(error))):
        await reassembly.now()
    monkeypatch.undo()
    assert await reassembly.now() == 1
    assert await states(api) == {"": "lost", "extract": "lost"}


async def test_what_is_due_is_not_put_off_by_a_clock_that_is_set_back(api: Api, clock: Clock) -> None:
    reassembly = await Reassembly.of(api.service)
    await sent(api, ROOT, EXTRACT)
    assert await clock.pass_(40) == 2
    assert await reassembly.now() == 1
    await sent(api, ROOT, EXTRACT)
    hour_ahead = update(traces).values(due_ns=time.time_ns() + 3600 * S)
    api.service.database.run(lambda c: c.execute(hour_ahead))
    assert await reassembly.now() == 1
    assert await states(api) == {"": "running", "extract": "running"}


async def test_a_background_task_that_ends_is_noticed(
    database_url: str, handlers: HandlerRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(Config(database=database_url, grace_seconds=0.1), handlers):
        (task,) = [
            task for task in asyncio.all_tasks() if task.get_name() == "tachograph assembling executions from traces"
        ]
        task.cancel()
        await asyncio.wait([task])
        await asyncio.sleep(0)
        assert 'the task "tachograph assembling executions from traces" has ended: it was cancelled' in caplog.text
        caplog.clear()
    assert "has ended" not in caplog.text


async def test_what_is_deleted_has_no_leases(api: Api) -> None:
    await sent(api, ROOT, EXTRACT)
    archiving.delete_spans(api.service.database, time.time_ns() + S)
    assert api.service.database.look(lambda c: c.execute(select(open_spans)).all()) == []


async def test_a_clock_of_the_host_that_was_set_back_costs_no_lease(
    api: Api, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await sent(api, ROOT, EXTRACT)
    real = time.time_ns
    monkeypatch.setattr("tachograph_exporter.ingest.span_store.time.time_ns", lambda: real() - 7200 * S)
    assert await clock.pass_(60, lambda: sent(api, ROOT, EXTRACT)) == 0
    monkeypatch.undo()
    assert await clock.pass_(40) == 2
    await becomes(api, run="lost", extract="lost")
    assert (await timeline(api))["total_duration_seconds"] >= 0


async def test_leases_that_cannot_work_are_refused(database_url: str) -> None:
    for seconds in (0.0, -1.0, float("nan"), float("inf"), 1e9):
        with pytest.raises(Exception, match="lease"):
            Config(database=database_url, lease_seconds=seconds).check()


async def test_the_answer_says_how_long_an_open_span_is_believed_to_run(
    any_database_url: str, handlers: HandlerRegistry
) -> None:
    config = msgspec.structs.replace(Config(database=any_database_url, grace_seconds=0.1), lease_seconds=4.5)
    async with running(config, handlers) as api:
        for body in (b"", export([ROOT]).SerializeToString()):
            async with api.session.post(
                f"{api.address}/v1/traces", data=body, headers={"Content-Type": "application/x-protobuf"}
            ) as answer:
                assert (answer.status, answer.headers["Tachograph-Lease-Seconds"]) == (200, "4.5")
