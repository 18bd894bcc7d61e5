"""Architecture: imports point down and form no cycle. The checks read the source, imports inside functions included."""

from __future__ import annotations

import ast
import gc
import graphlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
SOURCES: Final = {"tachograph": ROOT / "instrumentation", "tachograph_exporter": ROOT / "exporter"}

FLOORS: Final[Mapping[str, int]] = {
    # The library, from the ground: values; what runs workflows; what listens; what records; the public face.
    "tachograph.names": -1, "tachograph.variables": -1, "tachograph.quiet_log": -1,
    "tachograph.recorded_command": -1,
    "tachograph.version": 0, "tachograph.errors": 0, "tachograph.clock": 0, "tachograph.identity": 0,
    "tachograph.histogram": -1, "tachograph.exact_sum": -1, "tachograph.distribution": 0, "tachograph.resources": 0,
    "tachograph.folded_stacks": 0, "tachograph.running_attempts": 0,
    "tachograph.process": 0, "tachograph.otel_variables": 0, "tachograph.expectation": 0,
    "tachograph.service_address": 1,
    "tachograph.events": 1,
    "tachograph.critical_path": 2, "tachograph.inferred_dependencies": 2, "tachograph.redaction": 2,
    "tachograph.event_batch": 2, "tachograph.counters": 1, "tachograph.step_kinds": 0, "tachograph.meter": 2,
    "tachograph.unmeasured": 3, "tachograph.spool_places": 0, "tachograph.reported_process": 0,
    "tachograph.summary": 3, "tachograph.run_window": 3, "tachograph.run_notes": 0, "tachograph.folding": 3,
    "tachograph.workflow": 4,
    "tachograph.stacks": 5,
    "tachograph.metrics": 5, "tachograph.spans": 5, "tachograph.recording": 6, "tachograph.runners": 6,
    "tachograph.report": 7, "tachograph.client": 7,
    "tachograph": 8, "tachograph.integrations": 8,
    # The service: settings; rows; what arrives; what users read; streams and searches; the edges; the service itself.
    "tachograph_exporter.attribute_text": 10,
    "tachograph_exporter.config": 10, "tachograph_exporter.times": 10, "tachograph_exporter.garbage": 9,
    "tachograph_exporter.freed_memory": 9,
    "tachograph_exporter.name_patterns": 9, "tachograph_exporter.bundled_workflows": 9,
    "tachograph_exporter.defaults": 9, "tachograph_exporter.alerting": 9,
    "tachograph_exporter.dashboard_files": 10, "tachograph_exporter.handler_sources": 10,
    "tachograph_exporter.store": 11,
    "tachograph_exporter.metrics": 12,
    "tachograph_exporter.ingest": 12, "tachograph_exporter.admission": 12,
    "tachograph_exporter.views": 13, "tachograph_exporter.stream": 13,
    "tachograph_exporter.traces": 14, "tachograph_exporter.expectations": 14,
    "tachograph_exporter.queues": 14,
    "tachograph_exporter.reading": 15, "tachograph_exporter.report_file": 15, "tachograph_exporter.mcp": 16,
    "tachograph_exporter.api": 17,
    "tachograph_exporter.upkeep": 13, "tachograph_exporter.service": 18, "tachograph_exporter.serving": 19,
    "tachograph_exporter.command": 18, "tachograph_exporter.bridges": 18, "tachograph_exporter.cli": 20,
    "tachograph_exporter": 21, "tachograph_exporter.__main__": 22,
}  # fmt: skip
"""How high each room stands. Rooms of one floor may not import each other, but for those named in `BESIDE`."""

BESIDE: Final = {
    ("tachograph.metrics", "tachograph.recording"),  # self-monitoring reads the recorder's queues
    ("tachograph.runners", "tachograph.recording"),  # a worker collects what a step logs
}


def modules() -> Iterator[tuple[str, Path]]:
    for package, source in SOURCES.items():
        for path in sorted((source / package).rglob("*.py")):
            parts = path.relative_to(source).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def parse(path: Path) -> ast.Module:
    # Before Python 3.12, garbage collection that runs code in the middle of `ast.parse` can make it fail with
    # "AST constructor recursion depth mismatch" (CPython issue 106905).
    gc.disable()
    try:
        return ast.parse(path.read_text())
    finally:
        gc.enable()


def imports() -> dict[str, set[str]]:
    """Which module of ours imports which, at its top or inside a function."""
    known = dict(modules())
    graph: dict[str, set[str]] = {}
    for name, path in known.items():
        imported = graph[name] = set()
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
                imported |= {full if full in known else node.module for full in names} & known.keys()
            elif isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names} & known.keys()
        imported.discard(name)
    return graph


def room(module: str) -> str:
    while module not in FLOORS:
        module = module.rpartition(".")[0]
    return module


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = imports()
    state: dict[str, int] = {}
    path: list[str] = []

    def visit(module: str) -> None:
        if state.get(module) == 1:
            raise AssertionError(" → ".join([*path[path.index(module) :], module]))
        if state.get(module) == 2:
            return
        state[module] = 1
        path.append(module)
        for other in sorted(graph[module]):
            visit(other)
        path.pop()
        state[module] = 2

    for module in sorted(graph):
        visit(module)


def test_dashboards_tools_and_benchmarks_import_no_tests_and_form_no_cycle() -> None:
    paths = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for folder in ("dashboards", "tools", "benchmarks")
        for path in sorted((ROOT / folder).rglob("*.py"))
    }
    graph: dict[str, set[str]] = {}
    for name, path in paths.items():
        imported: set[str] = set()
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.ImportFrom) and node.module:
                imported |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            elif isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
        assert not {module for module in imported if module.split(".")[0] == "tests"}, name
        graph[name] = (imported & paths.keys()) - {name}
    graphlib.TopologicalSorter(graph).prepare()


def test_imports_point_down() -> None:
    wrong = [
        f"{module} imports {other}"
        for module, others in imports().items()
        for other in others
        if room(module) != room(other)
        and FLOORS[room(other)] >= FLOORS[room(module)]
        and (room(module), room(other)) not in BESIDE
    ]
    assert not wrong, "\n".join(sorted(wrong))


def test_the_command_line_imports_no_http_handlers() -> None:
    wrong = [
        f"{module} imports {other}"
        for module, others in imports().items()
        for other in others
        if room(module) == "tachograph_exporter.cli" and room(other) == "tachograph_exporter.api"
    ]
    assert not wrong, "\n".join(sorted(wrong))


def test_handlers_and_commands_hold_no_sql() -> None:
    wrong = [
        f"{name} imports {alias.name} from {node.module}"
        for name, path in modules()
        if room(name) in ("tachograph_exporter.api", "tachograph_exporter.cli", "tachograph_exporter.stream")
        for node in ast.walk(parse(path))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sqlalchemy")
        for alias in node.names
        if node.module != "sqlalchemy.exc" and alias.name not in ("Connection", "Row")
    ]
    assert not wrong, "\n".join(wrong)


def test_every_room_stands_on_a_floor() -> None:
    tops = {".".join(name.split(".")[:2]) for name, _ in modules()}
    assert tops <= FLOORS.keys(), f"give these a floor: {', '.join(sorted(tops - FLOORS.keys()))}"
