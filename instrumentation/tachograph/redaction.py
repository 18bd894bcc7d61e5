"""Secrets are masked before anything becomes an event.

One rule says which keys are secret (`is_secret_key`), for mappings and for ``key=value`` inside texts alike. Beside it
stand credentials in URLs, ``Authorization`` schemes, and tokens that are known by their shape. Every pass over a text
is linear in its length, so that a long one cannot hold up a step.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import Final

from tachograph.names import NAME_LIMIT
from tachograph.names import encodable as encodable

MASK: Final = "[masked]"
TEXT_LIMIT: Final = 4096
"""Characters of an error message or a log line."""

_SECRET_WORDS: Final = frozenset({
    "password", "passwd", "passphrase", "passcode", "pass", "pwd", "secret", "secrets", "token", "tokens",
    "apikey", "apikeys", "authorization", "auth", "credential", "credentials", "creds", "cookie", "cookies",
    "signature", "dsn", "jwt", "bearer", "otp", "sessionid", "jsessionid", "phpsessid", "cvv", "cvc", "pincode",
})  # fmt: skip
# Before "key" (or as one word with it), these make a secret; "primary key" and "sort key" are none.
_KEY_KINDS: Final = frozenset({
    "api", "access", "private", "secret", "encryption", "signing", "session", "account", "ssh", "shared",
    "master", "client", "auth", "service", "storage", "deploy", "license", "hmac", "aes", "rsa", "pgp", "gpg",
    "subscription", "admin", "crypt", "cipher",
})  # fmt: skip
_SECRET_ENDINGS: Final = (
    "password", "passwd", "passphrase", "pwd", "secret", "token", "credential", "credentials",
    *[f"{kind}key" for kind in sorted(_KEY_KINDS)],
)  # fmt: skip
# A key that ends in (or counts with) one of these names something about a secret, not the secret.
_ABOUT: Final = frozenset({
    "count", "counts", "limit", "limits", "in", "out", "total", "used", "usage", "type", "types", "name", "url",
    "uri", "endpoint", "expires", "expiry", "expiration", "ttl", "length", "len", "size", "max", "min", "index",
    "idx", "position", "ratio", "rate", "price", "cost", "policy", "method", "mode", "enabled", "required",
    "provider", "field", "column", "header", "budget", "per", "number", "num", "second", "seconds", "minute",
    "hour", "day", "at", "age",
    "version", "algorithm", "alg", "strength", "hint", "reset", "prompt", "completion", "input", "output",
    "cached", "reasoning", "consent",
})  # fmt: skip
_WORDS: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")

# Texts without any of these hold nothing to mask: most are done after this look.
_TRACES: Final = (
    "pass", "pwd", "secret", "token", "key", "auth", "cred", "cookie", "signature", "dsn", "jwt", "bearer", "basic",
    "://", "-----begin", "eyj", "akia", "asia", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-", "sk-",
    "sk_", "rk_", "xox", "aiza", "tgr_", "hf_", "npm_", "pypi-", "sg.", "ya29.", "_v1_", "sig=", "curl", "mysql", "otp",
    "sess", "jdbc:", "identified", "login", "cvv", "cvc", "pincode", "pin:", "pin=", "pin code", 'pin"', "pin'",
)  # fmt: skip
_SHAPES: Final = re.compile(
    r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{4,}(?:\.[A-Za-z0-9_-]*)?"  # JSON Web Token, RFC 7519
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{12,}"
    r"|\bgh[pousr]_[A-Za-z0-9]{16,}|\bgithub_pat_[A-Za-z0-9_]{16,}|\bglpat-[A-Za-z0-9_-]{16,}"
    r"|\b(?:sk|rk|pk)[-_](?:live|test|proj|ant|or|svcacct|admin)[-_A-Za-z0-9]{12,}|\bsk-[A-Za-z0-9]{16,}"
    r"|\bxox[abeprs]-[A-Za-z0-9-]{8,}|\bAIza[A-Za-z0-9_-]{24,}|\btgr_[A-Za-z0-9_-]{16,}|\bhf_[A-Za-z0-9]{20,}"
    r"|\bnpm_[A-Za-z0-9]{20,}|\bpypi-[A-Za-z0-9_-]{16,}|\bSG\.[A-Za-z0-9_-]{12,}(?:\.[A-Za-z0-9_-]+)?|\bya29\.[A-Za-z0-9_-]{16,}"
    r"|\bdo[opr]_v1_[a-f0-9]{32,}|\bkey-[0-9a-f]{32}\b"
)
# Where a secret stands without a key and a separator. The first group is the secret.
_PLACES: Final = (
    re.compile(
        r"\b(?:password|passwd|passphrase|secret|token|api key)[ \t]+(?:is[ \t]+)?[\"'`]([^\"'`\n]+)", re.IGNORECASE
    ),
    re.compile(r"\blogin[ \t\n]+\S{1,200}[ \t\n]+password[ \t\n]+(\S+)"),  # .netrc
    re.compile(r"\bjdbc:oracle:\w{1,20}:[^/@\s]{1,200}/([^@\s]+)@", re.IGNORECASE),
    re.compile(r"[?&;]sig=([^&\s\"']+)", re.IGNORECASE),  # a shared access signature
    re.compile(r"://hooks\.slack\.com/(?:services|workflows)/([^\s\"']+)"),
    re.compile(r"://(?:\w{1,20}\.)?discord(?:app)?\.com/api/webhooks/\d{1,30}/([^\s\"']+)"),
    re.compile(r"\bcurl\b[^\n]{0,400}?\s(?:-u|--user)[ =]?[\"']?[^\s:\"']{0,200}:([^\s\"']+)"),
    re.compile(r"\bmysql(?:dump|admin)?\b[^\n]{0,200}?\s-p([^\s\"']+)"),
    # Four digits open something; a pin with one or two of them is a part of a circuit.
    re.compile(r"\bpin(?:[ _]?code)?[\"']?[ \t]*[:=][ \t]*[\"']?(\d{4,12})\b", re.IGNORECASE),
    re.compile(
        r"\b(?:docker|podman|helm|oras|skopeo|buildah|oc|az)\b[^\n]{0,200}?\blogin\b[^\n]{0,200}?\s-p[ =]?([^\s\"']+)"
    ),
    re.compile(r"\bidentified[ \t\n]+by[ \t\n]+[\"']([^\"'\n]+)", re.IGNORECASE),
    re.compile(r"\bsshpass[ \t]+-p[ \t]*(\S+)"),
)
_HEADER_PAIR: Final = re.compile(r"\(b?[\"']([A-Za-z][\w.-]{0,60})[\"'],[ \t]*b?[\"']([^\"'\n]+)[\"']\)")
_KEY_VARIABLE: Final = re.compile(r"\b[A-Z][A-Z0-9_]{0,60}_KEY[ \t]*[=:][ \t]*[\"']?([A-Za-z0-9+/_-]{14,})")
_PEM_BEGIN: Final = re.compile(r"-----BEGIN [A-Z0-9 ]{0,40}(?:PRIVATE KEY|SECRET)[A-Z0-9 ]{0,40}-----")
_SCHEME: Final = re.compile(r"\b(bearer|basic|digest|negotiate)[ \t]+([A-Za-z0-9._~+/=\-]{8,})", re.IGNORECASE)
_DIGIT: Final = re.compile(r"\d")
_SEPARATOR: Final = re.compile(r"=>|[=:]")
_KEY_CHARACTERS: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.$")
_VALUE_END: Final = re.compile(r"[\s&;,\"'`<>)\]}|]")
_QUOTES: Final = "\"'`"
_LITERAL_PREFIXES: Final = frozenset("bBrRuUfF")
# The value of a key stands alone on the line after it: pretty JSON, a block of YAML, a password that was asked for.
_VALUE_BELOW: Final = re.compile(r"(?:[|>][+-]?)?[ \t]*\\?\r?\n[ \t]*([\"'`][^\n]*|[^\s:=]+=*[ \t]*(?:[\r\n]|\Z))")
_KEY_ABOVE: Final = re.compile(r"([\w.$-]{1,80})[\"'`]?[ \t]*(?:=>|[:=])[ \t]*(?:[|>][+-]?)?[ \t]*\\?[ \t]*\Z")
_PEM_LINE: Final = re.compile(r"[A-Za-z0-9+/]+=*|(?:Proc-Type|DEK-Info): [\w,. -]{1,100}")
_MIN_PEM_LINE: Final = 16
_TERMINAL: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\^_])")
_FLAG: Final = re.compile(r"(?<!\S)--?([A-Za-z][\w.-]{0,60})[ \t]+([^\s-]\S*)")
_ELEMENT: Final = re.compile(r"<([A-Za-z][\w:.-]{0,60})>([^<]+)")
_MIN_TOKEN: Final = 15
_URL_END: Final = re.compile(r"[\s\"'`<>?#]")
# Instead of a secret, these say how it is about it: "auth: none", "token: expired".
_STATES: Final = frozenset({
    "none", "null", "nil", "true", "false", "undefined", "missing", "required", "invalid", "expired", "failed",
    "incorrect", "disabled", "enabled", "empty", "unset",
})  # fmt: skip
_AUTH_WORDS: Final = frozenset({"bearer", "basic", "digest", "negotiate", "token", "apikey", "key"})
# Header fields whose value goes on to the end of the line, RFC 9110 section 5.5.
_HEADERS: Final = frozenset({"authorization", "proxy-authorization", "cookie", "set-cookie", "cookie2"})


@functools.lru_cache(maxsize=4096)
def is_secret_key(key: str) -> bool:
    """Whether values under this key are masked: ``api_key``, ``dbPassword``, ``PGPASSWORD``.

    Counts and properties of a secret (``tokens_in``, ``token_type``, ``password_length``) stay readable, and so do keys
    that open nothing (``primary_key``).
    """
    words = [word.lower() for word in _WORDS.findall(key[-NAME_LIMIT:])]
    while words and words[-1].isdigit():
        words.pop()
    if not words or words[-1] in _ABOUT:
        return False
    last = len(words) - 1
    for i, word in enumerate(words):
        is_secret = word in _SECRET_WORDS or word.endswith(_SECRET_ENDINGS)
        if not is_secret and word in ("key", "keys") and i and words[i - 1] in _KEY_KINDS:
            is_secret = True
        if is_secret and word in ("token", "tokens") and any(w in _ABOUT for w in words[:i]):
            continue  # max_tokens, prompt_tokens: a count
        if is_secret and (i == last or not all(w in _ABOUT for w in words[i + 1 :])):
            return True
    return False


def set_extra_mask(mask: Callable[[str], str] | None) -> None:
    """A user's own masking, applied to every text after the built-in one. What it raises is ignored."""
    global _extra_mask
    _extra_mask = mask


