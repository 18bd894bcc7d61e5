"""``tachograph watch``: live events in the terminal."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections import deque
from contextlib import aclosing, suppress
from typing import Annotated, Any, Final

import aiohttp
import msgspec
import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tachograph.clock import NS
from tachograph.events import ExecutionStatus
from tachograph_exporter.cli.common import JsonOption, app, err, fail, json_text, out
from tachograph_exporter.cli.moments import clock
from tachograph_exporter.cli.terminal import COLOURS, MARKS, TimelineView, printable, shown
from tachograph_exporter.defaults import DEFAULT_LISTEN, TOKEN_VARIABLE
from tachograph_exporter.stream.client import Refused, follow
from tachograph_exporter.stream.messages import StreamMessage
from tachograph_exporter.times import format_duration
from tachograph_exporter.views.schemas.timeline import WorkflowExecutionTimeline

_ID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_PIECE: Final = re.compile(r"last|[0-9a-f-]{4,36}")
_MAX_LINES: Final = 12
_REFRESH_SECONDS: Final = 0.25


@app.command()
def watch(
    subject: Annotated[
        str | None,
        typer.Argument(help="Workflow (name or id) or run (id, a piece of it, last). Default: everything."),
    ] = None,
    url: Annotated[str, typer.Option(envvar="TACHOGRAPH_URL", help="URL of the service.")] = f"http://{DEFAULT_LISTEN}",
    workspace: Annotated[str | None, typer.Option(help="Workspace slug. Default: the service's own.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Follow a service live: all runs, those of a workflow, or one run until it ends.

    Draws on a terminal; prints one line per event to a pipe. For one run, the exit code is 0 if it completed,
    else 1. The token is read from TACHOGRAPH_TOKEN.
    """
    if subject is not None and _PIECE.fullmatch(subject.lstrip("…")) and not _ID.fullmatch(subject):
        subject = _whole(url, workspace, subject)
    watcher = Watcher(url.rstrip("/"), workspace, subject, as_json=as_json)
    try:
        asyncio.run(watcher.run())
    except Refused as error:
        fail(str(error))
    except aiohttp.InvalidURL:
        fail(f"{url!r} is not a valid URL; expected http://HOST:PORT")
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    raise typer.Exit(0 if watcher.status in (None, ExecutionStatus.COMPLETED) else 1)


def _whole(url: str, workspace: str | None, subject: str) -> str:
    """The run that a piece of an id or ``last`` means; a workflow of that name stays what it is."""
    from tachograph_exporter.cli.references import run_id
    from tachograph_exporter.cli.service_source import ServiceSource

    source = ServiceSource(url, workspace)
    return subject if source.workflow(subject) is not None else run_id(source, subject)


