"""When receivers are told: quiet hours, clocks that change, receivers that refuse; and names that nobody expects."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from typer.testing import CliRunner

from tachograph.clock import NS
from tachograph.events import ExecutionStatus
from tachograph.expectation import Expectation
from tachograph.identity import workspace_id
from tachograph.workflow import HandlerRegistry
from tachograph_exporter.cli import load as load_cli
from tachograph_exporter.config import Config
from tachograph_exporter.expectations.courier import GIVE_UP_NS, Courier
from tachograph_exporter.expectations.messages import NoticeData, NoticeMessage
from tachograph_exporter.expectations.routing import Target
from tachograph_exporter.expectations.sending import MAX_RETRY_AFTER_SECONDS, retry_after, send
from tachograph_exporter.expectations.watch import Watch
from tachograph_exporter.store import expectations, notices
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.workspaces import add_workspace
from tachograph_exporter.store.writer import StoreWriter
from tests.api.test_guard import SERVICE_TOKEN, bearer, token_for
from tests.conftest import Api, running
from tests.expectations.receivers import SECRET, Mailbox, Webhook
from tests.expectations.test_notices import FAIL, states
from tests.expectations.test_silences import HOUR, World
from tests.expectations.test_watch import Clock, execute

DEFAULT = workspace_id("default")
NIGHTS = (22 * 60, 7 * 60)


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    receiver = Webhook()
    yield receiver
    receiver.close()


@pytest.fixture
def writer(any_database_url: str) -> Iterator[StoreWriter]:
    database = Database(any_database_url)
    database.run(lambda c: add_workspace(c, "default", 1))
    yield StoreWriter(database)
    database.close()


@pytest.fixture
def sqlite(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A world for what is the same on all databases."""
    database = Database(database_url)
    database.run(lambda c: add_workspace(c, "default", 1))
    world = World(StoreWriter(database))
    monkeypatch.setattr("tachograph_exporter.expectations.courier.time.time_ns", world.clock.ns)
    yield world
    database.close()


@pytest.fixture
def world(writer: StoreWriter, monkeypatch: pytest.MonkeyPatch) -> World:
    world = World(writer)
    monkeypatch.setattr("tachograph_exporter.expectations.courier.time.time_ns", world.clock.ns)
    return world


@pytest.mark.parametrize(
    ("quiet", "zone", "now", "told"),
    [
        # In Berlin clocks are put forward at two on 29 March 2026, and back at three on 25 October.
        ((1320, 420), "Europe/Berlin", "2026-03-28T22:30+01:00", "2026-03-29T07:00+02:00"),
        ((1320, 420), "Europe/Berlin", "2026-10-24T23:59:59+02:00", "2026-10-25T07:00+01:00"),
        # They end in the hour that is left out: when it is.
        ((1320, 150), "Europe/Berlin", "2026-03-28T23:00+01:00", "2026-03-29T03:00+02:00"),
        # They end in the hour that comes twice: the first time, and the second time for what happens in it.
        ((1320, 150), "Europe/Berlin", "2026-10-25T01:00+02:00", "2026-10-25T02:30+02:00"),
        ((1320, 150), "Europe/Berlin", "2026-10-25T02:10+01:00", "2026-10-25T02:30+01:00"),
        # They begin in it.
        ((150, 420), "Europe/Berlin", "2026-10-25T02:29+02:00", None),
        ((150, 420), "Europe/Berlin", "2026-10-25T02:31+02:00", "2026-10-25T02:00+01:00"),
        # Half an hour, at two, and a day that is left out.
        ((60, 135), "Australia/Lord_Howe", "2026-10-04T01:30+10:30", "2026-10-04T02:30+11:00"),
        ((1320, 420), "Pacific/Apia", "2011-12-29T23:00-10:00", "2011-12-31T07:00+14:00"),
        ((1320, 1440), "UTC", "2026-01-01T23:00+00:00", "2026-01-02T00:00+00:00"),
        ((0, 1440), "UTC", "2026-01-01T23:00:30+00:00", "2026-01-02T23:00+00:00"),
        ((420, 420), "UTC", "2026-01-01T07:00+00:00", None),
    ],
)
def test_quiet_hours_are_those_of_the_clock_on_the_wall(
    quiet: tuple[int, int], zone: str, now: str, told: str | None
) -> None:
    target = Target(name="t", url="https://x/", quiet=quiet, timezone=zone)
    begin = round(datetime.fromisoformat(now).timestamp()) * NS
    expected = begin if told is None else round(datetime.fromisoformat(told).timestamp()) * NS
    at = target.not_before("warning", begin)
    assert at == expected, datetime.fromtimestamp(at / NS, ZoneInfo(zone))
    assert target.not_before("critical", begin) == begin