_extra_mask: Callable[[str], str] | None = None


def mask_text(text: str, limit: int = TEXT_LIMIT) -> str:
    """``text`` without credentials, at most ``limit`` characters, valid UTF-8. Takes time linear in ``limit``."""
    if len(text) > limit:
        # Cut after masking, so that half a secret is never left; but do not search megabytes.
        text = text[: limit * 2]
    lowered = text.lower()
    if "\x1b" in text:
        # Colours may part a key from its value, or a word in two.
        plain = _TERMINAL.sub("", text)
        plain_lowered = plain.lower()
        if any(trace in plain_lowered for trace in _TRACES) and (masked := _mask(plain, plain_lowered)) != plain:
            text, lowered = masked, masked.lower()
    if any(trace in lowered for trace in _TRACES):
        text = _mask(text, lowered)
    if _extra_mask is not None:
        try:
            text = str(_extra_mask(text))
        except KeyboardInterrupt:
            raise
        except BaseException:
            text = MASK  # A hook that failed masked nothing: keep nothing.
    return encodable(text, limit)


class LineMask:
    """Masks lines that come one after the other, and so what a secret over several lines would leave of itself."""

    __slots__ = ("_above", "_is_in_key")

    def __init__(self) -> None:
        self._above = ""
        self._is_in_key = False

    def __call__(self, line: str, limit: int = TEXT_LIMIT) -> str:
        """The line without credentials; see `mask_text`."""
        if not (bare := line.strip()):
            return line
        if self._is_in_key:
            last = bare.split()[-1]
            # Something may stand before it, the time of a line of a log for instance.
            if _PEM_LINE.fullmatch(bare) or (len(last) >= _MIN_PEM_LINE and _PEM_LINE.fullmatch(last)):
                return f"{encodable(line[: line.rindex(last)], limit) if last != bare else ''}{MASK}"
            self._is_in_key = False
        above, self._above = self._above, ""
        begin = _PEM_BEGIN.search(line) if "-----BEGIN" in line else None
        self._is_in_key = begin is not None and line.find("-----END", begin.end()) < 0
        key = _KEY_ABOVE.search(line[-200:]) if line[-1:] in ":=>|+-\\ \t" else None
        if key is not None and is_secret_key(key[1]):
            self._above = f"{key[1]}:"
        if above and (value := _VALUE_BELOW.match(f"\n{line}")) is not None:
            masked = mask_text(f"{above}{value.group(1).strip()}", limit + len(above))
            return f"{line[: value.start(1) - 1]}{masked[len(above) :]}"
        return mask_text(line, limit)


