"""The hub: everyone is told what they want, in order, once; who cannot keep up is coalesced, then let go."""

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
from tachograph_exporter.stream.hub import Closing, Follower, Hub, TooSlow, Wanted
from tachograph_exporter.stream.messages import EVENT_TYPES, STATE_TYPES, Message, StreamMessage, message_of


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tachograph_exporter.store.event_log.LOOK_SECONDS", 0.05)


ALL = Wanted(workspace_id=workspace_id("default"))


def said(message: Message) -> Any:
    return msgspec.json.decode(message.body)


def state(number: int, key: str = "", event_type: str = "step_started") -> Message:
    return Message(
        StreamMessage(
            event_type=event_type, timestamp="", sequence=number, workspace_id=ALL.workspace_id,
            workflow_execution_id="e", workflow_step_id=key,
        )
    )  # fmt: skip


def test_every_event_that_users_care_for_has_a_message_of_the_seeds_form() -> None:
    execution = make_execution()
    step = make_step(execution, "load", depends_on=("x",))
    failure = Failure("ValueError", "no")
    told = [
        message_of(event, 7)
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
        )
    ]  # fmt: skip
    found = [said(one) for one in told if one is not None]
    assert [one["event_type"] for one in found] == [
        "workflow_started", "step_started", "step_retrying", "step_failed", "step_skipped", "step_logged",
        "workflow_failed",
    ]  # fmt: skip
    for one in found:
        assert list(one) == [
            "event_type", "timestamp", "workspace_id", "workflow_id", "workflow_execution_id", "workflow_step_id",
            "data", "message", "sequence",
        ]  # fmt: skip
        assert one["workflow_execution_id"] == execution.execution_id
        assert one["data"]["workflow_name"] == "etl"
        assert one["event_type"] in EVENT_TYPES
    assert (found[3]["data"]["status"], found[3]["message"]) == ("timeout", "load timeout after 0 µs")
    assert found[6]["data"]["error_message"] == "no"
    assert found[0]["workflow_step_id"] is None


@pytest.mark.parametrize("size", [0, 125, 126, 65_535, 65_536])
def test_frames_are_whole_websocket_frames(size: int) -> None:
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


async def test_who_falls_behind_gets_the_newest_states_in_order() -> None:
    follower = Follower(ALL, 0)
    for number in range(hubs.COALESCE + 100):
        follower.offer(state(number, f"s{number % 10}"))
    follower.offer(state(10_000, "s3", "step_logged"))
    told, *rest = await follower.take()
    assert said(told)["event_type"] == "coalesced"
    assert said(told)["data"]["left_out"] == hubs.COALESCE + 100 - 10 + 1
    assert [one.sequence for one in rest] == list(range(hubs.COALESCE + 90, hubs.COALESCE + 100))
    # It has caught up: history again.
    for number in range(3):
        follower.offer(state(number, "same"))
    assert len(await follower.take()) == 3


async def test_who_falls_behind_for_good_is_let_go() -> None:
    follower = Follower(ALL, 0)
    for number in range(hubs.MAX_WAITING + hubs.COALESCE):
        follower.offer(state(number, f"s{number}"))
    with pytest.raises(TooSlow):
        await follower.take()


class Following:
    """Follows in the background and keeps what it is told."""

    def __init__(self, hub: Hub, wanted: Wanted = ALL, after: int | None = None) -> None:
        self.found: list[Any] = []
        self.task = asyncio.create_task(self._follow(hub, wanted, after))

    async def _follow(self, hub: Hub, wanted: Wanted, after: int | None) -> None:
        async for group in hub.follow(wanted, after):
            self.found += [said(one) for one in group]

    def of(self, *types: str) -> list[Any]:
        return [one for one in self.found if one["event_type"] in (types or STATE_TYPES)]

    async def has(self, count: int, *types: str) -> list[Any]:
        async with asyncio.timeout(15):
            while len(self.of(*types)) < count:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        return self.of(*types)


async def test_followers_hear_what_they_want_and_come_back_without_a_gap(any_database_url: str) -> None:
    database = Database(any_database_url)
    feed = Feed(database)
    hub = Hub(feed, database)
    writer = StoreWriter(database, committed=feed.committed)
    one, other = make_execution(), make_execution("other")
    load, store = make_step(one, "load"), make_step(other, "store")

    def write(number: int) -> None:
        for step in (load, store):
            writer.apply([StepStarted(step=step, time_ns=number, attempt=number)])

    try:
        everything = Following(hub)
        of_one = Following(hub, Wanted(workspace_id=ALL.workspace_id, execution_id=one.execution_id))
        of_step = Following(hub, Wanted(workspace_id=ALL.workspace_id, step_id=store.step_id))
        of_other = Following(hub, Wanted(workspace_id=ALL.workspace_id, workflow_id=other.workflow_id))
        elsewhere = Following(hub, Wanted(workspace_id="elsewhere"))
        failures = Following(hub, Wanted(workspace_id=ALL.workspace_id, types=frozenset({"step_failed"})))
        for follower in (everything, of_one, of_step, of_other, elsewhere, failures):
            await follower.has(1, "connected")
        for number in range(1, 21):
            await asyncio.to_thread(write, number)
        heard = await everything.has(40)
        numbers = [told["sequence"] for told in heard]
        assert numbers == sorted(set(numbers))
        assert [told["data"]["attempt"] for told in await of_one.has(20)] == list(range(1, 21))
        assert {told["workflow_step_id"] for told in await of_step.has(20)} == {store.step_id}
        assert {told["workflow_id"] for told in await of_other.has(20)} == {other.workflow_id}
        assert elsewhere.of() == failures.of() == []
        # Somebody who was away, while more is written all the time.
        back = Following(hub, ALL, numbers[9])
        writing = [asyncio.create_task(asyncio.to_thread(write, number)) for number in range(21, 31)]
        await asyncio.gather(*writing)
        again = [told["sequence"] for told in await back.has(50)]
        assert again == [told["sequence"] for told in (await everything.has(60))[10:]]
        # Numbers of another log, and of a time that is no longer kept: read the state anew.
        for after in (10**15, 0):
            if after == 0:
                database.run(lambda c: c.exec_driver_sql(f"DELETE FROM event_log WHERE sequence < {numbers[5] >> 16}"))
            lost = Following(hub, ALL, after)
            (told,) = await lost.has(1, "reload")
            assert "read the state anew" in told["message"]
        assert hub.followers == 9
    finally:
        await hub.close()
        ended = [f.task for f in (everything, of_one, of_step, of_other, elsewhere, failures, back, lost)]
        results = await asyncio.gather(*ended, return_exceptions=True)
        assert all(isinstance(result, Closing) for result in results)
        await feed.close()
        await database.aclose()


async def test_what_nobody_listened_to_is_not_taken_for_nothing(database_url: str) -> None:
    database = Database(database_url)
    feed, writer = Feed(database), StoreWriter(database)
    step = make_step(make_execution(), "load")
    try:
        before = await feed.now()
        # For as long as that is believed, somebody listens.
        database.run(lambda c: c.exec_driver_sql("DELETE FROM store_state WHERE name LIKE 'listener:%'"))
        writer.apply([StepStarted(step=step, time_ns=1)])
        other = Feed(database)
        hub = Hub(other, database)
        late = Following(hub, ALL, before)
        await late.has(1, "reload")
        await hub.close()
        await asyncio.gather(late.task, return_exceptions=True)
        await other.close()
    finally:
        await feed.close()
        await database.aclose()