def test_that_something_is_over_waits_for_the_end_of_quiet_hours_too(world: World) -> None:
    # It fails at noon and is told; quiet from one to three.
    world.service(Target(name="hook", url="https://x/", quiet=(780, 900)))
    world.run(ExecutionStatus.FAILED)
    assert world.look(timedelta(minutes=1)) == ["opened"]
    world.look(HOUR)
    world.run(ExecutionStatus.COMPLETED)
    assert world.look(timedelta(minutes=1)) == ["opened"]
    assert world.notice.resolved_ns is not None
    assert world.look(timedelta(minutes=117)) == ["opened"]
    assert world.look(timedelta(minutes=1)) == ["opened", "recovered"]


def test_what_came_and_went_in_quiet_hours_is_not_told(sqlite: World) -> None:
    world = sqlite
    world.service(Target(name="hook", url="https://x/", quiet=(720, 900)))
    world.look(timedelta(seconds=1))
    world.run(ExecutionStatus.FAILED)
    world.clock.move(datetime.fromtimestamp(world.clock.passed, UTC) + timedelta(minutes=10))
    world.run(ExecutionStatus.COMPLETED)
    assert world.look(timedelta(minutes=1)) == world.look(4 * HOUR) == []
    assert states(world.database, world.notice.id) == {"opened": notices.QUIET}


def test_a_clock_that_is_set_back_holds_no_message_back(world: World) -> None:
    world.service()
    world.run(ExecutionStatus.FAILED)
    for watch in world.watches:
        world.clock.move(datetime.fromtimestamp(world.clock.passed, UTC) + timedelta(minutes=1))
        watch.look()
    # Before it is delivered, the clock is set back: it still fails, and is told at once.
    world.clock.shift = -3600.0
    assert world.look(timedelta(seconds=5)) == ["opened"]
    world.watches.clear()
    world.service()
    assert world.look(timedelta(minutes=30)) == world.look(timedelta(minutes=40)) == ["opened"]
    world.clock.shift = 0.0
    world.run(ExecutionStatus.COMPLETED)
    world.clock.move(datetime.fromtimestamp(world.clock.passed, UTC) + timedelta(seconds=5))
    world.watches[0].look()
    world.clock.shift = -3600.0
    assert world.look(timedelta(seconds=5)) == ["opened", "recovered"]


def test_a_clock_that_is_set_back_ends_nothing(sqlite: World) -> None:
    """What is late, overdue or failed is so whatever the clock says for an hour."""
    writer, database = sqlite.writer, sqlite.database
    clock = Clock(datetime(2026, 11, 30, 12, 30, tzinfo=UTC))
    said = Expectation(schedule="0 12 * * *", deadline_seconds=600.0, last_failed_seconds=0.0)
    for name in ("late", "nightly"):
        database.run(lambda c, n=name: expectations.say(c, DEFAULT, n, expectations.FILE, said, clock.ns() - 5400 * NS))  # type: ignore[misc]
    moment = datetime.fromtimestamp(clock.passed, UTC)
    execute(writer, moment - timedelta(minutes=29), moment - timedelta(minutes=20), ExecutionStatus.FAILED)
    execute(writer, moment - timedelta(minutes=15), None, ExecutionStatus.COMPLETED)
    watch = Watch(database, DEFAULT, [], settle_seconds=0, clock=clock.ns, monotonic=clock.monotonic)

    def kinds() -> list[tuple[str, bool]]:
        watch.look()
        rows = database.look(lambda c: notices.listed(c, None))
        return sorted((row.kind, row.resolved_ns is None) for row, _ in rows)

    before = kinds()
    assert before == [("failed", True), ("late", True), ("overdue", True)]
    for minutes in (5, 60, 90, 24 * 60):
        clock.shift = -60.0 * minutes
        clock.passed += 5
        assert kinds() == before, minutes
    clock.shift = 0.0
    clock.passed += 5
    assert kinds() == before


