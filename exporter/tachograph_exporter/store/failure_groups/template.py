"""The template of an error message: its words, with everything folded that differs from one time to the next.

Whatever is folded becomes `VALUE`, so that two messages are equal however their values look. The time is linear in the
length of the message, of which `MAX_MESSAGE` characters are read.
"""

from __future__ import annotations

import functools
import re
from typing import Final


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


VALUE: Final = "<*>"
"""What stands for a value: a number, id, path, address, quoted text, time, …"""
MAX_MESSAGE: Final = 4_000
"""Characters of a message that are read."""
_CACHED_LENGTH: Final = 40
"""Characters of a word whose folding is remembered."""
MAX_TEMPLATE: Final = 500
"""Characters of a template. Far fewer than are read: where a long message is cut depends on its values."""

_QUOTE: Final = re.compile(r"[\"'`“”‘’«»„]")
_CLOSING: Final = {'"': '"', "'": "'", "`": "`'", "“": "”", "‘": "’", "„": "“”", "«": "»"}
_WORD: Final = re.compile(r"\S+")
_PART: Final = re.compile(r"<\*>|[^\s()\[\]{},;=<>|]+|[\s()\[\]{},;=<>|]")
_EDGE: Final = "()[]{}<>,;:.!?|\"'`"
_DIGIT: Final = re.compile(r"\d")
_INTEGER: Final = re.compile(r"[+-]?\d{1,5}")
_HEX: Final = re.compile(r"[0-9a-fA-F]{8,}")
_COLONS: Final = re.compile(r"[0-9a-fA-F]{0,4}(?:::?[0-9a-fA-F]{1,4}){2,}:{0,2}")
_PADDED: Final = re.compile(r"[A-Za-z0-9+/_-]{4,}={1,2}(?=$|[^\w=])")
_DRIVE: Final = re.compile(r"(?:[A-Za-z]:)?\\|[A-Za-z]:[/\\]")
_FILE: Final = re.compile(
    r"(?i)[^/]+\.(?:csv|tsv|jsonl?|ndjson|ya?ml|toml|xml|txt|log|md|parquet|avro|orc|arrow|feather|gz|zip|bz2|zst|xz|tar"
    r"|tgz|xlsx?|docx?|pdf|png|jpe?g|gif|svg|db|sqlite|sql|pyc?|jsx?|tsx?|java|jar|go|rb|php|cs|html?|tmp|lock|bak|conf"
    r"|cfg|ini|env|pem|key|crt|so|dll|exe|bin|dat|pkl|npy|npz|ipynb|sh|sock|pid)"
)
_HOST: Final = re.compile(
    r"(?i)(?:[a-z0-9_-]+\.)+(?:com|net|org|io|dev|app|cloud|internal|local|localdomain|lan|svc|corp|test|example|invalid"
    r"|home|intra|eu|de|uk|us|fr|ch|nl|jp|cn|in|co|info|biz)(?:\.?:[a-z]+)?"
)
_CODE: Final = re.compile(
    r"(?i)(?:ORA|TNS|PLS|DPY|DPI|SQLSTATE|HTTP|CVE|PGRST|AADSTS|MSB|CS|TS|SQL)[-_]?\d{2,7}N?"
    r"|(?:SSL|TLS)v?\d(?:\.\d)?|HTTP/\d(?:\.\d)?"
)
_TECHNICAL: Final = _words(
    "utf-8 utf8 utf-16 utf16 utf-32 utf_8 latin-1 latin1 iso-8859-1 iso8859-1 cp1252 cp437 gb2312 sha1 sha-1 "
    "sha256 sha-256 sha384 sha512 md5 base64 base32 base16 ipv4 ipv6 http2 http3 h2 int8 int16 int32 int64 "
    "uint8 uint16 uint32 uint64 float16 float32 float64 complex64 complex128 datetime64 s3 ec2 k8s x86_64 "
    "arm64 amd64 win32 oauth2 x509 lz4 bz2 mp3 mp4 psycopg2 psycopg3 boto3 urllib3 httplib2 jinja2 sqlite3 "
    "python3 python2 log4j neo4j db2 i18n l10n x11 v4l2 rs256 hs256 es256 aes256 aes-256 rsa2048 pep8 e2e "
    "c++11 h5 p12 pkcs12 pkcs8 ext4"
)
"""Words of the field that have a digit and are not values."""
_SLASHED: Final = re.compile(r"(?i)(?:application|text|image|audio|video|multipart|font|model)/[a-z.+*-]+")
_SLASHED_WORDS: Final = _words(
    "and/or either/or i/o n/a tcp/ip read/write input/output client/server start/stop begin/end yes/no "
    "true/false on/off ssl/tls he/she his/her request/response key/value http/https"
)
_CALENDAR: Final = _words(
    "mon tue tues wed thu thur thurs fri sat sun monday tuesday wednesday thursday friday saturday sunday jan "
    "feb mar apr may jun jul aug sep sept oct nov dec january february march april june july august september "
    "october november december"
)
_UNITS: Final = _words(
    "ns us µs μs ms msec msecs millisecond milliseconds microsecond microseconds nanosecond nanoseconds s sec "
    "secs second seconds m min mins minute minutes h hr hrs hour hours d day days w week weeks month months y "
    "year years b byte bytes kb mb gb tb pb kib mib gib tib kbit mbit gbit bit bits k bn thousand million "
    "billion % percent pct ° deg am pm utc gmt z cet cest est edt pst pdt usd eur gbp hz khz mhz ghz px pt rpm "
    "rps qps w kw v mv ago"
)
"""What may follow a number and belongs to it: it changes with the number."""
_KEPT_AFTER: Final = _words("errno winerror signal sqlstate http status http/1.0 http/1.1 http/2 http/3")
_KEPT_AFTER_TWO: Final = frozenset(
    {("exit", "code"), ("exit", "status"), ("return", "code"), ("status", "code"), ("error", "status")}
)
_KEPT_KEYS: Final = _words("errno status status_code exit_code exitcode returncode return_code signal sqlstate")
_JOINED: Final = re.compile(r"<\*>(?:(?:[\s,;:=|/+~x×*-]|\band\b|\bor\b|\bto\b|\bof\b|\bat\b|\bvs\b|\.\.|…)*<\*>)+")
_WRAPPED: Final = re.compile(
    r"(?<![\w>])(?:\[\s*(?:<\*>)?[\s,]*\]|\(\s*(?:<\*>)?[\s,]*\)|\{\s*\}|\{\s*<\*>[^{}]*\})|<<\*>>"
)
_SIGNS: Final = re.compile(
    r"(?<![\w>.:#$€£+~*-])[.:#$€£+~*-]+(?=<\*>)|(?<![\w>])[$€£№#] (?=<\*>)"
    r"|(?<=<\*>)(?:\.(?=[\s)\],;:]|$)|={1,2}(?![\w<=]))"
)
"""What belongs to the value beside it: signs, the dots of ``./``, the padding of base64."""
_SPACES: Final = re.compile(r"\s+")
_CASE_CHANGE: Final = re.compile(r"[a-z][A-Z]|[A-Z]{2}[a-z]")


