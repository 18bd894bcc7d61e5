"""Step handlers of the example workflows: a census of Python distributions that are installed on this machine.

They do real work on data that every machine has: read the metadata of distributions, count, group, check, store in
SQLite, summarise. Nothing sleeps, and nothing leaves the machine.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import re
import shutil
import sqlite3
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable
from email import message_from_string
from email.message import Message
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from tachograph.workflow import DoNotRetry, StepContext, StepFailed, handler

MAX_DISTRIBUTIONS: Final = 60
"""An environment may have hundreds, of tens of thousands of files: an example should take no seconds of a processor."""


def _distributions() -> dict[str, metadata.Distribution]:
    distributions = {}
    for distribution in itertools.islice(metadata.distributions(), MAX_DISTRIBUTIONS):
        name = _field(distribution, "Name")
        if name:
            distributions[name] = distribution
    return dict(sorted(distributions.items(), key=lambda pair: pair[0].lower()))


def _fields(distribution: metadata.Distribution) -> Message:
    """The fields of a distribution's metadata, without the description, which may be of a thousand lines."""
    text = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or ""
    return message_from_string(text.partition("\n\n")[0])


def _field(distribution: metadata.Distribution, name: str) -> str:
    """A field of a distribution's metadata; many have no summary, some not even a name."""
    return str(_fields(distribution).get(name, ""))


def _scratch(context: StepContext) -> Path:
    """A directory for this execution alone."""
    path = Path(tempfile.gettempdir()) / "tachograph-examples" / context.execution_id
    path.mkdir(parents=True, exist_ok=True)
    return path


def _size(distribution: metadata.Distribution) -> tuple[int, int]:
    """Files and bytes, as the installer recorded them (https://peps.python.org/pep-0376/#record)."""
    rows = csv.reader((distribution.read_text("RECORD") or "").splitlines())
    sizes = [int(row[2]) for row in rows if len(row) == 3 and row[2]]
    return len(sizes), sum(sizes)


@handler("census.names")
def names(context: StepContext) -> dict[str, Any]:
    """The names of the distributions."""
    every_name = list(_distributions())
    context.measure("distributions", len(every_name), "distribution")
    return {"count": len(every_name), "names": every_name}


@handler("census.initials")
def initials(context: StepContext) -> dict[str, Any]:
    """How many names begin with each letter."""
    counts = Counter(name[0].lower() for name in context.outputs["initialize"]["names"])
    return {"initials": dict(sorted(counts.items()))}


@handler("census.report")
def report(context: StepContext) -> dict[str, Any]:
    """Summarise the initials in one line."""
    counts: dict[str, int] = context.outputs["process"]["initials"]
    letter, count = max(counts.items(), key=lambda pair: pair[1])
    line = f"{sum(counts.values())} distributions, most of them ({count}) begin with {letter!r}"
    context.log(line)
    return {"report": line}


@handler("census.split")
def split(context: StepContext) -> dict[str, Any]:
    """The names in three parts of about equal length."""
    every_name = list(_distributions())
    return {"parts": [every_name[i::3] for i in range(3)]}


@handler("census.weigh")
def weigh(context: StepContext) -> dict[str, Any]:
    """Files and bytes of one part of the distributions (``config.part``)."""
    distributions = _distributions()
    files = total = 0
    for name in context.outputs["preparation"]["parts"][context.config["part"]]:
        if context.is_stopping:
            raise StepFailed("stopped")
        more_files, more_bytes = _size(distributions[name])
        files += more_files
        total += more_bytes
    context.measure("bytes", total, "By")
    return {"files": files, "bytes": total}


@handler("census.merge")
def merge(context: StepContext) -> dict[str, Any]:
    """Add up the parts."""
    parts = [context.outputs[name] for name in ("branch_a", "branch_b", "branch_c")]
    return {key: sum(part[key] for part in parts) for key in ("files", "bytes")}


@handler("census.evaluate")
def evaluate(context: StepContext) -> dict[str, Any]:
    """How many distributions there are to look at, and in which mode."""
    return {"mode": context.inputs["mode"], "distributions": len(_distributions())}


@handler("census.look")
def look(context: StepContext) -> dict[str, Any]:
    """Look at names (``config.depth`` 1), at metadata too (2), or at the size of every file as well (3)."""
    depth = int(context.config["depth"])
    distributions = _distributions()
    counts: dict[str, int] = {"distributions": len(distributions)}
    if depth >= 2:
        fields = [_fields(distribution) for distribution in distributions.values()]
        counts["with_summary"] = sum("Summary" in each for each in fields)
        counts["requirements"] = sum(len(each.get_all("Requires-Dist", [])) for each in fields)
    if depth >= 3:
        sizes = [_size(d) for d in distributions.values()]
        counts["files"], counts["bytes"] = sum(s[0] for s in sizes), sum(s[1] for s in sizes)
    return counts


