"""A client that is awaited. It asks in threads of its own: reading a long answer would hold up the event loop too."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Final, ParamSpec, TypeVar

from tachograph.client.answers import (
    ExecutionComparison,
    LogEntry,
    WhyAnswer,
    WorkflowExecutionTimeline,
    WorkflowMetricsSummary,
)
from tachograph.client.client import Client
from tachograph.client.references import Duration, RunReference, When
from tachograph.client.results import Failures, Report, Run, Runs
from tachograph.client.transport import TIMEOUT_SECONDS

P = ParamSpec("P")
T = TypeVar("T")

_THREADS: Final = 4


class AsyncClient:
    """`Client` for programs with an event loop: the same methods, awaited.

    At most four requests are under way at a time; others wait for their turn. A request that is cancelled ends in its
    thread, and its answer is dropped.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        token: str | None = None,
        workspace: str | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        self._client = Client(url, token=token, workspace=workspace, timeout_seconds=timeout_seconds)
        self._threads = _new_threads()
        self._process = os.getpid()

    @property
    def url(self) -> str:
        """The service's URL."""
        return self._client.url

    async def runs(
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
        """See `Client.runs`."""
        return await self._ask(
            self._client.runs, workflow, status=status, since=since, until=until, min_duration=min_duration,
            max_duration=max_duration, step=step, text=text, error=error, sort=sort, limit=limit,
        )  # fmt: skip

    async def run(self, run: RunReference = "last") -> Run:
        """See `Client.run`."""
        return await self._ask(self._client.run, run)

    async def timeline(self, run: RunReference = "last") -> WorkflowExecutionTimeline:
        """See `Client.timeline`."""
        return await self._ask(self._client.timeline, run)

    async def why(self, run: RunReference = "last", *, baseline: Duration | None = None) -> WhyAnswer:
        """See `Client.why`."""
        return await self._ask(self._client.why, run, baseline=baseline)

    async def compare(
        self, run: RunReference = "last", other: RunReference | None = None, *, baseline: Duration | None = None
    ) -> ExecutionComparison:
        """See `Client.compare`."""
        return await self._ask(self._client.compare, run, other, baseline=baseline)

    async def failures(
        self,
        workflow: str | None = None,
        *,
        since: When | None = None,
        until: When | None = None,
        state: str | Iterable[str] = (),
        sort: str | None = None,
        limit: int = 1_000,
    ) -> Failures:
        """See `Client.failures`."""
        return await self._ask(
            self._client.failures, workflow, since=since, until=until, state=state, sort=sort, limit=limit
        )

    async def logs(
        self, run: RunReference = "last", *, step: str | None = None, level: str | None = None, limit: int = 1_000
    ) -> list[LogEntry]:
        """See `Client.logs`."""
        return await self._ask(self._client.logs, run, step=step, level=level, limit=limit)

    async def metrics(
        self, workflow: str, *, since: When | None = None, until: When | None = None
    ) -> WorkflowMetricsSummary:
        """See `Client.metrics`."""
        return await self._ask(self._client.metrics, workflow, since=since, until=until)

    async def report(self, run: RunReference = "last") -> Report:
        """See `Client.report`."""
        return await self._ask(self._client.report, run)

    async def close(self) -> None:
        """Close the connections to the service. Requests that are under way end by themselves."""
        if self._process == os.getpid():
            self._threads.shutdown(wait=False, cancel_futures=True)
        self._client.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def _ask(self, method: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        if self._process != os.getpid():
            # A forked child has none of its parent's threads.
            self._process, self._threads = os.getpid(), _new_threads()
        call = functools.partial(method, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)


def _new_threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_THREADS, thread_name_prefix="tachograph-client")