def test_services_that_take_over_from_one_another_tell_each_fault_once(writer: StoreWriter) -> None:
    """For a while both believe that they evaluate, and look at the same time."""
    database, clock = writer.database, Clock(datetime(2026, 11, 30, 12, tzinfo=UTC))
    target = Target(name="hook", url="https://x/")
    # The key of a rate is the moment at which it was found, and that differs.
    said = Expectation(success_target=0.9, burn_runs=1.0, last_failed_seconds=7 * 86_400.0)
    database.run(lambda c: expectations.say(c, expectations.ANY, "nightly", expectations.FILE, said, 1))
    late = Expectation(schedule="0 6 * * *")
    database.run(lambda c: expectations.say(c, DEFAULT, "never", expectations.FILE, late, clock.ns() - 86_400 * NS))
    for minute in range(40, 0, -1):
        at = datetime.fromtimestamp(clock.passed - 60 * minute, UTC)
        execute(writer, at, at, ExecutionStatus.FAILED if minute % 2 else ExecutionStatus.COMPLETED)
    execute(writer, at, datetime.fromtimestamp(clock.passed, UTC), ExecutionStatus.COMPLETED)
    shifts = iter(range(100))
    lock = threading.Lock()

    def now() -> int:
        with lock:
            return clock.ns() + next(shifts) * NS

    watches = [
        Watch(database, DEFAULT, [target], settle_seconds=0, clock=now, monotonic=clock.monotonic) for _ in range(3)
    ]
    barrier = threading.Barrier(len(watches))

    def work(watch: Watch) -> None:
        barrier.wait()
        watch.look()

    threads = [threading.Thread(target=work, args=(watch,)) for watch in watches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    listed = database.look(lambda c: notices.listed(c, None))
    assert sorted((row.workflow, row.kind, len(messages)) for row, messages in listed) == [
        ("never", "late", 1), ("nightly", "success_rate", 1),
    ]  # fmt: skip


def test_a_receiver_that_refuses_for_an_hour_is_told_then_and_in_order(sqlite: World, webhook: Webhook) -> None:
    world = sqlite
    world.service()
    world.run(ExecutionStatus.FAILED)
    world.watches[0].look()
    target = Target(name="hook", url=webhook.url, secret=SECRET)
    outcomes: list[str] = []
    courier = Courier(world.database, [target], "", lambda: True, outcomes.append)

    def pass_time(seconds: int) -> None:
        for second in range(0, seconds, 30):
            world.clock.passed += 30
            if not second:
                world.watches[0].look()
            while courier.deliver(target):
                pass

    webhook.statuses = [500] * 1000
    pass_time(1800)
    # It is over before the receiver has been told: that is told after it.
    world.run(ExecutionStatus.COMPLETED)
    pass_time(1800)
    assert 6 <= len(webhook.requests) <= 12
    assert {body["type"] for body in webhook.bodies} == {"notice.opened"}
    assert len({headers["webhook-id"] for headers, _ in webhook.requests}) == 1
    webhook.statuses.clear()
    webhook.requests.clear()
    pass_time(900)
    assert webhook.told == [("opened", "nightly", "failed"), ("recovered", "nightly", "failed")]
    assert outcomes[-2:] == ["sent", "sent"]
    webhook.verify()

    # One that says when it may be tried again is not tried before, and a redirect is no success.
    world.run(ExecutionStatus.FAILED)
    webhook.requests.clear()
    webhook.statuses, webhook.headers = [429, 302, 307], {"Retry-After": "1200", "Location": webhook.url}
    pass_time(1200)
    assert len(webhook.requests) == 1
    pass_time(60)
    assert len(webhook.requests) == 2
    pass_time(1200)
    webhook.headers.clear()
    pass_time(1200)
    assert len(webhook.requests) == 4
    assert len({headers["webhook-id"] for headers, _ in webhook.requests}) == 1
    # For a day. It had failed again so soon that this was flapping, which three successes end.
    for _ in range(3):
        world.clock.passed += 10
        world.run(ExecutionStatus.COMPLETED)
    world.clock.passed += 10
    world.watches[0].look()
    webhook.statuses = [503] * 1000
    began = world.clock.passed
    while outcomes[-1] != "failed":
        assert world.clock.passed - began < GIVE_UP_NS / NS + 1800
        world.clock.passed += 900
        courier.deliver(target)
    assert world.clock.passed - began > GIVE_UP_NS / NS - 1800
    assert states(world.database, world.newest.id) == {"opened": notices.SENT, "recovered": notices.FAILED}


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("120", 120.0), (" 5 ", 5.0), ("0", 0.0), ("-5", 0.0), ("1e9", 0.0), ("", 0.0), ("soon", 0.0), ("٣", 0.0),
        ("9" * 30, MAX_RETRY_AFTER_SECONDS), (format_datetime(datetime.fromtimestamp(1090, UTC), usegmt=True), 90.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0), ("Fri, 31 Dec 9999 23:59:59 GMT", MAX_RETRY_AFTER_SECONDS),
        ("Thu, 01 Jan 1970 00:17:00 -0000", 20.0), ("Thu, 99 Jan 1970 99:00:00 GMT", 0.0),
    ],
)  # fmt: skip
def test_when_a_receiver_may_be_tried_again(header: str, seconds: float) -> None:
    assert retry_after(header, now=1000) == pytest.approx(seconds)


