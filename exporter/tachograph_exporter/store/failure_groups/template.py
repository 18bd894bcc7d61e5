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
    CURRENCIES,
    LINKS,
    NO_PLURAL,
    NO_POD,
    PLURALS_IN_S,
    SLASHED,
    SPANS,
    TECHNICAL,
    UNITS,
    ZONES,
)

VALUE: Final = "<*>"
"""What stands for a value: a number, id, path, address, quoted text, time, …"""
MAX_MESSAGE: Final = 4_000
"""Characters of a message that are read."""
_CACHED_LENGTH: Final = 40
"""Characters of a word whose folding is remembered."""
MAX_TEMPLATE: Final = 500
"""Characters of a template. Far fewer than are read: where a long message is cut depends on its values."""
_MAX_NESTED: Final = 200
"""Characters of a word with several values in it that are read one after the other."""
_CACHED_WORDS: Final = 100
"""Words of a message whose template is remembered, once its values are folded."""
_MAX_PASSES: Final = 5
_MAX_DEPTH: Final = 60
"""Brackets within brackets that are looked into."""

_QUOTE: Final = re.compile(r"[\"'`“”‘’‚«»„‹›「」『』《》【】〈〉〖〗｢｣＂＇]")
_CLOSING: Final = {
    '"': '"', "'": "'", "`": "`'", "“": "”", "‘": "’", "„": "“”", "‚": "‘’", "”": "”", "’": "’", "«": "»", "»": "«",
    "‹": "›", "›": "‹", "「": "」", "『": "』", "《": "》", "【": "】", "〈": "〉", "〖": "〗", "｢": "｣", "＂": "＂",
    "＇": "＇",
}  # fmt: skip
_PAIRED: Final = "「『《【〈〖｢"
"""Quotes of languages without spaces: letters may stand beside them."""
_ESCAPE: Final = re.compile(r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[@-Z\\^_]?")
"""What terminals take for colours, titles and links."""
_INVISIBLE: Final = dict.fromkeys(
    (0xAD, *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2065), *range(0x2580, 0x25A0), 0xFEFF)
)
"""And what bars of progress are drawn with."""
_FIELD: Final = r"(?:\*(?:/\d+)?|\d+(?:[,/-]\d+)*)"
_DAY: Final = r"(?:sun|mon|tue|wed|thu|fri|sat)"
_CRON: Final = re.compile(
    rf"(?i)(?<![^\s(\[=]){_FIELD}(?: {_FIELD}){{3}} (?:{_FIELD}|{_DAY}(?:[,-]{_DAY})*)(?![^\s)\],.;:])"
)
_MASKED: Final = re.compile(r"(?<![^\s(\[=:])[*•●]{3,}(?![^\s)\],.;:])")
_CARETS: Final = re.compile(r"(?<!\S)(?=~*\^)[~^]+(?!\S)")
_COMPASS: Final = re.compile(r"\d+(?:\.\d+)?°(?: ?\d+(?:\.\d+)?['′](?: ?\d+(?:\.\d+)?(?:[\"″]|''))?)?(?: ?[NSEWCF]\b)?")
_PROGRESS: Final = re.compile(r"\[[=#>*. -]{4,}\]")
_ZONE_NAME: Final = re.compile(r" ?\((?:[A-Z][\w-]+ ){1,4}Time\)")
_GO_CLOCK: Final = re.compile(r" m=[+-]\d+\.\d+")
_TEX_QUOTED: Final = re.compile(r"``[^`]*?(?:``|'')")
_KEY_VALUES: Final = re.compile(r"\)=\([^()]*\)")
_ROW_VALUES: Final = re.compile(r"(?s)( (?:row contains|key value is) )\(.{0,2000}?\)(?=[.,;:]?(?:\s|$))")
"""The keys and rows that PostgreSQL and SQL Server say: texts stand in them without quotes."""
_WHOLE: Final = re.compile(
    r"[(\[,;:=]*(\$(?:\.\.?[\w*]+|\[[^\]\s]*\])+|\$\{?\w+\}?[/\\][^\s)\]},;]*|data:[^\s,]*,[^\s)\]}]*"
    r"|\{[A-Z0-9-]{3,}\}[^\s)\]},;]{8,}|\$[a-z0-9-]+\$[^\s)\]}]*|&#x?[0-9a-fA-F]+;|[^\s=?]*\?[\w.\[\]%+~-]+=[^\s)\]}]*"
    r"|[\w.%+~-]+=[^\s&)\]}]*&[\w.\[\]%+~-]+=[^\s)\]}]*)"
)
"""A JSON path, a path that begins with a variable, a data URL, a password with its scheme, a query string."""
_KEY: Final = re.compile(r"[(\[{,;]*[\w.-]+=(?=[$?{&]|data:|[\w.%+~-]+=|[^\s=&?]*\?)")
"""What may stand before one."""
_PART: Final = re.compile(r"<\*>|[^\s()\[\]{},;=<>|]+|[\s()\[\]{},;=<>|]")
_EDGE: Final = "()[]{}<>,;:.!?|\"'`"
_DIGIT: Final = re.compile(r"[\d²³¹¼-¾⁰-₉⅐-⅟①-⓿]")
_INTEGER: Final = re.compile(r"[+-]?\d{1,5}|0x[0-9a-fA-F]{8}")
_SQLSTATE: Final = re.compile(r"(?i)[0-9a-z]{5}")
_HEX: Final = re.compile(r"[0-9a-fA-F]{8,}")
_OCTETS: Final = re.compile(r"(?<![^\s(\[<=:,])[0-9a-fA-F]{2}(?: [0-9a-fA-F]{2}){2,}(?!\w)")
_PAIR: Final = re.compile(r" [0-9a-fA-F]{2} ")
"""Of three bytes or more one is between spaces."""
_COLONS: Final = re.compile(r"[0-9a-fA-F]{0,4}(?:::?[0-9a-fA-F]{1,4}){2,}:{0,2}")
_ADDRESS: Final = re.compile(r"::[0-9a-fA-F]{1,4}")
_BESIDE_ADDRESS: Final = _EDGE.replace(":", "")
_PADDED: Final = re.compile(r"[A-Za-z0-9+/_-]{4,}={1,2}(?=$|[^\w=])")
_DRIVE: Final = re.compile(r"(?:[A-Za-z]:)?\\|[A-Za-z]:[/\\]")
_FILE: Final = re.compile(
    r"(?i)[^/]+\.(?:csv|tsv|jsonl?|ndjson|ya?ml|toml|xml|txt|log|md|parquet|avro|orc|arrow|feather|gz|zip|bz2|zst|xz|tar"
    r"|tgz|xlsx?|docx?|pdf|png|jpe?g|gif|svg|db|sqlite|sql|pyc?|jsx?|tsx?|java|jar|go|rb|php|cs|html?|tmp|lock|bak|conf"
    r"|cfg|ini|env|pem|key|crt|so|dll|exe|bin|dat|pkl|npy|npz|ipynb|sh|sock|pid|cpp|hpp|rs|kt|swift|scala|jl|lua|pl|bat"
    r"|cmd|tf|hcl|proto|thrift|avsc|xsd|wsdl|xslt?|rst|tex|pptx?|od[tsp]|rtf|eml|ics|vcf|wav|ogg|flac|avi|mov|mkv|webm"
    r"|webp|bmp|tiff?|heic|ico|psd|eps|dcm|hdf|parq|crc|tmpl|tpl|woff|ttf|whl|egg|deb|rpm|apk|iso|dmg|msi|rar|safetensors"
    r"|onnx|ckpt|gguf|joblib|pickle|mdb|accdb|dbf|shp|geojson|kml|gpx|tfrecord|sst|hprof)"
    r"(?:\.(?:part|tmp|old|orig|bak|swp|gz|bz2|zst|xz))*[~#]?"
)
_HOST: Final = re.compile(
    r"(?i)(?:[\w-]+\.)+(?:com|net|org|io|dev|app|cloud|internal|local|localdomain|lan|svc|corp|test|example|invalid"
    r"|home|intra|eu|de|uk|us|fr|ch|nl|jp|cn|in|co|info|biz|ai|gov|edu|mil|xyz|online|shop|se|ca|au|br|ru|pl|dk|fi|es|kr"
    r"|tw|sg|hk|za|mx|cz|gr|ie|tr|ua|arpa|onion|consul|рф|укр|中国)(?:\.?:[a-z]+)?"
)
_CODE: Final = re.compile(
    r"(?i)(?:ORA|TNS|PLS|DPY|DPI|SQLSTATE|HTTP|CVE|PGRST|AADSTS|MSB|CS|TS|SQL)[-_]?\d{2,7}N?"
    r"|(?:SSL|TLS)v?\d(?:\.\d)?|HTTP/\d(?:\.\d)?"
)
_SLASHED: Final = re.compile(r"(?i)(?:application|text|image|audio|video|multipart|font|model)/[a-z.+*-]+")
_HEX_PAIRS: Final = re.compile(r"[0-9a-fA-F]{2}(?:-[0-9a-fA-F]{2}){3,}")
_POD: Final = re.compile(r"[a-z][a-z0-9.-]*-[bcdfghjklmnpqrstvwxz]{5}")
"""What Kubernetes names in a row: the letters at the end are chosen by chance, none of them a vowel."""
_KEPT_AFTER: Final = frozenset(
    ("errno", "winerror", "signal", "sqlstate", "http", "status", "http/1.0", "http/1.1", "http/2", "http/3", "hresult",
     "exitcode", "returncode", "exit", "rc", "sqlcode")
)  # fmt: skip
_KEPT_AFTER_TWO: Final = frozenset(
    {("exit", "code"), ("exit", "status"), ("return", "code"), ("status", "code"), ("error", "status"),
     ("error", "code"), ("http", "error"), ("http", "code"), ("response", "code"), ("response", "status"),
     ("with", "code"), ("exited", "with")}
)  # fmt: skip
_KEPT_KEYS: Final = frozenset(
    ("errno", "status", "status_code", "exit_code", "exitcode", "returncode", "return_code", "signal", "sqlstate",
     "statuscode", "sqlcode", "rc", "code", "error_code", "errorcode", "http_status")
)  # fmt: skip
_TELLING_KEYS: Final = frozenset(
    ("code", "status", "state", "reason", "error", "err", "type", "kind", "level", "severity", "exception", "errno",
     "cause", "phase", "msg", "message")
)  # fmt: skip
_TELLING: Final = re.compile(r"[A-Za-z][A-Za-z_.:-]*")
"""A word after the equals sign of a key that says what happened."""
_BEFORE_TELLING: Final = re.compile(r"(?<![\w.])(?:err|error|msg|message|reason|cause|detail|desc|exception)=$")
"""What stands before a text in quotes that says what happened, and is no value."""
_MAX_KEY: Final = 12
_AGREEING: Final = {"are": "is", "were": "was", "have": "has"}
_COUNTED: Final = 3
"""Words after a number that may be in the plural because of it."""
_LITERAL: Final = r"(?:null|NULL|None|nil|true|TRUE|True|false|FALSE|False|undefined|NaN)(?!\w)"
_LITERALS: Final = re.compile(rf"(?:<\*>|(?<![\w.]){_LITERAL})(?:\s*,\s*(?:<\*>|{_LITERAL}))+")
"""Lists of values and of words of programming languages that stand for values."""
_JOINED: Final = re.compile(
    r"<\*>(?:(?:[\s,;:=|/+~x×*±—–-]|\b(?:and|or|to|of|at|vs|out of|through|und|et|um|à|alle|a las)\b|\.\.|…)*<\*>)+"
)
_BRACKET: Final = re.compile(r"[()\[\]{}]")
_OPENING: Final = {")": "(", "]": "[", "}": "{"}
_ONLY_VALUE: Final = re.compile(r"\s*(?:<\*>)?[\s,]*")
_FIELDS: Final = re.compile(r"\s*(?:\Z|<\*>)")
_SIGNS: Final = re.compile(
    r"(?<![\w>.:#$€£¥₹₩₽+~*−–±≈-])[.:#$€£¥₹₩₽+~*−–±≈-]+(?=<\*>)|(?<![\w>])[$€£¥₹₩₽№#±≈~] (?=<\*>)"
    r"|(?<=<\*>)(?:\.{1,2}(?=[\s)\],;:]|$)|={1,2}(?![\w<=])|,? ?(?:…|\.\.\.)\.?(?=[\s)\],;:]|$))"
)
"""What belongs to the value beside it: signs, the dots of ``./``, the padding of base64, what is left out after it."""
_SPACES: Final = re.compile(r"\s+")
_ENDINGS: Final = ("Error", "Exception", "Warning", "Failure", "Timeout")
"""Of names of errors, however their letters change."""
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
        if template.endswith(("…", "...")) and VALUE in template:
            template = folded = template.rstrip("….,;: ")
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
    text = _fold_quoted(_fold_rare(text), is_open=is_open)
    if _PAIR.search(text) is not None:
        text = _OCTETS.sub(_folded_octets, text)
    lines = text.splitlines() if "\n" in text else [text]
    if is_cut and len(lines) > 1:
        del lines[-1]
    words: list[str] = []
    of_line_before: list[str] = []
    before = last = ""
    for line in lines:
        begin = len(words)
        for raw in line.split():
            # Most words of a message are those of the last one; long ones are not kept.
            folded, core = _short_word(raw) if len(raw) <= _CACHED_LENGTH else _word(raw)
            if (
                folded is not raw
                and (last in _KEPT_AFTER or (before, last) in _KEPT_AFTER_TWO)
                and _is_code(last, core)
            ):
                folded = raw
            words.append(folded)
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


