"""Definitions that have to end alike, whoever does their steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from tachograph.workflow import Workflow, parse

RULES = ("all_success", "all_done", "none_failed", "none_failed_min_one_success", "one_success")


class Case(NamedTuple):
    name: str
    workflow: Workflow
    inputs: dict[str, Any]


def step(name: str, handler: str = "add", *after: str, **more: Any) -> dict[str, Any]:
    config = {"handler": handler, **({"reads": list(after)} if after else {}), **more.pop("config", {})}
    return {"name": name, "config": config, "depends_on_steps": list(after), **more}


def case(name: str, *steps: dict[str, Any], inputs: dict[str, Any] | None = None, **more: Any) -> Case:
    variables = [{"name": key, "data_type": "json"} for key in inputs or {}]
    return Case(name, parse({"name": name, "steps": list(steps), "variables": variables, **more}), inputs or {})


FAST = {"initial_seconds": 0.01, "max_seconds": 0.02}


def cases(fan_out: int = 60) -> Iterator[Case]:
    """Thirty definitions: every trigger rule, fallback, condition, retry, time-out, and a fan-out."""
    yield case("one", step("a"))
    yield case("chain", step("a"), step("b", "add", "a"), step("c", "add", "b"))
    yield case("diamond", step("a"), step("b", "add", "a"), step("c", "add", "a"), step("d", "add", "b", "c"))
    outcomes = {"fails": step("up", "wrong"), "skipped": step("up", "add", condition_expression="1 > 2")}
    for rule in RULES:
        yield case(
            f"{rule} after success", step("up"), step("ok"), step("down", "later", "up", "ok", trigger_rule=rule)
        )
        for outcome, up in outcomes.items():
            yield case(f"{rule} {outcome}", up, step("ok"), step("down", "later", "up", "ok", trigger_rule=rule))
    yield case(
        "fallback",
        step("a", "wrong", fallback_step="b"),
        step("b"),
        step("c", "add", "a", config={"reads": ["a", "b"]}),
    )
    yield case("fallback not needed", step("a", fallback_step="b"), step("b"), step("c", "add", "a"))
    yield case(
        "condition on an output", step("a"), step("b", "add", "a", condition_expression="steps.a.output.total > 0")
    )
    yield case(
        "retries", step("a", "flaky", max_retries=2, config={"times": 2}, retry_backoff=FAST), step("b", "add", "a")
    )
    yield case("retries in vain", step("a", "flaky", max_retries=1, config={"times": 5}, retry_backoff=FAST))
    yield case("no retry", step("a", "hopeless", max_retries=3))
    yield case(
        "time-out of a step", step("a", "long", timeout_seconds=0.5, config={"seconds": 30}), step("b", "add", "a")
    )
    yield case("leaves", step("a", "leave"), step("b", "add", trigger_rule="all_done"), step("c", "leave_badly"))
    yield case("async", step("a", "later"), step("b", "passes_on"), inputs={"x": [1, {"y": None}]})
    yield case("inputs", step("a", "add", config={"value": "${x}"}), step("b", "wrong"), inputs={"x": 41, "table": "t"})
    yield case("an output in a config", step("a"), step("b", "add", "a", config={"value": "${steps.a.output.total}"}))
    yield case("steps inside", step("a", "parts"), step("b", "add", "a"))
    yield case(
        "costly condition", step("a", condition_expression="xs.exists(x, xs.exists(y, x + y == 1199))"),
        inputs={"xs": list(range(700))},
    )  # fmt: skip
    yield case("unknown output", step("a", "wrong"), step("b", "add", "a", trigger_rule="all_done"))
    yield case("fan-out", step("a"), *(step(f"s{i}", "add", "a") for i in range(fan_out)),
               step("z", "add", *(f"s{i}" for i in range(fan_out))))  # fmt: skip