def mask_lines(lines: Sequence[str], limit: int = TEXT_LIMIT) -> list[str]:
    """Lines of a text without credentials, also where its first lines are missing; see `LineMask`."""
    mask = LineMask()
    for line in lines:
        if "-----" in line and "PRIVATE KEY" in line:
            # Of a key that begins before them, its end alone tells what they are.
            mask._is_in_key = "-----END" in line
            break
    return [mask(line, limit) for line in lines]


def _mask(text: str, lowered: str) -> str:
    spans: list[tuple[int, int]] = []
    if "-----begin" in lowered:
        spans += _pem_blocks(text)
    if "://" in text:
        spans += _url_passwords(text)
    spans += _pairs(text)
    if "<" in text:
        spans += [match.span(2) for match in _ELEMENT.finditer(text) if is_secret_key(match[1])]
    if "-" in text:
        spans += [match.span(2) for match in _FLAG.finditer(text) if is_secret_key(match[1])]
    # "basic training" is a word, not a credential.
    spans += [match.span(2) for match in _SCHEME.finditer(text) if not match[2].islower() or _DIGIT.search(match[2])]
    spans += [match.span() for match in _SHAPES.finditer(text)]
    spans += [match.span(1) for place in _PLACES for match in place.finditer(text)]
    if "," in text:
        spans += [match.span(2) for match in _HEADER_PAIR.finditer(text) if is_secret_key(match[1])]
    if "_KEY" in text:
        spans += [match.span(1) for match in _KEY_VARIABLE.finditer(text) if _is_random(match[1])]
    if not spans:
        return text
    spans.sort()
    pieces: list[str] = []
    at = 0
    for start, end in spans:
        if end <= at:
            continue
        if start > at or not pieces:
            pieces += [text[at:start], MASK]
        at = end
    return "".join(pieces) + text[at:]


