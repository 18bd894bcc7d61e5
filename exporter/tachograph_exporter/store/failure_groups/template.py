"""The template of an error message: its words, with everything folded that differs from one time to the next.

Whatever is folded becomes `VALUE`, so that two messages are equal however their values look. The time is linear in the
length of the message, of which `MAX_MESSAGE` characters are read.
"""

from __future__ import annotations

import functools
import re
from typing import Final

from tachograph_exporter.store.failure_groups.vocabulary import (
    CALENDAR,
    CARDINALS,
    LINKS,
    SLASHED,
    SPANS,
    TECHNICAL,
    UNITS,
)

VALUE: Final = "<*>"
"""What stands for a value: a number, id, path, address, quoted text, time, …"""
MAX_MESSAGE: Final = 4_000
"""Characters of a message that are read."""
_CACHED_LENGTH: Final = 40
"""Characters of a word whose folding is remembered."""
MAX_TEMPLATE: Final = 500
"""Characters of a template. Far fewer than are read: where a long message is cut depends on its values."""
_CACHED_WORDS: Final = 100
"""Words of a message whose template is remembered, once its values are folded."""
_MAX_PASSES: Final = 5
_MAX_DEPTH: Final = 60
"""Brackets within brackets that are looked into."""

_QUOTE: Final = re.compile(r"[\"'`“”‘’«»„‹›「」『』《》]")
_CLOSING: Final = {
    '"': '"', "'": "'", "`": "`'", "“": "”", "‘": "’", "„": "“”", "«": "»", "‹": "›", "「": "」", "『": "』",
    "《": "》",
}  # fmt: skip
_PAIRED: Final = "「『《"
"""Quotes of languages without spaces: letters may stand beside them."""
_ESCAPE: Final = re.compile(r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[@-Z\\^_]?")
"""What terminals take for colours, titles and links."""
_INVISIBLE: Final = dict.fromkeys(
    (0xAD, *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2065), 0xFEFF)
)
_WORD: Final = re.compile(r"\S+")
_PART: Final = re.compile(r"<\*>|[^\s()\[\]{},;=<>|]+|[\s()\[\]{},;=<>|]")
_EDGE: Final = "()[]{}<>,;:.!?|\"'`"
_DIGIT: Final = re.compile(r"\d")
_INTEGER: Final = re.compile(r"[+-]?\d{1,5}")
_HEX: Final = re.compile(r"[0-9a-fA-F]{8,}")
_OCTETS: Final = re.compile(r"(?<![^\s(\[<=:,])[0-9a-fA-F]{2}(?: [0-9a-fA-F]{2}){2,}(?!\w)")
_COLONS: Final = re.compile(r"[0-9a-fA-F]{0,4}(?:::?[0-9a-fA-F]{1,4}){2,}:{0,2}")
_ADDRESS: Final = re.compile(r"::[0-9a-fA-F]{1,4}")
_BESIDE_ADDRESS: Final = _EDGE.replace(":", "")
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
_SLASHED: Final = re.compile(r"(?i)(?:application|text|image|audio|video|multipart|font|model)/[a-z.+*-]+")
_KEPT_AFTER: Final = frozenset(
    ("errno", "winerror", "signal", "sqlstate", "http", "status", "http/1.0", "http/1.1", "http/2", "http/3")
)
_KEPT_AFTER_TWO: Final = frozenset(
    {("exit", "code"), ("exit", "status"), ("return", "code"), ("status", "code"), ("error", "status")}
)
_KEPT_KEYS: Final = frozenset(
    ("errno", "status", "status_code", "exit_code", "exitcode", "returncode", "return_code", "signal", "sqlstate")
)
_LITERAL: Final = r"(?:null|NULL|None|nil|true|TRUE|True|false|FALSE|False|undefined|NaN)(?!\w)"
_LITERALS: Final = re.compile(rf"(?:<\*>|(?<![\w.]){_LITERAL})(?:\s*,\s*(?:<\*>|{_LITERAL}))+")
"""Lists of values and of words of programming languages that stand for values."""
_JOINED: Final = re.compile(r"<\*>(?:(?:[\s,;:=|/+~x×*-]|\band\b|\bor\b|\bto\b|\bof\b|\bat\b|\bvs\b|\.\.|…)*<\*>)+")
_BRACKET: Final = re.compile(r"[()\[\]{}]")
_OPENING: Final = {")": "(", "]": "[", "}": "{"}
_ONLY_VALUE: Final = re.compile(r"\s*(?:<\*>)?[\s,]*")
_FIELDS: Final = re.compile(r"\s*(?:\Z|<\*>)")
_SIGNS: Final = re.compile(
    r"(?<![\w>.:#$€£+~*-])[.:#$€£+~*-]+(?=<\*>)|(?<![\w>])[$€£№#] (?=<\*>)"
    r"|(?<=<\*>)(?:\.(?=[\s)\],;:]|$)|={1,2}(?![\w<=]))"
)
"""What belongs to the value beside it: signs, the dots of ``./``, the padding of base64."""
_SPACES: Final = re.compile(r"\s+")
_CASE_CHANGE: Final = re.compile(r"[a-z][A-Z]|[A-Z]{2}[a-z]")
_TOKEN: Final = re.compile(r"[A-Za-z_-]+")
_LONE_LETTER: Final = re.compile(r"(?<=[A-Z])[a-z](?=[A-Z])")
_LATE_CAPITALS: Final = re.compile(r"(?<=[a-z])[A-Z]{2,}")
_LETTER_RUN: Final = re.compile(r"[a-z]+|[A-Z]+")