@handler("census.aggregate")
def aggregate(context: StepContext) -> dict[str, Any]:
    """The result of the branch that ran."""
    for branch in ("fast", "standard", "thorough"):
        if branch in context.outputs:
            return {"branch": branch, **context.outputs[branch]}
    raise StepFailed("no branch ran")


@handler("etl.validate_source")
def validate_source(context: StepContext) -> dict[str, Any]:
    """Check that there is enough space to extract to."""
    free = shutil.disk_usage(_scratch(context)).free
    if free < 10_000_000:
        raise DoNotRetry(f"only {free} bytes are free")
    return {"distributions": len(_distributions()), "free_bytes": free}


@handler("etl.extract")
def extract(context: StepContext) -> dict[str, Any]:
    """Name, version, licence, summary and requirements of each distribution."""
    rows = []
    for name, distribution in _distributions().items():
        fields = _fields(distribution)
        rows.append(
            {
                "name": name,
                "version": fields.get("Version", ""),
                "licence": str(fields.get("License-Expression") or fields.get("License") or ""),
                "summary": fields.get("Summary", ""),
                "requires": list(fields.get_all("Requires-Dist") or ()),
            }
        )
    context.measure("rows", len(rows), "row")
    return {"rows": rows}


@handler("etl.transform")
def transform(context: StepContext) -> dict[str, Any]:
    """Normalise names (PEP 503), shorten licences, count requirements, add a fingerprint."""
    rows = []
    for row in context.outputs["extract"]["rows"]:
        name = re.sub(r"[-_.]+", "-", row["name"]).lower()
        licence = (row["licence"].strip().splitlines() or ["unknown"])[0][:60]
        fingerprint = hashlib.sha256(f"{name}=={row['version']}".encode()).hexdigest()[:16]
        rows.append([name, row["version"], licence, row["summary"][:200], len(row["requires"]), fingerprint])
    return {"rows": rows}


@handler("etl.validate_data")
def validate_data(context: StepContext) -> dict[str, Any]:
    """Check that there are enough rows, no duplicate names, and a version in every row."""
    rows: list[list[Any]] = context.outputs["transform"]["rows"]
    minimum = context.inputs["minimum_rows"]
    if len(rows) < minimum:
        raise DoNotRetry(f"{len(rows)} rows are fewer than minimum_rows = {minimum}")
    duplicates = [name for name, count in Counter(row[0] for row in rows).items() if count > 1]
    unversioned = [row[0] for row in rows if not row[1]]
    if unversioned:
        raise DoNotRetry(f"without a version: {', '.join(unversioned[:5])}")
    if duplicates:
        context.log(f"duplicate names: {', '.join(duplicates[:5])}", "warning")
    return {"rows": len(rows), "duplicates": len(duplicates)}


@handler("etl.load")
def load(context: StepContext) -> dict[str, Any]:
    """Write the rows to a SQLite table."""
    path = _scratch(context) / "census.db"
    rows = context.outputs["transform"]["rows"]
    connection = sqlite3.connect(path)
    try:
        with connection:
            connection.execute("DROP TABLE IF EXISTS census")
            connection.execute(
                "CREATE TABLE census (name TEXT PRIMARY KEY, version TEXT, licence TEXT, summary TEXT, "
                "requirements INTEGER, fingerprint TEXT)"
            )
            connection.executemany("INSERT OR REPLACE INTO census VALUES (?, ?, ?, ?, ?, ?)", rows)
    finally:
        connection.close()
    context.measure("database", path.stat().st_size, "By")
    return {"path": str(path)}


@handler("etl.validate_load")
def validate_load(context: StepContext) -> dict[str, Any]:
    """Check that every transformed row was loaded."""
    connection = sqlite3.connect(context.outputs["load"]["path"])
    try:
        count = connection.execute("SELECT count(*) FROM census").fetchone()[0]
        licences = connection.execute(
            "SELECT licence, count(*) FROM census GROUP BY licence ORDER BY count(*) DESC LIMIT 5"
        ).fetchall()
    finally:
        connection.close()
    expected = len({row[0] for row in context.outputs["transform"]["rows"]})
    if count != expected:
        raise StepFailed(f"{count} rows loaded of {expected}")
    return {"rows": count, "licences": dict(licences)}


