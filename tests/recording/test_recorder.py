"""The recorder: fan-out, origins, heartbeats, subscriptions."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from tests.conftest import make_execution, make_run

from tachograph import Recorder
from tachograph.events import (
    Event,
    ExecutionFinished,
    ExecutionQueued,
    ExecutionStarted,
    ExecutionStatus,
    Heartbeat,
    StepStarted,
)
from tachograph.identity import Origin
from tachograph.workflow import Executor, WorkflowBuilder

FLOW = WorkflowBuilder("w").step("a").step("b", after="a").build()


async def test_a_stalled_listener_delays_neither_the_run_nor_the_other_listeners(
    recorder: Recorder, events: list[Event]
) -> None:
    release = threading.Event()
    recorder.add("stalled", lambda event: release.wait(200) and None)  # type: ignore[arg-type]
    loop = asyncio.get_running_loop()
    started = loop.time()
    result = await Executor(recorder).run(FLOW)
    assert loop.time() - started < 100
    assert result.status == "completed"
    recorder.queues["test"].flush(60)
    assert len(events) == 8
    release.set()


async def test_open_executions_send_heartbeats_from_the_moment_they_are_queued(
    wait_until: Callable[[Callable[[], bool]], None],
) -> None:
    recorder = Recorder(heartbeat_seconds=0.02)
    seen: list[Event] = []
    recorder.add("test", seen.append)
    waiting, running = make_execution(), make_execution()
    recorder(ExecutionQueued(execution=waiting, time_ns=1))
    recorder(ExecutionStarted(execution=running, time_ns=1))

    def beats() -> set[str]:
        return {event.execution.execution_id for event in seen if isinstance(event, Heartbeat)}

    wait_until(lambda: beats() == {waiting.execution_id, running.execution_id})
    assert recorder.open_executions == 2
    recorder(
        ExecutionFinished(execution=running, time_ns=2, status=ExecutionStatus.COMPLETED, started_ns=1, step_count=0)
    )
    assert recorder.open_executions == 1
    recorder.close()


async def test_a_subscription_gives_live_events_in_order_until_it_is_closed(recorder: Recorder) -> None:
    subscription = recorder.subscribe()
    seen: list[Event] = []

    async def read() -> None:
        async for event in subscription:
            seen.append(event)  # noqa: PERF401 - as they come

    reader = asyncio.create_task(read())
    await Executor(recorder).run(FLOW)
    subscription.close()
    await asyncio.wait_for(reader, 60)
    assert len(seen) == 8
    assert isinstance(seen[-1], ExecutionFinished)
    assert subscription.missed == 0
    await Executor(recorder).run(FLOW)
    assert len(seen) == 8


async def test_a_slow_reader_misses_the_oldest_events_and_knows_how_many(recorder: Recorder) -> None:
    subscription = recorder.subscribe(limit=3)
    await Executor(recorder).run(FLOW)
    left = subscription.drain()
    assert len(left) == 3
    assert isinstance(left[-1], ExecutionFinished)
    assert subscription.missed == 5


def test_a_forgotten_subscription_is_dropped(recorder: Recorder) -> None:
    subscription: Any = recorder.subscribe()
    assert len(recorder._subscriptions) == 1
    del subscription
    assert len(recorder._subscriptions) == 0


def test_a_listener_gets_only_the_kinds_it_handles_and_can_be_taken_off(recorder: Recorder) -> None:
    class Picky:
        handles = frozenset({Heartbeat})

        def __init__(self) -> None:
            self.seen: list[Event] = []

        def __call__(self, event: Event) -> None:
            self.seen.append(event)

    picky = Picky()
    recorder.add("picky", picky)
    with pytest.raises(ValueError, match="picky"):
        recorder.add("picky", picky)
    execution = make_execution()
    recorder(ExecutionQueued(execution=execution, time_ns=1))
    recorder(Heartbeat(execution=execution, time_ns=2))
    recorder.remove("picky")
    recorder(Heartbeat(execution=execution, time_ns=3))
    assert [event.time_ns for event in picky.seen] == [2]


class Collected(list[Event]):
    """A listener that declines executions by origin."""

    origins = frozenset({Origin.RECORDED, Origin.REPORTED})

    def __init__(self) -> None:
        super().__init__()
        self.begun: list[Event] = []

    def begin(self, event: ExecutionStarted | StepStarted) -> None:
        self.begun.append(event)

    def __call__(self, event: Event) -> None:
        self.append(event)

    def flush(self, timeout_seconds: float) -> bool:
        return True


@pytest.mark.parametrize("origin", Origin)
@pytest.mark.parametrize("is_published", [False, True])
def test_a_listener_may_decline_executions_by_origin(
    recorder: Recorder, events: list[Event], origin: Origin, is_published: bool
) -> None:
    spans = Collected()
    recorder.set_spans(spans)
    run = make_run(make_execution(origin=origin))
    if is_published:
        recorder.publish(run)
    else:
        for event in run:
            recorder(event)
    recorder.flush()
    assert events == run
    is_declined = origin is Origin.INGESTED
    assert spans == ([] if is_declined else run)
    assert spans.begun == ([] if is_declined else run[:2])
    assert recorder.queues["spans"].delivered == len(spans)
    assert recorder.events == 4


def test_an_ingested_execution_gets_no_heartbeats(recorder: Recorder) -> None:
    recorder(ExecutionQueued(execution=make_execution(origin=Origin.INGESTED), time_ns=1))
    recorder(ExecutionStarted(execution=make_execution(origin=Origin.INGESTED), time_ns=1))
    assert recorder.open_executions == 0


def test_published_events_count_as_delivered_where_they_are_already(recorder: Recorder, events: list[Event]) -> None:
    stored = Collected()
    recorder.add("store", stored)
    subscription = recorder.subscribe()
    run = make_run(make_execution())
    recorder.publish(run, delivered_to=["store", "no such listener"])
    recorder.flush()
    assert (events, subscription.drain(), stored) == (run, run, [])
    assert (recorder.events, recorder.queues["store"].delivered, recorder.queues["test"].delivered) == (4, 4, 4)
    recorder(run[0])
    assert recorder.flush()
    assert stored == run[:1]
    assert recorder.queues["store"].delivered == 5


def test_events_logged_before_origins_existed_were_recorded_here() -> None:
    event = Heartbeat(execution=make_execution(origin=Origin.INGESTED), time_ns=1)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(event), type=Event) == event
    document = msgspec.to_builtins(event)
    assert document["execution"].pop("origin") == "ingested"
    assert msgspec.convert(document, Event).execution.origin is Origin.RECORDED


def test_a_process_that_leaves_hands_over_what_it_recorded_without_a_thread(
    wait_until: Callable[[Callable[[], bool]], None],
) -> None:
    here, there = Recorder(), Recorder()
    received: list[Event] = []
    kept: list[Event] = []
    here.add("noted", received.append)
    there.add("store", kept.append)
    address = here.relay_address()
    assert address is not None
    there.relay_to(address)
    first, second = [Heartbeat(execution=make_execution(), time_ns=number) for number in (1, 2)]
    there.hold()
    before = {thread.name for thread in threading.enumerate()}
    there(first)
    assert {thread.name for thread in threading.enumerate()} == before
    assert there.hand_over(60)
    wait_until(lambda: received == [first])
    assert kept == []
    # The parent is gone: the process's own listeners serve.
    here.close()
    there.hold()
    there(second)
    assert there.hand_over(60)
    assert kept == [second]
    there.close()
