"""Conditions that ask for hours of work or all memory: they fail their step, and nothing else notices."""

from __future__ import annotations

import asyncio
import subprocess
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tachograph.errors import ConditionError
from tachograph.events import ExecutionStatus, StepStatus
from tachograph.workflow import Executor, WorkflowBuilder, condition_process, registry
from tachograph.workflow.condition_cost import MAX_DEPTH, MAX_NODES, UNKNOWN, Cost
from tachograph.workflow.conditions import MAX_COST, Condition
from tachograph.workflow.references import MAX_TEXT, REFERENCE, resolve
from tests.conftest import Api

NUMBERS = list(range(300))
NESTED = "xs.all(a, xs.all(b, xs.all(c, a + b + c >= 0)))"
ATTACKS = {
    "nested loops": NESTED,
    "doubled lists": "size([[1]]" + ".map(x, x + x)" * 22 + ") > 0",
    "texts that grow": "['" + "x" * 1000 + "']" + ".map(x, x + x)" * 30 + ".all(x, size(x) > 0)",
}


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other process's processor time is limited as ever, however long it waits for a processor here."""
    monkeypatch.setattr(condition_process, "WALL_SECONDS", 200.0)


def cost(text: str, **scope: Any) -> int:
    return Cost(text).of(scope, frozenset(scope))


async def run(condition: str, handler: str = "noop", **inputs: Any) -> Any:
    flow = WorkflowBuilder("w")
    for name in inputs:
        flow.variable(name, "json")
    flow.step("before").step("a", after=["before"], handler=handler, when=condition)
    return await Executor(lambda _event: None, handlers=registry.copy()).run(flow.build(), inputs)


ORDINARY: list[tuple[str, dict[str, Any]]] = [
    ("mode == 'fast' && n > 2", {"mode": "fast", "n": 3}),
    ("size(xs) == 300 && 7 in xs", {"xs": NUMBERS}),
    ("xs.all(x, x >= 0) && xs.exists(x, x == 299)", {"xs": NUMBERS}),
    ("rows.filter(r, r.ok).map(r, r.n).exists(n, n > 3)", {"rows": [{"ok": True, "n": i} for i in range(100)]}),
    ("xs.map(x, x * 2).all(x, x % 2 == 0)", {"xs": list(range(400))}),
    ("rows.all(r, r.all(x, x > 0))", {"rows": [[1, 2, 3]] * 300}),
    ("name.startsWith('a') && size(name) > 3 && name.matches('^a[bc]+$')", {"name": "abcbc"}),
    ("""(t == "x\\"y" || t == r'a\\b') ? {'k': [1, 2u, 0x1F, 1.5e3, .5]}.k[0] == 1 : !true""", {"t": "x\"y"}),
    ("-n < 0 && has(m.k) && m['k'] != null && [1, 2,].size() == 2 // a remark", {"n": 1, "m": {"k": 1}}),
]  # fmt: skip


@pytest.mark.parametrize(("source", "scope"), ORDINARY)
def test_ordinary_conditions_need_no_other_process(
    source: str, scope: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", None)
    condition = Condition(source)
    assert not condition.is_costly(scope)
    assert condition(scope) is True


COSTLY = (
    "xs.map(a, xs.map(b, a + b + a)).all(r, r.all(x, x >= {})) && t == 'ä\\n\"' && b == b'\\x00' && m.k.size() == 1"
)


@pytest.mark.parametrize(("least", "expected"), [(0, True), (1, False)])
async def test_what_is_large_is_evaluated_elsewhere_with_the_same_result(least: int, expected: bool) -> None:
    scope = {"xs": NUMBERS[:100], "t": 'ä\n"', "b": b"\0", "m": {"k": [None]}}
    condition = Condition(COSTLY.format(least))
    assert condition.is_costly(scope)
    assert condition(scope) is expected
    result = await run(NESTED.replace(">= 0", f">= {least}"), xs=NUMBERS[:60])
    assert result.steps["a"] is (StepStatus.COMPLETED if expected else StepStatus.SKIPPED)
    assert result.status is ExecutionStatus.COMPLETED


@pytest.mark.parametrize(("text", "reason"), [
    ("xs.map(a, xs.map(b, a / 0)).size() > 0", "ivi"), ("xs.map(a, xs.map(b, [a, b]))", "is list, not true or false"),
    ("xs.all(a, xs.all(b, xs.all(c, nothing == 1)))", "nothing"),
])  # fmt: skip
def test_faults_of_large_conditions_are_told(text: str, reason: str) -> None:
    condition = Condition(text)
    assert condition.is_costly({"xs": NUMBERS[:100]})
    with pytest.raises(ConditionError, match=reason):
        condition({"xs": NUMBERS[:100]})


def test_the_other_process_knows_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TACHOGRAPH_TOKEN", "s3cret")
    seen: dict[str, str] = {}
    real = subprocess.run

    def watch(*arguments: Any, **options: Any) -> Any:
        seen.update(options["env"])
        return real(*arguments, **options)

    monkeypatch.setattr(subprocess, "run", watch)
    assert condition_process.evaluate("1 == 1", {}) is True
    assert "PATH" in seen
    assert "s3cret" not in seen.values()


async def test_a_run_is_cancelled_while_its_condition_is_evaluated() -> None:
    flow = WorkflowBuilder("w", timeout_seconds=0.3).variable("xs", "json").step("a", when=NESTED)
    started = time.monotonic()
    result = await Executor(lambda _event: None, handlers=registry.copy()).run(flow.build(), {"xs": NUMBERS})
    assert result.status is ExecutionStatus.TIMEOUT
    assert result.steps == {"a": StepStatus.SKIPPED}
    assert time.monotonic() - started < 60


async def test_many_of_them_take_turns() -> None:
    results = await asyncio.gather(*(run(NESTED, xs=NUMBERS[:30]) for _ in range(3)))
    assert {result.status for result in results} == {ExecutionStatus.COMPLETED}


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def test_values_that_are_too_deep_or_too_large_are_refused() -> None:
    for value in (nested(MAX_DEPTH + 5), nested(50_000), ["x"] * (MAX_NODES + 1), "x" * (64 * MAX_NODES + 64)):
        with pytest.raises(ConditionError, match="too large"):
            Condition("x == 1")({"x": value})
        assert Condition("y == 1")({"x": value, "y": 1}) is True
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(ConditionError, match="too large"):
        Condition("x == 1")({"x": circle})


EXPRESSIONS = st.recursive(
    st.sampled_from(["xs", "[1]", "[[2], [3]]", "'ab'", "n", "1"]),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda pair: f"({pair[0]} + {pair[1]})"),
        st.tuples(inner, inner, st.sampled_from(["map", "filter", "all", "exists"])).map(
            lambda parts: f"{parts[0]}.{parts[2]}(v, {parts[1]})"
        ),
        st.tuples(inner, inner).map(lambda pair: f"[{pair[0]}, {pair[1]}]"),
    ),
    max_leaves=12,
)