def _is_code(key: str, core: str) -> bool:
    """Whether a number tells causes apart: an exit code, an HTTP status, an errno."""
    return _INTEGER.fullmatch(core) is not None or (key == "sqlstate" and _SQLSTATE.fullmatch(core) is not None)


def _fold_rare(text: str) -> str:
    """What is a value only as a whole, as more than one word."""
    if "* " in text:
        text = _CRON.sub(VALUE, text)
    if "***" in text or "•" in text:
        text = _MASKED.sub(VALUE, text)
    if "^" in text:
        text = _CARETS.sub("^", text)
    if "°" in text:
        text = _COMPASS.sub(VALUE, text)
    if "``" in text:
        text = _TEX_QUOTED.sub(VALUE, text)
    if " m=" in text:
        text = _GO_CLOCK.sub("", text)
    if "[" in text:
        text = _PROGRESS.sub(VALUE, text)
    if " Time)" in text:
        text = _ZONE_NAME.sub("", text)
    if ")=(" in text:
        text = _KEY_VALUES.sub(f")={VALUE}", text)
    if " contains (" in text or " value is (" in text:
        text = _ROW_VALUES.sub(rf"\1{VALUE}", text)
    return text


def _fold_quoted(text: str, *, is_open: bool) -> str:
    """Quoted texts as values. An apostrophe inside a word is none of their quotes."""
    parts: list[str] = []
    copied = 0
    opened: re.Match[str] | None = None
    unclosed: set[str] = set()
    has_escaped = False
    never_escaped: set[str] = set()
    quotes = list(_QUOTE.finditer(text))
    i = 0
    while i < len(quotes):
        quote = quotes[i]
        start, end, mark = quote.start(), quote.end(), quote.group()
        if opened is not None:
            if mark in _CLOSING[opened.group()] and (opened.group() in _PAIRED or not text[end : end + 1].isalnum()):
                if text[start - 1] == "\\" and mark not in never_escaped and _is_escaped(text, start, opened.end()):
                    has_escaped = True
                else:
                    _add_quoted(parts, text, copied, opened, start)
                    copied, opened = end, None
        elif mark in _CLOSING and mark not in unclosed and (mark in _PAIRED or _may_open(text, start)):
            opened, opened_at, has_escaped = quote, i, False
        i += 1
        if i == len(quotes) and opened is not None:
            if is_open:
                # It is closed in what is not read.
                return "".join((*parts, text[copied : opened.start()], VALUE))
            # Nothing closes it, nor any later one of its kind. Each kind is given up once, so the time stays linear.
            if has_escaped:
                # The backslash was the end of a path.
                never_escaped.update(_CLOSING[opened.group()])
                has_escaped = False
                i = opened_at + 1
                continue
            unclosed.add(opened.group())
            i, opened = opened_at + 1, None
    parts.append(text[copied:])
    return "".join(parts)


