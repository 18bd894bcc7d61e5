"""A service as a `Source`: its HTTP API, over the standard library, which is loaded fastest."""

from __future__ import annotations

import http.client
import os
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeVar

import msgspec

from tachograph.clock import NS
from tachograph_exporter.cli.common import fail
from tachograph_exporter.cli.sources import LogQuery
from tachograph_exporter.defaults import TOKEN_VARIABLE
from tachograph_exporter.reading.queries import FailureQuery, RunQuery
from tachograph_exporter.times import rfc3339
from tachograph_exporter.views.schemas.comparison import ExecutionComparison
from tachograph_exporter.views.schemas.executions import ExecutionStats, WorkflowExecutionResponse
from tachograph_exporter.views.schemas.expectations import WorkflowExpectation
from tachograph_exporter.views.schemas.failures import FailureGroupDetail, FailurePage
from tachograph_exporter.views.schemas.logs import LogEntry
from tachograph_exporter.views.schemas.metrics import WorkflowMetricsSummary
from tachograph_exporter.views.schemas.night import Night
from tachograph_exporter.views.schemas.timeline import SpansBelow, WorkflowExecutionTimeline
from tachograph_exporter.views.schemas.trends import WorkflowTrends
from tachograph_exporter.views.schemas.why import WhyAnswer
from tachograph_exporter.views.schemas.workflows import WorkflowDetail, WorkflowSummary

T = TypeVar("T")

_PAGE: Final = 200
_LINES: Final = 1_000
_MAX_BYTES: Final = 256 << 20
_TIMEOUT_SECONDS: Final = 60.0
_ANY_JSON: Final = ("input_variables", "input_summary", "output_summary", "results")
"""Fields that hold any JSON; the schemas keep them encoded."""


class _NotFound(Exception):
    """The service has no such thing."""