def template_of(message: str) -> str:
    """The template of a message. That of a template is the template itself."""
    is_cut = len(message) > MAX_MESSAGE
    text = message[:MAX_MESSAGE]
    if "\x1b" in text or "\x9b" in text:
        text = _ESCAPE.sub("", text)
    if not text.isascii():
        text = text.translate(_INVISIBLE)
    # Whoever wrote it may have cut it: then what is open is closed in what is missing, too.
    is_open = is_cut or text.rstrip().endswith(("…", "..."))
    words = _words_of(text, is_cut=is_cut, is_open=is_open)
    return _finished(words, is_open) if len(words) <= _CACHED_WORDS else _finish(words, is_open)


def _finish(words: tuple[str, ...], is_open: bool) -> str:
    """The template of a message whose words are folded one by one: with what belongs together, and cut."""
    for _ in range(_MAX_PASSES):
        folded = in_context = _fold_in_context(words)
        for _ in range(_MAX_PASSES):
            joined = _fold_brackets(_joined(_SIGNS.sub("", folded)), is_open=is_open)
            if joined == folded:
                break
            folded = joined
        template = _SPACES.sub(" ", folded).strip()
        if folded is in_context and _QUOTE.search(folded) is None:
            break
        # What became a value may stand beside what belongs to it, or close a quote that was none.
        again = _words_of(template, is_cut=False, is_open=False)
        if again == words:
            break
        words, is_open = again, False
    return _cut(template)


# Messages that differ in their values have the same words by now.
_finished: Final = functools.lru_cache(512)(_finish)


def _joined(text: str) -> str:
    return _JOINED.sub(VALUE, _LITERALS.sub(_folded_literals, text)).replace(f"<{VALUE}>", VALUE)


def _folded_octets(match: re.Match[str]) -> str:
    return VALUE if _DIGIT.search(match.group()) else match.group()


def _folded_literals(match: re.Match[str]) -> str:
    return VALUE if VALUE in match.group() else match.group()


def _cut(text: str) -> str:
    """Cut between words: a word that is cut in two may be another one next time."""
    if len(text) <= MAX_TEMPLATE:
        return text
    return text[:MAX_TEMPLATE].rpartition(" ")[0] or text[:MAX_TEMPLATE]