class Watcher:
    """The state of a workspace, workflow or execution, kept up to date by messages, and its display."""

    def __init__(self, url: str, workspace: str | None, subject: str | None, *, as_json: bool) -> None:
        self.url = url
        self.subject = subject
        self.as_json = as_json
        self.parameters = {"workspace_slug": workspace} if workspace is not None else {}
        self.status: str | None = None
        self.connection = ""
        self.is_away = False
        self.execution: str | None = None
        self.timeline: WorkflowExecutionTimeline | None = None
        self.running: dict[str, dict[str, Any]] = {}
        self.lines: deque[Text] = deque(maxlen=_MAX_LINES)

    async def run(self) -> None:
        """Follow until the execution ends, or forever."""
        token = os.environ.get(TOKEN_VARIABLE)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        async with aiohttp.ClientSession(headers=headers) as session:
            path = await self._path(session)
            if self.as_json or not out.is_terminal:
                await self._follow(session, path)
                if self.timeline is not None and not self.as_json:
                    out.print(TimelineView(self.timeline))
                return
            with Live(self, console=out, refresh_per_second=8, transient=self.execution is not None):
                await self._follow(session, path)
            if self.timeline is not None:
                out.print(TimelineView(self.timeline))

    async def _path(self, session: aiohttp.ClientSession) -> str:
        if self.subject is None:
            return "/ws/workflows/stream"
        if _ID.fullmatch(self.subject) and await self._read(session, self.subject):
            self.execution = self.subject
            return f"/ws/workflows/executions/{self.subject}"
        return f"/ws/workflows/{self.subject}"

    async def _follow(self, session: aiohttp.ClientSession, path: str) -> None:
        address = "ws" + self.url.removeprefix("http") + path
        parameters = {**self.parameters, "types": "all"}
        reading: asyncio.Task[None] | None = None
        async with aclosing(follow(session, address, parameters)) as messages:  # type: ignore[type-var]
            async for message in messages:
                self._apply(message)
                if self.execution is None:
                    continue
                if message.event_type in ("connected", "reload") or message.event_type.startswith("workflow_"):
                    await self._read(session, self.execution)
                elif reading is None or reading.done():
                    reading = asyncio.create_task(self._read_soon(session, self.execution))
                if self.timeline is not None and self.timeline.completed_at is not None:
                    self.status = self.timeline.status
                    break
        if reading is not None:
            reading.cancel()
            with suppress(asyncio.CancelledError):
                await reading

    async def _read_soon(self, session: aiohttp.ClientSession, execution: str) -> None:
        await asyncio.sleep(_REFRESH_SECONDS)
        await self._read(session, execution)

    async def _read(self, session: aiohttp.ClientSession, execution: str) -> bool:
        """Read the execution's timeline. Returns False if there is no such execution."""
        path = f"{self.url}/api/workflows/executions/{execution}/timeline"
        try:
            async with session.get(path, params=self.parameters) as answer:
                if answer.status == 401:
                    raise Refused(f"{self.url}: a token is required: set {TOKEN_VARIABLE}")
                if answer.status != 200:
                    return False
                self.timeline = _timeline(await answer.read())
                return True
        except (aiohttp.ClientConnectionError, TimeoutError):
            if self.timeline is None:
                raise Refused(f"{self.url} does not answer; is `tachograph serve` running?") from None
            return True

    def _apply(self, message: StreamMessage) -> None:
        kind = message.event_type
        if self.as_json:
            if kind != "waiting":
                print(json_text(message, indent=-1), flush=True)
            self._connected(message)
            return
        if kind in ("connected", "waiting", "reload", "heartbeat", "coalesced"):
            self._connected(message)
            return
        identifier = message.workflow_execution_id or ""
        data = message.data
        status = str(data.get("status", ""))
        if kind.startswith("workflow_"):
            if status in ("running", "pending"):
                self.running[identifier] = {"name": data["workflow_name"], "seen_at": time.time(), "steps": {}}
            else:
                self.running.pop(identifier, None)
        elif identifier in self.running and "step_order" in data:
            steps = self.running[identifier]["steps"]
            if status in ("running", "retrying"):
                steps[data["step_name"]] = status
            else:
                steps.pop(data["step_name"], None)
        line = Text(f"{clock(message.timestamp)}  ", style="bright_black")
        line.append(f"{MARKS.get(status, '·')} ", style=COLOURS.get(status, "white"))
        name = printable(data["workflow_name"])
        line.append(f"{name:<24} " if self.execution is None else "", style="bold")
        line.append(printable(message.message))
        if error := data.get("error_message"):
            line.append(f": {printable(str(error))[:200]}", style="red")
        self.lines.append(line)
        if not out.is_terminal:
            print(line.plain, flush=True)

    def _connected(self, message: StreamMessage) -> None:
        """Say whether the service answers: on a terminal with every try, to a pipe when it changes."""
        is_away = message.event_type == "waiting"
        if not out.is_terminal and is_away != self.is_away:
            state = f"{self.url} does not answer; trying again" if is_away else f"{self.url} answers"
            err.print(f"tachograph: {shown(state)}", soft_wrap=True)
        self.is_away = is_away
        self.connection = "" if message.event_type in ("connected", "heartbeat") else f"{self.url}: {message.message}"

    def __rich__(self) -> RenderableType:
        parts: list[RenderableType] = []
        if self.timeline is not None:
            parts.append(TimelineView(self.timeline))
        else:
            table = Table("running", "for", "steps", box=None)
            for run in list(self.running.values())[-15:]:
                elapsed = format_duration(round((time.time() - run["seen_at"]) * NS))
                table.add_row(
                    Text(printable(run["name"]), style="cyan"), elapsed, Text(printable(", ".join(run["steps"]))[:80])
                )
            parts.append(table if self.running else Text("nothing is running", style="bright_black"))
        parts += [Text(""), *self.lines]
        if self.connection:
            parts.append(Text(printable(self.connection), style="yellow"))
        return Group(*parts)


def _timeline(body: bytes) -> WorkflowExecutionTimeline:
    document = msgspec.json.decode(body)
    # Inputs and outputs may hold anything and are not drawn.
    for entry in (document, *document["step_timeline"]):
        entry.update(dict.fromkeys(entry.keys() & {"input_summary", "output_summary"}))
    return msgspec.convert(document, WorkflowExecutionTimeline)
