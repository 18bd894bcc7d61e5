"""Rewrite the generated parts of the docs: ``make docs``.

Tables and the Python API come from the code, examples from real runs on this machine. A generated part stands between
``<!-- generated: NAME -->`` and ``<!-- end -->``; everything outside is left alone. ``--check`` reports the pages whose
tables are out of date and writes nothing; it skips the examples, which differ from run to run.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import aiohttp
import typer
from aiohttp import web
from rich.console import Console

from tachograph.metrics.self_metrics import SELF_METRICS
from tachograph.metrics.specs import EXPECTATION_METRICS, METRICS, QUEUE_METRICS, MetricSpec
from tachograph.spans.semconv import ATTRIBUTES
from tachograph.workflow.handlers import registry
from tachograph_exporter import handler_sources
from tachograph_exporter.api.all_routes import ROUTES
from tachograph_exporter.api.openapi import EXAMPLES
from tachograph_exporter.api.problems import CODES
from tachograph_exporter.cli import load as load_cli
from tachograph_exporter.cli.terminal import TimelineView
from tachograph_exporter.config import Config
from tachograph_exporter.ingest.built_in_rules import RULES
from tachograph_exporter.ingest.lineage.vocabulary import LINEAGE_RULES
from tachograph_exporter.ingest.rules import Kind, Role
from tachograph_exporter.service import Service
from tachograph_exporter.store import executions as execution_rows
from tachograph_exporter.views.schemas.queues import EXAMPLE as QUEUES
from tachograph_exporter.views.schemas.silences import EXAMPLE as SILENCE
from tachograph_exporter.views.timeline import build_timeline

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.handler_docs import handler_docs
from tools.python_api import python_api

ROOT = Path(__file__).resolve().parent.parent
PART = re.compile(r"(<!-- generated: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def metric_table(specs: tuple[MetricSpec, ...]) -> str:
    rows = ["| metric | kind | labels | meaning |", "|---|---|---|---|"]
    for spec in specs:
        labels = " ".join(f"`{label}`" for label in spec.labels) or "–"
        rows.append(f"| `{spec.name}` | {spec.kind} | {labels} | {spec.help} |")
    return "\n".join(rows)


def attribute_table() -> str:
    rows = ["| attribute | on | meaning |", "|---|---|---|"]
    rows += [f"| `{name}` | {attribute.on} | {attribute.meaning} |" for name, attribute in ATTRIBUTES.items()]
    return "\n".join(rows)


def route_table() -> str:
    rows = ["| method | path | |", "|---|---|---|"]
    for route in ROUTES:
        text = " ".join((route.handler.__doc__ or "").split())
        summary = text.partition("``: ")[2].replace("``", "`")
        rows.append(f"| {route.method} | `{route.path}` | {summary} |")
    return "\n".join(rows)


def code_table() -> str:
    rows = ["| status | code | |", "|---|---|---|"]
    rows += [f"| {status} | `{code}` | {meaning} |" for code, (status, meaning) in CODES.items()]
    return "\n".join(rows)


def commands() -> Iterator[tuple[str, Any]]:
    """Every command by its words, subcommands flattened."""
    group = typer.main.get_command(load_cli())
    for name, command in sorted(getattr(group, "commands", {}).items()):
        subcommands = getattr(command, "commands", None)
        if subcommands:
            yield from ((f"{name} {sub_name}", subcommand) for sub_name, subcommand in subcommands.items())
        else:
            yield name, command


def command_table() -> str:
    rows = ["| command | |", "|---|---|"]
    for words, command in commands():
        summary = " ".join((command.help or "").partition("\n\n")[0].split())
        rows.append(f"| `tachograph {words}` | {summary} |")
    return "\n".join(rows)


def serve_option_table() -> str:
    """Options of ``tachograph serve``, with their defaults."""
    rows = ["| option | default | |", "|---|---|---|"]
    for option in dict(commands())["serve"].params:
        if option.name == "help":
            continue
        default = option.default() if callable(option.default) else option.default
        text = "–" if default is None or default == [] or default is False else f"`{default}`"
        names = " ".join(f"`{name}`" for name in option.opts)
        rows.append(f"| {names} | {text} | {option.help or ''} |")
    return "\n".join(rows)


_ROLES = {
    Role.EXECUTION: "an execution",
    Role.STEP: "a step",
    Role.ATTEMPT: "an attempt",
    Role.QUEUED: "a queued step; the span below it, or with its key, is its run",
    Role.OUTCOME: "how an attempt ended",
    Role.END: "the end of an execution",
    Role.INSIDE: "part of a step",
}


def mapping_table() -> str:
    """Which spans become executions, steps and attempts."""
    rows = ["| engine | a span with | becomes |", "|---|---|---|"]
    for rule in RULES:
        if rule in LINEAGE_RULES:
            continue  # Their spans are made here.
        conditions = [f"`{name}`" for name in rule.has] + [
            f"`{name}` = `{value}`" for name, value in rule.equals.items()
        ]
        conditions += [f"no `{name}`" for name in rule.lacks]
        conditions += [f"`{name}` on its resource" for name in rule.resource_has]
        if rule.kinds:
            conditions.append("kind " + " or ".join(Kind(kind).name for kind in rule.kinds))
        if rule.scopes:
            conditions.append("a scope that starts with " + ", ".join(f"`{name}`" for name in rule.scopes))
        if rule.named:
            conditions.append("the name " + " or ".join(f"`{name}`" for name in rule.named))
        if rule.names:
            conditions.append("a name that starts with " + ", ".join(f"`{name}`" for name in rule.names))
        role = "an execution, or a step if an agent is around it" if rule.is_outermost else _ROLES[rule.role]
        rows.append(f"| {rule.engine} | {'; '.join(conditions)} | {role} |")
    rows.append("| any other | no parent | an execution |")
    rows.append("| any other | the execution's span as its parent | a step |")
    rows.append("| any other | kind PRODUCER; a span of kind CONSUMER or SERVER below it | a queued step |")
    rows.append("| any other | kind CONSUMER or SERVER; a span of kind PRODUCER above it | a step |")
    return "\n".join(rows)


def engine_table() -> str:
    """What the recordings in the tests prove of each engine. The tests make it: tools import no tests."""
    command = [sys.executable, "-m", "tests.ingest.proven"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)  # noqa: S603 - our own module
    return done.stdout.rstrip("\n")


TABLES: dict[str, Callable[[], str]] = {
    "mapping": mapping_table,
    "engines": engine_table,
    "codes": code_table,
    "commands": command_table,
    "serve-options": serve_option_table,
    "handlers": handler_docs,
    "python-api": python_api,
    "metrics": lambda: metric_table((*METRICS, *EXPECTATION_METRICS, *QUEUE_METRICS)),
    "own-metrics": lambda: metric_table(SELF_METRICS),
    "attributes": attribute_table,
    "routes": route_table,
}


async def real_examples() -> dict[str, str]:
    """Responses of a real service about real runs, and the timeline as the terminal draws it."""
    handler_sources.load(handler_sources.EXAMPLES)
    parts: dict[str, str] = {}
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

            for item in await call("GET", "/api/workflows/templates"):
                await call("POST", "/api/workflows", item)
            submitted = await call("POST", "/api/workflows/basic_sequence/execute", {"input_variables": {}})
            parts["example-submitted"] = as_json(submitted)
            retried = await run("with_retries")
            await run("data_pipeline")
            await run("data_pipeline", minimum_rows=1_000_000)
            timeline = await call("GET", f"/api/workflows/executions/{retried}/timeline")
            for step in timeline["step_timeline"]:
                step["attempts"] = shorten(step["attempts"], 2)
            timeline["step_timeline"] = shorten(timeline["step_timeline"], 2)
            parts["example-timeline"] = as_json(timeline)
            metrics = await call("GET", "/api/workflows/data_pipeline/metrics")
            metrics["by_status"] = {"completed": metrics["by_status"]["completed"], "…": "…"}
            parts["example-metrics"] = as_json({**metrics, "steps": shorten(metrics["steps"], 1)})
            executions = await call("GET", "/api/workflows/executions?status=failed&limit=1")
            parts["example-list"] = as_json(executions)
            reconciliation = await call("GET", f"/api/workflows/executions/{retried}/reconcile")
            parts["example-reconcile"] = as_json(reconciliation)
            invalid = {"name": "etl", "steps": [{"name": "extract"}, {"name": "load", "depends_on_steps": ["extrct"]}]}
            parts["example-problem"] = as_json(await call("POST", "/api/workflows", invalid))
            await call("POST", "/api/tokens", {"name": "prometheus", "scopes": ["read"]})
            await call("POST", "/api/workflows", NIGHTLY)
            for _ in range(12):
                await run("nightly_import", load_seconds=0.03)
            parts["example-compare"] = as_json(await comparison(call, await run("nightly_import", load_seconds=0.3)))
            parts["example-trends"] = as_json(await trend(call))
            await call("PUT", "/api/expectations/data_pipeline", {"last_failed_seconds": 0, "schedule": "@daily"})
            await asyncio.to_thread(service.watch.look)
            await call("POST", "/api/silences", {**SILENCE, "created_by": "ann"})
            examples = json.dumps(await responses(call, retried), indent=1, ensure_ascii=False)
            # A stack names files of the checkout; where it lies is nobody's business.
            EXAMPLES.write_text(examples.replace(f"{ROOT}/", "") + "\n")
            workspace_id = (await call("GET", "/api/workflows/basic_sequence"))["workspace_id"]
            stored = await service.database.read(lambda c: execution_rows.run(c, workspace_id, retried))
        await runner.cleanup()
    if stored is not None:
        console = Console(width=100, file=StringIO(), record=True)
        console.print(TimelineView(build_timeline(stored, now_ns=0)))
        picture = "\n".join(line.rstrip() for line in console.export_text().splitlines())
        parts["timeline-picture"] = f"```text\n{picture}\n```"
    return parts


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
    """A run against its baseline, cut to the first two steps."""
    answer = await call("GET", f"/api/workflows/executions/compare?execution={execution}&baseline=7d")
    return {**answer, "steps": shorten(answer["steps"], 2)}


async def trend(call: Any) -> Any:
    """One bucket of a trend."""
    answer = await call("GET", "/api/workflows/with_retries/trends?bucket=1h&from=1h")
    return {**answer, "buckets": shorten(answer["buckets"], 1)}


async def responses(call: Any, execution: str) -> dict[str, Any]:
    """A real response of every JSON route that changes nothing, for the OpenAPI document."""
    examples = {}
    trace_id = (await call("GET", f"/api/workflows/executions/{execution}/timeline"))["trace_id"]
    failure_id = (await call("GET", "/api/failures"))["items"][0]["id"]
    for route in ROUTES:
        if route.method != "GET" or route.response is None or route.path in ("/api/openapi.json", "/api/stream"):
            continue
        if route.path == "/api/queues":
            # Without a broker it has nothing to show.
            examples[f"{route.method} {route.path}"] = QUEUES
            continue
        path = route.path.replace("{workflow_id}", "with_retries").replace("{execution_id}", execution)
        path = (
            path.replace("{workspace}", "default").replace("{service}", "tachograph").replace("{tag}", "service.name")
        )
        path = (
            path.replace("{trace_id}", trace_id)
            .replace("{workflow}", "with_retries")
            .replace("{failure_id}", failure_id)
        )
        query = {
            "/api/workflows/executions/compare": f"?execution={execution}",
            **{f"/jaeger/api/metrics/{name}": "?service=tachograph" for name in ("calls", "errors", "latencies")},
        }.get(path, "")
        examples[f"{route.method} {route.path}"] = _short(await call("GET", path + query))
    return examples


def _short(value: Any) -> Any:
    """Cut lists of objects to their first item: an example shows the shape, not the size."""
    if isinstance(value, list):
        return [_short(item) for item in (value[:1] if value and isinstance(value[0], dict) else value)]
    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items()}
    return value


def shorten(items: list[Any], keep: int) -> list[Any]:
    """The first ``keep`` items, and how many were cut."""
    return items if len(items) <= keep else [*items[:keep], f"… {len(items) - keep} more"]


def as_json(value: Any) -> str:
    """A JSON code block."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return f"```json\n{text}\n```"


def rewrite(text: str, parts: dict[str, str]) -> str:
    """Replace the generated parts of a page."""

    def replace(match: re.Match[str]) -> str:
        name = match[2]
        return f"{match[1]}{parts[name]}\n{match[3]}" if name in parts else match[0]

    return PART.sub(replace, text)


def main(check: bool) -> int:
    """Rewrite or check every page; returns the exit code."""
    parts = {name: build() for name, build in TABLES.items()}
    if not check:
        parts.update(asyncio.run(real_examples()))
    stale = 0
    for file in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        old = file.read_text()
        new = rewrite(old, parts)
        if new != old:
            stale += 1
            if check:
                print(f"{file.relative_to(ROOT)} is out of date: run `make docs`")
            else:
                file.write_text(new)
    return stale if check else 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv))
