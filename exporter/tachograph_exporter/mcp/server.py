"""The protocol, by its official SDK: tools and resources, whatever the transport."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import mcp_types as types
import msgspec
from mcp.server import Server, ServerRequestContext
from mcp.shared.exceptions import MCPError

from tachograph.errors import DatabaseUnavailable, QueryTimeout, TachographError
from tachograph.quiet_log import QuietLog
from tachograph.version import version
from tachograph_exporter.mcp.arguments import RunsArguments
from tachograph_exporter.mcp.budget import Answer
from tachograph_exporter.mcp.context import RESOURCE, Context, ToolError
from tachograph_exporter.mcp.tools import BY_NAME, INSTRUCTIONS, TOOLS, call, read_arguments, read_run, run_of
from tachograph_exporter.mcp.wording import NAME, plain, shown

log = logging.getLogger(__name__)
quiet = QuietLog(log)

T = TypeVar("T")

Ask = Callable[[Callable[[Context], Any]], Awaitable[Any]]
"""Calls a function with what tools work with, off the event loop, and returns what it returned."""
MAX_LISTED: Final = 20
"""How many runs are listed as resources; every run is one."""
MAX_ERROR: Final = 1_000


def build_server(ask_of: Callable[[ServerRequestContext[Any]], Ask]) -> Server[Any]:
    """The protocol's server. ``ask_of`` says who answers a request: the caller's workspace and no other."""

    async def list_tools(
        _context: ServerRequestContext[Any], _parameters: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        return types.ListToolsResult(tools=_TOOLS)

    async def call_tool(
        context: ServerRequestContext[Any], parameters: types.CallToolRequestParams
    ) -> types.CallToolResult:
        tool = BY_NAME.get(parameters.name)
        if tool is None:
            raise MCPError(types.INVALID_PARAMS, f"there is no such tool; there are {', '.join(BY_NAME)}")
        try:
            given = read_arguments(tool, parameters.arguments)
            answer: Answer = await ask_of(context)(lambda known: call(known, tool, given))
        except Exception as error:
            return types.CallToolResult(content=[_text(reason_of(error))], is_error=True)
        return types.CallToolResult(
            content=[_text(answer.text)], structured_content=msgspec.to_builtins(answer.structure)
        )

    async def list_resources(
        context: ServerRequestContext[Any], _parameters: types.PaginatedRequestParams | None
    ) -> types.ListResourcesResult:
        structure = (await _asked(ask_of(context), lambda c: call(c, BY_NAME["runs"], _NEWEST))).structure
        return types.ListResourcesResult(
            resources=[
                types.Resource(
                    uri=RESOURCE + run.run_id,
                    name=run.run_id,
                    title=plain(f"{run.workflow} {run.status} {run.started_at or ''}".strip(), 2 * NAME),
                    mime_type="text/plain",
                )
                for run in structure.runs
            ]
        )

    async def list_templates(
        _context: ServerRequestContext[Any], _parameters: types.PaginatedRequestParams | None
    ) -> types.ListResourceTemplatesResult:
        return types.ListResourceTemplatesResult(resource_templates=[_TEMPLATE])

    async def read_resource(
        context: ServerRequestContext[Any], parameters: types.ReadResourceRequestParams
    ) -> types.ReadResourceResult:
        uri = str(parameters.uri)
        text = await _asked(ask_of(context), lambda c: read_run(c, run_of(uri)))
        return types.ReadResourceResult(
            contents=[types.TextResourceContents(uri=uri, mime_type="text/plain", text=text)]
        )

    server: Server[Any] = Server(
        "tachograph",
        title="Tachograph",
        version=version(),
        instructions=INSTRUCTIONS,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
        on_list_resources=list_resources,
        on_list_resource_templates=list_templates,
        on_read_resource=read_resource,
    )
    # The SDK would make a span of every request, in the traces that the service keeps of workflows.
    server.middleware.clear()
    return server


def reason_of(error: BaseException) -> str:
    """What a caller is told of an error: never what only its log should have."""
    if isinstance(error, QueryTimeout):
        return "reading took too long and was stopped; ask for less"
    if isinstance(error, DatabaseUnavailable):
        quiet.warning(type(error), "an agent could not be answered: %s", error)
        return "the database is unavailable; try again later"
    if isinstance(error, ToolError):
        return shown(str(error), MAX_ERROR)
    if isinstance(error, TachographError):
        return plain(str(error), MAX_ERROR)
    quiet.exception(type(error), "answering an agent failed")
    return "unexpected error; the log has the details"


async def _asked(ask: Ask, question: Callable[[Context], T]) -> T:
    """What somebody answers, with its errors as the protocol's."""
    try:
        answer: T = await ask(question)
    except ToolError as error:
        raise MCPError(types.INVALID_PARAMS, reason_of(error)) from None
    except Exception as error:
        raise MCPError(types.INTERNAL_ERROR, reason_of(error)) from None
    return answer


def _text(text: str) -> types.TextContent:
    return types.TextContent(type="text", text=text)


_NEWEST: Final = RunsArguments(limit=MAX_LISTED)
_TOOLS: Final = [
    types.Tool(
        name=tool.name,
        title=tool.title,
        description=tool.description,
        input_schema=tool.input_schema(),
        output_schema=tool.output_schema(),
        annotations=types.ToolAnnotations(
            read_only_hint=True, destructive_hint=False, idempotent_hint=True, open_world_hint=False
        ),
    )
    for tool in TOOLS
]
_TEMPLATE: Final = types.ResourceTemplate(
    uri_template=RESOURCE + "{run_id}",
    name="run",
    title="A run",
    description="Why a run took so long, its critical path and its map, by its id.",
    mime_type="text/plain",
)
