"""The hub: followers receive what they subscribe to, in order, once; slow ones are coalesced, then disconnected."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from tests.conftest import make_execution, make_step

from tachograph.events import (
    ExecutionFinished,
    ExecutionStarted,
    ExecutionStatus,
    Failure,
    SkipReason,
    StepFinished,
    StepLogged,
    StepRetrying,
    StepSkipped,
    StepStarted,
    StepStatus,
)
from tachograph.identity import workspace_id
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.writer import StoreWriter
from tachograph_exporter.stream import hub as hubs
from tachograph_exporter.stream.feed import Feed
from tachograph_exporter.stream.hub import Closing, Follower, Hub, StreamFilter, TooSlow
from tachograph_exporter.stream.messages import EVENT_TYPES, STATE_TYPES, Message, StreamMessage, build_message

ALL = StreamFilter(workspace_id=workspace_id("default"))


def decoded(message: Message) -> Any:
    return msgspec.json.decode(message.body)


def state(number: int, step_id: str = "", event_type: str = "step_started") -> Message:
    return Message(
        StreamMessage(
            event_type=event_type, timestamp="", sequence=number, workspace_id=ALL.workspace_id,
            workflow_execution_id="e", workflow_step_id=step_id,
        )
    )  # fmt: skip


def test_every_streamed_event_has_a_message_with_the_documented_fields() -> None:
    execution = make_execution()
    step = make_step(execution, "load", depends_on=("x",))
    failure = Failure("ValueError", "no")
    built = [
        build_message(event, 7)
        for event in (
            ExecutionStarted(execution=execution, time_ns=1, step_count=2),
            StepStarted(step=step, time_ns=2, attempt=2),
            StepRetrying(
                step=step, time_ns=3, attempt=1, status=StepStatus.FAILED, started_ns=2, delay_ns=5, failure=failure
            ),
            StepFinished(
                step=step, time_ns=9, status=StepStatus.TIMEOUT, attempt=2, started_ns=2, attempt_started_ns=8
            ),
            StepSkipped(step=step, time_ns=9, reason=SkipReason.CONDITION),
            StepLogged(step=step, time_ns=9, sequence=1, message="hello"),
            ExecutionFinished(
                execution=execution, time_ns=10, status=ExecutionStatus.TIMEOUT, started_ns=1, step_count=2,
                failure=failure,
            ),
            ExecutionStarted(execution=execution, time_ns=1, step_count=2, is_resumed=True),
        )
    ]  # fmt: skip
    messages = [decoded(message) for message in built if message is not None]
    assert [message["event_type"] for message in messages] == [
        "workflow_started", "step_started", "step_retrying", "step_failed", "step_skipped", "step_logged",
        "workflow_failed", "workflow_resumed",
    ]  # fmt: skip
    assert (messages[7]["data"]["status"], messages[7]["data"]["completed_at"]) == ("running", None)
    for message in messages:
        assert list(message) == [
            "event_type", "event", "timestamp", "workspace_id", "workflow_id", "workflow_execution_id",
            "workflow_step_id", "task_id", "run_id", "agent_id", "data", "message", "sequence",
        ]  # fmt: skip
        assert message["workflow_execution_id"] == execution.execution_id
        assert message["data"]["workflow_name"] == "etl"
        assert message["event_type"] in EVENT_TYPES
    assert (messages[3]["data"]["status"], messages[3]["message"]) == ("timeout", "load timeout after 0 µs")
    assert messages[6]["data"]["error_message"] == "no"
    assert messages[0]["workflow_step_id"] is None


@pytest.mark.parametrize("size", [0, 125, 126, 65_535, 65_536])
def test_a_frame_is_a_complete_websocket_frame(size: int) -> None:
    message = state(1)
    message.body = b"x" * size
    frame = message.frame
    assert frame[0] == 0x81
    length, head = frame[1], 2
    if length == 126:
        length, head = int.from_bytes(frame[2:4], "big"), 4
    elif length == 127:
        length, head = int.from_bytes(frame[2:10], "big"), 10
    assert (length, frame[head:]) == (size, message.body)
    assert message.frame is frame


async def test_a_slow_follower_gets_the_newest_states_in_order() -> None:
    follower = Follower(ALL, 0)
    for number in range(hubs.MAX_QUEUED + 100):
        follower.offer(state(number, f"s{number % 10}"))
    follower.offer(state(10_000, "s3", "step_logged"))
    notice, *rest = await follower.take()
    assert decoded(notice)["event_type"] == "coalesced"
    assert decoded(notice)["data"]["left_out"] == hubs.MAX_QUEUED + 100 - 10 + 1
    assert [message.sequence for message in rest] == list(range(hubs.MAX_QUEUED + 90, hubs.MAX_QUEUED + 100))
    # It has caught up, so it gets every message again.
    for number in range(3):
        follower.offer(state(number, "same"))
    assert len(await follower.take()) == 3


async def test_a_follower_that_never_catches_up_is_disconnected() -> None:
    follower = Follower(ALL, 0)
    for number in range(hubs.MAX_COALESCED + hubs.MAX_QUEUED):
        follower.offer(state(number, f"s{number}"))
    with pytest.raises(TooSlow):
        await follower.take()


class Subscriber:
    """Follows in the background and keeps the messages it receives."""

    def __init__(self, hub: Hub, stream_filter: StreamFilter = ALL, after: int | None = None) -> None:
        self.messages: list[Any] = []
        self.task = asyncio.create_task(self._follow(hub, stream_filter, after))

    async def _follow(self, hub: Hub, stream_filter: StreamFilter, after: int | None) -> None:
        async for group in hub.follow(stream_filter, after):
            self.messages += [decoded(message) for message in group]

    def of(self, *types: str) -> list[Any]:
        return [m for m in self.messages if m["event_type"] in (types or STATE_TYPES)]

    async def wait_for(self, count: int, *types: str) -> list[Any]:
        async with asyncio.timeout(60):
            while len(self.of(*types)) < count:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        return self.of(*types)


async def test_followers_receive_what_they_subscribe_to_and_resume_without_a_gap(any_database_url: str) -> None:
    database = Database(any_database_url)
    feed = Feed(database)
    hub = Hub(feed, database)
    writer = StoreWriter(database, committed=feed.committed)
    etl, other = make_execution(), make_execution("other")
    load, store = make_step(etl, "load"), make_step(other, "store")

    def write(number: int) -> None:
        for step in (load, store):
            writer.apply([StepStarted(step=step, time_ns=number, attempt=number)])

    try:
        everything = Subscriber(hub)
        of_execution = Subscriber(hub, StreamFilter(workspace_id=ALL.workspace_id, execution_id=etl.execution_id))
        of_step = Subscriber(hub, StreamFilter(workspace_id=ALL.workspace_id, step_id=store.step_id))
        of_workflow = Subscriber(hub, StreamFilter(workspace_id=ALL.workspace_id, workflow_id=other.workflow_id))
        elsewhere = Subscriber(hub, StreamFilter(workspace_id="elsewhere"))
        failures = Subscriber(hub, StreamFilter(workspace_id=ALL.workspace_id, types=frozenset({"step_failed"})))
        for follower in (everything, of_execution, of_step, of_workflow, elsewhere, failures):
            await follower.wait_for(1, "connected")
        for number in range(1, 21):
            await asyncio.to_thread(write, number)
        received = await everything.wait_for(40)
        numbers = [message["sequence"] for message in received]
        assert numbers == sorted(set(numbers))
        assert [message["data"]["attempt"] for message in await of_execution.wait_for(20)] == list(range(1, 21))
        assert {message["workflow_step_id"] for message in await of_step.wait_for(20)} == {store.step_id}
        assert {message["workflow_id"] for message in await of_workflow.wait_for(20)} == {other.workflow_id}
        assert elsewhere.of() == failures.of() == []
        # Resumes while more is being written.
        resumed = Subscriber(hub, ALL, numbers[9])
        writing = [asyncio.create_task(asyncio.to_thread(write, number)) for number in range(21, 31)]
        await asyncio.gather(*writing)
        caught_up = [message["sequence"] for message in await resumed.wait_for(50)]
        assert caught_up == [message["sequence"] for message in (await everything.wait_for(60))[10:]]
        # A sequence number of another log, and one that is no longer kept.
        for after in (10**15, 0):
            if after == 0:
                database.run(lambda c: c.exec_driver_sql(f"DELETE FROM event_log WHERE sequence < {numbers[5] >> 16}"))
            lost = Subscriber(hub, ALL, after)
            (message,) = await lost.wait_for(1, "reload")
            assert "read the current state again" in message["message"]
        assert hub.follower_count == 9
    finally:
        await hub.close()
        tasks = [f.task for f in (everything, of_execution, of_step, of_workflow, elsewhere, failures, resumed, lost)]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, Closing) for result in results)
        await feed.close()
        await database.aclose()


async def test_a_gap_in_the_log_is_reported_to_a_follower_that_resumes(database_url: str) -> None:
    database = Database(database_url)
    feed, writer = Feed(database), StoreWriter(database)
    step = make_step(make_execution(), "load")
    try:
        before = await feed.position()
        # As if the listener had expired: from here on nothing is logged.
        database.run(lambda c: c.exec_driver_sql("DELETE FROM store_state WHERE name LIKE 'listener:%'"))
        writer.apply([StepStarted(step=step, time_ns=1)])
        other = Feed(database)
        hub = Hub(other, database)
        late = Subscriber(hub, ALL, before)
        await late.wait_for(1, "reload")
        await hub.close()
        await asyncio.gather(late.task, return_exceptions=True)
        await other.close()
    finally:
        await feed.close()
        await database.aclose()