def _is_escaped(text: str, at: int, begin: int) -> bool:
    count = 0
    while at - 1 - count >= begin and text[at - 1 - count] == "\\":
        count += 1
    return count % 2 == 1


def _add_quoted(parts: list[str], text: str, copied: int, opened: re.Match[str], end: int) -> None:
    """Add the text from ``copied`` on, and what is quoted until ``end``: as a value, unless it says what happened."""
    first = opened.start()
    if text[first - 1 : first] == "=" and _BEFORE_TELLING.search(text, max(copied, first - _MAX_KEY), first):
        parts += [text[copied:first], text[opened.end() : end]]
        return
    # The prefix of a literal: b'…'.
    if first and text[first - 1] in "bBrRuUfF" and not text[max(0, first - 2) : first - 1].isalnum():
        first -= 1
    parts += [text[copied:first], VALUE]


def _may_open(text: str, at: int) -> bool:
    before = text[at - 1 : at] if at else ""
    if not before.isalnum():
        return True
    return before in "bBrRuUfF" and not text[max(0, at - 2) : at - 1].isalnum()


def _word(raw: str) -> tuple[str, str]:
    """A word between spaces: folded, and as it is in lower case without marks at its edges."""
    core = raw.strip(_EDGE)
    if core.isdecimal():
        return raw.replace(core, VALUE, 1), core
    return "".join(_parts_of(raw)), core.lower()


