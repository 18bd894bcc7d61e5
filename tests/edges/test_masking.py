"""Masking takes linear time: nothing that a step raises or says holds it up."""

from __future__ import annotations

import time

import pytest

from tachograph.redaction import mask_text
from tachograph.summary import failure, summarise

REPEATED = {
    "a": "a", "hex": "0123456789abcdef", "base64url": "AbC-_9z", "words": "password ", "equals": "=", "pairs": "a=",
    "keys": "key=", "secrets": "password=", "colons": "token: ", "urls": "://", "addresses": "http://a:b",
    "schemes": "bearer ", "quotes": 'password="\\', "jwt": "eyJ", "jwt parts": "eyJaaaaaaaa.", "pem": "-----BEGIN ",
    "pem whole": "-----BEGIN PRIVATE KEY-----", "flags": "--token ", "brackets": "token=(", "blanks": "token    ",
    "dots": "a.", "dashes": "sk-", "aws": "AKIA", "newlines": "cookie:\n", "ats": "a://b:@",
}  # fmt: skip


@pytest.mark.parametrize("name", REPEATED)
def test_ten_thousand_characters_of_anything_take_milliseconds(name: str) -> None:
    text = (REPEATED[name] * 10_000)[:10_000]
    best = min(_seconds(lambda: mask_text(text, 10_000)) for _ in range(5))
    # Milliseconds are due (1 to 2 here); a quadratic pattern takes seconds.
    assert best < 0.05


@pytest.mark.parametrize("name", REPEATED)
def test_twice_the_text_takes_about_twice_the_time(name: str) -> None:
    short, long = (REPEATED[name] * 100_000)[:25_000], (REPEATED[name] * 100_000)[:100_000]
    once = min(_seconds(lambda: mask_text(short, 25_000)) for _ in range(3))
    four_times = min(_seconds(lambda: mask_text(long, 100_000)) for _ in range(3))
    assert four_times < 12 * once + 0.005


def _seconds(work: object) -> float:
    began = time.thread_time()
    work()  # type: ignore[operator]
    return time.thread_time() - began


def test_an_error_of_megabytes_is_described_at_once() -> None:
    error = ValueError("0123456789abcdef" * 1_000_000)
    assert _seconds(lambda: failure(error)) < 5
    assert _seconds(lambda: summarise({"x": "deadbeef" * 1_000_000})) < 5
