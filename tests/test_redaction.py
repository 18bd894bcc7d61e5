"""Summaries hold no secrets, are bounded, and exist for any value."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tachograph.redaction import MASK, is_secret_key, mask_text
from tachograph.summary import LIMIT, failure, summarise


@pytest.mark.parametrize(
    "key", ["password", "db_password", "dbPassword", "api-key", "apiKey", "AUTHORIZATION", "access_token", "x.secret"]
)
def test_values_under_secret_keys_are_masked_at_any_depth(key: str) -> None:
    assert is_secret_key(key)
    assert summarise({"outer": [{key: "hunter2"}]}) == json.dumps({"outer": [{key: MASK}]}, separators=(",", ":"))


@pytest.mark.parametrize("key", ["tokens_in", "max_tokens", "author", "passenger", "tokenizer_size", "keyboard"])
def test_similar_words_are_not_secret_keys(key: str) -> None:
    assert not is_secret_key(key)


@pytest.mark.parametrize(
    "text",
    [
        "cannot reach postgres://app:hunter2@db/prod",
        "login failed: password=hunter2",
        'login failed: {"api_key": "hunter2"}',
        "Authorization: Bearer hunter2hunter2",
        "sent with bearer hunter2hunter2.x",
        "token: hunter2",
    ],
)
def test_credentials_in_text_are_masked(text: str) -> None:
    assert "hunter2" not in mask_text(text)
    assert MASK in mask_text(text)


@pytest.mark.parametrize(
    "text", ["pin: 4711", "PIN=4711", "{'pin': '4711'}", "pin code: 4711", "cvv=4711", "cvc: 4711"]
)
def test_codes_of_cards_are_masked(text: str) -> None:
    assert "4711" not in mask_text(text)


@pytest.mark.parametrize(
    "text", ["password: failed4U", "token=none-of-it", "auth: nullable7x", "Authorization: none x7"]
)
def test_a_secret_that_begins_like_a_state_is_a_secret(text: str) -> None:
    assert mask_text(text).endswith(MASK)


def test_ordinary_text_is_unchanged() -> None:
    for text in ("see https://example.org/a:b@c", "the author: Ann", "42 tokens used", "naïve ☃"):
        assert mask_text(text) == text


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    "value", ["x" * 10**6, list(range(10**5)), {str(i): "y" * 100 for i in range(1000)}, ['"\\' * 400] * 50, "\ud800"]
)
def test_a_summary_is_bounded_and_stays_json(value: Any) -> None:
    text = summarise(value)
    assert text is not None
    assert len(text) <= LIMIT
    json.loads(text)


def test_strange_values_are_named() -> None:
    cycle: list[Any] = []
    cycle.append(cycle)
    for value in (Unprintable(), cycle, b"bytes", {1: 2}, {("a",): 1}, math.nan, math.inf, 10**400, {1, 2}, object):
        json.loads(summarise(value) or "null")
    assert summarise(None) is None
    assert summarise({}) is None
    assert summarise(False) == "false"


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
                    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))  # fmt: skip
def test_any_value_is_summarised_to_json(value: Any) -> None:
    text = summarise(value)
    if text is not None:
        assert len(text) <= LIMIT
        json.loads(text)
        text.encode()


def test_an_exception_becomes_type_message_and_stack_without_its_secrets() -> None:
    try:
        raise ValueError("bad token=hunter2")
    except ValueError as error:
        described = failure(error)
    assert described.type == "ValueError"
    assert described.message == f"bad token={MASK}"
    assert described.stack is not None
    assert "test_redaction.py" in described.stack
    assert "token=hunter2" not in described.stack.replace('"bad token=hunter2"', "")


def test_a_failure_that_cannot_be_printed_is_still_a_failure() -> None:
    class Broken(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    assert failure(Broken()).message
