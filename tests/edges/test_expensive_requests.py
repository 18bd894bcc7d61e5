"""Small requests that ask for much work: answered or refused at once."""

from __future__ import annotations

import asyncio
import io
import re
import time
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tachograph.workflow import registry
from tachograph.workflow.validation import validate_document
from tachograph_exporter.traces.pattern import MAX_CHARACTERS, Pattern, PatternError
from tachograph_exporter.traces.traceql.parser import TraceQLError, parse
from tachograph_exporter.traces.traceql.pipelines import Spanset, stage
from tests.conftest import Api
from tests.traces.test_traceql import SPANS, view

EVIL = (
    "|" * 100 + ".*" * 400 + "!", ".*a" * 600 + "!", ".+" * 990 + "!", "|||.*.*.*.*.*.*.*.*.*!", ".*.*|" * 300 + "!",
    "." * 1999 + "!", ".*" + "." * 900 + ".*" + "." * 900 + "!", "a|" * 900 + "!",
)  # fmt: skip


@pytest.mark.parametrize("pattern", EVIL)
def test_a_pattern_takes_linear_time(pattern: str) -> None:
    match = Pattern(pattern)
    started = time.process_time()
    for text in ("a" * 2000, "ab" * 1000, "x" * 100_000, "!" * 1999):
        match(text)
    assert time.process_time() - started < 0.25
    evaluate = stage(parse(f'{{name=~"{pattern}"}}').pipeline)
    started = time.process_time()
    evaluate([Spanset(SPANS * 100)], view(SPANS))
    assert time.process_time() - started < 0.5


TOKENS = st.lists(st.sampled_from([".", ".*", ".+", "a", "b", "|", "\\.", "\\*", "\\|", "ä", "\n", "-"]), max_size=12)


@given(TOKENS, st.text(alphabet="ab.*|ä\n-", max_size=12))
def test_patterns_mean_what_regular_expressions_mean(tokens: list[str], text: str) -> None:
    pattern = "".join(tokens)
    assert Pattern(pattern)(text) is (re.fullmatch(pattern, text, re.DOTALL) is not None)


@pytest.mark.parametrize("pattern", ["a[b", "(a+", "\\", "x{2000}", "(?=a)", "a**b)", "(a{999}){999}", "?", "\\1"])
def test_other_patterns_are_refused_with_their_place(pattern: str) -> None:
    with pytest.raises(PatternError, match="not a valid pattern"):
        Pattern(pattern)
    with pytest.raises(TraceQLError, match=r"not a valid pattern.* at 11"):
        parse("{ name =~ `" + pattern + "` }")


def test_a_long_pattern_is_refused() -> None:
    with pytest.raises(PatternError, match="longer than"):
        Pattern("a" * (MAX_CHARACTERS + 1))


@pytest.mark.parametrize("query", [
    "{ duration > " + "9" * 400 + "s }", "{ duration > " + "9" * 400 + "ns }", "{ span.x = " + "9" * 5000 + " }",
    "{ span.x = " + "9" * 19 + " }", "{ span.x = -" + "9" * 400 + ".5 }", "{ duration > 99999999999w }",
    "{ duration > 999999999999999d }", "{ duration > 9." + "9" * 400 + "h }",
    "{" + "!" * 1036 + "true }", "{" + "(" * 60 + "true" + ")" * 60 + "}", "{ " + "name = nil || " * 300 + "true }",
    "{" + "!(" * 400 + "true" + ")" * 400 + "}", "(" * 60 + "{}" + ")" * 60,
])  # fmt: skip
async def test_a_query_beyond_its_bounds_is_refused_with_the_place(api: Api, query: str) -> None:
    with pytest.raises(TraceQLError, match=r" at \d+"):
        parse(query)
    status, body = await api.call("GET", "/tempo/api/search", params={"q": query})
    assert (status, body["code"]) == (400, "not_supported")


def unknown_names(count: int) -> dict[str, Any]:
    return {
        "name": "w",
        "steps": [
            {"name": f"step number {i}", "depends_on_steps": [f"stepp nummer {i}"],
             "config": {"handler": f"nooop{i}", "x": f"${{steps.stap {i}}}"}, "condition": f"vari_{i} > 1",
             f"kay{i}": 1}
            for i in range(count)
        ],
    }  # fmt: skip


