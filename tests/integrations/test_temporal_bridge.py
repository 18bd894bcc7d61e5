"""The bridge asks a Temporal server again and again: what is new, what is under way, and what it has not read."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.conftest import Api
from tests.ingest.truth import differences
from tests.integrations.test_prefect import shown
from tests.integrations.test_temporal import RECORDING, history

from tachograph.report import runs
from tachograph_exporter.bridges.journal import Journal

bridges = pytest.importorskip("tachograph_exporter.bridges.temporal", reason="needs temporalio")
from temporalio.client import WorkflowExecutionStatus  # noqa: E402
from temporalio.service import RPCError, RPCStatusCode  # noqa: E402

NAMES = ("nightly", "asked", "cancelled", "continued", "worker_killed")


@dataclasses.dataclass
class Handle:
    """Of a recorded run, of which the server has so many events."""

    client: Client
    run_id: str

    async def describe(self) -> Any:
        events = self.client.events(self.run_id)
        status = WorkflowExecutionStatus.RUNNING
        if len(events) == len(history(self.run_id)[1]):
            status = WorkflowExecutionStatus.COMPLETED
        raw = SimpleNamespace(pending_activities=[])
        return SimpleNamespace(status=status, history_length=len(events), raw_description=raw)

    async def fetch_history_events(self) -> AsyncIterator[Any]:
        for event in self.client.events(self.run_id):
            yield event


class Client:
    """What the bridge uses of Temporal's client, of a server with recorded runs."""

    namespace = "default"

    def __init__(self) -> None:
        self.upto: dict[str, int] = {}
        self.queries: list[str] = []
        self.pages = 0
        self.is_away = False
        self.workflow_service = self

    def events(self, run_id: str) -> list[Any]:
        if self.is_away:
            raise RPCError("away", RPCStatusCode.UNAVAILABLE, b"")
        if run_id not in self.upto:
            raise RPCError("gone", RPCStatusCode.NOT_FOUND, b"")
        return history(run_id)[1][: self.upto[run_id]]

    async def list_workflows(self, query: str) -> AsyncIterator[Any]:
        self.queries.append(query)
        # The newest first: children before their parents.
        for run_id in sorted(self.upto, reverse=True):
            yield SimpleNamespace(id=history(run_id)[0], run_id=run_id, workflow_type="Any")
        yield SimpleNamespace(id="ours", run_id="ours", workflow_type="tachograph")

    def get_workflow_handle(self, workflow_id: str, run_id: str) -> Handle:
        return Handle(self, run_id)

    async def get_workflow_execution_history_reverse(self, request: Any, retry: bool) -> Any:
        self.pages += 1
        newest_first = self.events(request.execution.run_id)[::-1]
        begin = int(request.next_page_token or b"0")
        page = newest_first[begin : begin + 3]
        token = b"%d" % (begin + 3) if begin + 3 < len(newest_first) else b""
        return SimpleNamespace(history=SimpleNamespace(events=page), next_page_token=token)


async def test_a_bridge_reads_what_is_new_and_goes_on_after_a_restart(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bridges, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(bridges, "QUIET_SHARE", 0.0)
    runs._runs.clear()
    client = Client()
    executions = [execution for name in NAMES for execution in RECORDING["truths"][name]["executions"]]
    lengths = {execution["run_id"]: len(history(execution["run_id"])[1]) for execution in executions}

    def bridge(journal: Journal) -> Any:
        return bridges.TemporalBridge(client, journal, lambda seconds: True, 1_796_000_000.0)

    journal = Journal(tmp_path / "temporal.jsonl")
    first = bridge(journal)
    monkeypatch.setattr(bridges, "MAX_LOOKS", 3)
    for part in (4, 9, 10, 15):
        client.upto = {run_id: min(part, length) for run_id, length in lengths.items()}
        await first.poll()
    # Each had its turn.
    assert {followed.run.last_event_id for followed in first._open()} == {9, 10, 15}
    monkeypatch.setattr(bridges, "MAX_LOOKS", 100)
    await first.poll()
    assert {followed.run.last_event_id for followed in first._open()} == {15}
    assert client.queries[0] == 'ExecutionStatus = "Running"'
    assert client.queries[2].startswith("StartTime >= ")
    # Of what was read before, at most a page is read again.
    assert 0 < client.pages < 60
    client.is_away = True
    with pytest.raises(RPCError):
        await first.poll()
    client.is_away = False
    first.save()
    journal.close()
    runs._runs.clear()
    journal = Journal(tmp_path / "temporal.jsonl")
    second = bridge(journal)
    assert second._cursor > 1_796_000_000.0
    monkeypatch.setattr(bridges, "MAX_LISTED", 3)
    client.upto = lengths
    await second.poll()
    await second.poll()
    assert second._open() == []
    journal.close()
    timelines = await shown(api)
    assert len(timelines) == len(executions)
    for name in NAMES:
        workflows = {execution["workflow"] for execution in RECORDING["truths"][name]["executions"]}
        of_scene = [timeline for timeline in timelines if timeline["workflow_name"] in workflows]
        assert differences(RECORDING["truths"][name], of_scene, tolerance_seconds=0.05) == []


async def test_what_the_server_has_deleted_is_left_alone(tmp_path: Path) -> None:
    client = Client()
    (run_id,) = (execution["run_id"] for execution in RECORDING["truths"]["asked"]["executions"])
    client.upto = {run_id: 5}
    journal = Journal(tmp_path / "temporal.jsonl")
    bridge = bridges.TemporalBridge(client, journal, lambda seconds: True, 0.0)
    bridge._follow("asked-3", run_id)
    bridge._follow("gone-1", "gone")
    await bridge.poll()
    assert [followed.run.workflow_id for followed in bridge._open()] == ["asked-3"]
    bridge.save()
    journal.close()
