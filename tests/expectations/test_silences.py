"""Silences: nobody is told of what they cover; what still holds at their end is told then, and once."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from typer.testing import CliRunner

from tachograph.clock import NS
from tachograph.events import ExecutionStatus
from tachograph.expectation import Expectation
from tachograph.identity import workspace_id
from tachograph.workflow import HandlerRegistry
from tachograph_exporter.cli import load as load_cli
from tachograph_exporter.config import Config
from tachograph_exporter.expectations.courier import Courier
from tachograph_exporter.expectations.routing import Target
from tachograph_exporter.expectations.watch import Watch
from tachograph_exporter.store import expectations, notices, silences
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.notices import Key, Message, NewNotice
from tachograph_exporter.store.silences import Silence
from tachograph_exporter.store.workspaces import add_workspace
from tachograph_exporter.store.writer import StoreWriter
from tests.api.test_guard import SERVICE_TOKEN, bearer, token_for
from tests.conftest import Api, serve
from tests.expectations.test_notices import TARGET, states
from tests.expectations.test_watch import Clock, execute

DEFAULT = workspace_id("default")
NOON = datetime(2026, 11, 30, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.fixture
def writer(any_database_url: str) -> Iterator[StoreWriter]:
    database = Database(any_database_url)
    database.run(lambda c: add_workspace(c, "default", 1))
    yield StoreWriter(database)
    database.close()


def silence(until_ns: int, **fields: Any) -> Silence:
    return Silence(**{"id": f"s{until_ns}", "workspace_id": DEFAULT, "workflow": "nightly", "kind": None,
                      "until_ns": until_ns, "reason": ""} | fields)  # fmt: skip


class World:
    """A workflow that fails at noon, services that watch it, and what a receiver is told."""

    def __init__(self, writer: StoreWriter) -> None:
        self.writer = writer
        self.database = writer.database
        self.clock = Clock(NOON)
        self.sent: list[str] = []
        self.watches: list[Watch] = []
        quick = Expectation(last_failed_seconds=0.0)
        self.database.run(
            lambda c: expectations.say(c, expectations.ANY, "nightly", expectations.FILE, quick, self.clock.ns())
        )

    def service(self, target: Target = TARGET) -> Watch:
        watch = Watch(self.database, DEFAULT, [target], clock=self.clock.ns, monotonic=self.clock.monotonic)
        self.watches.append(watch)
        return watch

    def run(self, status: ExecutionStatus) -> None:
        now = datetime.fromtimestamp(self.clock.passed, UTC)
        execute(self.writer, now, now + timedelta(seconds=1), status)

    def look(self, passed: timedelta) -> list[str]:
        """Let time pass, look with every service, deliver; what has been told by now."""
        self.clock.move(datetime.fromtimestamp(self.clock.passed, UTC) + passed)
        for watch in self.watches:
            watch.look()
        for _ in self.watches:
            courier = Courier(self.database, [TARGET], "", lambda: True, lambda _: None, self._take)
            while courier.deliver(TARGET):
                pass
        return self.sent

    def _take(self, _target: Target, message: Any, _id: str) -> None:
        self.sent.append(message.type.removeprefix("notice."))

    @property
    def notice(self) -> Any:
        ((row, _),) = self.database.look(lambda c: notices.listed(c, None))
        return row

    @property
    def newest(self) -> Any:
        return self.database.look(lambda c: notices.listed(c, None))[0][0]


@pytest.fixture
def world(writer: StoreWriter, monkeypatch: pytest.MonkeyPatch) -> World:
    world = World(writer)
    # The courier lives in the same time.
    monkeypatch.setattr("tachograph_exporter.expectations.courier.time.time_ns", world.clock.ns)
    return world


def test_what_still_holds_when_the_silence_ends_is_told_then_by_whichever_service_goes_on(world: World) -> None:
    world.service(), world.service()
    end_ns = world.clock.ns() + 3600 * NS
    world.database.run(lambda c: silences.add_silence(c, silence(end_ns), world.clock.ns()))
    world.run(ExecutionStatus.FAILED)
    assert world.look(timedelta(minutes=1)) == []
    assert (world.notice.silence_id, states(world.database, world.notice.id)) == (
        f"s{end_ns}", {"opened": notices.SILENCED},
    )  # fmt: skip
    # A restart in the middle, and a second before the end.
    world.watches.clear()
    world.service(), world.service()
    assert world.look(timedelta(minutes=58, seconds=59)) == []
    assert world.look(timedelta(seconds=1)) == ["opened"]
    assert world.notice.silence_id is None
    assert world.look(HOUR) == ["opened"]
    world.run(ExecutionStatus.COMPLETED)
    assert world.look(timedelta(minutes=1)) == ["opened", "recovered"]


def test_what_is_over_before_the_silence_is_never_told_and_stays_marked(world: World) -> None:
    world.service(), world.service()
    world.database.run(lambda c: silences.add_silence(c, silence(world.clock.ns() + 3600 * NS), world.clock.ns()))
    world.run(ExecutionStatus.FAILED)
    world.look(timedelta(minutes=1))
    world.run(ExecutionStatus.COMPLETED)
    assert world.look(timedelta(minutes=1)) == world.look(2 * HOUR) == []
    assert states(world.database, world.notice.id) == {"opened": notices.SILENCED}
    assert world.notice.silence_id


def test_a_silence_that_is_ended_early_and_quiet_hours_after_it(world: World) -> None:
    # Quiet from noon to two; the silence would last until midnight, and is ended at one.
    world.service(Target(name="hook", url=TARGET.url, quiet=(720, 840)))
    world.database.run(lambda c: silences.add_silence(c, silence(world.clock.ns() + 12 * 3600 * NS), 1))
    world.run(ExecutionStatus.FAILED)
    assert world.look(HOUR) == []
    (current,) = world.database.look(lambda c: silences.silences(c, world.clock.ns()))
    assert world.database.run(lambda c: silences.end_silence(c, current.id, world.clock.ns()))
    assert not world.database.run(lambda c: silences.end_silence(c, current.id, world.clock.ns()))
    assert world.look(timedelta(minutes=1)) == []
    assert world.look(HOUR) == ["opened"]


def test_a_silence_holds_what_waits_and_a_recovery_is_told_only_if_its_notice_was(writer: StoreWriter) -> None:
    database = writer.database
    sent: list[str] = []

    def notice(key: str, resolved_ns: int | None, *targets: str) -> str:
        new = NewNotice(DEFAULT, "nightly", "failed", key, "warning", 1, resolved_ns, "text", "", None)
        messages = [Message(name, notices.PENDING, 0) for name in targets]
        identifier = database.run(lambda c: notices.tell(c, new, 5, messages))
        assert identifier is not None
        return identifier

    def deliver(name: str) -> None:
        target = Target(name=name, url=TARGET.url)
        courier = Courier(database, [target], "", lambda: True, lambda _: None, lambda *a: sent.append(a[2]))
        while courier.deliver(target):
            pass

    told, waiting = notice("told", None, "hook", "other"), notice("both", 30, "hook")
    database.run(lambda c: notices.claim(c, Key(told, notices.OPENED, "hook"), 6))
    database.run(lambda c: notices.settle(c, Key(told, notices.OPENED, "hook"), notices.SENT, 7))
    database.run(lambda c: silences.add_silence(c, silence(time.time_ns() + 3600 * NS), 10))
    deliver("hook")
    deliver("other")
    assert states(database, waiting) == {"opened": notices.SILENCED, "recovered": notices.SILENCED}
    assert sent == []
    # Whoever was told before the silence hears of the end, and nobody else does.
    assert database.run(lambda c: notices.resolve(c, told, 40, "over", time.time_ns()))
    deliver("hook")
    deliver("other")
    assert sent == [f"{told}.recovered"]


def test_a_receiver_is_tried_for_a_day_after_a_silence_of_a_week(writer: StoreWriter) -> None:
    database = writer.database
    new = NewNotice(DEFAULT, "nightly", "failed", "1", "warning", 1, None, "text", "", None, "s1")
    notice_id = database.run(lambda c: notices.tell(c, new, 5, [Message("hook", notices.SILENCED, 5)]))
    assert notice_id is not None
    now = time.time_ns()
    assert database.run(lambda c: notices.abandon(c, now)) == 0
    assert database.run(lambda c: notices.release(c, notice_id, {"hook": now}, now))
    assert not database.run(lambda c: notices.release(c, notice_id, {"hook": now}, now))
    (message,) = database.look(lambda c: notices.listed(c, None))[0][1]
    assert (message.state, message.created_ns) == (notices.PENDING, now)


@pytest.mark.parametrize(
    ("fields", "covers"),
    [
        ({}, True),
        ({"workspace_id": None, "workflow": None}, True),
        ({"workspace_id": "x"}, False),
        ({"workflow": "night??"}, True),
        ({"workflow": "n*[1]"}, False),
        ({"kind": "late"}, False),
        ({"severity": "critical"}, True),
        ({"severity": "info"}, False),
    ],
)
def test_what_a_silence_covers(fields: dict[str, Any], covers: bool) -> None:
    assert silence(1, **fields).covers(DEFAULT, "nightly", "failed", "warning") == covers
    assert silence(1, workflow="load[1]").covers(DEFAULT, "load[1]", "failed", "warning")


@pytest.fixture
async def guarded(any_database_url: str, handlers: HandlerRegistry) -> AsyncIterator[Api]:
    async for api in serve(Config(database=any_database_url, token=SERVICE_TOKEN), handlers):
        yield api


async def test_the_api_keeps_silences_of_a_workspace(guarded: Api) -> None:
    api = guarded
    admin = {"headers": bearer(SERVICE_TOKEN)}
    await api.call("POST", "/api/workspaces", {"slug": "other"}, **admin)
    bound = {"headers": bearer(await token_for(api, scopes=["write"], workspace="default"))}
    reader = {"headers": bearer(await token_for(api, scopes=["read"]))}
    body = {"workflow": "load[*", "duration": "2h", "reason": "password=hunter2", "created_by": "somebody else"}
    assert (await api.call("POST", "/api/silences", body, **reader))[0] == 403
    status, own = await api.call("POST", "/api/silences", body, **bound)
    assert (status, own["workspace"], own["severity"], own["is_over"]) == (201, "default", None, False)
    assert own["created_by"] not in (None, "somebody else")
    assert "hunter2" not in own["reason"]
    until = datetime.now(UTC) + timedelta(days=2)
    everywhere = {"all_workspaces": True, "until": until.isoformat(), "severity": "warning", "created_by": "me"}
    assert (await api.call("POST", "/api/silences", everywhere, **bound))[0] == 403
    _, both = await api.call("POST", "/api/silences", everywhere, **admin)
    assert (both["workspace"], both["created_by"]) == (None, "me")
    other = "/api/silences?workspace_slug=other"
    assert [s["id"] for s in (await api.get("/api/silences", **admin))["items"]] == [own["id"], both["id"]]
    assert [s["id"] for s in (await api.get(other, **admin))["items"]] == [both["id"]]
    # Of another workspace, or of all with a token for one: it is not there to be ended.
    assert (await api.call("DELETE", f"/api/silences/{both['id']}", **bound))[0] == 404
    assert (await api.call("DELETE", f"/api/silences/{own['id']}?workspace_slug=other", **admin))[0] == 404
    for identifier in (own["id"], both["id"]):
        assert (await api.call("DELETE", f"/api/silences/{identifier}", **admin))[0] == 204
        assert (await api.call("DELETE", f"/api/silences/{identifier}", **admin))[0] == 404
    assert (await api.get("/api/silences", **admin))["total"] == 0
    ended = await api.get("/api/silences?ended=true", **admin)
    assert {s["is_over"] for s in ended["items"]} == {True}
    for fault in ({}, {"duration": "2h", "until": "2099-01-01T00:00:00Z"}, {"duration": "0s"}, {"duration": -1},
                  {"duration": "9999d"}, {"until": "2001-01-01T00:00:00Z"}, {"until": "2h"}, {"until": "soon"},
                  {"duration": "1h", "kind": "lateness"}, {"duration": "1h", "severity": "bad"},
                  {"duration": "1h", "workflow": ""}, {"duration": "1h", "workflow": "x" * 201},
                  {"duration": 1e300}, {"duration": "1h", "what": 1}):  # fmt: skip
        status, problem = await api.call("POST", "/api/silences", fault, **admin)
        assert (status, problem["code"]) == (422, "invalid_body"), fault
    # Sent again, it is there once.
    again = {"headers": {**bearer(SERVICE_TOKEN), "Idempotency-Key": "k1"}}
    first, second = [await api.call("POST", "/api/silences", body, **again) for _ in range(2)]
    assert first == second
    assert (await api.get("/api/silences", **admin))["total"] == 1


def test_the_command_line_silences_lists_and_ends(database_url: str) -> None:
    runner, database = CliRunner(), ["--database", database_url]
    store = Database(database_url)
    store.run(lambda c: add_workspace(c, "default", 1))

    def call(*words: str) -> Any:
        return runner.invoke(load_cli(), ["notices", *words, *database])

    said = call("silence", "nightly*", "--for", "90m", "--severity", "warning", "--workspace", "default", "--by", "ann",
                "--reason", "\x1b[31mupgrade")  # fmt: skip
    assert said.exit_code == 0, said.output
    (entry,) = json.loads(call("silences", "--json").stdout)
    assert (entry["workflow"], entry["severity"], entry["workspace"], entry["created_by"]) == (
        "nightly*", "warning", "default", "ann",
    )  # fmt: skip
    listed = call("silences").stdout
    assert "nightly*" in listed
    assert "\x1b" not in listed
    for words in (
        ["--for", "soon"],
        ["--until", "2001-01-01"],
        ["--kind", "x"],
        ["--for", "1h", "--until", "2099-01-01"],
    ):
        failed = call("silence", *words)
        assert (failed.exit_code, bool(failed.stderr)) == (2, True), words
    assert call("unsilence", entry["id"]).exit_code == 0
    assert call("unsilence", entry["id"]).exit_code == 2
    assert json.loads(call("silences", "--json").stdout) == []
    assert [s["is_over"] for s in json.loads(call("silences", "--ended", "--json").stdout)] == [True]
    store.close()