HOSTILE = "a<script>alert(1)</script>\r\nBcc: evil@example.com\r\n\r\n<!channel> @everyone <@U1> on-call@allied.com"


# What apprise imports is deprecated on some versions of Python.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("markup", ["text", "html"])
def test_names_are_text_to_whoever_reads_them(markup: str) -> None:
    mailbox = Mailbox(markup)
    data = NoticeData(id="1", workspace="default", workflow=HOSTILE, kind="failed", severity="critical",
                      text=f"The run failed in step “{HOSTILE}”.\nSecond line.", since="2026-11-30T03:00:00Z",
                      link="https://tachograph.example.com/#/executions/1")  # fmt: skip
    message = NoticeMessage(type="notice.opened", timestamp="2026-11-30T03:00:00Z", data=data)
    try:
        send(Target(name="mail", url=mailbox.url), message, "1")
    finally:
        mailbox.close()
    ((subject, text),) = mailbox.mails
    assert mailbox.recipients == [["on-call@example.com"]]
    assert subject.startswith("✖ a<script>alert(1)</script> Bcc: evil@example.com <")
    assert subject.endswith("on-call@allied.com: it failed and has not succeeded since")
    if markup == "html":
        assert "<script>" not in text
        assert "&lt;script&gt;" in text
        assert text.count("<br") >= 4
    else:
        assert "<script>alert(1)</script>" in text
    for mention in ("<!channel", "@everyone", "<@U1"):
        assert mention not in subject + text
    assert "https://tachograph.example.com/#/executions/1" in text
    # A program gets the name as it is.
    assert message.data.workflow == HOSTILE