def template_of(message: str) -> str:
    """The template of a message. That of a template is the template itself."""
    text = _fold_quoted(message[:MAX_MESSAGE])
    words: list[tuple[str, ...]] = []
    before = last = ""
    for word in _WORD.findall(text):
        words.append((word,) if _is_told_apart(word, before, last) else _fold_word(word))
        before, last = last, word.strip(_EDGE).lower()
    folded = _fold_in_context(words)
    for _ in range(3):
        joined = _WRAPPED.sub(VALUE, _JOINED.sub(VALUE, _SIGNS.sub("", folded)))
        if joined == folded:
            break
        folded = joined
    return _cut(_SPACES.sub(" ", folded).strip())


def _cut(text: str) -> str:
    """Cut between words: a word that is cut in two may be another one next time."""
    if len(text) <= MAX_TEMPLATE:
        return text
    return text[:MAX_TEMPLATE].rpartition(" ")[0] or text[:MAX_TEMPLATE]


def _fold_quoted(text: str) -> str:
    """Quoted texts as values. An apostrophe inside a word is none of their quotes."""
    parts: list[str] = []
    copied = 0
    opened: re.Match[str] | None = None
    unclosed: set[str] = set()
    quotes = list(_QUOTE.finditer(text))
    i = 0
    while i < len(quotes):
        quote = quotes[i]
        start, end, mark = quote.start(), quote.end(), quote.group()
        if opened is not None:
            if mark in _CLOSING[opened.group()] and not text[end : end + 1].isalnum():
                first = opened.start()
                # The prefix of a literal: b'…'.
                if first and text[first - 1] in "bBrRuUfF" and not text[max(0, first - 2) : first - 1].isalnum():
                    first -= 1
                parts += [text[copied:first], VALUE]
                copied, opened = end, None
        elif mark in _CLOSING and mark not in unclosed and _may_open(text, start):
            opened, opened_at = quote, i
        i += 1
        if i == len(quotes) and opened is not None:
            # Nothing closes it, nor any later one of its kind. Each kind is given up once, so the time stays linear.
            unclosed.add(opened.group())
            i, opened = opened_at + 1, None
    parts.append(text[copied:])
    return "".join(parts)


def _may_open(text: str, at: int) -> bool:
    before = text[at - 1 : at] if at else ""
    if not before.isalnum():
        return True
    return before in "bBrRuUfF" and not text[max(0, at - 2) : at - 1].isalnum()