def _words_of(text: str, *, is_cut: bool, is_open: bool) -> tuple[str, ...]:
    """The words of a text, folded one by one. A line that says the same as the one before it counts once."""
    text = _OCTETS.sub(_folded_octets, _fold_quoted(text, is_open=is_open))
    lines = text.splitlines() if "\n" in text else [text]
    if is_cut and len(lines) > 1:
        del lines[-1]
    words: list[str] = []
    of_line_before: list[str] = []
    before = last = ""
    for line in lines:
        begin = len(words)
        for raw in _WORD.findall(line):
            # Most words of a message are those of the last one; long ones are not kept.
            folded, core = _short_word(raw) if len(raw) <= _CACHED_LENGTH else _word(raw)
            is_code = (last in _KEPT_AFTER or (before, last) in _KEPT_AFTER_TWO) and _is_code(core)
            words.append(raw if is_code else folded)
            before, last = last, core
        if len(lines) > 1:
            of_line = words[begin:]
            if of_line == of_line_before and _is_balanced(line):
                del words[begin:]
            of_line_before = of_line
    return tuple(words)


def _is_balanced(line: str) -> bool:
    """Whether a line closes the brackets that it opens: those of data over several lines do not."""
    return all(line.count(opening) == line.count(closing) for closing, opening in _OPENING.items())


def _is_code(core: str) -> bool:
    """Whether a number tells causes apart: an exit code, an HTTP status, an errno."""
    return _INTEGER.fullmatch(core) is not None


def _fold_quoted(text: str, *, is_open: bool) -> str:
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
            if mark in _CLOSING[opened.group()] and (opened.group() in _PAIRED or not text[end : end + 1].isalnum()):
                first = opened.start()
                # The prefix of a literal: b'…'.
                if first and text[first - 1] in "bBrRuUfF" and not text[max(0, first - 2) : first - 1].isalnum():
                    first -= 1
                parts += [text[copied:first], VALUE]
                copied, opened = end, None
        elif mark in _CLOSING and mark not in unclosed and (mark in _PAIRED or _may_open(text, start)):
            opened, opened_at = quote, i
        i += 1
        if i == len(quotes) and opened is not None:
            if is_open:
                # It is closed in what is not read.
                return "".join((*parts, text[copied : opened.start()], VALUE))
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


def _word(raw: str) -> tuple[str, str]:
    """A word between spaces: folded, and as it is in lower case without marks at its edges."""
    return "".join(_parts_of(raw)), raw.strip(_EDGE).lower()


_short_word: Final = functools.lru_cache(2_048)(_word)


def _parts_of(word: str) -> list[str]:
    """The parts of a word between spaces, with values folded."""
    if VALUE in word and len(word) == len(VALUE):
        return [VALUE]
    core = word.strip(_EDGE)
    if "://" in word:
        return _from_scheme(word)
    if "::" in word and _ADDRESS.fullmatch(address := word.strip(_BESIDE_ADDRESS).rstrip(":")):
        return _whole(word, address)
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
        return lower not in TECHNICAL and not _CODE.fullmatch(word)
    if "/" in word or "\\" in word:
        return lower not in SLASHED and not _SLASHED.fullmatch(word)
    if "@" in word or lower in ("nan", "inf", "-inf", "+inf", "localhost") or lower.startswith("localhost:"):
        return True
    if "." in word:
        return _FILE.fullmatch(word) is not None or _HOST.fullmatch(word) is not None
    if ":" in word:
        return _COLONS.fullmatch(word) is not None
    if _HEX.fullmatch(word) or (lower in CARDINALS or CARDINALS.issuperset(lower.split("-"))):
        return True
    return len(word) >= 16 and _is_random(word)