def _is_random(text: str) -> bool:
    """Whether a text is no name: it has digits, and upper and lower case."""
    return _DIGIT.search(text) is not None and text != text.lower() and text != text.upper()


def _pem_blocks(text: str) -> list[tuple[int, int]]:
    """From the line after BEGIN to the END line (RFC 7468), or to the end of the text where that is cut off."""
    spans = []
    at = 0
    while (match := _PEM_BEGIN.search(text, at)) is not None:
        end = text.find("-----END", match.end())
        end = len(text) if end < 0 else end
        spans.append((match.end(), end))
        at = max(end, match.end())
    return spans


def _url_passwords(text: str) -> list[tuple[int, int]]:
    """The password of ``scheme://user:password@host`` (RFC 3986 section 3.2.1), also one with ``@`` or ``/`` in it."""
    spans = []
    at = text.find("://")
    while at >= 0:
        start = at + 3
        match = _URL_END.search(text, start)
        end = match.start() if match is not None else len(text)
        sign = text.rfind("@", start, end)
        colon = text.find(":", start, sign) if sign > 0 else -1
        is_token = sign - start >= _MIN_TOKEN and _DIGIT.search(text, start, sign) is not None
        if colon < 0 and is_token and text.find("/", start, sign) < 0:
            spans.append((start, sign))  # in the place of the user
        if colon >= 0:
            slash = text.find("/", start, colon)
            port_end = text.find("/", colon, sign)
            is_port = port_end > 0 and text[colon + 1 : port_end].isdigit()
            if slash < 0 and not is_port and colon + 1 < sign:
                spans.append((colon + 1, sign))
        at = text.find("://", max(end, start))
    return spans