_short_word: Final = functools.lru_cache(2_048)(_word)


def _parts_of(word: str) -> list[str]:
    """The parts of a word between spaces, with values folded."""
    if VALUE in word and len(word) == len(VALUE):
        return [VALUE]
    core = word.strip(_EDGE)
    if "://" in word:
        return _from_scheme(word)
    if "$" in word or "?" in word or "&" in word or "{" in word or "data:" in word:
        named = _KEY.match(word)
        match = _WHOLE.match(word, named.end()) if named is not None else None
        if (match := match or _WHOLE.match(word)) is not None:
            return _whole_from(word, match)
    if "::" in word and _ADDRESS.fullmatch(address := word.strip(_BESIDE_ADDRESS).rstrip(":")):
        return _whole(word, address)
    if core[:1] in ("/", "~") or core.startswith(("./", "../")) or _DRIVE.match(core):
        return _whole(word, core)
    if "=" in word and _PADDED.fullmatch(core.rstrip(".,;:")) and (len(core) >= 12 or _DIGIT.search(core)):
        return _whole(word, core)
    parts: list[str] = []
    for part in _PART.findall(word):
        key = parts[-2] if len(parts) >= 2 else ""
        after_equals = bool(key) and parts[-1] == "=" and (key[-1:].isalnum() or key[-1:] == "_")
        if len(part) == 1 and not part.isalnum() and not (after_equals and part == "/"):
            parts.append(VALUE if part == word == "/" else part)
        elif (after_equals or (key and parts[-1] == "[")) and _is_told(key.lower(), part, after_equals=after_equals):
            parts.append(part)
        elif part == "::" and parts and parts[-1] == "[":
            parts.append(VALUE)
        elif (
            after_equals
            or is_value(part.strip(_EDGE + "*"))
            or (part[:2] == "*." and is_value(f"x{part[1:].rstrip(_EDGE)}"))
        ):
            parts += _whole(part, part.strip(_EDGE)) if not after_equals else [VALUE]
        else:
            parts.append(part)
    return parts


