"""Small requests that ask for much work: answered or refused at once."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tachograph.workflow import registry
from tachograph.workflow.validation import validate_document
from tachograph_exporter.traces.pattern import MAX_CHARACTERS, Pattern, PatternError
from tachograph_exporter.traces.traceql import TraceQLError, parse
from tests.conftest import Api
from tests.traces.test_traceql import SPANS, TRACE

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
    query = parse(f'{{name=~"{pattern}"}}')
    started = time.process_time()
    query.find(SPANS * 100, TRACE)
    assert time.process_time() - started < 0.5


TOKENS = st.lists(st.sampled_from([".", ".*", ".+", "a", "b", "|", "\\.", "\\*", "\\|", "ä", "\n", "-"]), max_size=12)


@given(TOKENS, st.text(alphabet="ab.*|ä\n-", max_size=12))
def test_patterns_mean_what_regular_expressions_mean(tokens: list[str], text: str) -> None:
    pattern = "".join(tokens)
    assert Pattern(pattern)(text) is (re.fullmatch(pattern, text, re.DOTALL) is not None)


@pytest.mark.parametrize(("pattern", "at"), [("a[b]", 2), ("(a+)+", 1), ("a*", 2), ("\\", 1), ("a\\d", 2), ("x{2}", 2),
                                             ("^a", 1), ("a$", 2), (".**", 3), ("?", 1)])  # fmt: skip
def test_other_patterns_are_refused_with_their_place(pattern: str, at: int) -> None:
    with pytest.raises(PatternError, match=f"at {at}, not"):
        Pattern(pattern)
    with pytest.raises(TraceQLError, match=r"patterns support only.* at \d+"):
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
    assert seconds[1] < 2
    assert seconds[1] < 8 * seconds[0] + 0.2


def test_long_names_are_not_compared() -> None:
    document = {"name": "w", "steps": [{"name": "a" * 200 + str(i), "depends_on_steps": ["a" * 199 + str(i)]}
                                       for i in range(500)]}  # fmt: skip
    started = time.process_time()
    validate_document(document, registry)
    assert time.process_time() - started < 1