def _pairs(text: str) -> list[tuple[int, int]]:
    """The values of ``key=value``, ``key: value``, ``"key": "value"`` and header lines whose key is secret."""
    spans: list[tuple[int, int]] = []
    size = len(text)
    low = 0
    for match in _SEPARATOR.finditer(text):
        separator = match.start()
        if separator < low:
            continue
        key_end = separator
        while key_end > low and text[key_end - 1] in " \t":
            key_end -= 1
        quote = text[key_end - 1] if key_end > low and text[key_end - 1] in _QUOTES else ""
        key_end -= len(quote)
        while quote and key_end > low and text[key_end - 1] == "\\":
            key_end -= 1  # JSON within JSON
        key_start = key_end
        while key_start > low and text[key_start - 1] in _KEY_CHARACTERS:
            key_start -= 1
        low = match.end()
        key = text[key_start:key_end]
        if not key or not is_secret_key(key):
            continue
        start = match.end()
        if start < size and text[start] == "=":
            start += 1  # ==
        while start < size and text[start] in " \t":
            start += 1
        if start + 1 < size and text[start] in _LITERAL_PREFIXES and text[start + 1] in _QUOTES:
            start += 1  # b'…'
        if start < size and (on_next_line := _VALUE_BELOW.match(text, start)) is not None:
            start = on_next_line.start(1)
        end = _value_end(text, start, key.lower() in _HEADERS and match[0] == ":" and not quote)
        if end > start and text[start:end].lower() not in _STATES:
            while start + 1 < end and text[start] == "\\":
                start += 1
            quoted = text[start] in _QUOTES
            spans.append((start + quoted, end - (quoted and end > start + 1 and text[end - 1] == text[start])))
            low = end
    return spans


def _value_end(text: str, start: int, to_line_end: bool) -> int:
    """Where the value that starts here ends."""
    size = len(text)
    if start >= size or text[start] in "\r\n":
        return start
    line_end = text.find("\n", start)
    line_end = size if line_end < 0 else line_end
    quote_at = start
    while quote_at < size and text[quote_at] == "\\":
        quote_at += 1
    if start < quote_at < size and text[quote_at] in _QUOTES:
        closing = text.find(text[start : quote_at + 1], quote_at + 1)
        return closing if closing >= 0 else line_end
    if text[start] in _QUOTES:
        quote, at = text[start], start + 1
        while at < size:
            if text[at] == "\\":
                at += 2
                continue
            if text[at] == quote:
                return at + 1
            at += 1
        return line_end  # Never closed: the text was cut, or it is no quote.
    if to_line_end:
        return line_end
    if text.startswith(MASK, start):
        return start + len(MASK)
    if text[start] in "[({<":
        closing = text.find({"[": "]", "(": ")", "{": "}", "<": ">"}[text[start]], start, line_end)
        return closing + 1 if closing > 0 else line_end
    match = _VALUE_END.search(text, start)
    end = match.start() if match is not None else size
    if text[start:end].lower() in _AUTH_WORDS and end < size and text[end] in " \t":
        # "Authorization=Bearer x", "token: Basic x": the scheme's own word is no secret, what follows is.
        match = _VALUE_END.search(text, end + 1)
        end = match.start() if match is not None else size
    return end
