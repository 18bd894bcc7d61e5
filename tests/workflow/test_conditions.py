"""Conditions: CEL and ``${…}``; Python is never evaluated."""

from __future__ import annotations

from typing import Any

import pytest

from tachograph.workflow import ConditionError
from tachograph.workflow.conditions import Condition
from tachograph.workflow.references import resolve

SCOPE: dict[str, Any] = {
    "mode": "fast",
    "n": 3,
    "empty": "",
    "inputs": {"mode": "fast", "my-var": 1},
    "steps": {"load": {"status": "completed", "output": {"rows": [1, 2, 3], "ok": False}}, "a-b": {"output": 7}},
}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("mode == 'fast'", True),
        ("${mode} == 'fast'", True),
        ("${mode}", True),
        ("${empty}", False),
        ("!${empty}", True),
        ("${missing}", False),
        ("${steps.load.output.rows}", True),
        ("${steps.load.output.ok}", False),
        ("${steps.load.output.nothing}", False),
        ("n > 2 && size(steps.load.output.rows) == 3", True),
        ('steps["a-b"].output == 7', True),
        ("steps.load.status == 'completed'", True),
        ("steps.load.output.rows.exists(row, row == 2)", True),
        ('inputs["my-var"] == 1', True),
        ("'steps.nope.output' == mode", False),
    ],
)
def test_conditions_hold_or_not(source: str, expected: bool) -> None:
    assert Condition(source)(SCOPE) is expected


@pytest.mark.parametrize("source", ["mode ==", "${}", "${a b}", "(" * 5000, "x" * 5000, "__import__('os')("])
def test_what_does_not_parse_is_refused_at_once(source: str) -> None:
    with pytest.raises(ConditionError):
        Condition(source)


@pytest.mark.parametrize("source", ["mode", "n + 1", "mode > 3", "n / 0 == 1", "nope == 1", "__import__('os') == 1"])
def test_what_has_no_answer_is_an_error_that_says_so(source: str) -> None:
    with pytest.raises(ConditionError, match="condition"):
        Condition(source)(SCOPE)


def test_a_condition_knows_what_it_reads() -> None:
    condition = Condition(
        "n > 1 && steps.load.output.rows.all(r, r > 0) && steps['a-b'].output == 7 && mode == 'steps.x'"
    )
    assert condition.steps == {"load", "a-b"}
    assert condition.variables == {"n", "steps", "mode"}


def test_references_in_a_config_take_values_with_their_types() -> None:
    config = {"seconds": "${n}", "url": "http://x/${mode}/${steps.load.output.rows[1]}", "list": ["${inputs.mode}"]}
    assert resolve(config, SCOPE) == {"seconds": 3, "url": "http://x/fast/2", "list": ["fast"]}
    with pytest.raises(ConditionError, match="has no value"):
        resolve({"x": "${steps.later.output}"}, SCOPE)
