"""OpenLineage ingest by HTTP: by the specification, in pieces, twice; what is not valid costs itself and no other."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import zlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.api.test_guard import SERVICE_TOKEN, bearer, token_for
from tests.conftest import Api, serve
from tests.ingest.lineage_intake import LineageIntake, arrived
from tests.ingest.truth import RECORDINGS, differences, read_truth
from tests.openlineage_values import encoded, event, run_id
from tests.store.test_rollups import differing

from tachograph.workflow import HandlerRegistry
from tachograph_exporter.config import Config
from tachograph_exporter.ingest.lineage.events import MAX_EVENTS

ONE = "/api/v1/lineage"
BATCH = "/api/v1/lineage/batch"


@pytest.fixture
async def api(any_database_url: str, handlers: HandlerRegistry) -> AsyncIterator[Api]:
    async for api in serve(Config(database=any_database_url, grace_seconds=0.1), handlers):
        yield api


@pytest.fixture
async def local(database_url: str, handlers: HandlerRegistry) -> AsyncIterator[Api]:
    """For what never comes to a database."""
    async for api in serve(Config(database=database_url, grace_seconds=0.1), handlers):
        yield api


@pytest.fixture
async def guarded(database_url: str, handlers: HandlerRegistry) -> AsyncIterator[Api]:
    async for api in serve(Config(database=database_url, grace_seconds=0.1, token=SERVICE_TOKEN), handlers):
        yield api


async def post(api: Api, path: str, body: bytes, **headers: str) -> tuple[int, Any]:
    headers.setdefault("Content-Type", "application/json")
    async with api.session.post(api.address + path, data=io.BytesIO(body), headers=headers) as answer:
        return answer.status, json.loads(await answer.read())


def success(count: int = 1) -> dict[str, Any]:
    summary = {"received": count, "successful": count, "failed": 0, "retriable": 0, "non_retriable": 0}
    return {"status": "success", "failed_events": [], "summary": summary}


async def timelines(api: Api) -> list[Any]:
    items = (await api.get("/api/workflows/executions"))["items"]
    return [await api.get(f"/api/workflows/executions/{item['execution_id']}/timeline") for item in items]


@pytest.mark.parametrize("name", ["openlineage_airflow3", "openlineage_client", "openlineage_dbt"])
async def test_a_recording_becomes_what_happened_in_requests_side_by_side(api: Api, name: str) -> None:
    lines = (RECORDINGS / f"{name}.jsonl").read_bytes().splitlines()
    half = len(lines) // 2
    answers = await asyncio.gather(*[post(api, ONE, line) for line in lines[half:]])
    answers.append(await post(api, BATCH, b"[" + b",".join(lines[:half]) + b"]"))
    assert [status for status, _ in answers] == [200] * len(answers)
    assert differences(read_truth(name), await timelines(api), tolerance_seconds=0.001) == []
    before = await timelines(api)
    assert await post(api, BATCH, b"[" + b",".join(lines) + b"]") == (200, success(len(lines)))
    assert await timelines(api) == before
    assert differing(api.service.database) == 0
    for timeline in before:
        report = await api.get(f"/api/workflows/executions/{timeline['execution_id']}/reconcile")
        assert report["differences"] == [], report


async def test_one_event_and_many_are_acknowledged(api: Api) -> None:
    assert await post(api, ONE, encoded(event("START", 0, "r", "job"))) == (200, success())
    assert await post(api, ONE + "/", encoded(event("COMPLETE", 1, "r", "job"))) == (200, success())
    assert await post(api, BATCH, b"[]") == (200, success(0))
    (timeline,) = await timelines(api)
    assert (timeline["execution_id"], timeline["workflow_name"]) == (run_id("r"), "job")
    assert (timeline["status"], timeline["total_duration_seconds"]) == ("completed", 1)
    # What stands for the run is a span, so viewers of traces find it.
    trace = await api.get(f"/jaeger/api/traces/{timeline['trace_id']}")
    assert [span["operationName"] for span in trace["data"][0]["spans"]] == ["job"]


async def test_bodies_may_be_compressed(local: Api) -> None:
    body = encoded(event("START", 0, "r", "job"))
    packed = {"gzip": gzip.compress(body), "deflate": zlib.compress(body), "identity": body}
    for encoding, content in packed.items():
        assert await post(local, ONE, content, **{"Content-Encoding": encoding}) == (200, success()), encoding


async def test_job_and_dataset_events_are_accepted_and_make_no_execution(api: Api) -> None:
    job = event("START", 0, "r", "job")
    del job["run"], job["eventType"]
    dataset = {k: job[k] for k in ("eventTime", "producer", "schemaURL")} | {
        "dataset": {"namespace": "db", "name": "t"}
    }
    assert await post(api, ONE, encoded(job)) == (200, success())
    assert await post(api, BATCH, encoded([job, dataset])) == (200, success(2))
    assert (await api.get("/api/workflows/executions"))["total"] == 0


def broken(*path: str, value: Any = None) -> dict[str, Any]:
    """An event with another value in one place; without the place if the value is None."""
    changed = event("START", 0, "r", "job")
    part: Any = changed
    for name in path[:-1]:
        part = part[name]
    part[path[-1]] = value
    if value is None:
        del part[path[-1]]
    return changed


BAD: dict[str, tuple[Any, str]] = {
    "no time": (broken("eventTime"), "eventTime is missing"),
    "no date": (broken("eventTime", value="yesterday"), "eventTime is 'yesterday', not a time"),
    "no such day": (broken("eventTime", value="2026-02-31T00:00:00Z"), "eventTime is '2026-02-31"),
    "1970": (broken("eventTime", value="1970-01-01T00:00:00Z"), "eventTime is before the year 2000"),
    "2400": (broken("eventTime", value="2400-01-01T00:00:00Z"), "eventTime is more than a day from now"),
    "no run id": (broken("run", "runId"), "run.runId is missing"),
    "run id": (broken("run", "runId", value="manual__1"), "run.runId is 'manual__1', not a UUID"),
    "run": (broken("run", value=7), "run is not an object"),
    "no job": (broken("job"), "job is missing"),
    "no name": (broken("job", "name"), "job.name is missing"),
    "name": (broken("job", "name", value=""), "job.name is not a text, or is empty"),
    "namespace": (broken("job", "namespace", value=[]), "job.namespace is not a text"),
    "kind": (broken("eventType", value="DONE"), "eventType is 'DONE', not one of ABORT, COMPLETE"),
    "nothing": ({"eventTime": "2026-11-25T04:00:00Z"}, "run is missing"),
    "list": ([1], "an event is an object"),
    "null": (None, "an event is an object"),
}


async def test_a_bad_event_is_refused_with_its_place(api: Api) -> None:
    for number, (name, (value, why)) in enumerate(BAD.items(), 1):
        status, problem = await post(api, ONE, encoded(value))
        assert (status, problem["code"]) == (422, "invalid_body"), name
        assert why in problem["detail"], name
        status, answer = await post(api, BATCH, encoded([event("START", 0, f"r{number}", name), value]))
        assert (status, answer["status"]) == (200, "partial_success"), name
        assert answer["summary"] == {"received": 2, "successful": 1, "failed": 1, "retriable": 0, "non_retriable": 1}
        (failed,) = answer["failed_events"]
        assert (failed["index"], failed["retriable"]) == (1, False), name
        assert why in failed["reason"], name
        assert [timeline["status"] for timeline in await timelines(api)] == ["running"] * number, name


async def test_a_batch_of_bad_events_only_is_refused_whole(api: Api) -> None:
    status, problem = await post(api, BATCH, encoded([{}, 5]))
    assert (status, problem["code"], [fault["at"] for fault in problem["errors"]]) == (
        422,
        "invalid_body",
        ["[0]", "[1]"],
    )


async def test_a_body_that_is_no_event_is_refused(local: Api) -> None:
    for path, body, status, code in (
        (ONE, b"{", 400, "invalid_json"),
        (ONE, b'{"eventTime": "\xff"}', 400, "invalid_json"),
        (ONE, b"[" * 100_000 + b"]" * 100_000, 400, "invalid_json"),
        (BATCH, b"[" * 100_000 + b"]" * 100_000, 400, "invalid_json"),
        (BATCH, b"{}", 422, "invalid_body"),
        (BATCH, b"[1,", 400, "invalid_json"),
        (BATCH, b"[" + b"0," * MAX_EVENTS + b"0]", 413, "body_too_large"),
        (ONE, b'{"x":"' + b"y" * (21 << 20) + b'"}', 413, "body_too_large"),
        (ONE, b'{"x":[' + b"0," * 600_000 + b"0]}", 413, "body_too_large"),
    ):
        got, problem = await post(local, path, body)
        assert (got, problem["code"]) == (status, code), (body[:40], problem)


HOSTILE: dict[str, dict[str, Any]] = {
    "facets of other shapes": {"parent": [], "errorMessage": "?", "airflow": 3, "airflowState": {"tasksState": [1]}},
    "parts of other shapes": {"parent": {"run": {"runId": 5}, "job": {"name": {}}}, "airflow": {"task": {"task_id": 4}},
                              "airflow_mappedTask": {"mapIndex": "x"}},
    "numbers out of range": {"airflow": {"dagRun": {"dag_id": "d", "run_id": "r"},
                                         "task": {"task_id": "t", "retries": 1e300},
                                         "taskInstance": {"map_index": 10**30, "try_number": -5}}},
    "nul": {"airflow": {"dagRun": {"dag_id": "d\0", "run_id": "r\0"}, "task": {"task_id": "t\0"}}},
    "long": {"airflow": {"dagRun": {"dag_id": "d" * 9_999, "run_id": "r" * 9_999}, "task": {"task_id": "t" * 9_999}}},
    "durations": {"airflowState": {"tasksState": {"a": "success", "b": None, "c": "?" * 5000},
                                   "tasksDuration": {"a": -1, "b": 1e308, "c": "x"}}},
}  # fmt: skip


async def test_facets_of_any_shape_cost_no_event(api: Api) -> None:
    for number, (name, facets) in enumerate(HOSTILE.items(), 1):
        for kind, seconds in (("START", 0), ("FAIL", 1)):
            job = f"{number} job\0name" + "n" * 5_000
            body = event(kind, seconds, f"r{number}", job, facets=facets, inputs=["\0", "x" * 9_999])
            assert await post(api, ONE, encoded(body)) == (200, success()), name
        assert [timeline["status"] for timeline in await timelines(api)] == ["failed"] * number, name


async def test_what_clients_send_is_kept_in_their_workspace_with_the_scope_ingest(guarded: Api) -> None:
    body = encoded(event("START", 0, "r", "job"))
    status, problem = await post(guarded, ONE, body)
    assert (status, problem["code"]) == (401, "unauthorized")
    read = await token_for(guarded, scopes=["read"])
    status, problem = await post(guarded, ONE, body, **bearer(read))
    assert (status, problem["code"]) == (403, "forbidden")
    status, _ = await guarded.call("POST", "/api/workspaces", {"slug": "theirs"}, headers=bearer(SERVICE_TOKEN))
    assert status == 201
    ingest = await token_for(guarded, scopes=["ingest"], workspace="theirs")
    assert (await post(guarded, ONE, body, **bearer(ingest)))[0] == 200
    own = await guarded.get("/api/workflows/executions", headers=bearer(SERVICE_TOKEN))
    theirs = await guarded.get("/api/workflows/executions?workspace_slug=theirs", headers=bearer(SERVICE_TOKEN))
    assert (own["total"], theirs["total"]) == (0, 1)
    # The same run in another workspace is another execution.
    assert (await post(guarded, ONE, body, **bearer(SERVICE_TOKEN)))[0] == 200
    own = await guarded.get("/api/workflows/executions", headers=bearer(SERVICE_TOKEN))
    assert own["total"] == 1
    assert own["items"][0]["execution_id"] != theirs["items"][0]["execution_id"]


async def eventually_timelines(api: Api, count: int) -> list[Any]:
    """The timelines once there are so many of ended executions."""
    async with asyncio.timeout(60):
        while True:
            page = await api.get("/api/workflows/executions?limit=1000")
            if sum(item["completed_at"] is not None for item in page["items"]) == count:
                return [await api.get(f"/api/workflows/executions/{i['execution_id']}/timeline") for i in page["items"]]
            await asyncio.sleep(0.05)


def many_runs(count: int) -> list[dict[str, Any]]:
    return [
        event(kind, seconds, run, job, parent=parent)
        for number in range(count)
        for kind, seconds in (("START", 0), ("COMPLETE", 1))
        for run, job, parent in ((f"r{number}", "job", None), (f"s{number}", "job.step", (f"r{number}", "job")))
    ]


async def test_of_many_events_at_once_none_is_lost(api: Api) -> None:
    events = many_runs(60)
    assert await post(api, BATCH, encoded(events)) == (200, success(240))
    shown = await eventually_timelines(api, 60)
    assert {tuple(step["status"] for step in timeline["step_timeline"]) for timeline in shown} == {("completed",)}
    assert await post(api, BATCH, encoded(events)) == (200, success(240))
    assert await eventually_timelines(api, 60) == shown


async def test_what_a_killed_service_left_unread_is_read_by_the_next_one(
    any_database_url: str, handlers: HandlerRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tachograph_exporter.ingest.lineage.receiver.RESUME_SECONDS", 0.0)
    intake = LineageIntake(any_database_url)
    intake.take_events([arrived(encoded(item)) for item in many_runs(3)], is_hurried=True)
    assert intake.timelines() == []
    intake.close()
    async for api in serve(Config(database=any_database_url, grace_seconds=0.1), handlers):
        assert len(await eventually_timelines(api, 3)) == 3