class ServiceSource:
    """Reads a workspace of a service."""

    def __init__(self, url: str, workspace: str | None) -> None:
        self._base = url.rstrip("/")
        self.name = self._base if workspace is None else f'workspace "{workspace}" of {self._base}'
        self.url: str | None = self._base
        if not _is_address(self._base):
            fail(f"{url!r} is not a valid URL; expected http://HOST:PORT")
        self._parameters = {"workspace_slug": workspace} if workspace is not None else {}
        token = os.environ.get(TOKEN_VARIABLE)
        self._headers = {"Accept": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}

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
            path = f"/api/workflows/{_quoted(query.workflow)}/executions"
        runs: list[WorkflowExecutionResponse] = []
        while True:
            asked = min(_PAGE, limit - len(runs))
            try:
                page = self._get(path, {**parameters, "limit": str(max(1, asked))})
            except _NotFound:
                return [], 0
            runs += [self._read(item, WorkflowExecutionResponse) for item in page["items"][:asked]]
            if len(runs) >= limit or not page.get("next"):
                return runs, int(page["total"])
            parameters["after"] = page["next"]

    def timeline(self, execution_id: str) -> WorkflowExecutionTimeline | None:
        """See `Source`."""
        try:
            document = self._get(f"/api/workflows/executions/{_quoted(execution_id)}/timeline")
        except _NotFound:
            return None
        steps = document["step_timeline"]
        kept = [_taken(entry) for entry in steps]
        timeline = self._read(document, WorkflowExecutionTimeline)
        for entry, values in zip(timeline.step_timeline, kept, strict=True):
            _put_back(entry, values)
        return timeline

    def logs(self, execution_id: str, query: LogQuery, limit: int) -> tuple[list[LogEntry], bool]:
        """See `Source`."""
        path = f"/api/workflows/executions/{_quoted(execution_id)}/logs"
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

    def below(self, execution_id: str) -> dict[str, list[SpansBelow]]:
        """See `Source`."""
        document = self._found(f"/api/workflows/executions/{_quoted(execution_id)}/timeline", {"below": "true"})
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
        return self._optional(f"/api/failures/{_quoted(group_id)}", parameters, FailureGroupDetail)

    def change_failure(self, group_id: str, action: str, note: str) -> FailureGroupDetail | None:
        """See `Source`."""
        try:
            said = {"action": action, "note": note}
            document = self._get(f"/api/failures/{_quoted(group_id)}", method="POST", body=said)
        except _NotFound:
            return None
        return self._read(document, FailureGroupDetail)

    def metrics(self, workflow: str, from_ns: int | None, to_ns: int | None) -> WorkflowMetricsSummary | None:
        """See `Source`."""
        parameters = {n: rfc3339(v) for n, v in (("from", from_ns), ("to", to_ns)) if v is not None}
        return self._optional(f"/api/workflows/{_quoted(workflow)}/metrics", parameters, WorkflowMetricsSummary)

    def trends(self, workflow: str, bucket: str, from_ns: int | None, step: str | None) -> WorkflowTrends | None:
        """See `Source`."""
        parameters = {"bucket": bucket}
        if from_ns is not None:
            parameters["from"] = rfc3339(from_ns)
        if step is not None:
            parameters["step"] = step
        return self._optional(f"/api/workflows/{_quoted(workflow)}/trends", parameters, WorkflowTrends)

    def compare(self, execution_id: str, other: str | None, baseline_ns: int) -> ExecutionComparison:
        """See `Source`."""
        parameters = {"execution": execution_id, "baseline": f"{baseline_ns / NS:.3f}s"}
        if other is not None:
            parameters = {"a": other, "b": execution_id}
        return self._read(self._found("/api/workflows/executions/compare", parameters), ExecutionComparison)

    def why(self, execution_id: str, baseline_ns: int) -> WhyAnswer:
        """See `Source`."""
        path = f"/api/workflows/executions/{_quoted(execution_id)}/why"
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
        return self._optional(f"/api/workflows/{_quoted(name)}", {}, WorkflowDetail)

    def expectation(self, name: str) -> WorkflowExpectation:
        """See `Source`."""
        return self._read(self._found(f"/api/expectations/{_quoted(name)}"), WorkflowExpectation)

    def statistics(self) -> ExecutionStats:
        """See `Source`."""
        return self._read(self._found("/api/workflows/executions/stats"), ExecutionStats)

    def delete_workflow(self, name: str) -> None:
        """See `Source`."""
        self._found(f"/api/workflows/{_quoted(name)}", method="DELETE")

    def cancel(self, execution_id: str) -> Any:
        """See `Source`."""
        return self._found(f"/api/workflows/executions/{_quoted(execution_id)}/cancel", method="POST")

    def _optional(self, path: str, parameters: Mapping[str, str], kind: type[T]) -> T | None:
        try:
            return self._read(self._get(path, parameters), kind)
        except _NotFound:
            return None

    def _found(self, path: str, parameters: Mapping[str, str] = {}, method: str = "GET") -> Any:
        try:
            return self._get(path, parameters, method)
        except _NotFound as error:
            fail(f"{self._base}: {error}")

    def _read(self, document: Any, kind: type[T]) -> T:
        values = _taken(document)
        try:
            view = msgspec.convert(document, kind)
        except msgspec.ValidationError as error:
            fail(f"{self._base} answers in a form that this version does not read ({error}); is it another version?")
        _put_back(view, values)
        return view

    def _get(
        self, path: str, parameters: Mapping[str, str] = {}, method: str = "GET", body: Mapping[str, str] | None = None
    ) -> Any:
        query = urllib.parse.urlencode({**self._parameters, **parameters})
        address = f"{self._base}{path}{'?' if query else ''}{query}"
        sent = msgspec.json.encode(body) if body is not None else None
        headers = {**self._headers, **({"Content-Type": "application/json"} if sent is not None else {})}
        request = urllib.request.Request(address, sent, headers, method=method)  # noqa: S310 - http(s) only
        try:
            with _OPENER.open(request, timeout=_TIMEOUT_SECONDS) as response:
                received = response.read(_MAX_BYTES + 1)
        except urllib.error.HTTPError as error:
            with error:
                self._refused(error.code, error.read(65_536))
        except (urllib.error.URLError, OSError, http.client.HTTPException, ssl.SSLError, ValueError) as error:
            reason = getattr(error, "reason", error)
            fail(f"{self._base} does not answer ({reason or type(error).__name__}); is `tachograph serve` running?")
        if len(received) > _MAX_BYTES:
            fail(f"{self._base} answered with more than {_MAX_BYTES >> 20} MiB")
        if not received:
            return {}
        document = _json(received)
        if not isinstance(document, dict):
            fail(f"{self._base} does not answer as Tachograph does; is it another program, or a proxy's login page?")
        return document

    def _refused(self, status: int, body: bytes) -> None:
        problem = _json(body)
        code = problem.get("code") if isinstance(problem, dict) else None
        detail = str(problem.get("detail") or "") if isinstance(problem, dict) else ""
        if status == 404 and code is not None:
            raise _NotFound(detail)
        reasons = {
            401: f"a valid token is required: set {TOKEN_VARIABLE}",
            403: "the token does not allow this",
            404: "no Tachograph service at this address",
            429: "too many requests; try again later",
            503: "not available now; try again later",
        }
        reason = reasons.get(status, "")
        said = f": {detail}" if detail and status != 401 else ""
        fail(f"{self._base} answered {status}{f', {reason}' if reason else ''}{said}")


def _is_address(url: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(url)
        return (
            parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and parts.port != 0
            and url.isprintable()
            and " " not in url
        )
    except ValueError:
        return False


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is reported and not followed: it would carry the token elsewhere."""

    def redirect_request(self, *_arguments: Any) -> None:
        return None


_OPENER: Final = urllib.request.build_opener(_NoRedirect)


def _quoted(name: str) -> str:
    return urllib.parse.quote(name, safe="")


def _json(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _taken(document: Any) -> dict[str, msgspec.Raw]:
    """Take the fields that hold any JSON out of a document, encoded."""
    values = {}
    if isinstance(document, dict):
        for name in _ANY_JSON:
            if document.get(name) is not None:
                values[name] = msgspec.Raw(msgspec.json.encode(document[name]))
                document[name] = None
    return values


def _put_back(view: Any, values: Mapping[str, msgspec.Raw]) -> None:
    for name, value in values.items():
        setattr(view, name, value)
