"""A client that waits for each answer."""

from __future__ import annotations

import urllib.parse
from collections.abc import Iterable
from types import TracebackType
from typing import Final, TypeVar

from tachograph.client.answers import (
    ExecutionComparison,
    ExecutionPage,
    FailureGroupSummary,
    FailurePage,
    LogEntry,
    LogPage,
    WhyAnswer,
    WorkflowExecutionResponse,
    WorkflowExecutionTimeline,
    WorkflowMetricsSummary,
)
from tachograph.client.errors import UnexpectedAnswer
from tachograph.client.references import Duration, RunReference, When, duration_text, find_run_id, time_text, words
from tachograph.client.results import Failures, Report, Run, Runs
from tachograph.client.transport import TIMEOUT_SECONDS, Transport, Values

T = TypeVar("T")

_PAGE: Final = 200
_LINES: Final = 1_000


class Client:
    """Reads the runs of one workspace of a service. Any number of threads may use it.

    Args:
        url: the service's URL (default: ``TACHOGRAPH_URL``, else the default port of this machine).
        token: sent with each request, unless empty (default: ``TACHOGRAPH_TOKEN``); the scope ``read`` is enough.
        workspace: slug of the workspace (default: ``TACHOGRAPH_WORKSPACE``, else that of the token).
        timeout_seconds: how long the service may be silent.

    Every method raises `ServiceProblem` when the service refuses (`NotFound` for what is not there or not for this
    token), `ServiceUnreachable` and `UnexpectedAnswer`. A run is named by itself, its id, the beginning or end of its
    id, ``last``, or the name of its workflow. Raises `SetupError` when the URL is not one of a service.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        token: str | None = None,
        workspace: str | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        self._transport = Transport(url, token=token, workspace=workspace, timeout_seconds=timeout_seconds)

    @property
    def url(self) -> str:
        """The service's URL."""
        return self._transport.url

    def runs(
        self,
        workflow: str | None = None,
        *,
        status: str | Iterable[str] = (),
        since: When | None = None,
        until: When | None = None,
        min_duration: Duration | None = None,
        max_duration: Duration | None = None,
        step: str | None = None,
        text: str | None = None,
        error: str | None = None,
        sort: str | None = None,
        limit: int = 1_000,
    ) -> Runs:
        """Runs, the newest first: at most ``limit``, read in as many pages as they need.

        Args:
            workflow: only of this workflow, by name or id.
            status: only with this status, or one of these.
            since: only created at or after this time.
            until: only created before this time.
            min_duration: only those that took at least this long.
            max_duration: only those that took at most this long.
            step: only with a step of this name or id.
            text: only with this text in their id, workflow's name or error.
            error: only with this text in their error's type or message.
            sort: ``-created``, ``created``, ``-duration`` or ``duration``.
            limit: how many to read at most.
        """
        values: Values = {
            "status": words(status), "from": time_text(since), "to": time_text(until), "q": text, "error": error,
            "min_duration": duration_text(min_duration), "max_duration": duration_text(max_duration), "step": step,
            "sort": sort,
        }  # fmt: skip
        items, total = self._runs(workflow, values, limit)
        return Runs(items, total)

    def run(self, run: RunReference = "last") -> Run:
        """A run with its steps."""
        timeline = self.timeline(run)
        return Run(timeline, lambda: self.report(timeline.execution_id))

    def timeline(self, run: RunReference = "last") -> WorkflowExecutionTimeline:
        """The timeline of a run: every step with its times, its waits, and whether it is on the critical path."""
        return self._transport.get(f"{self._path(run)}/timeline", {}, WorkflowExecutionTimeline)

    def why(self, run: RunReference = "last", *, baseline: Duration | None = None) -> WhyAnswer:
        """Why a run was slow or failed, or what it is doing now. ``baseline``: how far back the usual runs go."""
        return self._transport.get(f"{self._path(run)}/why", {"baseline": duration_text(baseline)}, WhyAnswer)

    def compare(
        self, run: RunReference = "last", other: RunReference | None = None, *, baseline: Duration | None = None
    ) -> ExecutionComparison:
        """A run compared with another one, or without one with the runs of its workflow before it.

        ``baseline``: how far back those go.
        """
        values: Values = {"execution": self._id(run), "baseline": duration_text(baseline)}
        if other is not None:
            values = {"a": self._id(other), "b": self._id(run)}
        return self._transport.get("/api/workflows/executions/compare", values, ExecutionComparison)

    def failures(
        self,
        workflow: str | None = None,
        *,
        since: When | None = None,
        until: When | None = None,
        state: str | Iterable[str] = (),
        sort: str | None = None,
        limit: int = 1_000,
    ) -> Failures:
        """Failures by cause, those seen last first: at most ``limit``, read in as many pages as they need.

        Args:
            workflow: only of this workflow, by name or id.
            since: only failures at or after this time (default: two weeks ago).
            until: only failures before this time.
            state: ``open``, ``regressed``, ``muted``, ``resolved``, or several (default: the first two).
            sort: ``-last_seen``, ``-first_seen``, ``-failures`` or ``-executions``; without the minus upwards.
            limit: how many to read at most.
        """
        values: Values = {
            "workflow": workflow, "from": time_text(since), "to": time_text(until), "state": words(state), "sort": sort
        }  # fmt: skip
        items: dict[str, FailureGroupSummary] = {}
        skip = 0
        while True:
            asked = str(max(1, min(_PAGE, limit - len(items))))
            page = self._transport.get("/api/failures", {**values, "limit": asked, "skip": str(skip)}, FailurePage)
            skip += len(page.items)
            # What is seen meanwhile moves the others to later pages.
            items.update((group.id, group) for group in page.items)
            if not page.items or len(items) >= limit or skip >= page.total:
                return Failures(list(items.values())[: max(0, limit)], page.total)

    def logs(
        self, run: RunReference = "last", *, step: str | None = None, level: str | None = None, limit: int = 1_000
    ) -> list[LogEntry]:
        """The first ``limit`` log lines of a run, or of a step by its name or id, of a level and above."""
        path, lines = f"{self._path(run)}/logs", list[LogEntry]()
        after: str | None = None
        while len(lines) < limit:
            asked = str(min(_LINES, limit - len(lines)))
            page = self._transport.get(path, {"step": step, "level": level, "limit": asked, "after": after}, LogPage)
            lines += page.items
            after = self._next(page.next, after)
            if after is None:
                break
        return lines

    def metrics(self, workflow: str, *, since: When | None = None, until: When | None = None) -> WorkflowMetricsSummary:
        """Percentiles, waits, retries and costs of a workflow and its steps, over the runs that ended in a range."""
        values: Values = {"from": time_text(since), "to": time_text(until)}
        return self._transport.get(f"/api/workflows/{_quoted(workflow)}/metrics", values, WorkflowMetricsSummary)

    def report(self, run: RunReference = "last") -> Report:
        """A run as one HTML file that opens without a service."""
        return Report(self._transport.read(f"{self._path(run)}/report", {}))

    def close(self) -> None:
        """Close the connections to the service."""
        self._transport.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _runs(self, workflow: str | None, values: Values, limit: int) -> tuple[list[WorkflowExecutionResponse], int]:
        path = "/api/workflows/executions"
        if workflow is not None:
            path = f"/api/workflows/{_quoted(workflow)}/executions"
        runs: list[WorkflowExecutionResponse] = []
        after: str | None = None
        while True:
            asked = str(max(1, min(_PAGE, limit - len(runs))))
            page = self._transport.get(path, {**values, "limit": asked, "after": after}, ExecutionPage)
            runs += page.items
            after = self._next(page.next, after)
            if after is None or len(runs) >= limit:
                return runs[: max(0, limit)], page.total

    def _next(self, following: str | None, after: str | None) -> str | None:
        if following is not None and following == after:
            raise UnexpectedAnswer(f"{self.url} answers that a page comes after itself")
        return following

    def _id(self, run: RunReference) -> str:
        if isinstance(run, str):
            return find_run_id(run, lambda workflow, piece: self._runs(workflow, {"id": piece}, 2)[0])
        return run.execution_id

    def _path(self, run: RunReference) -> str:
        return f"/api/workflows/executions/{_quoted(self._id(run))}"


def _quoted(name: str) -> str:
    return urllib.parse.quote(name, safe="")
