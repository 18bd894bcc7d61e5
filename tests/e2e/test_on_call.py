"""The page as someone on call uses it: one service with runs of every kind, in one tab of a real browser."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from playwright.sync_api import Browser, Locator, Page, expect
from tests.e2e.browser import chromium, node_module
from tests.e2e.conftest import Server, eventually, get
from tests.e2e.test_page import Tab, execute, finished, option

pytestmark = pytest.mark.xdist_group("on call")

LONG = "every_night_at_two_without_a_break_" * 5 + "<b>x</b>"
WIDTHS = (360, 720, 768, 1024, 1440, 2560)
"""CSS pixels; 720 is 1,440 at 200 %."""


def sleeps(name: str, seconds: float) -> dict[str, Any]:
    steps = [
        {"name": "read", "config": {"handler": "sleep", "seconds": 0.02}},
        {"name": "load", "depends_on_steps": ["read"], "config": {"handler": "sleep", "seconds": seconds}},
        {"name": "tell", "depends_on_steps": ["load"]},
    ]
    return {"name": name, "steps": steps}


def fails(name: str, message: str = "disk 1 is full") -> dict[str, Any]:
    steps = [
        {"name": "read"},
        {"name": "s" * 120, "depends_on_steps": ["read"],
         "config": {"handler": "fail", "times": 9, "message": message}},
        {"name": "load", "depends_on_steps": ["s" * 120]},
    ]  # fmt: skip
    return {"name": name, "steps": steps}


FAN: dict[str, Any] = {
    "name": "fan",
    "steps": [
        {"name": "split"},
        *[{"name": f"partition_{i}", "depends_on_steps": ["split"]} for i in range(60)],
        {"name": "merge", "depends_on_steps": [f"partition_{i}" for i in range(60)]},
    ],
}
RETRIES: dict[str, Any] = {
    "name": "retries",
    "steps": [
        {"name": "flaky", "max_retries": 1, "retry_backoff": {"initial_seconds": 900, "max_seconds": 900, "jitter": 0},
         "config": {"handler": "fail", "times": 1, "message": "not yet"}},
        {"name": "later", "depends_on_steps": ["flaky"]},
    ],
}  # fmt: skip


class World:
    """A service with runs, and one tab."""

    def __init__(self, service: Server, tab: Tab) -> None:
        self.service = service
        self.tab = tab
        self.page = tab.page
        self.runs: dict[str, str] = {}
        self.workflows: dict[str, str] = {}

    def fill(self) -> None:
        for _ in range(5):
            finished(self.service, execute(self.service, sleeps("nightly", 0.1)))
        # Far longer than a busy machine makes the usual ones.
        self.redefine("nightly", sleeps("nightly", 2.5))
        for name, definition in {
            "slow": sleeps("nightly", 2.5),
            "failed": fails("import"),
            "recovered": fails("export"),
            "long": fails(LONG),
            "fan": FAN,
        }.items():
            self.runs[name] = execute(self.service, definition)
            finished(self.service, self.runs[name])
        self.redefine("export", sleeps("export", 0.01))
        finished(self.service, execute(self.service, {"name": "export"}))
        self.runs["retrying"] = execute(self.service, RETRIES)
        self.workflows = {item["name"]: item["id"] for item in self.service.get("/api/workflows")["items"]}

    def redefine(self, name: str, definition: dict[str, Any]) -> None:
        items = self.service.get("/api/workflows")["items"]
        identifier = next(item["id"] for item in items if item["name"] == name)
        assert get(f"{self.service.address}/api/workflows/{identifier}", method="PATCH", body=definition)[0] == 200

    def open(self, address: str, width: int = 1440, height: int = 900) -> Page:
        self.page.set_viewport_size({"width": width, "height": height})
        # Another address first: the same one would not be opened again.
        self.page.goto("about:blank")
        return self.tab.open(address)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    directory: Path = tmp_path_factory.mktemp("on call")
    service = Server(directory, "--database", f"sqlite:///{directory}/serve.db").start()
    try:
        with chromium() as browser:
            world = World(service, new_tab(browser, service))
            world.fill()
            yield world
            world.tab.close()
    finally:
        if service.process is not None and service.process.poll() is None:
            service.stop()


def new_tab(browser: Browser, service: Server) -> Tab:
    return Tab(browser, service, permissions=["clipboard-read", "clipboard-write"])


def text_of(element: Locator) -> str:
    return re.sub(r"\s+", " ", element.inner_text())


def test_the_first_view_answers_what_failed_and_what_is_slow_in_one_request(world: World) -> None:
    asked: list[str] = []
    world.page.on("request", lambda request: asked.append(request.url))
    page = world.open("/")
    expect(page.locator(f"tr[data-id='{world.runs['retrying']}']")).to_be_visible()
    expect(page.locator("#connection")).to_have_text("live")
    failed = page.locator(".block.failed")
    expect(failed.get_by_role("heading")).to_contain_text("Failed 3 in the last 12 h")
    # One cause in three workflows: the one that completed since has recovered.
    expect(failed.locator("li")).to_have_count(1)
    expect(failed.locator(".of")).to_have_count(3)
    expect(failed.locator(".of", has_text="import")).to_contain_text("still failing")
    expect(failed.locator(".of", has_text="export")).to_contain_text("recovered")
    expect(page.locator(".block.slow")).to_contain_text("nightly")
    # Again after the stream is connected, whatever happened meanwhile: but not once a workflow or run.
    lists = [url for url in asked if "/api/overview" in url or "/executions" in url or "/metrics" in url]
    assert 1 <= len(lists) <= 2, lists
    # Two clicks to the error: the run, and it is selected.
    failed.locator(".of", has_text="import").get_by_role("link").first.click()
    expect(page.get_by_role("heading", level=1)).to_have_text("import")
    expect(page.locator(".sentence")).to_contain_text("disk 1 is full")
    expect(page.get_by_role("complementary", name="Step").get_by_role("heading", level=2)).to_have_text("s" * 120)


def test_counts_do_not_hide_a_failure(world: World) -> None:
    page = world.open("/")
    row = page.locator(f"tr[data-id='{world.runs['failed']}']")
    assert "1 ✔ 1 ✘ 1 –" in text_of(row)
    page = world.open(f"/executions/{world.runs['failed']}")
    expect(page.locator(".facts")).to_contain_text("✘")
    expect(page.locator(".facts dt", has_text="Success")).to_have_count(0)


def test_a_slow_run_says_why_and_the_link_shows_it_to_a_colleague(world: World) -> None:
    page = world.open(f"/executions/{world.runs['slow']}")
    expect(page.locator(".sentence")).to_contain_text(re.compile("Step “load” took [23]"))
    why = page.get_by_role("region", name="Why")
    expect(why).to_contain_text("runs compared")
    expect(why.locator("[data-certainty]").first).to_be_visible()
    expect(option(page, "load")).to_have_attribute("aria-label", re.compile(r"usually [\d.]+ m?s, ×\d"))
    bars = page.locator("canvas.bars").bounding_box()
    assert bars is not None
    page.mouse.move(bars["x"] + bars["width"] / 2, bars["y"] + 36)
    expect(page.locator(".tip")).to_contain_text("usually")
    option(page, "load").click()
    page.get_by_role("button", name="Zoom in").click()
    page.wait_for_url(re.compile("from=.*&to="))
    address = page.url
    zoomed = re.search(r"from=([\d.]+)&to=([\d.]+)", address)
    assert zoomed is not None
    page.get_by_role("button", name="Copy link").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == address
    page.goto("about:blank")
    page.goto(address)
    expect(page.get_by_role("complementary", name="Step").get_by_role("heading", level=2)).to_have_text("load")
    expect(page.get_by_role("complementary", name="Step")).to_contain_text("Usually")
    page.get_by_role("button", name="Fit").click()
    page.wait_for_url(lambda url: "from=" not in url)


def test_an_open_run_shows_what_is_to_come_and_can_be_cancelled_and_run_again(world: World) -> None:
    page = world.open(f"/executions/{world.runs['retrying']}")
    expect(option(page, "later")).to_have_attribute("aria-label", re.compile("pending"))
    expect(page.locator(".sentence")).to_contain_text("0 of 2 steps ended")
    expect(page.get_by_role("button", name="Run again")).to_be_hidden()
    # A run whose retry the page has seen says when the next attempt comes.
    again = execute(world.service, RETRIES)
    page = world.open(f"/executions/{again}")
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel the run").click()
    expect(page.locator(".state")).to_have_text("■ cancelled")
    page.get_by_role("button", name="Run again").click()
    dialog = page.get_by_role("dialog", name="Run again")
    dialog.get_by_label("Inputs, as JSON").fill("[")
    dialog.get_by_role("button", name="Run").click()
    expect(dialog).to_contain_text("Not valid")
    dialog.get_by_label("Inputs, as JSON").fill("{}")
    dialog.get_by_role("button", name="Run").click()
    page.wait_for_url(lambda url: again not in url and "/executions/" in url)
    expect(page.locator(".state")).to_have_text("▶ running")
    started = page.url.rpartition("/")[2].partition("?")[0]
    world.service.post(f"/api/workflows/executions/{started}/cancel")
    expect(page.locator(".state")).to_have_text("■ cancelled")


def test_the_next_attempt_is_announced_with_its_time(world: World) -> None:
    page = world.open(f"/executions/{world.runs['retrying']}")
    expect(page.locator(".state")).to_have_text("▶ running")
    # As the stream says it, whenever the page is open at that moment.
    told = """async () => {
      const { Run } = await import("/web/run.js");
      const { progress } = await import("/web/views/run_facts.js");
      const id = location.hash.match(/executions\\/([^?]+)/)[1];
      const timeline = await (await fetch(`/api/workflows/executions/${id}/timeline`)).json();
      const run = new Run(timeline);
      const step = run.steps.find(({ name }) => name === "flaky");
      const data = { attempt: 1, attempt_status: "failed", attempt_started_at: timeline.started_at,
        attempt_completed_at: new Date().toISOString(), error_message: "not yet", delay_seconds: 840 };
      run.apply({ event_type: "step_retrying", workflow_step_id: step.id, data });
      return progress(run);
    }"""
    assert re.search(r"“flaky” tries again in 1[34] m \d\d s", page.evaluate(told))


def test_workflows_show_their_last_runs_and_every_run_is_a_dot(world: World) -> None:
    page = world.open("/workflows")
    row = page.locator("tbody tr", has=page.get_by_role("link", name="nightly", exact=True))
    expect(row.locator(".strip rect")).to_have_count(6)
    expect(page.locator("tbody tr").first).to_contain_text("failed")
    page.get_by_label("Search workflows").fill("NIGHTLY")
    expect(page.locator("tbody tr")).to_have_count(1)
    page.get_by_label("Search workflows").fill("no such workflow")
    expect(page.get_by_text("No workflow's name contains")).to_be_visible()
    page.get_by_label("Search workflows").fill("")
    page.get_by_role("button", name="Workflow", exact=True).click()
    expect(page.locator("th[aria-sort=ascending]")).to_have_text("Workflow")
    expect(page.locator("tbody tr").first).to_contain_text("every_night")
    page = world.open(f"/workflows/{world.workflows['import']}")
    expect(page.locator(".dots .dot.failed")).to_have_count(1)
    page.locator(".dots .dot").click()
    page.wait_for_url(re.compile(world.runs["failed"]))


def test_one_search_and_the_way_back(world: World) -> None:
    page = world.open("/", height=400)
    search = page.get_by_label("Search")
    for text, name in ((world.runs["fan"][-6:], "fan"), ("NIGHTLY", "nightly"), ("disk 1", "import")):
        search.fill(text)
        expect(page.locator("tbody th a", has_text=name).first).to_be_visible()
        page.wait_for_url(re.compile("q="))
    search.fill("nothing of that kind")
    expect(page.get_by_text("No runs match.")).to_be_in_viewport()
    page.get_by_role("button", name="Clear filters").click()
    expect(page.locator("tbody tr")).not_to_have_count(1)
    page.get_by_text("✘ failed").first.click()
    expect(page.locator("tbody tr")).to_have_count(3)
    last = page.locator("tbody tr").last
    last.scroll_into_view_if_needed()
    page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    before = page.evaluate("window.scrollY")
    assert before > 0
    last.get_by_role("link").click()
    expect(page.locator(".state")).to_contain_text("failed")
    page.go_back()
    # The filter, and the place.
    expect(page.locator("tbody tr")).to_have_count(3)
    expect(page.locator("#s-failed")).to_be_checked()
    eventually(lambda: abs(page.evaluate("window.scrollY") - before) < 60)
    page.go_back()
    expect(page.locator("#s-failed")).not_to_be_checked()


def test_times_are_relative_and_can_be_in_utc(world: World) -> None:
    page = world.open("/")
    expect(page.locator("tbody time").first).to_contain_text(re.compile(r"\d\d:\d\d:\d\d · (\d+ \w+ ago|just now)"))
    zone = page.locator("#zone")
    before = zone.inner_text()
    zone.click()
    expect(zone).to_have_text("UTC")
    page.locator("body").press("z")
    expect(zone).to_have_text(before)


def test_the_graph_fits_and_folds_siblings(world: World) -> None:
    page = world.open(f"/executions/{world.runs['fan']}?view=graph")
    expect(page.locator("canvas.graph")).to_be_visible()
    state = """async () => {
      const { nodesOf } = await import("/web/drawing/folding.js");
      const { Run } = await import("/web/run.js");
      const id = location.hash.match(/executions\\/([^?]+)/)[1];
      const timeline = await (await fetch(`/api/workflows/executions/${id}/timeline`)).json();
      const run = new Run(timeline);
      return [nodesOf(run).map((node) => node.name), nodesOf(run, { foldsNothing: true }).length];
    }"""
    names, count = page.evaluate(state)
    assert (names, count) == (["split", "partition_* ×60", "merge"], 62)
    canvas = page.locator("canvas.graph")
    box = canvas.bounding_box()
    assert box is not None
    # The folded node is in the middle; a click unfolds it.
    painted = "() => document.querySelector('canvas.graph').toDataURL().length"
    folded = page.evaluate(painted)
    canvas.click(position={"x": box["width"] / 2, "y": box["height"] / 2})
    # Not with wait_for_function: to ask again it needs `eval`, which the page's policy forbids.
    eventually(lambda: page.evaluate(painted) != folded)
    page.get_by_role("button", name="Fold siblings").click()
    expect(page.get_by_role("button", name="Fold siblings")).to_have_attribute("aria-pressed", "false")


def test_names_stay_and_nothing_widens_the_page_at_any_width(world: World) -> None:
    axe = (node_module("axe-core") / "axe.min.js").read_text()
    views = (
        ("/", "tbody th a"),
        (f"/executions/{world.runs['long']}", "h1"),
        (f"/executions/{world.runs['slow']}?view=graph", "h1"),
        ("/workflows", "tbody th a"),
        (f"/workflows/{world.workflows[LONG]}?range=24h&a={world.runs['long']}", "h1"),
    )
    for address, name in views:
        page = world.open(address)
        page.locator(name).first.wait_for()
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 800})
            page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
            widest = page.evaluate("document.documentElement.scrollWidth - document.body.clientWidth")
            assert widest <= 0, (address, width)
            # Found and measured in one go: what arrives meanwhile takes the place of what was there.
            narrowest = page.evaluate(
                "names => Math.min(...[...document.querySelectorAll(names)].map(name => name.clientWidth))", name
            )
            assert narrowest >= 40, (address, width, narrowest)
            if width == 360 and address == "/":
                # A run is on the first screen of a phone.
                run = page.locator("main a[href^='#/executions']").first
                assert run.evaluate("element => element.getBoundingClientRect().y") < 500
        page.evaluate(axe + "; undefined")
        # What has another colour is all that differs in the dark.
        schemes: tuple[tuple[Literal["light", "dark"], str], ...]
        schemes = (("light", "{}"), ("dark", "{runOnly: ['color-contrast']}"))
        for scheme, options in schemes:
            page.emulate_media(color_scheme=scheme)
            violations = page.evaluate(f"axe.run({options}).then((results) => results.violations)")
            serious = [
                f"{violation['id']}: {[node['html'] for node in violation['nodes']][:3]}"
                for violation in violations
                if violation["impact"] in ("serious", "critical")
            ]
            assert serious == [], (address, scheme)
    world.page.emulate_media(color_scheme="light")


def test_no_step_matches_is_said_where_one_looks(world: World) -> None:
    page = world.open(f"/executions/{world.runs['fan']}", width=360, height=740)
    page.get_by_label("Filter steps by name").fill("no such step")
    said = page.get_by_text("No steps match the filter.")
    expect(said).to_be_visible()
    axis, text = page.locator(".axisrow").bounding_box(), said.bounding_box()
    assert axis is not None
    assert text is not None
    assert 0 <= text["y"] - axis["y"] - axis["height"] < 60


def test_while_the_service_is_away_what_was_known_stays(world: World, make_quiet: Callable[[], None]) -> None:
    page = world.open("/")
    expect(page.locator("#connection")).to_have_text("live")
    rows = page.locator("tbody tr").count()
    world.service.stop()
    expect(page.locator("#reach")).to_contain_text(re.compile(r"Not reachable since \d\d:\d\d, showing what was known"))
    assert page.locator("tbody tr").count() == rows
    page.locator("tbody th a").first.click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Not reachable")
    world.service.start()
    expect(page.locator(".state")).to_be_visible()
    expect(page.locator("#reach")).to_be_hidden()
    make_quiet()


@pytest.fixture
def make_quiet(world: World) -> Callable[[], None]:
    def forget() -> None:
        # The browser logs refused connections, which the test provokes.
        world.tab.errors[:] = [text for text in world.tab.errors if "ERR_" not in text and "WebSocket" not in text]

    return forget
