"""A bad definition is refused with all its faults, by code and place; a good one is read completely."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tachograph.workflow import HandlerRegistry, InvalidWorkflow, WorkflowBuilder, parse, to_document, validate_document
from tachograph.workflow.document import read_expectation, to_json
from tachograph_exporter import bundled_workflows


def faults(document: Any, handlers: HandlerRegistry | None = None) -> dict[tuple[str, str], str]:
    workflow, report = validate_document(document if isinstance(document, bytes) else json.dumps(document), handlers)
    assert (workflow is None) == bool(report.errors)
    return {(fault.code, fault.at): fault.message for fault in report.errors}


def step(name: str, *after: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "depends_on_steps": list(after), **fields}


BROKEN: list[tuple[str, Any, set[tuple[str, str]]]] = [
    ("not JSON", b'{"name": ', {("invalid_json", "")}),
    ("not an object", [1], {("wrong_type", "")}),
    ("nothing in it", {}, {("missing_field", "name"), ("no_steps", "steps")}),
    (
        "unknown keys",
        {"name": "w", "stepz": [], "steps": [{"name": "a", "depend_on_steps": []}]},
        {("unknown_key", "stepz"), ("unknown_key", "steps[0].depend_on_steps")},
    ),
    (
        "wrong types",
        {"name": 7, "timeout_seconds": "soon", "steps": [{"name": "a", "max_retries": 1.5, "config": []}, "b"]},
        {
            ("wrong_type", "name"),
            ("missing_field", "name"),
            ("wrong_type", "timeout_seconds"),
            ("wrong_type", "steps[0].max_retries"),
            ("wrong_type", "steps[0].config"),
            ("wrong_type", "steps[1]"),
        },
    ),
    (
        "out of range",
        {"name": "w", "timeout_seconds": -1, "max_retries": -2, "steps": [step("a", timeout_seconds=0)]},
        {
            ("out_of_range", "timeout_seconds"),
            ("out_of_range", "max_retries"),
            ("out_of_range", "steps[0].timeout_seconds"),
        },
    ),
    (
        "duplicate names",
        {"name": "w", "variables": [{"name": "v"}, {"name": "v"}], "steps": [step("a"), step("a")]},
        {("duplicate_variable", "variables[1].name"), ("duplicate_step", "steps[1].name")},
    ),
    (
        "unknown dependencies",
        {"name": "w", "steps": [step("extract"), step("load", "extrct"), step("x", fallback_step="y")]},
        {("unknown_dependency", "steps[1].depends_on_steps[0]"), ("unknown_fallback", "steps[2].fallback_step")},
    ),
    ("a cycle", {"name": "w", "steps": [step("a", "c"), step("b", "a"), step("c", "b"), step("d")]},
     {("cycle", "steps[0].depends_on_steps")}),
    ("waits for itself", {"name": "w", "steps": [step("a", "a")]}, {("cycle", "steps[0].depends_on_steps")}),
    (
        "a fallback that waits for what it stands in for",
        {"name": "w", "steps": [step("a", fallback_step="f"), step("after", "a"), step("f", "after")]},
        {("cycle", "steps[1].depends_on_steps")},
    ),
    (
        "bad conditions",
        {
            "name": "w",
            "variables": [{"name": "mode"}],
            "steps": [
                step("a", condition_expression="mode =="),
                step("b", condition_expression="mod == 'x'"),
                step("c", condition_expression="steps.b.output.n > 1"),
                step("d", condition_expression="${not a path}"),
            ],
        },
        {
            ("bad_condition", "steps[0].condition_expression"),
            ("unknown_variable", "steps[1].condition_expression"),
            ("unreachable_condition", "steps[2].condition_expression"),
            ("bad_condition", "steps[3].condition_expression"),
        },
    ),
    (
        "trigger rules",
        {"name": "w", "steps": [step("a", trigger_rule="one_success"), step("b", "a", trigger_rule="some")]},
        {("unreachable", "steps[0].trigger_rule"), ("unknown_value", "steps[1].trigger_rule")},
    ),
    (
        "variables",
        {
            "name": "w",
            "variables": [{"name": "n", "data_type": "int", "default_value": "x"}, {"name": "m", "data_type": "integr"},
                          {"name": "steps"}, {"data_type": "int"}],
            "steps": [step("a")],
        },
        {
            ("wrong_type", "variables[0].default_value"),
            ("unknown_value", "variables[1].data_type"),
            ("reserved_name", "variables[2].name"),
            ("missing_field", "variables[3].name"),
        },
    ),
    (
        "handlers",
        {
            "name": "w",
            "steps": [
                step("a", config={"handler": "slep"}),
                step("b", config={"handler": "sleep"}),
                step("c", config={"handler": "sleep", "seconds": -1, "minutes": 2}),
                step("d", config={"handler": "shell", "command": "ls"}),
                step("e", config={"handler": 5}),
            ],
        },
        {
            ("unknown_handler", "steps[0].config.handler"),
            ("bad_config", "steps[1].config.seconds"),
            ("bad_config", "steps[2].config.seconds"),
            ("bad_config", "steps[2].config.minutes"),
            ("handler_not_allowed", "steps[3].config.handler"),
            ("wrong_type", "steps[4].config.handler"),
        },
    ),
]  # fmt: skip


@pytest.mark.parametrize(("document", "expected"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_every_fault_is_named_at_once(document: Any, expected: set[tuple[str, str]], handlers: HandlerRegistry) -> None:
    assert set(faults(document, handlers)) == expected


def test_messages_name_the_thing_and_the_way_out(handlers: HandlerRegistry) -> None:
    messages = faults({"name": "w", "steps": [step("extract"), step("load", "extrct")]})
    message = messages["unknown_dependency", "steps[1].depends_on_steps[0]"]
    assert message == (
        'step "load" depends on "extrct", which is not a step of this workflow (did you mean "extract"?)'
    )
    cycle = faults({"name": "w", "steps": [step("a", "c"), step("b", "a"), step("c", "b")]})
    assert "a → c → b → a" in cycle["cycle", "steps[0].depends_on_steps"]
    shell = faults({"name": "w", "steps": [step("a", config={"handler": "shell", "command": "ls"})]}, handlers)
    assert "--allow-handler shell" in shell["handler_not_allowed", "steps[0].config.handler"]


def test_a_definition_read_and_written_is_the_same(handlers: HandlerRegistry) -> None:
    for path in bundled_workflows.workflow_files():
        workflow = parse(path.read_bytes())
        assert parse(to_document(workflow)) == workflow


def test_documents_of_older_systems_run_unchanged_with_a_warning(handlers: HandlerRegistry) -> None:
    document = {
        "name": "older",
        "project_id": "p-1",
        "workspace_id": "w-1",
        "meta_data": {"team": "a"},
        "variables": [{"name": "n", "data_type": "integer", "meta_data": {}}],
        "steps": [
            {
                "name": "think",
                "step_type": "agent",
                "agent_definition_id": "x",
                "agent_instance_id": None,
                "meta_data": {},
                "condition_expression": None,
            }
        ],
    }
    workflow, report = validate_document(document, handlers)
    assert workflow is not None
    assert workflow.metadata == {"team": "a"}
    assert workflow.steps[0].handler == "noop"
    assert [fault.code for fault in report.warnings] == ["no_handler"]


def test_the_examples_are_valid_and_have_the_steps_they_promise(handlers: HandlerRegistry) -> None:
    counts = {}
    for path in bundled_workflows.workflow_files():
        workflow, report = validate_document(path.read_bytes(), handlers)
        assert workflow is not None, report.errors
        assert not report.warnings
        counts[workflow.name] = len(workflow.steps)
    assert counts["basic_sequence"] == 3
    assert counts["parallel_processing"] == counts["conditional_workflow"] == 5
    assert counts["data_pipeline"] == 7
    assert {"with_retries", "agent_chain"} <= counts.keys()


def test_the_builder_refuses_what_the_document_would_be_refused_for() -> None:
    with pytest.raises(InvalidWorkflow) as refused:
        WorkflowBuilder("w").step("a", after="b").step("c", after="a", when="nope > 1").build()
    assert {fault.code for fault in refused.value.faults} == {"unknown_dependency", "unknown_variable"}


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
                    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
                        st.sampled_from(["name", "steps", "variables", "config", "depends_on_steps", "x"]), inner),
                    max_leaves=20))  # fmt: skip
def test_no_document_is_too_strange_to_be_judged(document: Any) -> None:
    workflow, report = validate_document({"name": "w", "steps": document})
    assert (workflow is None) == (not report.is_valid)


def test_ten_thousand_steps_are_judged_in_time_linear_in_their_number(tmp_path: Path) -> None:
    steps = [step(f"s{i}", *([f"s{i - 1}"] if i else [])) for i in range(10_000)]
    steps.append(step("join", *[f"s{i}" for i in range(10_000)]))
    workflow, _ = validate_document({"name": "big", "steps": steps})
    assert workflow is not None
    # A quadratic algorithm would exceed the test's time limit here.
    steps[0]["depends_on_steps"] = ["s9999"]
    assert validate_document({"name": "big", "steps": steps})[0] is None


def test_an_expectation_is_read_with_every_fault_of_it() -> None:
    expectation, mistakes = read_expectation({
        "schedule": "0 3 * * *", "timezone": "Mars/Olympus", "grace": "soon", "deadline": "1h", "stuck_factor": -1,
        "steps": {"load": {"deadline": "10m"}, "join": 3, "sort": {"dead": 1}},
    })  # fmt: skip
    assert (expectation.schedule, expectation.deadline_seconds) == ("0 3 * * *", 3600)
    assert expectation.steps["load"].deadline_seconds == 600
    places = [fault.at for fault in mistakes]
    assert places == ["timezone", "grace", "stuck_factor", "steps.join", "steps.sort.dead"]
    many: dict[str, Any] = {f"s{n}": {} for n in range(1_001)}
    assert [fault.code for fault in read_expectation({"steps": many})[1]] == ["too_many"]
    assert [fault.code for fault in read_expectation([])[1]] == ["wrong_type"]
    document = {"name": "etl", "expectation": {"deadline": "1h"}, "steps": [{"name": "a"}]}
    workflow = parse(document)
    assert parse(to_document(workflow)) == workflow


def test_a_definition_as_json_is_its_document(tmp_path: Path) -> None:
    documents = [json.loads(path.read_text()) for path in bundled_workflows.workflow_files()]
    documents.append({"name": "w", "expectation": {"deadline": "1h"}, "steps": [step("a")]})
    for document in documents:
        workflow = parse(document)
        assert to_json(workflow) == msgspec.json.encode(to_document(workflow))
        assert parse(to_json(workflow)) == workflow


def test_a_step_that_is_no_json_is_named_with_its_place_in_the_document() -> None:
    good = '{"name": "w", "steps": [{"name": "a"}, {"name": "b"'
    text = (good + ', "config": {"x": "\\q"}}]}').encode()
    messages = faults(text)
    with pytest.raises(msgspec.DecodeError) as error:
        msgspec.json.decode(text)
    assert messages == {("invalid_json", ""): f"the document is not JSON: {error.value}"}
    deep = faults((good + ', "config": {"x": ' + "[" * 5_000 + "]" * 5_000 + "}}]}").encode())
    assert deep.keys() == {("invalid_json", "")}
