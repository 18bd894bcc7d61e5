"""``tachograph mcp``: answers for agents on standard input and output."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from tachograph_exporter.cli.common import Failed, ReadWorkspaceOption, app, fail
from tachograph_exporter.cli.opening import open_source
from tachograph_exporter.cli.sources import ReadDatabaseOption, UrlOption
from tachograph_exporter.defaults import URL_VARIABLE

if TYPE_CHECKING:
    from tachograph_exporter.mcp.context import Context


@app.command()
def mcp(
    database: ReadDatabaseOption = None,
    url: UrlOption = None,
    workspace: ReadWorkspaceOption = None,
) -> None:
    """Answer an agent's questions about runs on standard input and output (Model Context Protocol)."""
    if find_spec("mcp") is None:
        fail("answering agents needs the protocol's library: pip install 'tachograph[mcp]'")
    with open_source(database, url, workspace) as source, contextlib.suppress(KeyboardInterrupt):
        # Only here: the protocol's library takes a second to load.
        from tachograph_exporter.mcp.context import Context, ToolError
        from tachograph_exporter.mcp.stdio import serve
        from tachograph_exporter.mcp.wording import SENTENCE, marked

        base = source.url or os.environ.get(URL_VARIABLE, "").rstrip("/") or None

        def answer(question: Callable[[Context], Any]) -> Any:
            try:
                return question(Context(source, base, time.time_ns()))
            except Failed as error:
                # What ends another command is an answer here.
                raise ToolError(marked(error.message, SENTENCE)) from None

        serve(answer)
