"""A service as a `Source`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Final

from tachograph.clock import NS
from tachograph_exporter.cli.common import fail
from tachograph_exporter.cli.service_client import NotFound, ServiceClient, put_back, quoted, taken
from tachograph_exporter.cli.sources import LogQuery
from tachograph_exporter.reading.queries import FailureQuery, RunQuery
from tachograph_exporter.times import rfc3339
from tachograph_exporter.views.schemas.comparison import ExecutionComparison
from tachograph_exporter.views.schemas.executions import ExecutionStats, WorkflowExecutionResponse
from tachograph_exporter.views.schemas.expectations import WorkflowExpectation
from tachograph_exporter.views.schemas.failures import FailureGroupDetail, FailurePage
from tachograph_exporter.views.schemas.logs import LogEntry
from tachograph_exporter.views.schemas.metrics import WorkflowMetricsSummary
from tachograph_exporter.views.schemas.night import Night
from tachograph_exporter.views.schemas.stacks import ExecutionStacks
from tachograph_exporter.views.schemas.timeline import SpansBelow, WorkflowExecutionTimeline
from tachograph_exporter.views.schemas.trends import WorkflowTrends
from tachograph_exporter.views.schemas.why import WhyAnswer
from tachograph_exporter.views.schemas.workflows import WorkflowDetail, WorkflowSummary

_PAGE: Final = 200
_LINES: Final = 1_000


class ServiceSource(ServiceClient):
    """Reads a workspace of a service."""

    def __init__(self, url: str, workspace: str | None) -> None:
        super().__init__(url, workspace)
        self.name = self._base if workspace is None else f'workspace "{workspace}" of {self._base}'
        self.url: str | None = self._base

    def runs(self, query: RunQuery, limit: int) -> tuple[list[WorkflowExecutionResponse], int]:
        """See `Source`."""
        parameters: dict[str, str] = {}
        if query.statuses:
            parameters["status"] = ",".join(query.statuses)
        for name, value in (("from", query.from_ns), ("to", query.to_ns)):
            if value is not None:
                parameters[name] = rfc3339(value)
        parameters |= {n: v for n, v in (("error", query.error), ("id", query.id)) if v is not None}
        path = "/api/workflows/executions"
        if query.workflow is not None:
            path = f"/api/workflows/{quoted(query.workflow)}/executions"
        runs: list[WorkflowExecutionResponse] = []
        while True:
            asked = min(_PAGE, limit - len(runs))
            try:
                page = self._get(path, {**parameters, "limit": str(max(1, asked))})
            except NotFound:
                return [], 0
            runs += [self._read(item, WorkflowExecutionResponse) for item in page["items"][:asked]]
            if len(runs) >= limit or not page.get("next"):
                return runs, int(page["total"])
            parameters["after"] = page["next"]

    def timeline(self, execution_id: str) -> WorkflowExecutionTimeline | None:
        """See `Source`."""
        try:
            document = self._get(f"/api/workflows/executions/{quoted(execution_id)}/timeline")
        except NotFound:
            return None
        steps = document["step_timeline"]
        kept = [taken(entry) for entry in steps]
        timeline = self._read(document, WorkflowExecutionTimeline)
        for entry, values in zip(timeline.step_timeline, kept, strict=True):
            put_back(entry, values)
        return timeline

    def logs(self, execution_id: str, query: LogQuery, limit: int) -> tuple[list[LogEntry], bool]:
        """See `Source`."""
        path = f"/api/workflows/executions/{quoted(execution_id)}/logs"
        parameters = {name: str(value) for name, value in query._asdict().items() if value is not None}
        if limit <= _LINES:
            page = self._found(path, {**parameters, "last": str(limit)})
            return [self._read(item, LogEntry) for item in page["items"]], page["has_older"]
        parameters["limit"] = str(_LINES)
        lines: list[LogEntry] = []
        are_older = False
        while True:
            page = self._found(path, parameters)
            lines += [self._read(item, LogEntry) for item in page["items"]]
            are_older = are_older or len(lines) > limit
            lines = lines[-limit:]
            if not page.get("next"):
                return lines, are_older
            parameters["after"] = page["next"]

    def report(self, execution_id: str) -> bytes:
        """See `Source`."""
        try:
            return self._receive(f"/api/workflows/executions/{quoted(execution_id)}/report")
        except NotFound as error:
            fail(f"{self._base}: {error}")

    def below(self, execution_id: str) -> dict[str, list[SpansBelow]]:
        """See `Source`."""
        document = self._found(f"/api/workflows/executions/{quoted(execution_id)}/timeline", {"below": "true"})
        return {
            entry["step_id"]: [self._read(spans, SpansBelow) for spans in entry["below"]]
            for entry in document["step_timeline"]
            if entry.get("below")
        }

    def failures(self, query: FailureQuery, limit: int) -> FailurePage | None:
        """See `Source`."""
        parameters = {n: rfc3339(v) for n, v in (("from", query.from_ns), ("to", query.to_ns)) if v is not None}
        parameters |= {"sort": query.sort, "limit": str(limit)}
        if query.workflow is not None:
            parameters["workflow"] = query.workflow
        if query.states:
            parameters["state"] = ",".join(query.states)
        return self._optional("/api/failures", parameters, FailurePage)

    def failure(self, group_id: str, from_ns: int | None, limit: int) -> FailureGroupDetail | None:
        """See `Source`."""
        parameters = {"limit": str(limit)} | ({"from": rfc3339(from_ns)} if from_ns is not None else {})
        return self._optional(f"/api/failures/{quoted(group_id)}", parameters, FailureGroupDetail)

    def change_failure(self, group_id: str, action: str, note: str) -> FailureGroupDetail | None:
        """See `Source`."""
        try:
            said = {"action": action, "note": note}
            document = self._get(f"/api/failures/{quoted(group_id)}", method="POST", body=said)
        except NotFound:
            return None
        return self._read(document, FailureGroupDetail)

    def metrics(self, workflow: str, from_ns: int | None, to_ns: int | None) -> WorkflowMetricsSummary | None:
        """See `Source`."""
        parameters = {n: rfc3339(v) for n, v in (("from", from_ns), ("to", to_ns)) if v is not None}
        return self._optional(f"/api/workflows/{quoted(workflow)}/metrics", parameters, WorkflowMetricsSummary)

    def trends(self, workflow: str, bucket: str, from_ns: int | None, step: str | None) -> WorkflowTrends | None:
        """See `Source`."""
        parameters = {"bucket": bucket}
        if from_ns is not None:
            parameters["from"] = rfc3339(from_ns)
        if step is not None:
            parameters["step"] = step
        return self._optional(f"/api/workflows/{quoted(workflow)}/trends", parameters, WorkflowTrends)

    def compare(self, execution_id: str, other: str | None, baseline_ns: int) -> ExecutionComparison:
        """See `Source`."""
        parameters = {"execution": execution_id, "baseline": f"{baseline_ns / NS:.3f}s"}
        if other is not None:
            parameters = {"a": other, "b": execution_id}
        return self._read(self._found("/api/workflows/executions/compare", parameters), ExecutionComparison)

    def why(self, execution_id: str, baseline_ns: int) -> WhyAnswer:
        """See `Source`."""
        path = f"/api/workflows/executions/{quoted(execution_id)}/why"
        return self._read(self._found(path, {"baseline": f"{baseline_ns / NS:.3f}s"}), WhyAnswer)

    def workflows(self) -> Sequence[WorkflowSummary]:
        """See `Source`."""
        items: list[WorkflowSummary] = []
        while True:
            parameters = {"include_steps": "false", "limit": str(_PAGE), "skip": str(len(items))}
            page = self._found("/api/workflows", parameters)
            items += [self._read(item, WorkflowSummary) for item in page["items"]]
            if not page["items"] or len(items) >= page["total"]:
                return items

    def night(self, from_ns: int, to_ns: int) -> Night:
        """See `Source`."""
        return self._read(self._found("/api/night", {"from": rfc3339(from_ns), "to": rfc3339(to_ns)}), Night)

    def names(self) -> Sequence[str]:
        """See `Source`."""
        return [workflow.name for workflow in self.workflows()]

    def workflow(self, name: str) -> WorkflowDetail | None:
        """See `Source`."""
        return self._optional(f"/api/workflows/{quoted(name)}", {}, WorkflowDetail)

    def expectation(self, name: str) -> WorkflowExpectation:
        """See `Source`."""
        return self._read(self._found(f"/api/expectations/{quoted(name)}"), WorkflowExpectation)

    def statistics(self) -> ExecutionStats:
        """See `Source`."""
        return self._read(self._found("/api/workflows/executions/stats"), ExecutionStats)

    def delete_workflow(self, name: str) -> None:
        """See `Source`."""
        self._found(f"/api/workflows/{quoted(name)}", method="DELETE")

    def stacks(self, execution_id: str, names: Collection[str], *, is_asked: bool) -> ExecutionStacks:
        """See `Source`."""
        path = f"/api/workflows/executions/{quoted(execution_id)}/stacks"
        parameters = {"now": str(is_asked).lower()}
        if names and not any("," in name for name in names):
            parameters["step"] = ",".join(names)
        answer = self._read(self._found(path, parameters), ExecutionStacks)
        answer.items = [item for item in answer.items if not names or item.step_name in names or item.step_id in names]
        return answer

    def cancel(self, execution_id: str) -> Any:
        """See `Source`."""
        return self._found(f"/api/workflows/executions/{quoted(execution_id)}/cancel", method="POST")