def _is_told(key: str, part: str, *, after_equals: bool) -> bool:
    """Whether what stands after a key, or in brackets after it, tells causes apart."""
    if key == "sqlstate" and _SQLSTATE.fullmatch(part):
        return True
    if not after_equals:
        return False
    if key in _KEPT_KEYS and _INTEGER.fullmatch(part):
        return True
    return key in _TELLING_KEYS and _TELLING.fullmatch(part) is not None and not is_value(part.strip(_EDGE))


def _from_scheme(word: str) -> list[str]:
    """A word with a URL in it: what is before the URL, and a value."""
    start = end = word.index("://")
    while start > 0 and (word[start - 1].isalnum() or word[start - 1] in "+.-_"):
        start -= 1
    if word[:start].lower().endswith(("jdbc:", "r2dbc:")):
        start = word.lower().rindex("dbc:", 0, start) - (2 if word[start - 6 : start - 4].lower() == "r2" else 1)
    rest = word[end:]
    return [*_parts_of(word[:start]), VALUE, rest[len(rest.rstrip(_EDGE)) :]]


def _whole_from(word: str, match: re.Match[str]) -> list[str]:
    found = match.group(1)
    length = len(found if found[0] == "&" else found.rstrip(".,;:!?"))
    rest = word[match.start(1) + length :]
    return [word[: match.start(1)], VALUE, *(_parts_of(rest) if len(word) <= _MAX_NESTED else [rest])]