async def test_a_service_tests_its_own_receivers(
    database_url: str, handlers: HandlerRegistry, webhook: Webhook, tmp_path: Path
) -> None:
    runner, command = CliRunner(), load_cli()
    file = tmp_path / "expectations.toml"
    file.write_text(f"""
        link = "https://tachograph.example.com"
        [[notify]]
        name = "hook"
        url = "{webhook.url}"
        [[notify]]
        name = "gone"
        url = "http://127.0.0.1:1/T0P-S3CRET"
    """)
    config = Config(database=database_url, grace_seconds=0.2, expectations=file, token=SERVICE_TOKEN)
    async with running(config, handlers) as api:
        admin, path = bearer(SERVICE_TOKEN), "/api/notices/test"
        status, answer = await api.call("POST", path, headers=admin)
        assert (status, answer["receivers"]) == (200, [
            {"receiver": "hook", "address": webhook.url.partition("/hooks")[0] + "/…", "is_taken": True,
             "reason": None},
            {"receiver": "gone", "address": "http://127.0.0.1:1/…", "is_taken": False,
             "reason": "it cannot be reached: ClientConnectorError"},
        ])  # fmt: skip
        (body,) = webhook.bodies
        assert (body["type"], body["data"]["link"]) == ("notice.test", "https://tachograph.example.com")
        assert (await api.call("POST", f"{path}?receiver=nobody", headers=admin))[1] == {"receivers": []}
        assert (await api.call("POST", path))[0] == 401
        writer = await token_for(api, scopes=["write"])
        assert (await api.call("POST", path, headers=bearer(writer)))[0] == 403

        def run(*words: str, **variables: str) -> tuple[int, str]:
            ran = runner.invoke(command, ["notices", "test", *words], env={"TACHOGRAPH_NOTIFY": None, **variables})
            return ran.exit_code, ran.output

        access = {"TACHOGRAPH_TOKEN": SERVICE_TOKEN}
        code, shown = await asyncio.to_thread(run, "--url", api.address, **access)
        assert code == 1
        assert ("✔ hook" in shown, "✖ gone" in shown, "cannot be reached" in shown) == (True, True, True)
        variables = {**access, "TACHOGRAPH_URL": api.address}
        assert (await asyncio.to_thread(run, "--receiver", "hook", **variables))[0] == 0
        code, shown = await asyncio.to_thread(run, "--receiver", "nobody", **variables)
        assert (code, "no such receiver" in shown) == (2, True)
        # A file is about itself, whatever the environment says.
        code, shown = await asyncio.to_thread(run, "--expectations", str(file), "--receiver", "hook", **variables)
        assert (code, "✔ hook" in shown) == (0, True)
        assert (await asyncio.to_thread(run, "--expectations", str(file), "--url", api.address, **access))[0] == 2
    assert len(webhook.told) == 4
    assert "S3CRET" not in shown


async def test_whoever_was_told_of_a_workflow_that_is_deleted_hears_of_its_end(
    database_url: str, handlers: HandlerRegistry, webhook: Webhook
) -> None:
    config = Config(database=database_url, grace_seconds=0.2, notify=(webhook.url,))
    async with running(config, handlers) as api:
        await api.call("POST", "/api/workflows", FAIL)
        await api.run("nap")
        await look(api, webhook, 1)
        assert (await api.call("DELETE", "/api/workflows/nap"))[0] == 204
        assert [n["recovered_at"] for n in (await api.get("/api/notices"))["items"]] == [None]
        await look(api, webhook, 2)
        assert webhook.told == [("opened", "nap", "failed"), ("recovered", "nap", "failed")]
        assert (await api.get("/api/notices?open=true"))["items"] == []
        # The next of that name begins anew, and what is over is deleted with it.
        await api.call("POST", "/api/workflows", FAIL)
        await api.run("nap")
        await look(api, webhook, 3)
        assert webhook.told[2] == ("opened", "nap", "failed")


async def look(api: Api, webhook: Webhook, count: int) -> None:
    """Evaluate until the receiver has so many messages."""
    async with asyncio.timeout(60):
        while len(webhook.told) < count:
            await asyncio.to_thread(api.service.watch.look)
            await asyncio.sleep(0.05)
