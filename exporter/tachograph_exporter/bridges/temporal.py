"""Follows a Temporal server: lists its workflow executions and reads their histories, again and again.

A server tells nobody what happens; so whoever wants to know asks. What changes is asked for every `LOOK_SECONDS`, what
has been quiet for long less often.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import temporalio.api.common.v1 as common
import temporalio.api.workflowservice.v1 as service
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.envconfig import ClientConfig
from temporalio.service import RPCError, RPCStatusCode

from tachograph.integrations.temporal import WorkflowRun
from tachograph.quiet_log import QuietLog
from tachograph.runners.temporal import WORKFLOW
from tachograph_exporter.bridges.errors import BridgeError
from tachograph_exporter.bridges.journal import Journal

log = logging.getLogger(__name__)
quiet = QuietLog(log)

LOOK_SECONDS: Final = 1.0
MAX_LOOK_SECONDS: Final = 60.0
QUIET_SHARE: Final = 0.1
"""An execution of which nothing was heard for a time is asked about after this share of it."""
OVERLAP_SECONDS: Final = 60.0
"""How far back executions are listed again: a server lists them with a delay."""
MAX_AT_ONCE: Final = 16
"""Requests at a time."""
MAX_LOOKS: Final = 200
"""Executions that are asked about at a time, besides new ones: the server has other things to do."""
MAX_OPEN: Final = 10_000
"""Executions that are followed at a time."""
MAX_KNOWN: Final = 100_000
MAX_LISTED: Final = 500
"""So many are listed at a time before they are read."""
MAX_LINES: Final = 10_000
SAVE_SECONDS: Final = 5.0
KEPT_SECONDS: Final = 1_800.0
"""How long an execution is kept after its end: its children may be read after it."""
PAGE: Final = 200
FLUSH_EVENTS: Final = 500
FLUSH_SECONDS: Final = 60.0
MAX_PAUSE_SECONDS: Final = 30.0


async def connect(address: str, namespace: str | None) -> Client:
    """A client of a Temporal server. The rest is as the variables and the file of Temporal's own tools say."""
    try:
        options: dict[str, Any] = {**ClientConfig.load_client_connect_config()}
    except Exception as error:
        raise BridgeError(f"the configuration of Temporal cannot be read: {error}") from None
    options["target_host"] = address
    if namespace is not None:
        options["namespace"] = namespace
    # It connects when it is first used: a server that is away is tried again.
    return await Client.connect(**options, lazy=True)


class _Followed:
    """A workflow execution that is followed."""

    def __init__(self, run: WorkflowRun, now: float) -> None:
        self.run = run
        self.changed_at = now
        self.due = now
        self.closed_at: float | None = None
        self.lock = asyncio.Lock()

    def looked(self, now: float, *, has_changed: bool) -> None:
        if has_changed:
            self.changed_at = now
        self.due = now + min(max(LOOK_SECONDS, QUIET_SHARE * (now - self.changed_at)), MAX_LOOK_SECONDS)