@given(EXPRESSIONS)
def test_more_values_never_cost_less_and_everything_has_a_cost(text: str) -> None:
    few, many = cost(text, xs=[1, 2], n=1), cost(text, xs=list(range(50)), n=1)
    assert 0 < few <= many < UNKNOWN
    # Within another loop it costs at least as much again for each round.
    assert cost(f"[1, 2, 3].map(q, {text})", xs=[1, 2], n=1) >= 3 * (few - cost("xs == n", xs=[1, 2], n=1))


@pytest.mark.parametrize("text", [
    "f(x)", "x.replace('a', 'b')", "Message{a: 1}", "x.map(y, y", "?", "'open", "a..b", "(" * 200 + "1" + ")" * 200,
    "x" + "[0]" * 1300, "lists.range(1000000)", "x.sort()", "@", "1 2",
])  # fmt: skip
def test_what_cannot_be_judged_is_not_evaluated_here(text: str) -> None:
    assert cost(text, x=[1]) > MAX_COST


@given(st.text(alphabet="ab1.,()[]{}'\"+-?:!<>=&| \\\n/rux"))
def test_any_text_has_a_cost_or_none(text: str) -> None:
    assert cost(text, a=1, b=[1]) > 0


@pytest.mark.parametrize("text", ["${" + " " * 100_000, "${ " * 30_000, "${a" + " " * 100_000, "${" * 50_000,
                                  "${a b " * 20_000])  # fmt: skip
def test_references_are_found_in_linear_time(text: str) -> None:
    started = time.process_time()
    assert not list(REFERENCE.finditer(text))
    assert time.process_time() - started < 0.5


def test_references_do_not_fill_the_memory() -> None:
    scope = {"x": "x" * 1_000_000}
    with pytest.raises(ConditionError, match="longer than"):
        resolve({"url": "-${x}" * 100_000}, scope)
    assert resolve("<${ x }|${x}>", {"x": "y"}) == "<y|y>"
    assert len(resolve("a${x}" * 9, scope)) == 9_000_009 < MAX_TEXT


async def test_conditions_without_bounds_fail_their_steps_and_hold_nobody_up(api: Api) -> None:
    steps = [{"name": name, "condition_expression": text} for name, text in ATTACKS.items()]
    document = {"name": "evil", "variables": [{"name": "xs", "data_type": "json"}], "steps": steps}
    assert (await api.call("POST", "/api/workflows", document))[0] == 201
    slowest = 0.0
    _, run_ = await api.call("POST", "/api/workflows/evil/execute", {"input_variables": {"xs": NUMBERS}})
    async with asyncio.timeout(250):
        is_running = True
        while is_running:
            # The event loop's own processor time: a busy machine does not count.
            started = time.thread_time()
            await asyncio.sleep(0.1)
            status = (await api.get(f"/api/workflows/executions/{run_['execution_id']}/status"))["status"]
            is_running = status in ("pending", "running")
            slowest = max(slowest, time.thread_time() - started)
    timeline = await api.get(f"/api/workflows/executions/{run_['execution_id']}/timeline")
    assert timeline["status"] == "failed"
    assert {step["status"] for step in timeline["step_timeline"]} == {"failed"}
    assert all("it needs more than 2 s or 512 MB" in step["error_message"] for step in timeline["step_timeline"])
    assert slowest < 1
