"""The dashboards are up to date and valid, have no gaps, and query only metrics that exist."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import promql_parser
import pytest
from dashboards.boards import BOARDS
from dashboards.generate import board_json
from dashboards.layout import Span
from grafana_foundation_sdk.models.dashboard import Dashboard
from tests.conftest import ROOT

from tachograph.metrics.self_metrics import SELF_METRICS
from tachograph.metrics.specs import EXPECTATION_METRICS, METRICS, QUEUE_METRICS, HistogramSpec
from tachograph_exporter.alerting.alerts import RUNBOOKS
from tachograph_exporter.alerting.recording_rules import TARGET
from tachograph_exporter.alerting.rule_files import RULE_FILES
from tachograph_exporter.alerting.thresholds import read_thresholds

UNUSED: dict[str, str] = {}
"""Metrics that no panel and no alert uses, each with the reason."""
FOREIGN = {"process_cpu_seconds_total", "process_resident_memory_bytes", "up", "ALERTS", "ALERTS_FOR_STATE"}
PANEL_TYPES = {"timeseries", "stat", "heatmap", "bargauge", "table", "row"}
VARIABLES = {
    # A dashboard about one workflow, asked about all.
    '="$workflow"': '=~".*"', '="$step"': '=~".*"',
    "$__rate_interval": "1m", "$__interval": "1m", "$__range": "1h", "$workspace": ".*", "$workflow": ".*",
    "$step": ".*", "$instance": ".*",
}  # fmt: skip
NAME = re.compile(r"\b(?:workflow|tachograph|process|up)[a-z_]*(?::[a-z0-9_:]+)?\b(?=\s*[\[{)]|\s*$|\s)")


def documents() -> dict[str, Any]:
    return {
        path.stem: json.loads(path.read_text()) for path in sorted((ROOT / "dashboards" / "grafana").glob("*.json"))
    }


def panels(document: Any) -> list[Any]:
    return [panel for panel in document["panels"] if panel["type"] != "row"]


def filled(expression: str) -> str:
    """A query as Grafana sends it, with its variables replaced."""
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
    """All selectors at or below a node of a parsed query."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node
    for attribute in ("lhs", "rhs", "expr", "vector_selector", "vs", "param"):
        if (child := getattr(node, attribute, None)) is not None:
            yield from selectors(child)
    for child in getattr(node, "args", None) or []:
        yield from selectors(child)