def test_validation_takes_linear_time_and_hints_at_a_few_faults() -> None:
    seconds = []
    for count in (500, 2000):
        started = time.process_time()
        _, report = validate_document(unknown_names(count), registry)
        seconds.append(time.process_time() - started)
        assert len(report.errors) >= count
        assert 0 < sum("did you mean" in fault.message for fault in report.errors) < 50
    assert seconds[1] < 5
    assert seconds[1] < 8 * seconds[0] + 1


def test_long_names_are_not_compared() -> None:
    document = {"name": "w", "steps": [{"name": "a" * 200 + str(i), "depends_on_steps": ["a" * 199 + str(i)]}
                                       for i in range(500)]}  # fmt: skip
    started = time.process_time()
    validate_document(document, registry)
    assert time.process_time() - started < 1


def chain(count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"name": f"s{i}", "depends_on_steps": [f"s{i - 1}"] if i else [], **more} for i in range(count)]


def test_conditions_that_read_steps_far_away_are_checked_in_linear_time() -> None:
    steps = chain(8000)
    for step in steps[2:]:
        step["condition_expression"] = "steps.s0.status == 'completed'"
    started = time.process_time()
    workflow, report = validate_document({"name": "w", "steps": steps}, registry)
    assert time.process_time() - started < 4
    assert workflow is not None
    steps[1]["condition_expression"] = "steps.s7000.status == 'completed' && steps.s0.output == 1"
    _, report = validate_document({"name": "w", "steps": steps}, registry)
    (fault,) = report.errors
    assert (fault.code, fault.at) == ("unreachable_condition", "steps[1].condition_expression")
    assert "s7000" in fault.message


def test_conditions_have_a_length_together() -> None:
    conditions = [f"variable_{i} < " * 250 + "1" for i in range(200)]
    steps = [{"name": f"s{i}", "condition_expression": text} for i, text in enumerate(conditions)]
    started = time.process_time()
    _, report = validate_document({"name": "w", "steps": steps}, registry)
    assert time.process_time() - started < 6
    last = report.errors[-1]
    assert (last.code, "together" in last.message) == ("bad_condition", True)


def test_fallbacks_of_fallbacks_are_bounded() -> None:
    """Each of them, and whoever waits for the first, waits for all of them."""
    for count, is_circle in ((20, False), (21, False), (20_000, False), (20_000, True)):
        row = [{"name": f"f{i}", "fallback_step": f"f{i + 1}"} for i in range(count)]
        row[-1]["fallback_step"] = "f0" if is_circle else None  # type: ignore[assignment]
        waiting = [{"name": f"w{i}", "depends_on_steps": ["f0"]} for i in range(2000)]
        started = time.process_time()
        _, report = validate_document({"name": "w", "steps": [*row, *waiting]}, registry)
        assert time.process_time() - started < 4
        assert ("bad_fallback" in {fault.code for fault in report.errors}) is (count > 20)


async def test_a_large_document_is_checked_off_the_event_loop(api: Api) -> None:
    steps = [
        {"name": f"s{i}", "depends_on_steps": [f"s{j}" for j in range(max(0, i - 300), i)],
         "condition_expression": "a < " * 100 + f"variable_{i}"}
        for i in range(1000)
    ]  # fmt: skip
    body = msgspec.json.encode({"name": "w", "steps": steps})
    assert len(body) > 2_000_000
    headers = {"Content-Type": "application/json"}

    async def check() -> int:
        url = f"{api.address}/api/workflows/validate"
        async with api.session.post(url, data=io.BytesIO(body), headers=headers) as response:
            await response.read()
            return response.status

    slowest = 0.0
    checks = [asyncio.create_task(check()) for _ in range(3)]
    while not all(task.done() for task in checks):
        # The event loop's own processor time: a busy machine does not count.
        started = time.thread_time()
        await asyncio.sleep(0.005)
        slowest = max(slowest, time.thread_time() - started)
    assert {await task for task in checks} == {200}
    # On the event loop each of them takes over a second.
    assert slowest < 0.5