def _is_random(word: str) -> bool:
    """Whether the case of letters changes as it does in random ones, and not as in names of several words."""
    if word.isalnum() and len(_CASE_CHANGE.findall(word)) * 5 > len(word):
        return True
    if not _TOKEN.fullmatch(word):
        return False
    odd_runs = len(_LONE_LETTER.findall(word))
    return (
        odd_runs > 0
        and (odd_runs := odd_runs + len(_LATE_CAPITALS.findall(word))) > 1
        and (4 * odd_runs >= len(_LETTER_RUN.findall(word)))
    )


def _fold_in_context(words: tuple[str, ...]) -> str:
    """The words as text: with what belongs to a number folded."""
    texts = list(words)
    folded = [VALUE in word for word in words]
    cores = [word.strip(_EDGE).lower() for word in words]
    cores += ("", "")
    for i in range(len(words) - 1, -1, -1):
        if folded[i]:
            continue
        core, following = cores[i], cores[i + 1]
        if core in CALENDAR:
            belongs = i + 1 < len(words) and folded[i + 1]
        elif core in LINKS:
            belongs = i + 1 < len(words) and folded[i + 1] and (following in CALENDAR or cores[i - 1] in CALENDAR)
        elif core in ("a", "an"):
            belongs = following in SPANS or (following == "few" and cores[i + 2] in UNITS)
        else:
            belongs = core == "few" and following in UNITS and i > 0 and cores[i - 1] == "a"
        if belongs:
            folded[i], texts[i] = True, VALUE
    return " ".join(_following(texts, folded, cores))


def _following(texts: list[str], folded: list[bool], cores: list[str]) -> list[str]:
    result: list[str] = []
    is_number = False
    for i, (text, is_folded) in enumerate(zip(texts, folded, strict=True)):
        if is_folded:
            result.append(text)
            # What ends with a mark is not continued by the next word.
            is_number = text.endswith(VALUE)
            continue
        if is_number and (core := cores[i]):
            if core in UNITS or core in CALENDAR or (core in LINKS and cores[i + 1] in CALENDAR):
                result[-1] += text[len(text.rstrip(_EDGE)) :]
                is_number = text.rstrip(_EDGE) == text
                continue
            if len(core) > 3 and core.endswith("s") and not core.endswith("ss") and core.replace("-", "").isalpha():
                # 1 row, 2 rows.
                at = text.lower().rfind("s")
                text = text[:at] + text[at + 1 :]
        is_number = False
        result.append(text)
    return [text for text in result if text]


def _fold_brackets(text: str, *, is_open: bool) -> str:
    """Brackets as values that hold nothing but values, and braces that begin with one; the innermost first."""
    if _BRACKET.search(text) is None:
        return text
    outer: list[tuple[str, list[str]]] = []
    parts: list[str] = []
    copied = 0
    for match in _BRACKET.finditer(text):
        bracket, at = match.group(), match.start()
        if at > copied:
            parts.append(text[copied:at])
        copied = at + 1
        if bracket not in _OPENING:
            if len(outer) < _MAX_DEPTH:
                outer.append((bracket, parts))
                parts = []
                continue
        elif outer and outer[-1][0] == _OPENING[bracket]:
            content = "".join(parts)
            opening, parts = outer.pop()
            if not _is_attached(parts) and _is_collection(opening, content):
                parts.append(VALUE)
                continue
            parts += [opening, content] if content else [opening]
        parts.append(bracket)
    if copied < len(text):
        parts.append(text[copied:])
    if outer and is_open:
        # It is closed in what is not read.
        return "".join((*outer[0][1], VALUE))
    for opening, before in reversed(outer):
        parts = [*before, opening, *parts]
    return "".join(parts)


def _is_attached(parts: list[str]) -> bool:
    """Whether a bracket belongs to the word before it, as that of a call does."""
    before = parts[-1][-1] if parts else " "
    return before.isalnum() or before in "_>"


def _is_collection(opening: str, content: str) -> bool:
    if content.count(VALUE) > 1:
        content = _joined(content)
    if opening == "{":
        return _FIELDS.match(content) is not None and "{" not in content and "}" not in content
    return _ONLY_VALUE.fullmatch(content) is not None
