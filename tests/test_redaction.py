"""Summaries hold no secrets, are bounded, and exist for any value."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tachograph.redaction import MASK, is_secret_key, mask_lines, mask_text
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
        "Config(user='x', password=b'hunter2', retries=3)",
        "{'api_key': r'hunter2'}",
        "docker login -u x -p hunter2 registry",
        "CREATE USER x IDENTIFIED BY 'hunter2'",
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


KEY = ("-----BEGIN RSA PRIVATE KEY-----", "Proc-Type: 4,ENCRYPTED", "", "MIIEvQIBADANBgkqhkiG9w0BAQEFAASC", "Qw+/==",
       "-----END RSA PRIVATE KEY-----")  # fmt: skip


@pytest.mark.parametrize(
    "lines",
    [
        ("password=", "hunter2x"), ("password: >-", "  hunter2x"), ('  "dbPassword":', '    "hunter2x",'),
        ("api_key = \\", "  hunter2x"), ("Password: ", "", "hunter2x"), ("token:", "'hunter2x and more'"),
    ],
)  # fmt: skip
def test_a_value_on_the_line_below_its_key_is_masked(lines: tuple[str, ...]) -> None:
    assert "hunter2x" not in "\n".join(mask_lines([*lines, "the end of it"]))
    assert mask_lines([*lines, "the end of it"])[-1] == "the end of it"
    if "" not in lines:
        assert "hunter2x" not in mask_text("\n".join([*lines, "the end of it"]))


def test_lines_that_follow_a_key_and_are_no_value_stay() -> None:
    for lines in (["password:", "  user: bob"], ["Password:", "connecting to the host"], ["total:", "17"], ["a", ""]):
        assert mask_lines(lines) == lines


def test_a_private_key_over_several_lines_is_masked_also_in_part() -> None:
    for start in range(len(KEY)):
        shown = mask_lines([*KEY[start:], "ready", "a: b"])
        assert not {"MIIEv", "Qw+/"} & {part for line in shown for part in ("MIIEv", "Qw+/") if part in line}, start
        assert shown[-3:] == ["-----END RSA PRIVATE KEY-----", "ready", "a: b"]
    logged = mask_lines([f"2026-11-30 07:12:36 INFO {line}" for line in (*KEY[:1], KEY[3], "and so on", "word")])
    assert logged[1:] == [f"2026-11-30 07:12:36 INFO {line}" for line in ("[masked]", "and so on", "word")]


def test_colours_do_not_part_a_key_from_its_value() -> None:
    for text in (
        "\x1b[31mpassword\x1b[0m=hunter2x",
        "pass\x1b[1mword: hunter2x\x1b[0m",
        "token=\x1b[32mhunter2x\x1b[0m",
    ):
        assert "hunter2x" not in mask_text(text)
    assert "plain" in mask_text("\x1b[31mplain\x1b[0m")
