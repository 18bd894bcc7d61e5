"""User-defined rules: read from a file, before the built-in ones; every fault names its place."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.ingest.proven import RAW
from tests.ingest.recorded import recorded_requests
from tests.traces.test_traceql import span

from tachograph_exporter.config import ConfigError
from tachograph_exporter.ingest.built_in_rules import BUILT_IN, RULES
from tachograph_exporter.ingest.rule_file import read_rules
from tachograph_exporter.ingest.rules import Role, Rulebook
from tachograph_exporter.ingest.spans import SpanRecord

ACME = """
[[rule]]
engine = "acme"
role = "step"
equals = { "acme.kind" = "task" }
name = ["acme.title", "span.acme.task", "span:name"]
workflow = "resource.region"
attempt = "acme.try"
state = "acme.result"
states = { WON = "completed", odd = "failed" }
"""


def test_a_rule_reads_what_it_says_and_comes_first(tmp_path: Path) -> None:
    (tmp_path / "map.toml").write_text(ACME)
    book = read_rules(tmp_path / "map.toml")
    assert book.rules[1:] == RULES
    task = span("1", "s", 1, {"acme.kind": "task", "acme.task": "pull", "acme.result": "won", "acme.try": 2})
    rule = book.find(task)
    assert rule is not None
    assert rule.workflow is not None
    assert rule.attempt is not None
    assert (rule.role, rule.name(task), rule.status(task)) == (Role.STEP, "pull", "completed")
    assert (rule.workflow(task), rule.attempt(task)) == ("eu", 2)
    assert rule.status(span("1", "s", 1, {"acme.kind": "task", "acme.result": "ODD"})) == "failed"
    assert rule.name(span("1", "s", 1, {"acme.kind": "task"})) == "s"
    assert book.find(span("1", "s", 1, {"acme.kind": "flow"})) is None


def test_the_rules_in_the_docs_read_what_conventions_say(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "other-engines.md").read_text()
    (text,) = [block for block in re.findall(r"(?s)```toml\n(.*?)```", page) if "cicd" in block]
    (tmp_path / "map.toml").write_text(text)
    book = read_rules(tmp_path / "map.toml")
    run = {"cicd.pipeline.name": "build", "cicd.pipeline.run.id": "77", "cicd.pipeline.result": "failure"}
    task = {"cicd.pipeline.task.name": "lint", "cicd.pipeline.task.run.result": "timeout"}
    read = []
    for attributes in (run, task):
        record = span("1", "RUN", 1, attributes)
        assert BUILT_IN.find(record) is None
        rule = book.find(record)
        assert rule is not None
        read.append((rule.role, rule.name(record), rule.status(record)))
    assert read == [(Role.EXECUTION, "build", "failed"), (Role.STEP, "lint", "timeout")]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rule = 1", r"Expected `array`.*\$\.rule"),
        ("[[rule]]\nengine = 'a'\nrole = 'stage'\nhas = ['x']", r"Invalid enum value 'stage'.*rule\[0\]\.role"),
        ("[[rule]]\nengine = 'a'\nrole = 'step'\nhass = ['x']", "unknown field `hass`"),
        ("[[rule]]\nengine = 'a'\nrole = 'step'", r"rule\[0\] would match every span"),
        ("[[rule]]\nengine = 'a'\nrole = 'step'\nhas = ['x']\nstates = {a = 'fine'}", "Invalid enum value 'fine'"),
        ("[[rule", "is not TOML"),
    ],
)
def test_an_invalid_file_is_refused_with_the_place(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "map.toml").write_text(text)
    with pytest.raises(ConfigError, match=says):
        read_rules(tmp_path / "map.toml")
    with pytest.raises(ConfigError, match="No such file"):
        read_rules(tmp_path / "none.toml")


def test_the_first_rule_that_matches_is_found_among_those_that_may() -> None:
    """Of the spans of all recordings, and of some that have nothing but what one rule asks for."""
    made = [
        SpanRecord(
            "1" * 32, "2" * 16, "", name, 1, 1, 2, "", "", "", b"", b"",
            {**dict.fromkeys(rule.has, value), **rule.equals}, 0, "", (),
            resource_attributes=dict.fromkeys(rule.resource_has, value),
        )
        for rule in RULES for name in rule.names or rule.named or ("run",) for value in ("1", 1, True, ["1"], None)
    ]  # fmt: skip
    recorded = [span for name in sorted(RAW)[::6] for request in recorded_requests(name) for span in request]
    reversed_rules = Rulebook(RULES[::-1])
    assert len(recorded) > 100
    for each in (*made, *recorded):
        matching = [rule for rule in RULES if rule.matches(each)]
        assert BUILT_IN.find(each) is (matching[0] if matching else None)
        assert reversed_rules.find(each) is (matching[-1] if matching else None)
