"""Write the generated parts of the docs again: ``make docs``.

Tables come from the code, examples from a real run on this machine. A generated part stands between
``<!-- generated: NAME -->`` and ``<!-- end -->``; what is outside is left alone. With ``--check``, only says whether
the tables are up to date (examples differ from run to run).
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import tempfile
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import aiohttp
import typer
from aiohttp import web
from rich.console import Console

from tachograph.metrics.self_metrics import SELF_METRICS
from tachograph.metrics.specs import METRICS, MetricSpec
from tachograph.spans.semconv import ATTRIBUTES
from tachograph.workflow.handlers import registry
from tachograph_exporter import bundled_workflows
from tachograph_exporter.api.openapi import EXAMPLES
from tachograph_exporter.api.problems import CODES
from tachograph_exporter.cli import app as cli
from tachograph_exporter.cli.terminal import TimelineView
from tachograph_exporter.config import Config
from tachograph_exporter.ingest.built_in_rules import RULES
from tachograph_exporter.ingest.rules import Role
from tachograph_exporter.service import ROUTES, Service
from tachograph_exporter.store import executions as execution_rows
from tachograph_exporter.views.timeline import build_timeline

ROOT = Path(__file__).resolve().parent.parent
FILES = (
    ROOT / "docs" / "telemetry.md",
    ROOT / "docs" / "traces.md",
    ROOT / "docs" / "metrics.md",
    ROOT / "docs" / "operations.md",
    ROOT / "README.md",
)
PART = re.compile(r"(<!-- generated: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def metric_table(specs: tuple[MetricSpec, ...]) -> str:
    """Name, kind, labels, meaning."""
    rows = ["| metric | kind | labels | meaning |", "|---|---|---|---|"]
    for spec in specs:
        labels = " ".join(f"`{label}`" for label in spec.labels) or "–"
        rows.append(f"| `{spec.name}` | {spec.kind} | {labels} | {spec.help} |")
    return "\n".join(rows)


def attribute_table() -> str:
    """Name, which spans, meaning."""
    rows = ["| attribute | on | meaning |", "|---|---|---|"]
    rows += [f"| `{name}` | {about.on} | {about.meaning} |" for name, about in ATTRIBUTES.items()]
    return "\n".join(rows)


def route_table() -> str:
    """Method, path, what it does."""
    rows = ["| method | path | |", "|---|---|---|"]
    for method, path, handler in ((route.method, route.path, route.handler) for route in ROUTES):
        text = " ".join((handler.__doc__ or "").split())
        about = text.partition("``: ")[2].replace("``", "`")
        rows.append(f"| {method} | `{path}` | {about} |")
    return "\n".join(rows)


def code_table() -> str:
    """Status, code, meaning."""
    rows = ["| status | code | |", "|---|---|---|"]
    rows += [f"| {status} | `{code}` | {about} |" for code, (status, about) in CODES.items()]
    return "\n".join(rows)


def command_table() -> str:
    """Every command and what it does."""
    rows = ["| command | |", "|---|---|"]
    group = typer.main.get_command(cli)
    for name, command in sorted(getattr(group, "commands", {}).items()):
        for words, one in [(name, command), *[(f"{name} {n}", c) for n, c in getattr(command, "commands", {}).items()]]:
            if not getattr(one, "commands", None):
                rows.append(f"| `tachograph {words}` | {(one.help or '').strip().splitlines()[0]} |")
    return "\n".join(rows)


_ROLES = {
    Role.EXECUTION: "an execution",
    Role.STEP: "a step",
    Role.ATTEMPT: "an attempt",
    Role.QUEUED: "a step that was asked for; the span below it is its run",
    Role.END: "the end of an execution",
    Role.INSIDE: "part of a step",
}


def mapping_table() -> str:
    """Which spans are what."""
    rows = ["| engine | a span with | is |", "|---|---|---|"]
    for rule in RULES:
        signs = [f"`{name}`" for name in rule.has] + [f"`{name}` = `{value}`" for name, value in rule.equals.items()]
        signs += [f"no `{name}`" for name in rule.lacks]
        signs += [f"`{name}` on its resource" for name in rule.resource_has]
        if rule.names:
            signs.append("a name that begins with " + ", ".join(f"`{name}`" for name in rule.names))
        rows.append(f"| {rule.engine} | {'; '.join(signs)} | {_ROLES[rule.role]} |")
    rows.append("| any other | no parent | an execution |")
    rows.append("| any other | the execution's span as its parent | a step |")
    return "\n".join(rows)


TABLES: dict[str, Callable[[], str]] = {
    "mapping": mapping_table,
    "codes": code_table,
    "commands": command_table,
    "metrics": lambda: metric_table(METRICS),
    "own-metrics": lambda: metric_table(SELF_METRICS),
    "attributes": attribute_table,
    "routes": route_table,
}


async def real_examples() -> dict[str, str]:
    """Answers of a real service about real runs, and the timeline as the terminal draws it."""
    bundled_workflows.load_handlers()
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as directory:
        service = Service(Config(database=f"sqlite:///{directory}/x.db"), registry)
        runner = web.AppRunner(service.application(), access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = runner.addresses[0][1]
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:

            async def call(method: str, path: str, body: Any = None) -> Any:
                async with session.request(method, path, json=body) as response:
                    return await response.json(content_type=None)

            async def run(name: str, **inputs: Any) -> str:
                accepted = await call("POST", f"/api/workflows/{name}/execute", {"input_variables": inputs})
                path = f"/api/workflows/executions/{accepted['execution_id']}/status"
                while (await call("GET", path))["status"] in ("pending", "running"):  # noqa: ASYNC110 - as a script would
                    await asyncio.sleep(0.02)
                return str(accepted["execution_id"])

            for item in (await call("GET", "/api/workflows/templates"))["items"]:
                await call("POST", "/api/workflows", item)
            submitted = await call("POST", "/api/workflows/basic_sequence/execute", {"input_variables": {}})
            found["example-submitted"] = as_json(submitted)
            retried = await run("with_retries")
            await run("data_pipeline")
            await run("data_pipeline", minimum_rows=1_000_000)
            timeline = await call("GET", f"/api/workflows/executions/{retried}/timeline")
            for step in timeline["step_timeline"]:
                step["attempts"] = shorten(step["attempts"], 2)
            timeline["step_timeline"] = shorten(timeline["step_timeline"], 2)
            found["example-timeline"] = as_json(timeline)
            figures = await call("GET", "/api/workflows/data_pipeline/metrics")
            figures["by_status"] = {"completed": figures["by_status"]["completed"], "…": "…"}
            found["example-metrics"] = as_json({**figures, "steps": shorten(figures["steps"], 1)})
            listed = await call("GET", "/api/workflows/executions?status=failed&limit=1")
            found["example-list"] = as_json(listed)
            agreed = await call("GET", f"/api/workflows/executions/{retried}/reconcile")
            found["example-reconcile"] = as_json(agreed)
            broken = {"name": "etl", "steps": [{"name": "extract"}, {"name": "load", "depends_on_steps": ["extrct"]}]}
            found["example-problem"] = as_json(await call("POST", "/api/workflows", broken))
            await call("POST", "/api/tokens", {"name": "prometheus", "scopes": ["read"]})
            await call("POST", "/api/workflows", NIGHTLY)
            for _ in range(12):
                await run("nightly_import", load_seconds=0.03)
            found["example-compare"] = as_json(await comparison(call, await run("nightly_import", load_seconds=0.3)))
            found["example-trends"] = as_json(await trend(call))
            EXAMPLES.write_text(json.dumps(await answers(call, retried), indent=1, ensure_ascii=False) + "\n")
            owner = (await call("GET", "/api/workflows/basic_sequence"))["workspace_id"]
            stored = await service.database.read(lambda c: execution_rows.run(c, owner, retried))
        await runner.cleanup()
    if stored is not None:
        console = Console(width=100, file=StringIO(), record=True)
        console.print(TimelineView(build_timeline(stored, now_ns=0)))
        drawn = "\n".join(line.rstrip() for line in console.export_text().splitlines())
        found["timeline-picture"] = f"```text\n{drawn}\n```"
    return found


NIGHTLY = {
    "name": "nightly_import",
    "variables": [{"name": "load_seconds", "data_type": "float"}],
    "steps": [
        {"name": "extract", "config": {"handler": "sleep", "seconds": 0.02}},
        {"name": "load", "depends_on_steps": ["extract"], "config": {"handler": "sleep", "seconds": "${load_seconds}"}},
        {"name": "report", "depends_on_steps": ["load"], "config": {"handler": "noop"}},
    ],
}


async def comparison(call: Any, execution: str) -> Any:
    """A run against its usual, with the first two steps."""
    found = await call("GET", f"/api/workflows/executions/compare?execution={execution}&baseline=7d")
    return {**found, "steps": shorten(found["steps"], 2)}


async def trend(call: Any) -> Any:
    """A trend of an hour."""
    found = await call("GET", "/api/workflows/with_retries/trends?bucket=1h&from=1h")
    return {**found, "buckets": shorten(found["buckets"], 1)}


async def answers(call: Any, execution: str) -> dict[str, Any]:
    """A real answer of every route that can be asked without changing anything, for the OpenAPI document."""
    found = {}
    trace_id = (await call("GET", f"/api/workflows/executions/{execution}/timeline"))["trace_id"]
    for route in ROUTES:
        if route.method != "GET" or route.answer is None or route.path in ("/api/openapi.json", "/api/stream"):
            continue
        path = route.path.replace("{workflow_id}", "with_retries").replace("{execution_id}", execution)
        path = (
            path.replace("{workspace}", "default").replace("{service}", "tachograph").replace("{tag}", "service.name")
        )
        path = path.replace("{trace_id}", trace_id)
        query = {"/api/workflows/executions/compare": f"?execution={execution}"}.get(path, "")
        found[f"{route.method} {route.path}"] = _short(await call("GET", path + query))
    return found


def _short(value: Any) -> Any:
    """Lists of objects cut to their first item, so that an example shows the shape and not the size."""
    if isinstance(value, list):
        return [_short(item) for item in (value[:1] if value and isinstance(value[0], dict) else value)]
    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items()}
    return value


def shorten(items: list[Any], keep: int) -> list[Any]:
    """The first of them and a word on the rest."""
    return items if len(items) <= keep else [*items[:keep], f"… {len(items) - keep} more"]


def as_json(value: Any) -> str:
    """A JSON code block, short lists on one line."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return f"```json\n{text}\n```"


def rewrite(text: str, parts: dict[str, str]) -> str:
    """The text with its generated parts replaced."""

    def replace(match: re.Match[str]) -> str:
        name = match[2]
        return f"{match[1]}{parts[name]}\n{match[3]}" if name in parts else match[0]

    return PART.sub(replace, text)


def main(check: bool) -> int:
    """Rewrite, or check; the exit code."""
    parts = {name: make() for name, make in TABLES.items()}
    if not check:
        parts.update(asyncio.run(real_examples()))
    stale = 0
    for file in FILES:
        old = file.read_text()
        new = rewrite(old, parts)
        if new != old:
            stale += 1
            if check:
                print(f"{file.name} is out of date: run `make docs`")
            else:
                file.write_text(new)
    return stale if check else 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv))
