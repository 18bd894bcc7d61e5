"""Notices reach real receivers once, with their recovery; a receiver that hangs delays nothing; no secret is shown."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from tachograph.clock import NS
from tachograph.events import Event, ExecutionFinished, ExecutionStarted, ExecutionStatus
from tachograph.expectation import expectation_of
from tachograph.identity import workspace_id
from tachograph.workflow import HandlerRegistry
from tachograph_exporter.config import Config
from tachograph_exporter.expectations import courier as courier_module
from tachograph_exporter.expectations.courier import Courier
from tachograph_exporter.expectations.routing import Target, masked
from tachograph_exporter.expectations.sending import NotSent, send
from tachograph_exporter.store import notices
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.notices import Key, Message, NewNotice
from tachograph_exporter.store.schema import notice_deliveries
from tachograph_exporter.store.workspaces import add_workspace
from tests import programs
from tests.conftest import Api, make_execution, running
from tests.expectations.receivers import SECRET, Mailbox, Webhook, eventually, hanging_address

NAP = {
    "name": "nap",
    "variables": [{"name": "n", "data_type": "float", "default_value": 0}],
    "steps": [{"name": "nap", "config": {"handler": "sleep", "seconds": "${n}"}}],
    "expectation": {"deadline": "250ms", "last_failed_seconds": 0},
}
FAIL = {"name": "nap", "steps": [{"name": "load", "config": {"handler": "fail", "message": "disk full"}}],
        "expectation": {"last_failed_seconds": 0}}  # fmt: skip


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    receiver = Webhook()
    yield receiver
    receiver.close()


@pytest.fixture
def mailbox() -> Iterator[Mailbox]:
    receiver = Mailbox()
    yield receiver
    receiver.close()


# What apprise imports is deprecated on some versions of Python.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_a_failure_reaches_every_receiver_with_its_recovery_and_a_hanging_one_delays_nothing(
    database_url: str, handlers: HandlerRegistry, webhook: Webhook, mailbox: Mailbox, tmp_path: Path,
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("HOOK", webhook.url)
    monkeypatch.setenv("HOOK_SECRET", SECRET)
    file = tmp_path / "expectations.toml"
    with hanging_address() as hanging:
        file.write_text(f"""
            link = "https://tachograph.example.com/"
            [[notify]]
            name = "hangs"
            url = "{hanging}"
            [[notify]]
            name = "hook"
            url_env = "HOOK"
            secret_env = "HOOK_SECRET"
            [[notify]]
            name = "other workflows"
            url = "{webhook.url}"
            workflows = ["other*"]
            [[notify]]
            name = "mail"
            url = "{mailbox.url}"
            recoveries = false
        """)
        config = Config(database=database_url, grace_seconds=0.2, expectations=file)
        async with running(config, handlers) as api:
            await api.call("POST", "/api/workflows", FAIL)
            failed = await api.run("nap")
            await asyncio.to_thread(api.service.watch.look)
            await eventually(lambda: webhook.told and mailbox.mails)
            (body,) = webhook.bodies
            data = body["data"]
            assert (body["type"], data["workflow"], data["kind"], data["execution_id"]) == (
                "notice.opened", "nap", "failed", failed,
            )  # fmt: skip
            assert data["text"].startswith("The run failed in step “load”: disk full. It took")
            assert "disk full" in data["text"]
            assert data["link"] == f"https://tachograph.example.com/#/executions/{failed}"
            ((subject, text),) = mailbox.mails
            assert subject == "⚠ nap: it failed and has not succeeded since"
            assert "disk full" in text
            assert data["link"] in text
            # The one that hangs still does, or is about to be tried again, and the service answers all the same.
            hangs = [d for d in (await api.get("/api/notices"))["items"][0]["deliveries"] if d["receiver"] == "hangs"]
            assert len(hangs) == 1
            assert hangs[0]["state"] in ("sending", "pending")
            await api.call("PATCH", "/api/workflows/nap", NAP)
            await api.run("nap")
            await asyncio.to_thread(api.service.watch.look)
            await eventually(lambda: len(webhook.told) == 2)
            assert webhook.told[1] == ("recovered", "nap", "failed")
            assert webhook.bodies[1]["data"]["recovery"] == "It succeeded again."
            await asyncio.to_thread(api.service.watch.look)
            (notice,) = (await api.get("/api/notices"))["items"]
            metrics = await api.metrics()
            assert 'tachograph_notices_total{outcome="sent"} 3.0' in metrics
            shown = [str(notice), metrics, str(api.service.courier._targets), str(await api.get("/api/expectations"))]
    webhook.verify()
    assert len(mailbox.mails) == 1
    output = capfd.readouterr()
    shown += [caplog.text, output.out, output.err, *(repr(r.__dict__) for r in caplog.records)]
    for text in shown:
        assert "S3CRET" not in text
        assert SECRET not in text
    stored = await asyncio.to_thread(Path(database_url.removeprefix("sqlite:///")).read_bytes)
    assert b"S3CRET" not in stored


async def test_a_run_past_its_deadline_is_told_while_it_runs(api: Api, webhook: Webhook) -> None:
    await api.call("POST", "/api/workflows", NAP)
    status, body = await api.call("POST", "/api/workflows/nap/execute", {"input_variables": {"n": 3600}})
    assert status == 202
    path = f"/api/workflows/executions/{body['execution_id']}"
    watch = api.service.watch
    watch._targets = [Target(name="hook", url=webhook.url, secret=SECRET)]

    def is_told() -> bool:
        watch.look()
        return bool(api.service.database.look(lambda c: notices.listed(c, None)))

    await eventually(is_told)
    courier = Courier(api.service.database, watch._targets, "", lambda: True, lambda _: None)
    await asyncio.to_thread(courier.deliver, watch._targets[0])
    assert webhook.told == [("opened", "nap", "overdue")]
    assert "its deadline is 250 ms. Running: nap." in webhook.bodies[0]["data"]["text"]
    assert 'workflow_overdue{workflow="nap",workspace="default"} 1.0' in await api.metrics()
    await api.call("POST", f"{path}/cancel")
    await api.finished(body["execution_id"])

    def is_over() -> bool:
        watch.look()
        return bool(api.service.database.look(lambda c: notices.listed(c, None))[0][0].resolved_ns)

    await eventually(is_over)
    while await asyncio.to_thread(courier.deliver, watch._targets[0]):
        pass
    assert webhook.told[1:] == [("recovered", "nap", "overdue")]
    webhook.verify()


def new_notice(key: str, kind: str = "failed") -> NewNotice:
    return NewNotice(workspace_id("default"), "etl", kind, key, "warning", 1, None, "text", "", None)


def tell(database: Database, key: str, target: str = "hook", state: str = notices.PENDING, next_ns: int = 0) -> str:
    identifier = database.run(
        lambda c: notices.tell(c, new_notice(key), time.time_ns(), [Message(target, state, next_ns)])
    )
    assert identifier is not None
    return identifier


def states(database: Database, notice_id: str) -> dict[str, str]:
    rows = {row.id: messages for row, messages in database.look(lambda c: notices.listed(c, None))}
    return {message.phase: message.state for message in rows[notice_id]}


@pytest.fixture
def database(any_database_url: str) -> Iterator[Database]:
    database = Database(any_database_url)
    database.run(lambda c: add_workspace(c, "default", 1))
    yield database
    database.close()


TARGET = Target(name="hook", url="http://127.0.0.1:1/")


def test_of_several_services_one_sends_each_message_and_a_refused_one_is_tried_again(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(courier_module, "FIRST_RETRY_SECONDS", 0.0)
    ids = [tell(database, str(n)) for n in range(12)]
    sent: list[str] = []
    lock = threading.Lock()

    def sending(_target: Target, message: Any, message_id: str) -> None:
        with lock:
            if message_id not in refused:
                refused.add(message_id)
                raise NotSent("it answered 500")
            sent.append(message_id)

    refused: set[str] = set()
    outcomes: list[str] = []

    def work() -> None:
        courier = Courier(database, [TARGET], "", lambda: True, outcomes.append, sending)
        while courier.deliver(TARGET):
            pass

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    work()
    assert sorted(sent) == sorted(f"{identifier}.opened" for identifier in ids)
    assert sorted(outcomes) == ["retried"] * 12 + ["sent"] * 12
    # The same fault is told once, whoever finds it.
    assert database.run(lambda c: notices.tell(c, new_notice("3"), 5, [])) is None


def test_what_a_process_was_sending_when_it_died_is_not_sent_again(database: Database) -> None:
    notice_id = tell(database, "1")
    key = Key(notice_id, notices.OPENED, "hook")
    assert database.run(lambda c: notices.claim(c, key, 10))
    assert not database.run(lambda c: notices.claim(c, key, 10))
    program = "from tachograph.process import identity; print(identity())"
    dead = programs.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()
    statement = update(notice_deliveries).values(sender=dead)
    database.run(lambda c: c.execute(statement))
    sent: list[str] = []
    courier = Courier(database, [TARGET], "", lambda: True, lambda _: None, lambda *a: sent.append(a[2]))
    assert not courier.deliver(TARGET)
    assert database.run(lambda c: notices.abandon(c, 20)) == 1
    assert states(database, notice_id) == {"opened": notices.UNKNOWN}
    assert not courier.deliver(TARGET)
    # Its recovery is told: whoever got the notice waits for it.
    assert database.run(lambda c: notices.resolve(c, notice_id, 30, "over", time.time_ns()))
    assert not database.run(lambda c: notices.resolve(c, notice_id, 30, "over", time.time_ns()))
    assert courier.deliver(TARGET)
    assert sent == [f"{notice_id}.recovered"]


def test_a_recovery_waits_for_its_notice_and_is_left_out_if_nobody_was_told(database: Database) -> None:
    soon = time.time_ns() + 3600 * NS
    silenced, quiet = tell(database, "1", state=notices.SILENCED), tell(database, "2", next_ns=soon)
    pending = tell(database, "3")
    for notice_id in (silenced, quiet, pending):
        database.run(lambda c, n=notice_id: notices.resolve(c, n, 30, "over", time.time_ns()))  # type: ignore[misc]
    assert states(database, silenced) == {"opened": notices.SILENCED}
    assert states(database, quiet) == {"opened": notices.QUIET}
    sent: list[str] = []
    courier = Courier(database, [TARGET], "", lambda: True, lambda _: None, lambda *a: sent.append(a[2]))
    while courier.deliver(TARGET):
        pass
    assert sent == [f"{pending}.opened", f"{pending}.recovered"]


def test_messages_that_nobody_sends_are_given_up(database: Database) -> None:
    notice_id = tell(database, "1", target="a receiver of an earlier file")
    later = time.time_ns() + notices.LEFT_NS + NS
    assert database.run(lambda c: notices.abandon(c, later)) == 0
    assert states(database, notice_id) == {"opened": notices.FAILED}


def test_a_recovery_after_months_is_kept_until_it_is_told(database: Database) -> None:
    notice_id = tell(database, "1")
    # It lasted longer than notices are kept.
    end = time.time_ns() + 2 * notices.KEPT_NS
    database.run(lambda c: notices.resolve(c, notice_id, end, "over", end))
    database.run(lambda c: notices.prune(c, end + NS))
    assert states(database, notice_id).keys() == {"opened", "recovered"}
    database.run(lambda c: notices.prune(c, end + notices.KEPT_NS + NS))
    assert database.look(lambda c: notices.listed(c, None)) == []


async def test_notices_of_a_workflow_that_was_renamed_are_over(api: Api) -> None:
    await api.call("POST", "/api/workflows", FAIL)
    await api.run("nap")
    await asyncio.to_thread(api.service.watch.look)
    assert [item["recovered_at"] for item in (await api.get("/api/notices?open=true"))["items"]] == [None]
    assert (await api.call("PATCH", "/api/workflows/nap", {**FAIL, "name": "doze"}))[0] == 200
    await asyncio.to_thread(api.service.watch.look)
    still = (await api.get("/api/notices?open=true"))["items"]
    assert {item["workflow"] for item in still} <= {"doze"}


def test_quiet_hours_and_who_is_told() -> None:
    target = Target(name="t", url="https://x/", quiet=(22 * 60, 7 * 60), timezone="Europe/Berlin", severity="warning",
                    workspaces=("default",), workflows=("night*",), kinds=("late",))  # fmt: skip
    evening, morning = 1_774_728_000 * NS, 1_774_760_400 * NS  # 28 March 2026, 21:00; the clock is put forward.
    assert target.not_before("warning", evening) == evening
    assert target.not_before("warning", evening + 3 * 3600 * NS) == morning
    assert target.not_before("critical", evening + 3 * 3600 * NS) == evening + 3 * 3600 * NS
    assert target.takes("default", "nightly", "late", "critical")
    for other in (("x", "nightly", "late", "warning"), ("default", "day", "late", "warning"),
                  ("default", "nightly", "failed", "warning"), ("default", "nightly", "late", "info")):  # fmt: skip
        assert not target.takes(*other)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://user:S3CRET@hooks.example.com:8443/S3CRET?a=S3CRET#S3CRET", "https://hooks.example.com:8443/…"),
        ("slack://S3CRET/S3CRET/S3CRET", "slack://…"),
        ("mailto://user:S3CRET@example.com", "mailto://…"),
        ("https://[S3CRET", "https://…"),
        ("http://host:S3CRET/", "http://…"),
    ],
)
def test_addresses_are_shown_without_secrets(url: str, shown: str) -> None:
    assert masked(url) == shown
    assert "S3CRET" not in repr(Target(name="t", url=url, secret="S3CRET"))


def test_a_webhook_that_cannot_be_reached_says_so_without_its_address(webhook: Webhook) -> None:
    webhook.statuses = [500, 302]
    message: Any = {"type": "x"}
    target = Target(name="hook", url=webhook.url, secret=SECRET)
    for reason in ("it answered 500", "it answered 302"):
        with pytest.raises(NotSent, match=reason):
            send(target, message, "id")
    for url in ("http://127.0.0.1:1/S3CRET", "http://S3CRET.invalid/", "http://127.0.0.1:99999/S3CRET"):
        with pytest.raises(NotSent, match="cannot be reached") as error:
            send(Target(name="hook", url=url), message, "id")
        assert "S3CRET" not in str(error.value)
    with pytest.raises(NotSent, match="not base64"):
        send(Target(name="hook", url=webhook.url, secret="whsec_?"), message, "id")


async def test_what_code_the_file_and_the_api_expect_comes_together(api: Api) -> None:
    execution, now = make_execution("etl"), time.time_ns()
    expects = expectation_of(schedule="0 3 * * *", timezone="Europe/Berlin", deadline="1h")
    events: list[Event] = [
        ExecutionStarted(execution=execution, time_ns=now, expects=expects),
        ExecutionFinished(execution=execution, time_ns=now, status=ExecutionStatus.COMPLETED, started_ns=now,
                          step_count=0),
    ]  # fmt: skip
    await asyncio.to_thread(api.service.writer.apply, events)
    await asyncio.to_thread(api.service.writer.apply, events)
    info = await api.get("/api/expectations/etl")
    assert (info["said"], info["state"]) == (
        {"code": {"schedule": "0 3 * * *", "timezone": "Europe/Berlin", "deadline_seconds": 3600.0}}, "ok",
    )  # fmt: skip
    status, problem = await api.call("PUT", "/api/expectations/etl", {"schedule": "0 25 * * *", "deadlin": "1h"})
    assert (status, problem["code"]) == (422, "invalid_body")
    assert [(fault["at"], fault["code"]) for fault in problem["errors"]] == [
        ("schedule", "bad_value"), ("deadlin", "unknown_key"),
    ]  # fmt: skip
    assert 'did you mean "deadline"?' in problem["errors"][1]["message"]
    status, info = await api.call("PUT", "/api/expectations/etl", {"deadline": "2h", "is_paused": True})
    assert (status, info["state"], info["expected"]["deadline_seconds"]) == (200, "paused", 7200.0)
    assert info["expected"]["schedule"] == "0 3 * * *"
    assert (await api.call("DELETE", "/api/expectations/etl"))[0] == 204
    assert (await api.call("DELETE", "/api/expectations/etl"))[0] == 404
    assert (await api.get("/api/expectations/etl"))["said"] == {}
    # A definition says it, until it does not, or until the workflow is gone.
    await api.call("POST", "/api/workflows", {**NAP, "name": "nap", "expectation": {"schedule": "@daily"}})
    assert (await api.get("/api/expectations/nap"))["said"] == {"definition": {"schedule": "@daily"}}
    listed = await api.get("/api/expectations")
    assert [item["workflow"] for item in listed["items"]] == ["etl", "nap"]
    assert (await api.call("DELETE", "/api/workflows/nap"))[0] == 204
    assert (await api.get("/api/expectations/nap"))["said"] == {}
    status, problem = await api.call("POST", "/api/workflows", {**NAP, "expectation": {"schedule": "soon"}})
    assert (status, problem["errors"][0]["at"]) == (422, "expectation.schedule")
