"""A report as an HTML document: one file, with all scripts and styles in it, that asks nothing of anybody.

What comes from outside is in it as compressed base64, which no name can break out of, and, for readers without
scripts, as escaped text. The document's own policy lets nothing run or load but what it came with.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import html
import re
import secrets
import unicodedata
import zlib
from typing import Any, Final

import msgspec

from tachograph_exporter.report_file import scripts
from tachograph_exporter.report_file.contents import Contents
from tachograph_exporter.report_file.shortening import brief, fewer, whole

MAX_BYTES: Final = 5_000_000
"""Size of a file."""
MEDIA_TYPE: Final = "text/html"
_BATCH: Final = 500
_TEXT: Final = 2_000
"""Characters of a text that is shown without scripts."""


def document(contents: Contents) -> bytes:
    """The file: at most `MAX_BYTES`. Where all does not fit, it says what was left out."""
    room = MAX_BYTES - len(_page(contents, b""))
    contents = whole(contents)
    packed = _packed(contents)
    if len(packed) > room:
        contents = brief(contents)
        packed = _packed(contents)
    if len(packed) > room:
        for less in fewer(contents, room / len(packed)):
            contents, packed = less, _packed(less)
            if len(packed) <= room:
                break
    return _page(contents, packed)


def _packed(contents: Contents) -> bytes:
    """The contents as compressed JSON, in base64.

    Steps are encoded and compressed a few at a time: to do so with all of them at once would hold up every other
    thread, and take as much memory as all of their text.
    """
    place = f'"{secrets.token_hex(16)}"'.encode()
    steps: Any = msgspec.Raw(place)
    timeline = msgspec.structs.replace(contents.timeline, step_timeline=steps)
    head, tail = msgspec.json.encode(msgspec.structs.replace(contents, timeline=timeline)).split(place)
    entries = contents.timeline.step_timeline
    gzip = zlib.compressobj(6, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    packed = [gzip.compress(head), gzip.compress(b"[")]
    for i in range(0, len(entries), _BATCH):
        part = msgspec.json.encode(entries[i : i + _BATCH])[1:-1]
        packed.append(gzip.compress(b"," + part if i else part))
    packed += [gzip.compress(b"]"), gzip.compress(tail), gzip.flush()]
    return base64.b64encode(b"".join(packed))


def file_name(contents: Contents) -> str:
    """A name for the file: the workflow's, and the end of the run's id."""
    name = unicodedata.normalize("NFKD", contents.timeline.workflow_name)
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "_", name).strip("._-")[:80]
    return f"{plain or 'run'}-{contents.timeline.execution_id[-6:]}.html"


def policy() -> str:
    """The Content-Security-Policy of a document: its own script and style by their hashes, and no request."""
    return (
        f"default-src 'none'; script-src {_hash(scripts.script())}; style-src {_hash(scripts.style())}; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


@functools.cache
def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@functools.cache
def _icon() -> str:
    return base64.b64encode((scripts.WEB / "icon.svg").read_bytes()).decode()


def _page(contents: Contents, packed: bytes) -> bytes:
    timeline = contents.timeline
    sentence = contents.why.sentence if contents.why is not None else ""
    error = f"{timeline.error_type}: {timeline.error_message}" if timeline.error_message else ""
    icon = f"data:image/svg+xml;base64,{_icon()}"
    head, tail = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{html.escape(policy())}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{_text(timeline.workflow_name)} {_text(timeline.status)} · Tachograph</title>
<link rel="icon" href="{icon}" type="image/svg+xml">
<style>{scripts.style()}</style>
</head>
<body>
<header class="bar" hidden>
<span class="brand"><img src="{icon}" alt="" width="22" height="22">Tachograph</span>
<button type="button" id="zone" title="Switch between your zone and UTC"></button>
<button type="button" id="theme" aria-label="Switch theme" title="Switch theme (t)">◐</button>
<button type="button" id="help" aria-label="Keyboard shortcuts" title="Keyboard shortcuts (?)">?</button>
</header>
<main id="main" tabindex="-1">
<h1>{_text(timeline.workflow_name)}</h1>
<p>Run {_text(timeline.execution_id)}, {_text(timeline.status)}, started {_text(timeline.started_at or "not yet")},
as of {_text(contents.made_at)}. {_text(sentence)}</p>
<p class="error-text">{_text(error)}</p>
<noscript>With JavaScript, this page shows the timeline of the run. It is in this file: nothing is loaded.</noscript>
</main>
<div id="announcements" class="hidden" role="log" aria-live="polite"></div>
<script type="text/plain" id="contents">\0</script>
<script type="module">{scripts.script()}</script>
</body>
</html>
""".encode().split(b"\0")
    return head + packed + tail


def _text(text: str) -> str:
    """A text as HTML, without what a document must not hold."""
    cut = text if len(text) <= _TEXT else f"{text[:_TEXT]}…"
    return html.escape("".join(" " if unicodedata.category(c) in ("Cc", "Cf", "Cs") else c for c in cut))