def test_dashboards_and_rules_are_up_to_date() -> None:
    command = [sys.executable, str(ROOT / "dashboards" / "generate.py"), "--check"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert documents().keys() == BOARDS.keys()


@pytest.mark.parametrize("name", BOARDS)
def test_a_dashboard_survives_a_round_trip_through_grafanas_schema(name: str) -> None:
    text = (ROOT / "dashboards" / "grafana" / f"{name}.json").read_text()
    assert json.loads(board_json(Dashboard.from_json(json.loads(text)))) == json.loads(text)


@pytest.mark.parametrize("name", BOARDS)
def test_panels_fill_the_grid_without_overlap_or_gap(name: str) -> None:
    document = documents()[name]
    taken: dict[tuple[int, int], str] = {}
    for panel in document["panels"]:
        position = panel["gridPos"]
        for x in range(position["x"], position["x"] + position["w"]):
            for y in range(position["y"], position["y"] + position["h"]):
                assert (x, y) not in taken, f"{panel['title']} overlaps {taken.get((x, y))}"
                taken[x, y] = panel["title"]
        legend = (panel.get("options") or {}).get("legend", {})
        if isinstance(legend, dict) and (legend.get("showLegend") or legend.get("show")):
            assert position["w"] >= 6, panel["title"]
    height = max(y for _, y in taken) + 1
    assert len(taken) == 24 * height
    ids = [panel.get("id") for panel in document["panels"] if panel.get("id")]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("name", BOARDS)
def test_a_dashboard_follows_the_rules_of_grafanas_linter(name: str) -> None:
    document = documents()[name]
    variables = {variable["name"]: variable for variable in document["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    # One workflow's times and steps say nothing about another's.
    single = {"workflow": {"workflow"}, "step": {"workflow", "step"}}.get(name, set())
    for label in variables.keys() & {"workspace", "workflow", "step", "instance"}:
        is_multiple = label not in single
        assert (variables[label]["multi"], variables[label]["includeAll"]) == (is_multiple, is_multiple), label
    assert document["time"] == {"from": "now-24h", "to": "now"}
    for panel in panels(document):
        where = f"{name}: {panel['title']}"
        assert panel["type"] in PANEL_TYPES, where
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
            # A window shorter than two scrapes has no data.
            for window in re.findall(r"rate\([^\[]*\[([^\]]+)\]", target["expr"]):
                assert window in ("$__rate_interval", "$__range", "1h"), (where, window)
    text = json.dumps(document)
    text = text.replace(RUNBOOKS.removesuffix("/runbooks"), "")
    assert not re.search(r"https?://(?!localhost:9923)", text.replace("https://grafana.com", ""))


@pytest.mark.parametrize("name", BOARDS)
def test_the_panels_of_a_row_are_about_the_time_that_its_title_names(name: str) -> None:
    document = documents()[name]
    span = None
    for panel in document["panels"]:
        if panel["type"] == "row":
            (span,) = (span for span in Span if panel["title"].lower().endswith(span.lower()))
            continue
        for target in panel["targets"]:
            where, expression = (name, panel["title"]), target["expr"]
            windows = set(re.findall(r"\[([^\]]+)\]", expression))
            is_graph = panel["type"] in ("timeseries", "heatmap")
            match span:
                case Span.NOW:
                    assert windows <= {"5m"}, where
                    assert not is_graph, where
                case Span.RANGE:
                    assert windows == {"$__range"}, where
                    assert target["instant"], where
                    assert not is_graph, where
                case Span.OVER_TIME:
                    assert windows <= {"$__rate_interval", "1h"}, where
                    # What counts an hour says so.
                    assert "1h" not in windows or panel["fieldConfig"]["defaults"]["unit"] == "suffix: /h", where
                    assert is_graph, where
                case Span.DAY:
                    assert 'window="1d"' in expression or TARGET in expression, where
                case Span.MONTH | Span.MONTH_OVER_TIME:
                    assert 'window="30d"' in expression or "error_budget" in expression or TARGET in expression, where
                case Span.BURN:
                    assert "window=~" in expression or TARGET in expression, where
                case _:
                    raise AssertionError(f"{where} has no heading")


@pytest.mark.parametrize("name", BOARDS)
def test_the_worst_is_first_and_every_number_leads_somewhere(name: str) -> None:
    for panel in panels(documents()[name]):
        where, options, defaults = (name, panel["title"]), panel["options"], panel["fieldConfig"]["defaults"]
        is_of_labels = any("by (step" in t["expr"] or "by (workflow" in t["expr"] for t in panel["targets"])
        match panel["type"]:
            case "timeseries":
                is_low_worst = "Success rate" in panel["title"] or "left" in panel["title"]
                legend = options["legend"]
                expected = ("Min", False) if is_low_worst else ("Max", True)
                assert (legend["sortBy"], legend["sortDesc"]) == expected, where
                assert legend["calcs"] == ["mean", expected[0].lower(), "lastNotNull"], where
            case "table":
                names = [target["legendFormat"] for target in panel["targets"]]
                first = options["sortBy"][0]["displayName"]
                assert first in (*names, "severity"), where
                assert first == "severity" or options["sortBy"][0]["desc"], where
            case "bargauge":
                assert all(target["expr"].startswith("sort_desc(") for target in panel["targets"]), where
        if panel["type"] in ("stat", "bargauge") or (panel["type"] == "timeseries" and is_of_labels):
            links = defaults.get("links") or []
            assert links, where
            assert all(link["title"] and link["url"] for link in links), where


def test_the_first_thing_to_see_is_what_alerts_and_what_failed_last() -> None:
    first = [panel["title"] for panel in panels(documents()["overview"]) if panel["gridPos"]["y"] == 1]
    assert first == ["Alerts firing", "Last result by workflow"]


def test_limits_are_drawn() -> None:
    slo, overview = ({panel["title"]: panel for panel in panels(documents()[name])} for name in ("slo", "overview"))
    for title, factor in (("5m and 1h", 14.4), ("30m and 6h", 6), ("6h and 3d", 1)):
        defaults = slo[title]["fieldConfig"]["defaults"]
        assert defaults["custom"]["thresholdsStyle"]["mode"] == "dashed"
        assert defaults["thresholds"]["steps"][-1] == {"color": "red", "value": factor}
    assert overview["Success rate"]["targets"][1]["legendFormat"] == "target"


@pytest.mark.parametrize(("name", "panel", "expression"), [*queries()], ids=lambda value: str(value)[:40])
def test_every_query_is_valid_promql_and_filters_by_the_dashboards_variables(
    name: str, panel: str, expression: str
) -> None:
    parsed = promql_parser.parse(filled(expression))
    vector_selectors = list(selectors(parsed))
    assert vector_selectors, expression
    for vector in vector_selectors:
        labels = {matcher.name for matcher in vector.matchers.matchers}
        # These stand in for the linter's job and instance.
        if name == "self_monitoring":
            assert "instance" in labels, (panel, vector.name)
        elif vector.name not in {spec.name for spec in QUEUE_METRICS}:  # Queues belong to no workflow.
            assert {"workspace", "workflow"} <= labels, (panel, vector.name)


def metrics_by_series() -> dict[str, str]:
    """The metric behind every series name that a query may use."""
    metrics = {}
    for spec in (*METRICS, *EXPECTATION_METRICS, *QUEUE_METRICS, *SELF_METRICS):
        metrics[spec.name] = spec.name
        if isinstance(spec, HistogramSpec):
            metrics |= {f"{spec.name}_{part}": spec.name for part in ("bucket", "count", "sum")}
    return metrics


def test_every_metric_is_used_and_every_used_metric_exists() -> None:
    rules = [rule for build in RULE_FILES.values() for group in build(read_thresholds()) for rule in group["rules"]]
    recorded = {rule["record"] for rule in rules if "record" in rule}
    expressions = [filled(expression) for _, _, expression in queries()] + [rule["expr"] for rule in rules]
    used = {vector.name for expression in expressions for vector in selectors(promql_parser.parse(expression))}
    metrics = metrics_by_series()
    assert used - metrics.keys() - recorded - FOREIGN == set()
    unused = {spec.name for spec in (*METRICS, *EXPECTATION_METRICS, *QUEUE_METRICS, *SELF_METRICS)} - {
        metrics[name] for name in used if name in metrics
    }
    assert unused == UNUSED.keys()
    # Every recorded series is read.
    assert recorded <= used


def test_variables_query_labels_that_exist() -> None:
    labels = {spec.name: spec.labels for spec in (*METRICS, *EXPECTATION_METRICS, *QUEUE_METRICS, *SELF_METRICS)}
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
