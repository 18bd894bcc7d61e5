"""The night at one look, notices, silences and expectations, in a real browser."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect
from tests.e2e.browser import chromium, node_module
from tests.e2e.conftest import Server, eventually, get
from tests.e2e.test_on_call import WIDTHS, fails, new_tab, text_of
from tests.e2e.test_page import Tab, count_pixels, execute
from tools.night_of_runs import NightOfRuns, write_night

from tachograph_exporter.store.writer import open_writer

pytestmark = pytest.mark.xdist_group("night")

RUNS = 2_000
DRAWINGS, ELEMENTS = 15.0, 2_500
DRAWN = """() => {
  const watch = () => {
    if (document.querySelector("canvas[data-runs]")) window.drawnAt = performance.now();
    else requestAnimationFrame(watch);
  };
  watch();
}"""

PAINTED = """() => {
  window.painted = 0;
  for (const name of ["fill", "fillRect", "fillText", "stroke", "strokeRect"]) {
    const paint = CanvasRenderingContext2D.prototype[name];
    CanvasRenderingContext2D.prototype[name] = function (...values) {
      window.painted += 1;
      return paint.apply(this, values);
    };
  }
}"""
"""Counts what is painted on canvases."""

TIMES = """() => {
  const answer = performance.getEntriesByType("resource").find((entry) => entry.name.includes("/api/night"));
  return [answer.responseEnd - answer.startTime, window.drawnAt - answer.responseEnd];
}"""


class World:
    """A service with a night of thirty workflows, and one tab."""

    def __init__(self, service: Server, tab: Tab, night: NightOfRuns) -> None:
        self.service = service
        self.tab = tab
        self.page = tab.page
        self.night = night

    def open(self, address: str, width: int = 1400, height: int = 900) -> Page:
        self.page.set_viewport_size({"width": width, "height": height})
        self.page.goto("about:blank")
        return self.tab.open(address)

    def open_night(self, query: str = "window=12h") -> Page:
        page = self.open(f"/night?{query}")
        page.locator("canvas[data-runs]").wait_for()
        return page


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    directory: Path = tmp_path_factory.mktemp("night")
    database = f"sqlite:///{directory}/serve.db"
    writer = open_writer(database)
    night = write_night(writer, time.time_ns(), RUNS)
    writer.close()
    service = Server(directory, "--database", database, "--lease", "86400", "--notify", "http://127.0.0.1:9/").start()
    try:
        with chromium() as browser:
            tab = new_tab(browser, service)
            yield World(service, tab, night)
            tab.close()
    finally:
        if service.process is not None and service.process.poll() is None:
            service.stop()


def test_two_thousand_runs_of_thirty_workflows_are_drawn_the_missing_ones_first(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.page.add_init_script(f"({DRAWN})()")
    world.page.add_init_script(f"({PAINTED})()")
    page = world.open_night()
    asked, took = page.evaluate(TIMES)
    with capsys.disabled():
        print(f"\n{RUNS} runs: answered in {asked:.0f} ms, drawn {took:.0f} ms later")
    assert int(page.locator("canvas[data-runs]").get_attribute("data-runs") or 0) > 0.95 * RUNS
    # What it costs to draw, on any machine: a few strokes of the brush a run, and an element a workflow.
    drawings = page.evaluate("window.painted") / RUNS
    elements = page.evaluate("document.querySelectorAll('*').length")
    assert drawings < DRAWINGS, drawings
    assert elements < ELEMENTS, elements
    assert page.locator(".night-names li").count() == 30
    assert text_of(page.locator(".night-names li").nth(0)) in ("billing_export 1 missing", "backup_postgres 1 missing")
    sentence = page.locator(".night-sentence")
    expect(sentence).to_have_text(
        re.compile(r"^2 starts are missing, \d+ failed, 1 started late, 2 running; \d+ of 30")
    )
    for status in ("completed", "failed", "running", "lost", "timeout"):
        assert count_pixels(page, status) > 0, status
    # The same in words.
    page.get_by_text("As a table").click()
    expect(page.locator(".night-table tbody tr")).to_have_count(30)
    rows = {name: text_of(row) for row in page.locator(".night-table tbody tr").all()
            if (name := row.locator("th").inner_text())}  # fmt: skip
    assert len(rows) == 30
    assert re.fullmatch(r"billing_export 0 \d\d:\d\d – – – –", rows["billing_export"])
    assert re.fullmatch(r"stock_load 1 – \d\d:\d\d, by 25 m \d\d s ✘ failed \d\d:\d\d – –", rows["stock_load"])
    waits = r"dwh_build 1 – – – since \d\d:\d\d, until about \d\d:\d\d waits for ml_training in step train"
    assert re.fullmatch(waits, rows["dwh_build"])
    page.get_by_label("Only what went wrong").check()
    expect(page.locator(".night-names li")).not_to_have_count(30)
    page.get_by_label("Only workflows with this in their name").fill("STOCK")
    expect(page.locator(".night-names li")).to_have_count(1)
    # The list of runs says of what runs when it is expected to end, too.
    row = world.open("/?status=running").locator(f"tr[data-id='{world.night.waits}']")
    expect(row.locator(".eta")).to_have_text(re.compile(r"^until about \d\d:\d\d$"))
    row.get_by_role("link").first.click()
    expect(page.locator(".sentence")).to_contain_text(re.compile(r"about .+ left, until \d\d:\d\d"))


def test_keys_move_from_run_to_run_and_an_address_leads_back(world: World) -> None:
    page = world.open_night()
    page.locator("body").press("ArrowDown")
    detail = page.locator(".night-detail")
    expect(detail).to_contain_text("did not start; it was due at")
    page.keyboard.press("f")
    page.keyboard.press("f")
    expect(detail).to_contain_text(re.compile("failed|timeout|lost"))
    page = world.open_night(f"window=12h&run={world.night.waits}")
    expect(detail).to_contain_text("waits for ml_training")
    detail.get_by_role("button", name="ml_training").click()
    expect(detail).to_contain_text("ran inside dwh_build")
    assert page.url.endswith(f"run={world.night.inner}")
    page.locator("#night-runs").press("Enter")
    expect(page.get_by_role("heading", level=1)).to_contain_text("ml_training")
    page.go_back()
    expect(detail).to_contain_text("ran inside dwh_build")
    # A pointer finds the same, and any part of the time can be chosen.
    page.get_by_label("Time", exact=True).select_option("range")
    expect(page.get_by_label("From", exact=True)).to_be_visible()
    page.get_by_role("button", name="Earlier").click()
    expect(page).to_have_url(re.compile("from=.*&to="))


def test_a_run_that_begins_and_fails_is_there_without_a_reload(world: World) -> None:
    page = world.open_night()
    expect(page.locator("#connection")).to_have_text("live")
    execute(world.service, fails("night_import"))
    row = page.locator(".night-names li", has=page.get_by_role("link", name="night_import"))
    expect(row).to_contain_text("1 failed", timeout=60_000)


def test_it_fits_every_width_and_both_themes(world: World) -> None:
    axe = (node_module("axe-core") / "axe.min.js").read_text()
    for address, name in (("/night?window=12h&arrows=1", ".night-names a"), ("/notices", ".notice b")):
        page = world.open(address)
        page.locator(name).first.wait_for()
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 800})
            page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
            widest = page.evaluate("document.documentElement.scrollWidth - document.body.clientWidth")
            assert widest <= 0, (address, width)
        page.set_viewport_size({"width": 390, "height": 800})
        if "night" in address:
            # What is missing is on the first screen of a phone.
            first = page.locator(".night-names li.missing").first
            assert first.evaluate("element => element.getBoundingClientRect().y") < 600
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            page.evaluate(axe + "; undefined")
            violations = page.evaluate("axe.run().then((results) => results.violations)")
            serious = [f"{v['id']}: {[node['html'] for node in v['nodes']][:3]}" for v in violations
                       if v["impact"] in ("serious", "critical")]  # fmt: skip
            assert serious == [], (address, scheme)
    world.page.emulate_media(color_scheme="light")


def test_a_notice_is_silenced_and_the_silence_ended(world: World) -> None:
    eventually(lambda: world.service.get("/api/notices?open=true")["items"])
    page = world.open("/notices")
    page.get_by_role("button", name="Silence stock_load failed").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_label("Workflow")).to_have_value("stock_load")
    dialog.get_by_label("For").select_option("until")
    dialog.get_by_label("Until").fill("2001-01-01T00:00")
    dialog.get_by_role("button", name="Silence").click()
    expect(dialog.get_by_role("alert")).to_contain_text("expected an end in the future")
    dialog.get_by_label("For").select_option("8h")
    dialog.get_by_label("Reason").fill("<b>known</b>")
    dialog.get_by_role("button", name="Silence").click()
    expect(dialog).to_have_count(0)
    row = page.get_by_role("row", name="stock_load")
    expect(row).to_contain_text("<b>known</b>")
    (entry,) = world.service.get("/api/silences")["items"]
    assert (entry["workflow"], entry["kind"], entry["severity"]) == ("stock_load", "failed", None)
    row.get_by_role("button", name="End").click()
    page.get_by_role("dialog").get_by_role("button", name="End it").click()
    expect(page.get_by_text("Nothing is silenced.")).to_be_visible()
    # The browser logs what the service refused, which the test provoked.
    world.tab.errors[:] = [text for text in world.tab.errors if "422" not in text]


def test_what_is_expected_is_seen_changed_and_taken_back(world: World) -> None:
    page = world.open("/workflows/sitemap")
    block = page.get_by_role("region", name="What is expected")
    expect(block).to_contain_text("nobody: these are the defaults")
    block.get_by_role("button", name="Change").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Schedule").fill("0 3 * *")
    dialog.get_by_role("button", name="Save").click()
    expect(dialog.get_by_role("alert")).to_contain_text("expected a cron expression of five fields")
    dialog.get_by_label("Schedule").fill("0 3 * * *")
    dialog.get_by_label("May take").fill("1h 30m")
    dialog.get_by_role("button", name="Save").click()
    expect(block).to_contain_text("0 3 * * * (UTC)")
    expect(block).to_contain_text("1 h 30 m")
    # What is said here and has no field stays.
    said = {"schedule": "0 3 * * *", "success_target": 0.9, "steps": {"load": {"deadline": "5m"}}}
    assert get(f"{world.service.address}/api/expectations/sitemap", method="PUT", body=said)[0] == 200
    page = world.open("/workflows/sitemap")
    block.get_by_role("button", name="Change").click()
    dialog.get_by_label("Nothing for now").check()
    expect(dialog.get_by_label("Deadlines of steps")).to_have_value("load = 300s")
    dialog.get_by_label("Deadlines of steps").fill("load = soon")
    dialog.get_by_role("button", name="Save").click()
    expect(dialog.get_by_role("alert")).to_contain_text("such as 90s, 10m or 1h 30m")
    dialog.get_by_label("Deadlines of steps").fill("a = b = 2m\nload = 300s")
    dialog.get_by_role("button", name="Save").click()
    expect(block).to_contain_text("nothing is expected for now")
    mine = world.service.get("/api/expectations/sitemap")["said"]["api"]
    assert mine == {"schedule": "0 3 * * *", "success_target": 0.9, "is_paused": True,
                    "steps": {"a = b": {"deadline_seconds": 120.0}, "load": {"deadline_seconds": 300.0}}}  # fmt: skip
    block.get_by_role("button", name="Take back").click()
    page.get_by_role("dialog").get_by_role("button", name="Take back").click()
    expect(block).to_contain_text("nobody: these are the defaults")
    world.tab.errors[:] = [text for text in world.tab.errors if "422" not in text]
