"""A run as one file: what is in it, what cannot break out of it, and how long it becomes."""

from __future__ import annotations

import base64
import gzip
import hashlib
import re
from html.parser import HTMLParser
from typing import Any

import msgspec
import pytest
from tests.report_file.runs import HOSTILE, START, hostile_run, long_run, record

from tachograph.identity import workspace_id
from tachograph_exporter.report_file import document as documents
from tachograph_exporter.report_file import reading
from tachograph_exporter.report_file.contents import Contents
from tachograph_exporter.report_file.document import document, file_name
from tachograph_exporter.report_file.shortening import brief, whole
from tachograph_exporter.store.database import Database

DEFAULT = workspace_id("default")


class Outline(HTMLParser):
    """The elements of a document, and the text of its scripts and styles."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.inner: list[tuple[str, str]] = []
        self.title = ""
        self._inside = ""
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside in ("script", "style"):
            self.inner.append((self._inside, data))
        elif self._inside == "title":
            self.title += data

    def contents(self) -> Any:
        return msgspec.json.decode(gzip.decompress(base64.b64decode(self.inner[1][1])))


def read(url: str, execution_id: str, now_ns: int = START + 10**12) -> Contents:
    database = Database(url)
    try:
        return database.look(lambda connection: read_all(connection, execution_id, now_ns))
    finally:
        database.close()


def read_all(connection: Any, execution_id: str, now_ns: int) -> Contents:
    return reading.read_all(connection, DEFAULT, execution_id, now_ns)


def test_nothing_breaks_out_and_only_the_documents_own_script_may_run(any_database_url: str) -> None:
    run, events = hostile_run()
    record(any_database_url, events)
    contents = read(any_database_url, run.execution_id)
    page = document(contents)
    outline = Outline(page)
    kinds = ("script", "style", "title", "main", "img", "iframe", "b")
    assert [tag for tag, _ in outline.elements if tag in kinds] == [
        "title", "style", "img", "main", "script", "script",
    ]  # fmt: skip
    assert not [name for _, values in outline.elements for name in values if name.startswith("on") or name == "style"]
    assert outline.title == f"{HOSTILE[0]} failed · Tachograph"
    (policy,) = [values["content"] for tag, values in outline.elements if tag == "meta" and "http-equiv" in values]
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for (tag, text), directive in zip([outline.inner[0], outline.inner[2]], ("style-src", "script-src"), strict=True):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy, tag
    places = [v for _, values in outline.elements for k, v in values.items() if k in ("src", "href")]
    assert places
    assert all(place is not None and place.startswith("data:") for place in places)
    known = outline.contents()
    assert [step["step_name"] for step in known["timeline"]["step_timeline"]] == list(HOSTILE)
    assert [line["message"] for line in known["lines"]] == [f"line {name}" for name in HOSTILE]
    assert known["why"]["verdict"] == "failed"
    assert re.fullmatch(r"[A-Za-z0-9_.-]+\.html", file_name(contents))


def test_a_run_without_steps_and_one_that_goes_on_are_reported(database_url: str) -> None:
    empty, events = long_run(0)
    going, more = long_run(5, is_open=True, name="going")
    record(database_url, [*events, *more])
    outline = Outline(document(read(database_url, empty.execution_id)))
    assert outline.contents()["timeline"]["step_timeline"] == []
    known = Outline(document(read(database_url, going.execution_id, START + 60 * 10**9))).contents()
    assert known["timeline"]["status"] == "running"
    assert known["timeline"]["elapsed_seconds"] == 60.0
    assert known["made_at"] == "2026-11-18T11:07:40.000000Z"
    assert known["definition"]["name"] == "going"


def test_a_long_run_is_shortened_where_it_matters_least(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run, events = long_run(600)
    record(database_url, events)
    contents = read(database_url, run.execution_id)
    all_steps = contents.timeline.step_timeline
    telling = {s.step_id for s in all_steps if s.status == "failed" or s.on_critical_path}
    assert telling
    frame = len(documents._page(contents, b""))
    sizes = []
    # Room for everything, for all steps without their values, and for some steps.
    rooms = [10**6, len(documents._packed(brief(whole(contents)))), 20_000]
    for room, are_brief, are_fewer in zip(rooms, (False, True, True), (False, False, True), strict=True):
        monkeypatch.setattr(documents, "MAX_BYTES", frame + room)
        page = document(contents)
        known = Outline(page).contents()
        steps = known["timeline"]["step_timeline"]
        sizes.append(len(page))
        assert len(page) <= frame + room
        assert len(known["omitted"]) == are_brief + are_fewer
        assert (len(steps) < 600) == are_fewer
        assert known["timeline"]["step_count"] == 600
        ids = [step["step_id"] for step in steps]
        assert ids == [s.step_id for s in all_steps if s.step_id in set(ids)]
        assert telling <= set(ids)
        assert all(step["output_summary"] is not None for step in steps if step["step_id"] in telling)
        plain = [step for step in steps if step["step_id"] not in telling]
        assert all((step["output_summary"] is None) == are_brief for step in plain)
    assert sizes == sorted(sizes, reverse=True)
    # Even what has no room for any step is a report.
    monkeypatch.setattr(documents, "MAX_BYTES", frame + 1_500)
    assert Outline(document(contents)).contents()["timeline"]["step_timeline"] == []


@pytest.mark.slow
def test_a_run_of_ten_thousand_steps_is_whole_within_five_megabytes(database_url: str) -> None:
    run, events = long_run(10_000)
    record(database_url, events)
    page = document(read(database_url, run.execution_id))
    assert len(page) <= 5_000_000
    known = Outline(page).contents()
    assert known["omitted"] == []
    assert len(known["timeline"]["step_timeline"]) == 10_000