def _whole(word: str, core: str) -> list[str]:
    head, _, tail = word.partition(core)
    for closing, opening in _OPENING.items():
        if tail.startswith(closing) and core.count(opening) > core.count(closing):
            tail = tail[1:]
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
    if "-" in word and (_POD.fullmatch(word) or _HEX_PAIRS.fullmatch(word)):
        return word[-5:] not in NO_POD
    if ":" in word:
        return _COLONS.fullmatch(word) is not None
    if _HEX.fullmatch(word) or (lower in CARDINALS or CARDINALS.issuperset(lower.split("-"))):
        return True
    return len(word) >= 16 and not word.endswith(_ENDINGS) and _is_random(word)


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
        core, following, text = cores[i], cores[i + 1], texts[i]
        if core in CALENDAR:
            belongs = i + 1 < len(words) and folded[i + 1]
        elif core in LINKS:
            is_after = i > 0 and (folded[i - 1] or cores[i - 1] in CALENDAR)
            belongs = (
                is_after and i + 1 < len(words) and folded[i + 1] and not CALENDAR.isdisjoint((following, cores[i - 1]))
            )
        elif core in CURRENCIES:
            is_sign = text[-1:].isalnum() or text[-1:] == "$"
            belongs = (
                is_sign and (core in ("kr", "rs", "r$") or text.isupper()) and i + 1 < len(words) and folded[i + 1]
            )
        elif core in ("a", "an"):
            belongs = following in SPANS or (following == "few" and cores[i + 2] in UNITS)
        else:
            belongs = core == "few" and following in UNITS and i > 0 and cores[i - 1] == "a"
        if belongs:
            folded[i], texts[i] = True, text[: len(text) - len(text.lstrip(_EDGE))] + VALUE
    return " ".join(_following(texts, folded, cores))


def _following(texts: list[str], folded: list[bool], cores: list[str]) -> list[str]:
    result: list[str] = []
    is_number = is_plural = False
    since = _COUNTED
    for i, (text, is_folded) in enumerate(zip(texts, folded, strict=True)):
        if is_folded:
            result.append(text)
            # What ends with a mark is not continued by the next word.
            is_number = text.endswith(VALUE)
            since, is_plural = (0 if is_number else _COUNTED), False
            continue
        core = cores[i]
        if is_number and core:
            is_zone = text.strip(_EDGE) in ZONES
            if core in UNITS or is_zone or core in CALENDAR or (core in LINKS and cores[i + 1] in CALENDAR):
                tail = text[len(text.rstrip(_EDGE)) :]
                if text[0] == "(" and tail[:1] == ")":
                    tail = tail[1:]
                result[-1] += tail
                is_number = not tail
                since = _COUNTED if tail else since
                continue
        is_number = False
        if since < _COUNTED:
            # 1 row is left, 2 rows are left.
            since += 1
            if core in _AGREEING:
                at = text.lower().rfind(core)
                text = text[:at] + _AGREEING[core] + text[at + len(core) :]
                since = _COUNTED
            elif not is_plural and since < _COUNTED and (one := _singular(core)) != core:
                at = text.lower().rfind(core)
                text, is_plural = (
                    text[:at] + text[at : at + len(core)].replace(core, one) + text[at + len(core) :],
                    True,
                )
            if not text[-1:].isalnum():
                since = _COUNTED
        result.append(text)
    return [text for text in result if text]


def _singular(word: str) -> str:
    """A word in lower case without the ending of the plural, if it seems to have one."""
    if (
        len(word) <= 3
        or word[-1] != "s"
        or word.endswith("ss")
        or not word.replace("-", "").isalpha()
        or word in NO_PLURAL
    ):
        return word
    if word.endswith("ies") and word not in PLURALS_IN_S:
        return word[:-3] + "y"
    if word.endswith(("ches", "shes", "sses", "xes")) and word not in PLURALS_IN_S:
        return word[:-2]
    return word[:-1]


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
    before = parts[-1] if parts else " "
    return before[-1].isalnum() or before[-1] == "_" or (before[-1] == ">" and not before.endswith(VALUE))


def _is_collection(opening: str, content: str) -> bool:
    if content.count(VALUE) > 1:
        content = _joined(content)
    if opening == "{":
        return _FIELDS.match(content) is not None and "{" not in content and "}" not in content
    return _ONLY_VALUE.fullmatch(content) is not None
