"""``tachograph mcp`` answers an agent that started it, from a database or a service."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tests.conftest import make_execution, make_run, running
from tests.e2e.conftest import environment

from tachograph.workflow import HandlerRegistry
from tachograph_exporter.config import Config
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.writer import StoreWriter

TACHOGRAPH = str(Path(sys.executable).with_name("tachograph"))
TOKEN = "the-token-of-the-service"


@pytest.mark.e2e
@pytest.mark.xdist_group("mcp tools")
async def test_an_agent_starts_the_command(runs_database: Path, handlers: HandlerRegistry, tmp_path: Path) -> None:
    from mcp import Client, StdioServerParameters
    from mcp.client.stdio import stdio_client

    url = f"sqlite:///{runs_database}"
    execution = make_execution()
    database = Database(url)
    StoreWriter(database).apply(make_run(execution))
    database.close()
    config = Config(database=url, grace_seconds=0.2, token=TOKEN)
    async with running(config, handlers) as api:
        for source in (["--database", url], ["--url", api.address]):
            parameters = StdioServerParameters(
                command=TACHOGRAPH, args=["mcp", *source], env=environment(TACHOGRAPH_TOKEN=TOKEN), cwd=tmp_path
            )
            with (tmp_path / "errors").open("w+") as errors:
                async with Client(stdio_client(parameters, errlog=errors)) as client:
                    assert len((await client.list_tools()).tools) == 8
                    runs = await client.call_tool("runs", {})
                    assert [run["run_id"] for run in runs.structured_content["runs"]] == [execution.execution_id]
                    page = f"{api.address}/#/executions/{execution.execution_id}" if source[0] == "--url" else None
                    assert runs.structured_content["runs"][0]["page"] == page
                    for tool, given in (
                        ("why", {"run": "etl"}),
                        ("compare", {"run": "last"}),
                        ("critical_path", {"run": execution.execution_id[-8:]}),
                        ("timeline_map", {"run": "last", "step": "a"}),
                        ("failures", {}),
                        ("trends", {"workflow": "etl"}),
                        ("late", {"since": "2d"}),
                    ):
                        answer = await client.call_tool(tool, given)
                        assert not answer.is_error, (tool, answer.content)
                    # What ends a command is an answer here, and the next question is answered.
                    for tool, given, reason in (
                        ("why", {"run": "nothing"}, 'no run and no workflow is called "nothing"'),
                        ("why", {"run": "00000000-0000-0000-0000-000000000000"}, "there is no"),
                        ("trends", {"workflow": "nothing"}, "there is no workflow ⟦nothing⟧"),
                    ):
                        answer = await client.call_tool(tool, given)
                        assert answer.is_error, tool
                        assert reason in str(answer.content[0])
                    content = (await client.read_resource(f"tachograph://runs/{execution.execution_id}")).contents[0]
                    assert "the critical path in order:" in str(content)
                errors.seek(0)
                assert "Traceback" not in errors.read()