def _is_told_apart(word: str, before: str, last: str) -> bool:
    """Whether a number tells causes apart: an exit code, an HTTP status, an errno."""
    if last not in _KEPT_AFTER and (before, last) not in _KEPT_AFTER_TWO:
        return False
    return _INTEGER.fullmatch(word.strip(_EDGE)) is not None


def _fold_word(word: str) -> tuple[str, ...]:
    """The parts of a word between spaces, with values folded."""
    # Most words of a message are those of the last one; long ones are not kept.
    return _folded_short_word(word) if len(word) <= _CACHED_LENGTH else tuple(_parts_of(word))


@functools.lru_cache(2048)
def _folded_short_word(word: str) -> tuple[str, ...]:
    return tuple(_parts_of(word))


def _parts_of(word: str) -> list[str]:
    if VALUE in word and len(word) == len(VALUE):
        return [VALUE]
    core = word.strip(_EDGE)
    if "://" in word:
        return _from_scheme(word)
    if core[:1] in ("/", "~") or core.startswith(("./", "../")) or _DRIVE.match(core):
        return _whole(word, core)
    if "=" in word and _PADDED.fullmatch(core.rstrip(".,;:")) and (len(core) >= 12 or _DIGIT.search(core)):
        return _whole(word, core)
    parts: list[str] = []
    for part in _PART.findall(word):
        after_equals = len(parts) >= 2 and parts[-1] == "=" and (parts[-2][-1:].isalnum() or parts[-2][-1:] == "_")
        if len(part) == 1 and not part.isalnum() and not (after_equals and part == "/"):
            parts.append(VALUE if part == word == "/" else part)
        elif after_equals and parts[-2].lower() in _KEPT_KEYS and _INTEGER.fullmatch(part):
            parts.append(part)
        elif after_equals or is_value(part.strip(_EDGE + "*")):
            parts += _whole(part, part.strip(_EDGE)) if not after_equals else [VALUE]
        else:
            parts.append(part)
    return parts


def _from_scheme(word: str) -> list[str]:
    """A word with a URL in it: what is before the URL, and a value."""
    start = end = word.index("://")
    while start > 0 and (word[start - 1].isalnum() or word[start - 1] in "+.-_"):
        start -= 1
    rest = word[end:]
    return [word[:start], VALUE, rest[len(rest.rstrip(_EDGE)) :]]


def _whole(word: str, core: str) -> list[str]:
    head, _, tail = word.partition(core)
    return [head, VALUE, tail]


def is_value(word: str) -> bool:
    """Whether a word without spaces is a value rather than a word of the message."""
    if not word:
        return False
    lower = word.lower()
    if _DIGIT.search(word):
        return lower not in _TECHNICAL and not _CODE.fullmatch(word)
    if "/" in word or "\\" in word:
        return lower not in _SLASHED_WORDS and not _SLASHED.fullmatch(word)
    if "@" in word or lower in ("nan", "inf", "-inf", "+inf", "localhost") or lower.startswith("localhost:"):
        return True
    if "." in word:
        return _FILE.fullmatch(word) is not None or _HOST.fullmatch(word) is not None
    if ":" in word:
        return _COLONS.fullmatch(word) is not None
    if _HEX.fullmatch(word):
        return True
    # Random letters change case every other letter, words do not.
    return len(word) >= 16 and word.isalnum() and len(_CASE_CHANGE.findall(word)) * 5 > len(word)


def _fold_in_context(words: list[tuple[str, ...]]) -> str:
    """The words as text: with what belongs to a number folded, and codes that tell causes apart as they are."""
    folded = [VALUE in parts for parts in words]
    texts = ["".join(parts) for parts in words]
    for i in range(len(words) - 1, -1, -1):
        if not folded[i] and i + 1 < len(words) and folded[i + 1] and _is_calendar(texts[i]):
            folded[i], texts[i] = True, VALUE
    return " ".join(_following(texts, folded))


def _following(texts: list[str], folded: list[bool]) -> list[str]:
    result: list[str] = []
    is_number = False
    for text, is_folded in zip(texts, folded, strict=True):
        word = text.strip(_EDGE).lower()
        if is_folded:
            result.append(text)
            # What ends with a mark is not continued by the next word.
            is_number = text.endswith(VALUE)
            continue
        if is_number and word and (word in _UNITS or word in _CALENDAR):
            result[-1] += text[len(text.rstrip(_EDGE)) :]
            is_number = text.rstrip(_EDGE) == text
            continue
        if is_number and len(word) > 3 and word.endswith("s") and not word.endswith("ss") and word.isalpha():
            # 1 row, 2 rows.
            at = text.lower().rfind("s")
            text = text[:at] + text[at + 1 :]
        is_number = False
        result.append(text)
    return [text for text in result if text]


def _is_calendar(text: str) -> bool:
    return text.strip(_EDGE).lower() in _CALENDAR
