"""A report in a real browser: opened from the disk, in a frame of another page, and on paper."""

from __future__ import annotations

import html
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect
from tests.e2e.browser import chromium, errors_of
from tests.e2e.test_page import count_pixels
from tests.report_file.runs import HOSTILE, START, hostile_run, long_run, record
from tests.report_file.test_document import read

from tachograph_exporter.report_file.document import document


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as instance:
        yield instance


def opened(context: BrowserContext, path: Path) -> tuple[Page, list[str]]:
    """A report in a new tab, and what goes wrong in it: errors, dialogs and requests for anything else."""
    page = context.new_page()
    wrong = errors_of(page)
    page.on("dialog", lambda dialog: wrong.append(f"dialog: {dialog.message}"))
    page.on("request", lambda request: wrong.append(request.url) if request.url != path.as_uri() else None)
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-ready]", state="attached")
    return page, wrong


def test_a_report_opens_from_the_disk_and_asks_nothing(browser: Browser, tmp_path: Path, database_url: str) -> None:
    run, events = hostile_run()
    going, more = long_run(1_200, is_open=True, name="going")
    record(database_url, [*events, *more])
    path = tmp_path / "run.html"
    path.write_bytes(document(read(database_url, run.execution_id)))
    context = browser.new_context(viewport={"width": 1280, "height": 800}, color_scheme="light", offline=True)
    page, wrong = opened(context, path)
    # The page's own timeline, from the keyboard.
    expect(page.get_by_role("heading", level=1)).to_have_text(HOSTILE[0])
    assert page.title() == f"{HOSTILE[0]} · Tachograph"
    expect(page.locator("#steps [role=option]")).to_have_count(len(HOSTILE))
    assert count_pixels(page, "failed") > 1_000
    expect(page.locator(".explanation")).to_contain_text("was raised in")
    expect(page.locator(".sentence")).to_contain_text("The run failed in step")
    page.keyboard.press("Escape")
    page.locator("#steps").focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowDown")
    panel = page.get_by_role("complementary", name="Step")
    expect(panel.get_by_role("heading", level=2)).to_have_text(HOSTILE[1])
    expect(panel).to_contain_text(f"{HOSTILE[1]} happened")
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).not_to_contain_text("go to")
    page.keyboard.press("Escape")
    # The log, searched.
    page.get_by_role("searchbox", name="Search the log").fill("img")
    expect(page.locator(".lines li")).to_have_count(1)
    page.locator(".lines").get_by_role("button", name="<img").click()
    expect(panel.get_by_role("heading", level=2)).to_have_text("<img src=x onerror=alert(1)>")
    # Nothing leads to a service that is not there.
    assert page.locator("a[href]").count() == 0
    expect(page.get_by_role("button", name="Cancel")).to_have_count(0)
    page.get_by_role("tab", name="Graph").click()
    expect(page.locator("#drawing canvas")).to_be_visible()
    page.keyboard.press("t")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    with page.expect_download() as download:
        page.locator(".menu summary").click()
        page.get_by_role("button", name="JSON", exact=True).click()
    assert download.value.suggested_filename.endswith(".json")
    expect(page.locator(".menu button")).to_have_text(["JSON", "SVG", "PNG"])
    # On paper all steps are there, in light colours.
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    expect(page.locator(".printed svg")).to_be_visible()
    expect(page.locator("header.bar")).to_be_hidden()
    assert page.evaluate("document.documentElement.dataset.theme") == "light"
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    expect(page.locator(".printed")).to_have_count(0)
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert wrong == []

    # A run that went on when it was reported stands still; a service that is known is led to, in a new tab.
    contents = read(database_url, going.execution_id, START + 3_600 * 10**9)
    contents.address = "http://127.0.0.1:1/base"
    path.write_bytes(document(contents))
    page, wrong = opened(context, path)
    fact = page.locator(".facts div", has_text="Duration").locator("dd")
    expect(fact).to_have_text("1 h 00 m")
    time.sleep(0.6)  # Longer than two beats of the clock of a run that goes on.
    expect(fact).to_have_text("1 h 00 m")
    links = page.locator("a[href]").all()
    assert links
    assert all(re.match(r"http://127\.0\.0\.1:1/base/#/", link.get_attribute("href") or "") for link in links)
    page.locator("#steps").focus()
    page.keyboard.press("End")
    expect(page.locator("#steps [aria-selected=true]")).to_have_attribute("aria-posinset", "1200")
    assert wrong == []

    # In a frame without rights, as a notebook shows it.
    page = context.new_page()
    errors = errors_of(page)
    page.set_content(f'<iframe sandbox="allow-scripts" srcdoc="{html.escape(path.read_text())}"></iframe>')
    frame = page.frame_locator("iframe")
    expect(frame.locator("html[data-ready]")).to_be_attached()
    expect(frame.get_by_role("heading", level=1)).to_have_text("going")
    assert errors == []
    context.close()