@handler("etl.cleanup")
def cleanup(context: StepContext) -> dict[str, Any]:
    """Remove the execution's files, whatever happened before."""
    path = _scratch(context)
    removed = len(list(path.iterdir()))
    shutil.rmtree(path, ignore_errors=True)
    return {"removed": removed}


@handler("index.publish")
def publish(context: StepContext) -> dict[str, Any]:
    """Write an index of the sizes of all distributions. It appears only once it is complete."""
    lines = [f"{name}\t{_size(distribution)[1]}" for name, distribution in _distributions().items()]
    path = _scratch(context) / "index.tsv"
    draft = path.with_suffix(".draft")
    draft.write_text("\n".join(lines))
    draft.replace(path)
    return {"path": str(path), "lines": len(lines)}


@handler("index.read")
def read_index(context: StepContext) -> dict[str, Any]:
    """Read the index. The step has no dependencies, so it fails until another step has published the index."""
    path = _scratch(context) / "index.tsv"
    if not path.exists():
        raise StepFailed("the index does not exist yet")
    sizes = {name: int(size) for name, size in (line.split("\t") for line in path.read_text().splitlines())}
    largest = max(sizes, key=lambda name: sizes[name])
    return {"distributions": len(sizes), "largest": largest, "largest_bytes": sizes[largest]}


_MODEL = "extractive-1"
_USD_PER_TOKEN_IN, _USD_PER_TOKEN_OUT = 0.2e-6, 0.8e-6


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]{3,}", text.lower())


def _spend(context: StepContext, read: Iterable[str], written: str) -> None:
    """Report words as tokens, as a language model would bill them."""
    tokens_in, tokens_out = sum(len(_words(text)) for text in read), len(_words(written))
    usd = tokens_in * _USD_PER_TOKEN_IN + tokens_out * _USD_PER_TOKEN_OUT
    context.cost(usd=usd, tokens_in=tokens_in, tokens_out=tokens_out, model=_MODEL)


@handler("agent.plan")
def plan(context: StepContext) -> dict[str, Any]:
    """Choose the distributions that match the topic."""
    topic = _words(context.inputs["topic"])
    scores: dict[str, int] = {}
    summaries = []
    for name, distribution in _distributions().items():
        summary = _field(distribution, "Summary")
        summaries.append(summary)
        score = sum(word in _words(f"{name} {summary}") for word in topic)
        if score:
            scores[name] = score
    chosen = sorted(scores, key=lambda name: -scores[name])[:8] or list(_distributions())[:8]
    _spend(context, summaries, " ".join(chosen))
    return {"chosen": chosen}


@handler("agent.research")
def research(context: StepContext) -> dict[str, Any]:
    """Collect sentences from the descriptions of the chosen distributions."""
    sentences: list[str] = []
    read = []
    distributions = _distributions()
    for name in context.outputs["plan"]["chosen"]:
        fields = distributions[name].metadata
        text = str(fields.json.get("description") or _field(distributions[name], "Summary"))
        read.append(text)
        plain = re.sub(r"[`*#>|=\[\]()_-]+", " ", text)
        sentences += [s.strip() for s in re.split(r"(?<=[.!?])\s+", plain) if 40 < len(s.strip()) < 240][:40]
    _spend(context, read, " ".join(sentences))
    return {"sentences": sentences}


@handler("agent.write")
def write(context: StepContext) -> dict[str, Any]:
    """Summarise: the sentences whose words are most frequent (Luhn 1958)."""
    sentences: list[str] = context.outputs["research"]["sentences"]
    weight = Counter(word for sentence in sentences for word in set(_words(sentence)))
    ranked = sorted(sentences, key=lambda s: -sum(weight[w] for w in set(_words(s))) / (len(_words(s)) or 1))
    text = " ".join(ranked[:5])
    _spend(context, sentences, text)
    return {"text": text}


@handler("agent.review")
def review(context: StepContext) -> dict[str, Any]:
    """Judge how varied the text is, and whether it says enough."""
    text: str = context.outputs["write"]["text"]
    words = _words(text)
    by_length: defaultdict[int, int] = defaultdict(int)
    for word in words:
        by_length[len(word)] += 1
    verdict = "good" if len(set(words)) >= 20 else "thin"
    _spend(context, [text], verdict)
    context.measure("distinct_words", len(set(words)), "word")
    return {"verdict": verdict, "words": len(words), "distinct": len(set(words))}