class TemporalBridge:
    """Reports the workflow executions of a namespace until it is cancelled; a server that is away is tried again.

    Args:
        client: of the server.
        journal: how far was read.
        flush: waits until what was reported is delivered or spooled.
        since: the first time, executions that have ended since are read, too; unix seconds.
    """

    def __init__(self, client: Client, journal: Journal, flush: Callable[[float], bool], since: float) -> None:
        self._client = client
        self._journal = journal
        self._flush = flush
        journal.read()
        self._cursor = journal.cursor if journal.cursor is not None else since
        self._is_first = True
        self._followed: dict[str, _Followed] = {}
        self._known: OrderedDict[str, None] = OrderedDict()
        self._slots = asyncio.Semaphore(MAX_AT_ONCE)
        self._unflushed = 0

    async def run(self) -> None:
        """Follow the server."""
        pause = LOOK_SECONDS
        while True:
            try:
                await self.poll()
                pause = LOOK_SECONDS
            except (RPCError, OSError, RuntimeError) as error:
                # The SDK has no error of its own for a server that is away.
                quiet.warning(("away", type(error)), "the Temporal server cannot be read: %s; trying again", error)
                pause = min(2 * pause, MAX_PAUSE_SECONDS)
            await asyncio.sleep(pause)

    async def poll(self) -> None:
        """Find new executions, and see what those do that are followed."""
        began = time.time()
        for query in self._queries():
            count = 0
            async for execution in self._client.list_workflows(query):
                # Tachograph's own runs on Temporal are recorded by their workers.
                if execution.workflow_type != WORKFLOW:
                    self._follow(execution.id, execution.run_id)
                count += 1
                if count % MAX_LISTED == 0:
                    await self._look_at_due()
        await self._look_at_due()
        if self._is_first:
            self._is_first = False
            log.info("following the Temporal server, %d workflows are running", len(self._open()))
        self._cursor = max(self._cursor, began)
        if self._cursor - (self._journal.cursor or 0.0) > SAVE_SECONDS:
            self.save()
        self._give_back()

    async def _look_at_due(self) -> None:
        now = time.monotonic()
        due = [followed for followed in self._followed.values() if followed.closed_at is None and followed.due <= now]
        # What was never read comes first, and of the others what has waited longest.
        due.sort(key=lambda followed: (followed.run.last_event_id > 0, followed.due))
        new = sum(not followed.run.last_event_id for followed in due)
        due = due[: max(new, MAX_LOOKS)]
        # All of them have been asked about before this one's error is told.
        results = await asyncio.gather(*[self._look_in_turn(followed) for followed in due], return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    def _queries(self) -> Sequence[str]:
        moment = datetime.fromtimestamp(max(0.0, self._cursor - OVERLAP_SECONDS), UTC).isoformat()
        if self._is_first:
            return ('ExecutionStatus = "Running"', f'CloseTime >= "{moment}"')
        return (f'StartTime >= "{moment}"',)

    def _open(self) -> list[_Followed]:
        return [followed for followed in self._followed.values() if followed.closed_at is None]

    def _follow(self, workflow_id: str, run_id: str) -> _Followed | None:
        if run_id in self._known:
            return self._followed.get(run_id)
        if len(self._followed) >= MAX_OPEN:
            self._give_back(kept_seconds=0.0)
        if len(self._followed) >= MAX_OPEN:
            quiet.warning("many", "not reported: more than %d workflows at a time", MAX_OPEN)
            return None
        self._known[run_id] = None
        if len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)
        followed = self._followed[run_id] = _Followed(WorkflowRun(workflow_id, run_id, self._run), time.monotonic())
        return followed

    def _run(self, run_id: str) -> WorkflowRun | None:
        followed = self._followed.get(run_id)
        return followed.run if followed is not None else None

    async def _look_in_turn(self, followed: _Followed) -> None:
        async with self._slots:
            await self._look(followed)

    async def _look(self, followed: _Followed) -> None:
        run = followed.run
        async with followed.lock:
            if followed.closed_at is not None:
                return
            handle = self._client.get_workflow_handle(run.workflow_id, run_id=run.run_id)
            try:
                description = await handle.describe()
                # What is under way now may have ended when the history is read; its attempts are known only from here.
                pending = description.raw_description.pending_activities
                run.look(pending)
                is_open = description.status is WorkflowExecutionStatus.RUNNING
                has_changed = not is_open or description.history_length > run.last_event_id
                if has_changed:
                    await self._read(run)
                    run.look(pending)
            except RPCError as error:
                if error.status is not RPCStatusCode.NOT_FOUND:
                    raise
                # The server keeps ended executions for some days only.
                is_open, has_changed = False, True
            now = time.monotonic()
            followed.looked(now, has_changed=has_changed)
            if not is_open:
                followed.closed_at = now

    async def _read(self, run: WorkflowRun) -> None:
        """Tell of what is new in a history."""
        if run.last_event_id:
            events = await self._newest(run)
        else:
            handle = self._client.get_workflow_handle(run.workflow_id, run_id=run.run_id)
            events = [event async for event in handle.fetch_history_events()]
            for event in events[:1]:
                started = event.workflow_execution_started_event_attributes
                if started.HasField("parent_workflow_execution"):
                    await self._read_parent(started.parent_workflow_execution)
        run.hear(events)
        self._unflushed += len(events)
        if self._unflushed >= FLUSH_EVENTS:
            self._unflushed = 0
            await asyncio.to_thread(self._flush, FLUSH_SECONDS)

    async def _read_parent(self, parent: Any) -> None:
        """A child is a step of its parent: which one, the parent's history says."""
        followed = self._follow(parent.workflow_id, parent.run_id)
        if followed is not None:
            await self._look(followed)

    async def _newest(self, run: WorkflowRun) -> list[Any]:
        """The events of a history that were not heard, read from its end."""
        events: list[Any] = []
        token = b""
        while True:
            page = await self._client.workflow_service.get_workflow_execution_history_reverse(
                service.GetWorkflowExecutionHistoryReverseRequest(
                    namespace=self._client.namespace,
                    execution=common.WorkflowExecution(workflow_id=run.workflow_id, run_id=run.run_id),
                    maximum_page_size=PAGE,
                    next_page_token=token,
                ),
                retry=True,
            )
            new = [event for event in page.history.events if event.event_id > run.last_event_id]
            events += new
            token = page.next_page_token
            if not token or len(new) < len(page.history.events):
                return events[::-1]

    def _give_back(self, kept_seconds: float = KEPT_SECONDS) -> None:
        limit = time.monotonic() - kept_seconds
        for run_id in [
            run_id
            for run_id, followed in self._followed.items()
            if followed.closed_at is not None and followed.closed_at <= limit
        ]:
            self._followed.pop(run_id).run.forget()

    def save(self) -> None:
        """Note how far was read."""
        self._journal.reached(self._cursor)
        if self._journal.lines > MAX_LINES:
            self._journal.compact([])
