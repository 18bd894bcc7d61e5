"""The dashboards: up to date, valid, whole, and of nothing but metrics that exist."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import promql_parser
import pytest
from dashboards.alerts import FILES
from dashboards.boards import BOARDS
from dashboards.generate import board_json
from dashboards.thresholds import read_thresholds
from grafana_foundation_sdk.models.dashboard import Dashboard
from tests.conftest import ROOT

from tachograph.metrics.self_metrics import SELF_METRICS
from tachograph.metrics.specs import METRICS, HistogramSpec

UNUSED: dict[str, str] = {}
"""Metrics that no panel and no alert uses, each with the reason."""
OTHERS = {"process_cpu_seconds_total", "process_resident_memory_bytes", "up"}
CURRENT = {"timeseries", "stat", "heatmap", "bargauge", "table", "row"}
VARIABLES = {
    "$__rate_interval": "1m", "$__interval": "1m", "$__range": "1h", "$workspace": ".*", "$workflow": ".*",
    "$step": ".*", "$instance": ".*", "$target": "0.99",
}  # fmt: skip
NAME = re.compile(r"\b(?:workflow|tachograph|process|up)[a-z_]*(?::[a-z0-9_:]+)?\b(?=\s*[\[{)]|\s*$|\s)")


def documents() -> dict[str, Any]:
    return {
        path.stem: json.loads(path.read_text()) for path in sorted((ROOT / "dashboards" / "grafana").glob("*.json"))
    }


def panels(document: Any) -> list[Any]:
    return [panel for panel in document["panels"] if panel["type"] != "row"]


def filled(expression: str) -> str:
    """A query as Grafana asks it, with its variables filled in."""
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    assert "$" not in expression, expression
    return expression


def queries() -> Iterator[tuple[str, str, str]]:
    """(dashboard, panel, PromQL) of every query."""
    for name, document in documents().items():
        for panel in panels(document):
            for target in panel["targets"]:
                yield name, panel["title"], target["expr"]
        for annotation in document.get("annotations", {}).get("list") or []:
            if "expr" in annotation:
                yield name, f"annotation {annotation['name']}", annotation["expr"]


def selectors(node: Any) -> Iterator[promql_parser.VectorSelector]:
    """All selectors below a node of a parsed query."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node
    for attribute in ("lhs", "rhs", "expr", "vector_selector", "vs", "param"):
        if (below := getattr(node, attribute, None)) is not None:
            yield from selectors(below)
    for below in getattr(node, "args", None) or []:
        yield from selectors(below)


def test_they_are_up_to_date() -> None:
    command = [sys.executable, str(ROOT / "dashboards" / "generate.py"), "--check"]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert documents().keys() == BOARDS.keys()


@pytest.mark.parametrize("name", BOARDS)
def test_grafanas_schema_takes_them_and_gives_them_back(name: str) -> None:
    text = (ROOT / "dashboards" / "grafana" / f"{name}.json").read_text()
    assert json.loads(board_json(Dashboard.from_json(json.loads(text)))) == json.loads(text)


@pytest.mark.parametrize("name", BOARDS)
def test_panels_lie_beside_each_other_without_overlap_or_hole(name: str) -> None:
    document = documents()[name]
    taken: dict[tuple[int, int], str] = {}
    for panel in document["panels"]:
        at = panel["gridPos"]
        for x in range(at["x"], at["x"] + at["w"]):
            for y in range(at["y"], at["y"] + at["h"]):
                assert (x, y) not in taken, f"{panel['title']} lies on {taken.get((x, y))}"
                taken[x, y] = panel["title"]
        legend = (panel.get("options") or {}).get("legend", {})
        if isinstance(legend, dict) and (legend.get("showLegend") or legend.get("show")):
            assert at["w"] >= 6, panel["title"]
    tall = max(y for _, y in taken) + 1
    assert len(taken) == 24 * tall
    ids = [panel.get("id") for panel in document["panels"] if panel.get("id")]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("name", BOARDS)
def test_the_rules_of_the_public_linter_hold(name: str) -> None:
    document = documents()[name]
    variables = {variable["name"]: variable for variable in document["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    for one in ("workspace", "workflow"):
        if name != "self_monitoring":
            assert (variables[one]["multi"], variables[one]["includeAll"]) == (True, True)
    for panel in panels(document):
        where = f"{name}: {panel['title']}"
        assert panel["type"] in CURRENT, where
        assert panel["title"], where
        assert panel["description"], where
        assert panel["datasource"]["uid"] == "${datasource}", where
        defaults = panel["fieldConfig"]["defaults"]
        has_unit = defaults.get("unit") or panel["type"] == "heatmap" or panel["fieldConfig"]["overrides"]
        assert has_unit, where
        assert panel["targets"], where
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}", where
            assert "http" not in target["expr"], where
            if panel["type"] in ("timeseries", "bargauge"):
                assert target["legendFormat"], where
            # A window that is shorter than two scrapes sees nothing.
            for window in re.findall(r"rate\([^\[]*\[([^\]]+)\]", target["expr"]):
                assert window in ("$__rate_interval", "$__range", "1h"), (where, window)
    text = json.dumps(document)
    assert not re.search(r"https?://(?!localhost:9923)", text.replace("https://grafana.com", ""))


@pytest.mark.parametrize(("name", "panel", "expression"), [*queries()], ids=lambda value: str(value)[:40])
def test_every_query_is_promql_about_our_own(name: str, panel: str, expression: str) -> None:
    parsed = promql_parser.parse(filled(expression))
    found = list(selectors(parsed))
    assert found, expression
    for one in found:
        labels = {matcher.name for matcher in one.matchers.matchers}
        # Our equivalent of job and instance.
        if name == "self_monitoring":
            assert "instance" in labels, (panel, one.name)
        else:
            assert {"workspace", "workflow"} <= labels, (panel, one.name)


def known_names() -> dict[str, str]:
    """Every name under which a metric of the code can be asked for, with the metric's own."""
    found = {}
    for spec in (*METRICS, *SELF_METRICS):
        found[spec.name] = spec.name
        if isinstance(spec, HistogramSpec):
            found |= {f"{spec.name}_{part}": spec.name for part in ("bucket", "count", "sum")}
    return found


def test_every_metric_is_used_and_every_one_that_is_used_exists() -> None:
    rules = [rule for make in FILES.values() for group in make(read_thresholds()) for rule in group["rules"]]
    recorded = {rule["record"] for rule in rules if "record" in rule}
    expressions = [filled(expression) for _, _, expression in queries()] + [rule["expr"] for rule in rules]
    used = {one.name for expression in expressions for one in selectors(promql_parser.parse(expression))}
    known = known_names()
    assert used - known.keys() - recorded - OTHERS == set()
    unused = {spec.name for spec in (*METRICS, *SELF_METRICS)} - {known[name] for name in used if name in known}
    assert unused == UNUSED.keys()
    # And what is recorded is read by somebody.
    assert recorded <= used


def test_variables_ask_for_labels_that_exist() -> None:
    labels = {spec.name: spec.labels for spec in (*METRICS, *SELF_METRICS)}
    count = 0
    for document in documents().values():
        for variable in document["templating"]["list"]:
            if variable["type"] != "query":
                continue
            count += 1
            match = re.fullmatch(r"label_values\((\w+)(?:\{.*\})?, (\w+)\)", variable["query"]["query"])
            assert match is not None, variable
            assert match[2] in (*labels[match[1]], "instance")
    assert count >= 10
