"""The page in a real browser, against the real service."""

from __future__ import annotations

import contextlib
import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from xml.etree import ElementTree

import msgspec
import pytest
from playwright.sync_api import Browser, Error, Locator, Page, Route, expect
from tests.conftest import make_execution, make_step
from tests.e2e.browser import chromium, errors_of
from tests.e2e.conftest import Server, eventually, get

from tachograph.clock import NS
from tachograph.events import ExecutionFinished, ExecutionStarted, ExecutionStatus, StepFinished, StepStatus
from tachograph.resources import Resources

# One browser for all of them.
pytestmark = pytest.mark.xdist_group("page")

EVIL = "<img src=x onerror=alert(1)>"
SLOW: dict[str, Any] = {
    "name": "slow",
    "steps": [
        {"name": f"part {i}", "depends_on_steps": [f"part {i - 1}"] if i else [],
         "config": {"handler": "sleep", "seconds": 0.6}}
        for i in range(5)
    ],
}  # fmt: skip
MIXED = {
    "name": "mixed",
    "steps": [
        {"name": "extract", "config": {"handler": "sleep", "seconds": 0.05}},
        {"name": "flaky", "depends_on_steps": ["extract"], "max_retries": 2, "retry_backoff": {"initial_seconds": 0.05},
         "config": {"handler": "fail", "times": 1, "message": "not yet"}},
        {"name": EVIL, "depends_on_steps": ["extract"],
         "config": {"handler": "fail", "times": 9, "message": "<b>broken</b>"}},
        {"name": "report", "depends_on_steps": [EVIL]},
        {"name": "clean up", "depends_on_steps": ["flaky"], "trigger_rule": "all_done"},
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as instance:
        yield instance


class Tab:
    """A browser tab that shows the page, and the errors in it."""

    def __init__(self, browser: Browser, service: Server, **options: Any) -> None:
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        self.context.set_default_timeout(60_000)
        self.page = self.context.new_page()
        self.errors = errors_of(self.page)
        self.service = service
        self.hosts: set[str] = set()
        self.page.on("request", lambda request: self.hosts.add(urlsplit(request.url).netloc))
        self.page.on("dialog", lambda dialog: self.errors.append(f"dialog: {dialog.message}"))

    def open(self, address: str) -> Page:
        self.page.goto(f"{self.service.address}/#{address}")
        return self.page

    def close(self) -> None:
        self.context.close()
        # No errors, and no requests to other hosts.
        assert self.errors == []
        assert {host for host in self.hosts if host} == {urlsplit(self.service.address).netloc}


@pytest.fixture
def open_tab(browser: Browser) -> Iterator[Callable[..., Tab]]:
    tabs: list[Tab] = []

    def build(service: Server, **options: Any) -> Tab:
        tabs.append(Tab(browser, service, **options))
        return tabs[-1]

    yield build
    for tab in tabs:
        tab.close()


def execute(service: Server, definition: Any) -> str:
    names = {item["name"] for item in service.get("/api/workflows")["items"]}
    if definition["name"] not in names:
        service.post("/api/workflows", definition)
    workflow = next(item for item in service.get("/api/workflows")["items"] if item["name"] == definition["name"])
    return str(service.post(f"/api/workflows/{workflow['id']}/execute")["execution_id"])


def finished(service: Server, execution: str) -> Any:
    return eventually(
        lambda: (
            (timeline := service.get(f"/api/workflows/executions/{execution}/timeline"))["completed_at"] and timeline
        )
    )


def option(page: Page, name: str) -> Locator:
    return page.get_by_role("option", name=re.compile(rf"^{re.escape(name)},"))


def count_pixels(page: Page, status: str) -> int:
    """The number of pixels of the bars in the colour of a status."""
    count: int = page.evaluate(
        """(status) => {
        const probe = document.createElement("span");
        probe.style.color = `var(--${status})`;
        document.body.append(probe);
        const [r, g, b] = getComputedStyle(probe).color.match(/\\d+/g).map(Number);
        probe.remove();
        const canvas = document.querySelector("canvas.bars");
        const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        let count = 0;
        for (let i = 0; i < data.length; i += 4) {
          if (data[i + 3] > 200 && Math.abs(data[i] - r) + Math.abs(data[i + 1] - g) + Math.abs(data[i + 2] - b) < 12) {
            count += 1;
          }
        }
        return count;
      }""",
        status,
    )
    return count


def test_a_run_is_followed_from_start_to_end_without_reloading(
    server: Callable[..., Server], open_tab: Callable[..., Tab], tmp_path: Path
) -> None:
    service = server("--allow-handler", "shell")
    # Each part goes on when its file is there.
    gated = {
        **SLOW,
        "steps": [
            {**step, "config": {"handler": "shell", "command": f"until [ -e {tmp_path}/go-{i} ]; do sleep 0.1; done"}}
            for i, step in enumerate(SLOW["steps"])
        ],
    }
    (tmp_path / "go-0").touch()
    service.post("/api/workflows", gated)
    page = open_tab(service).open("/")
    expect(page.locator("#connection")).to_have_text("live")
    expect(page.get_by_text("No runs yet")).to_be_visible()
    execution = execute(service, gated)
    row = page.locator(f"tr[data-id='{execution}']")
    expect(row).to_contain_text("running")
    row.get_by_role("link").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("slow")
    expect(option(page, "part 1")).to_have_attribute("aria-label", re.compile("running"))
    counts = []
    for i in (1, 2, 3):
        (tmp_path / f"go-{i}").touch()
        expect(option(page, f"part {i}")).to_have_attribute("aria-label", re.compile("completed"))
        page.wait_for_timeout(500)  # Some of the width is the next part's.
        counts.append(count_pixels(page, "completed"))
    # As the run proceeds each step takes less of the width, but more of the width is completed.
    assert counts[0] > 500
    (tmp_path / "go-4").touch()
    expect(page.locator(".state")).to_have_text("✔ completed")
    expect(page.get_by_role("img", name="5 completed")).to_be_visible()
    expect(option(page, "part 4")).to_have_attribute("aria-label", re.compile("on the critical path"))
    assert count_pixels(page, "completed") > counts[0]
    page.go_back()
    expect(row).to_contain_text("completed")
    expect(row).to_contain_text("5\u202f✔")


def test_the_page_reconnects_after_the_service_was_killed(
    server: Callable[..., Server], open_tab: Callable[..., Tab]
) -> None:
    service = server()
    service.post("/api/workflows", MIXED)
    tab = open_tab(service)
    page = tab.open("/")
    expect(page.locator("#connection")).to_have_text("live")
    first = execute(service, MIXED)
    finished(service, first)
    expect(page.locator(f"tr[data-id='{first}']")).to_contain_text("failed")
    page.evaluate("window.isSamePage = true")
    service.stop(9)
    expect(page.locator("#connection")).to_have_text("reconnecting…")
    service.start()
    # Started before the page has reconnected.
    while_away = [execute(service, MIXED) for _ in range(3)]
    for execution in while_away:
        finished(service, execution)
    expect(page.locator("#connection")).to_have_text("live")
    for execution in while_away:
        expect(page.locator(f"tr[data-id='{execution}']")).to_have_count(1)
        expect(page.locator(f"tr[data-id='{execution}']")).to_contain_text("failed")
    after = execute(service, MIXED)
    expect(page.locator(f"tr[data-id='{after}']")).to_contain_text("failed")
    expect(page.locator("tbody tr")).to_have_count(5)
    assert page.evaluate("window.isSamePage")
    # The browser logs refused connections, which this test provokes.
    tab.errors[:] = [error for error in tab.errors if "ERR_" not in error and "WebSocket" not in error]


def test_markup_from_a_workflow_is_shown_as_text(server: Callable[..., Server], open_tab: Callable[..., Tab]) -> None:
    service = server()
    definition = {**MIXED, "name": EVIL}
    execution = execute(service, definition)
    timeline = finished(service, execution)
    page = open_tab(service).open("/")
    expect(page.locator("tbody").get_by_role("link", name=EVIL)).to_be_visible()
    expect(page.locator(".block.failed")).to_contain_text("<b>broken</b>")
    page = open_tab(service).open(f"/executions/{execution}")
    expect(page.get_by_role("heading", level=1)).to_have_text(EVIL)
    option(page, EVIL).click()
    panel = page.get_by_role("complementary", name="Step")
    expect(panel.get_by_role("heading", level=2)).to_have_text(EVIL)
    expect(panel).to_contain_text("<b>broken</b>")
    page = open_tab(service).open(f"/workflows/{timeline['workflow_id']}?range=24h&a={execution}")
    expect(page.get_by_role("heading", level=1)).to_have_text(EVIL)
    expect(page.locator(".comparison")).to_be_visible()
    assert page.locator("main img").count() == 0


def test_the_lines_of_a_steps_spans_are_shown_with_it(
    server: Callable[..., Server], open_tab: Callable[..., Tab]
) -> None:
    service = server("--logs-url-template", "http://127.0.0.1:1/logs?q={trace_id}&from={from_ms}")
    execution = execute(service, MIXED)
    timeline = finished(service, execution)
    step = timeline["step_timeline"][0]
    line = {
        "traceId": timeline["trace_id"], "spanId": step["span_id"], "severityNumber": 17,
        "timeUnixNano": str(time.time_ns()), "body": {"stringValue": "<b>disk almost full</b>"},
    }  # fmt: skip
    request = {"resourceLogs": [{"scopeLogs": [{"logRecords": [line]}]}]}
    assert get(f"{service.address}/v1/logs", method="POST", body=request) == (200, {})
    start = time.time_ns()
    call = {
        "traceId": timeline["trace_id"], "spanId": "00000000000000aa", "parentSpanId": step["span_id"],
        "name": "SELECT <b>orders</b> 17", "startTimeUnixNano": str(start), "endTimeUnixNano": str(start + 5_000_000),
    }  # fmt: skip
    spans = {"resourceSpans": [{"scopeSpans": [{"spans": [call]}]}]}
    assert get(f"{service.address}/v1/traces", method="POST", body=spans) == (200, {})
    ref = {
        "execution": {
            "workspace": "default", "workflow": MIXED["name"], "workflow_id": timeline["workflow_id"],
            "execution_id": execution, "trace_id": timeline["trace_id"], "span_id": timeline["span_id"],
        },
        "step_id": step["step_id"], "name": step["step_name"], "span_id": step["span_id"],
        "parent_span_id": timeline["span_id"],
    }  # fmt: skip

    def written(number: int, message: str, severity: int = 9) -> None:
        line = {"number": number, "time_ns": time.time_ns(), "severity": severity, "message": message, "logger": "app"}
        event = {"event": "step_lines", "step": ref, "time_ns": time.time_ns(), "writer": "w", "lines": [line]}
        batch = {"version": 1, "sender": f"s{number}", "sequence": 1, "events": [event]}
        assert get(f"{service.address}/api/events", method="POST", body=batch)[1]["stored"] == 1

    written(1, "a line of <i>logging</i>")
    page = open_tab(service).open(f"/executions/{execution}")
    option(page, step["step_name"]).click()
    panel = page.get_by_role("complementary", name="Step")
    log = panel.locator(".log")
    expect(log).to_contain_text("<b>disk almost full</b>")
    expect(log).to_contain_text("a line of <i>logging</i>")
    expect(panel.locator(".stepbelow")).to_contain_text("SELECT <b>orders</b> <*> ×1")
    href = panel.get_by_role("link", name="All lines").get_attribute("href")
    assert f"q={timeline['trace_id']}&from=" in (href or "")
    written(2, "it goes on")
    expect(log).to_contain_text("it goes on")
    panel.get_by_label("Level").select_option("error")
    expect(log.locator("li")).to_have_count(1)
    panel.get_by_label("Level").select_option("")
    panel.get_by_label("Filter lines by text").fill("GOES")
    expect(log.locator("li")).to_have_count(1)
    expect(log).to_contain_text("it goes on")
    panel.get_by_label("Filter lines by text").fill("nothing of that kind")
    expect(panel).to_contain_text("No line is like that.")
    # What a step used of the machine, in words.
    used, start_ns = make_execution("used"), time.time_ns() - 10 * NS
    use = Resources(
        6.0, 300 << 20, 5 << 20, 2 << 20, 5.0, 100 << 20, gc_seconds=0.5, gc_full_seconds=0.25, gc_count=12,
        voluntary_switches=345, involuntary_switches=67,
    )  # fmt: skip
    events = [
        ExecutionStarted(execution=used, time_ns=start_ns, step_count=1, process="p"),
        StepFinished(step=make_step(used, "load"), time_ns=start_ns + 8 * NS, status=StepStatus.COMPLETED, attempt=1,
                     started_ns=start_ns, attempt_started_ns=start_ns, run_ns=8 * NS, resources=use),
        ExecutionFinished(execution=used, time_ns=start_ns + 9 * NS, status=ExecutionStatus.COMPLETED,
                          started_ns=start_ns, step_count=1),
    ]  # fmt: skip
    batch = {"version": 1, "sender": "used", "sequence": 1, "events": [msgspec.to_builtins(each) for each in events]}
    assert get(f"{service.address}/api/events", method="POST", body=batch)[1]["stored"] == 3
    page.goto(f"{service.address}/#/executions/{used.execution_id}")
    option(page, "load").click()
    expect(panel.get_by_role("progressbar", name="Busy")).to_have_attribute("value", "6")
    for text in ("busy 6 s, waiting 2 s", "6 s (75 % of its time)", "300 MiB, +100 MiB since its start",
                 "5 MiB read, 2 MiB written", "12 in 500 ms, full ones 250 ms",
                 "345 to wait, 67 because others ran"):  # fmt: skip
        expect(panel).to_contain_text(text)


def test_everything_works_by_keyboard(server: Callable[..., Server], open_tab: Callable[..., Tab]) -> None:
    service = server()
    executions = [execute(service, MIXED) for _ in range(2)]
    for execution in executions:
        finished(service, execution)
    page = open_tab(service).open("/")
    expect(page.locator("tbody tr")).to_have_count(2)
    press = page.keyboard.press
    press("/")
    page.keyboard.type("nothing of that kind")
    expect(page.get_by_text("No runs match.")).to_be_visible()
    assert "q=nothing" in page.url
    press("Control+a")
    page.keyboard.type("broken")
    expect(page.locator("tbody tr")).to_have_count(2)
    press("Escape")
    press("?")
    expect(page.get_by_role("dialog", name="Keyboard shortcuts")).to_be_visible()
    press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    # From the first run to the second, then open it.
    page.locator("tbody a").first.focus()
    press("ArrowDown")
    press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("mixed")
    steps = page.get_by_role("listbox", name="Steps")
    expect(steps).to_be_visible()
    steps.focus()
    press("Home")
    selected = page.locator("[role=option][aria-selected=true]")
    expect(selected).to_have_attribute("aria-posinset", "1")
    expect(steps).to_have_attribute("aria-activedescendant", re.compile("step-0"))
    press("ArrowDown")
    expect(selected).to_have_attribute("aria-posinset", "2")
    press("End")
    expect(selected).to_have_attribute("aria-posinset", "5")
    press("f")
    expect(page.get_by_role("complementary", name="Step")).to_contain_text("<b>broken</b>")
    press("c")
    expect(selected).to_have_attribute("aria-label", re.compile("on the critical path"))
    for key in ("+", "+", "ArrowRight", "ArrowLeft", "-", "0", "Enter"):
        press(key)
    press("Escape")
    expect(page.get_by_role("complementary", name="Step")).to_be_hidden()
    page.get_by_role("tab", name="Timeline").focus()
    press("ArrowRight")
    expect(page.get_by_role("tab", name="Graph")).to_have_attribute("aria-selected", "true")
    assert "view=graph" in page.url
    press("ArrowLeft")
    # Save a file from the menu.
    page.locator(".menu summary").focus()
    press("Enter")
    press("Tab")
    with page.expect_download() as download:
        press("Enter")
    document = msgspec.json.decode(Path(download.value.path()).read_bytes())
    assert document["step_timeline"][0]["step_name"] == "extract"
    press("t")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    press("t")
    press("g")
    press("w")
    expect(page.get_by_role("heading", level=1)).to_have_text("Workflows")
    page.get_by_role("link", name="mixed").focus()
    press("Enter")
    expect(page.get_by_role("heading", level=2, name="Steps")).to_be_visible()
    for box in page.get_by_role("checkbox").all():
        box.focus()
        press("Space")
    expect(page.locator(".comparison")).to_contain_text("Two runs compared")
    expect(page.locator(".sentence")).to_have_text(re.compile("."))
    heading = page.get_by_role("button", name="Median")
    heading.focus()
    press("Enter")
    expect(page.locator("th[aria-sort=descending]")).to_have_text("Median")
    press("g")
    press("r")
    expect(page.get_by_role("heading", level=1)).to_have_text("Runs")


def test_filters_are_kept_in_the_address(server: Callable[..., Server], open_tab: Callable[..., Tab]) -> None:
    service = server()
    for definition in (MIXED, SLOW):
        service.post("/api/workflows", definition)
    finished(service, execute(service, MIXED))
    finished(service, execute(service, SLOW))
    tab = open_tab(service)
    page = tab.open("/")
    expect(page.locator("tbody tr")).to_have_count(2)
    page.get_by_text("completed", exact=False).first.click()
    expect(page.locator("tbody tr")).to_have_count(1)
    assert "status=completed" in page.url
    page.get_by_label("At least").fill("1h")
    page.keyboard.press("Enter")
    expect(page.get_by_text("No runs match.")).to_be_visible()
    other_tab = open_tab(service)
    other_tab.page.goto(page.url)
    expect(other_tab.page.get_by_text("No runs match.")).to_be_visible()
    expect(other_tab.page.locator("#s-completed")).to_be_checked()
    page.get_by_label("At least").fill("soon")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("not a valid duration")
    page.get_by_label("At least").fill("")
    page.keyboard.press("Enter")
    expect(page.locator("tbody tr")).to_have_count(1)
    page.get_by_label("Workflow").select_option("mixed")
    expect(page.get_by_text("No runs match.")).to_be_visible()
    # The browser logs the 422 for the invalid duration.
    tab.errors[:] = [error for error in tab.errors if "422" not in error]


def test_pictures_and_traces_can_be_saved(
    server: Callable[..., Server], open_tab: Callable[..., Tab], tmp_path: Path
) -> None:
    service = server()
    execution = execute(service, MIXED)
    finished(service, execution)
    page = open_tab(service).open(f"/executions/{execution}")
    expect(page.get_by_role("listbox")).to_be_visible()
    files: dict[str, bytes] = {}
    for name in ("SVG", "PNG", "Chrome trace", "OTLP", "Report"):
        page.locator(".menu summary").click()
        with page.expect_download() as download:
            page.get_by_role("button", name=name, exact=True).click()
        files[name] = Path(download.value.path()).read_bytes()
    svg = ElementTree.fromstring(files["SVG"])
    texts = [element.text for element in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert any(text == EVIL for text in texts)
    assert any("attempts" in (text or "") for text in texts)
    assert len(list(svg.iter("{http://www.w3.org/2000/svg}rect"))) > 5
    assert files["PNG"].startswith(b"\x89PNG")
    assert len(files["PNG"]) > 5_000
    assert msgspec.json.decode(files["Chrome trace"])["traceEvents"]
    assert msgspec.json.decode(files["OTLP"])["resourceSpans"]
    assert files["Report"].startswith(b"<!doctype html>")
    assert execution.encode() in files["Report"]


def test_the_page_fits_a_large_screen_without_layout_shifts(
    server: Callable[..., Server], open_tab: Callable[..., Tab]
) -> None:
    service = server()
    executions = [execute(service, MIXED) for _ in range(3)]
    timeline, *_ = [finished(service, execution) for execution in executions]
    tab = open_tab(service, viewport={"width": 3840, "height": 2160})
    shifts = """new Promise((resolve) => {
      let sum = 0;
      new PerformanceObserver((list) => {
        for (const entry of list.getEntries()) if (!entry.hadRecentInput) sum += entry.value;
      }).observe({ type: "layout-shift", buffered: true });
      setTimeout(() => resolve(sum), 800);
    })"""
    for address in ("/", f"/executions/{executions[0]}", f"/workflows/{timeline['workflow_id']}", "/workflows"):
        page = tab.open(address)
        page.locator("h1").first.wait_for()
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), address
        if address == "/":
            assert page.evaluate(shifts) < 0.1, address


def test_the_page_asks_for_a_required_token(
    server: Callable[..., Server], open_tab: Callable[..., Tab], tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("a-token-of-this-test")
    service = server("--token-file", str(tmp_path / "token"), "--trace-url", "http://127.0.0.1:1/trace/{trace_id}")
    tab = open_tab(service)
    page = tab.open("/")
    dialog = page.get_by_role("dialog", name="Token")
    dialog.get_by_label("Token").fill("wrong")
    page.keyboard.press("Enter")
    expect(dialog).to_contain_text("not valid")
    dialog.get_by_label("Token").fill("a-token-of-this-test")
    page.keyboard.press("Enter")
    expect(page.locator("#connection")).to_have_text("live")
    expect(page.get_by_text("No runs yet")).to_be_visible()
    assert "a-token-of-this-test" not in page.url
    assert "a-token-of-this-test" not in service.log.read_text()
    tab.errors[:] = [error for error in tab.errors if "401" not in error]


def test_of_a_thousand_steps_only_visible_rows_are_rendered(
    server: Callable[..., Server], open_tab: Callable[..., Tab]
) -> None:
    service = server()
    names = [f"step {i:04}" for i in range(1000)]
    steps = [{"name": name, "depends_on_steps": [names[(i - 1) // 4]] if i else []} for i, name in enumerate(names)]
    execution = execute(service, {"name": "wide", "steps": steps})
    finished(service, execution)
    page = open_tab(service).open(f"/executions/{execution}?order=defined")
    expect(option(page, "step 0000")).to_be_visible()
    # Only visible rows and a few around them have elements.
    assert page.get_by_role("option").count() < 80
    page.get_by_role("listbox").focus()
    page.keyboard.press("End")
    expect(option(page, "step 0999")).to_be_in_viewport()
    expect(option(page, "step 0999")).to_have_attribute("aria-setsize", "1000")
    page.get_by_label("Filter steps by name").fill("99")
    expect(option(page, "step 0099")).to_have_attribute("aria-setsize", "19")
    page.get_by_role("tab", name="Graph").click()
    expect(page.locator("canvas.graph")).to_be_visible()


def test_a_file_that_cannot_be_saved_is_reported(server: Callable[..., Server], open_tab: Callable[..., Tab]) -> None:
    service = server()
    execution = execute(service, MIXED)
    finished(service, execution)
    tab = open_tab(service)
    page = tab.open(f"/executions/{execution}")
    expect(page.get_by_role("listbox")).to_be_visible()

    def save(name: str) -> None:
        page.locator(".menu summary").click()
        page.get_by_role("button", name=name, exact=True).click()

    problem = {"status": 503, "code": "unavailable", "detail": "the database is unavailable"}
    page.route(
        "**/timeline**",
        lambda route: route.fulfill(status=503, content_type="application/problem+json", json=problem),
    )
    for name in ("JSON", "Chrome trace"):
        save(name)
        alert = page.get_by_role("alert").filter(has_text=f"saved as {name}: the database is unavailable")
        expect(alert).to_be_visible()
    page.unroute("**/timeline**")
    page.route("**/timeline**", lambda route: route.abort())
    save("OTLP")
    expect(page.get_by_role("alert").filter(has_text="saved as OTLP")).to_be_visible()
    page.evaluate("() => { HTMLCanvasElement.prototype.toBlob = (callback) => callback(null); }")
    save("PNG")
    expect(page.get_by_role("alert").filter(has_text="saved as PNG: the picture is too large")).to_be_visible()
    page.unroute("**/timeline**")
    with page.expect_download():
        save("OTLP")
    # The browser logs the failed requests.
    tab.errors[:] = [error for error in tab.errors if "Failed to load resource" not in error]


def test_an_overview_that_could_not_be_read_is_read_again(
    server: Callable[..., Server], open_tab: Callable[..., Tab]
) -> None:
    service = server()
    for _ in range(2):
        finished(service, execute(service, {"name": "quick", "steps": [{"name": "a"}]}))
    tab = open_tab(service)
    requests: list[str] = []

    def respond(route: Route) -> None:
        requests.append(route.request.url)
        if len(requests) == 1:
            route.abort()
        elif len(requests) == 2:
            route.fulfill(status=503, json={"detail": "the database is unavailable"})
        else:
            route.continue_()

    tab.page.route("**/api/overview?**", respond)
    page = tab.open("/?status=completed")
    expect(page.locator("tbody tr")).to_have_count(2)
    expect(page.locator("tbody svg.distribution")).to_have_count(2)
    assert len(requests) >= 3
    # What was read stays while more runs end.
    finished(service, execute(service, {"name": "quick", "steps": [{"name": "a"}]}))
    expect(page.locator("tbody tr")).to_have_count(3)
    expect(page.locator("tbody svg.distribution")).to_have_count(3)
    tab.errors[:] = [error for error in tab.errors if "Failed to load resource" not in error]


def test_of_two_comparisons_the_last_one_asked_for_is_shown(
    server: Callable[..., Server], open_tab: Callable[..., Tab]
) -> None:
    service = server()
    for _ in range(2):
        finished(service, execute(service, MIXED))
    workflow = service.get("/api/workflows")["items"][0]["id"]
    tab = open_tab(service)
    held: list[Route] = []

    def hold(route: Route) -> None:
        if "execution=" in route.request.url:
            held.append(route)
        else:
            route.continue_()

    tab.page.route("**/compare?**", hold)
    page = tab.open(f"/workflows/{workflow}")
    boxes = page.get_by_role("checkbox")
    boxes.nth(0).check()
    expect(page.locator(".comparison")).to_be_visible()
    while not held:
        page.wait_for_timeout(20)
    boxes.nth(1).check()
    expect(page.locator(".comparison")).to_contain_text("Two runs compared")
    with contextlib.suppress(Error):  # the page has given up on this request
        held[0].continue_()
    page.wait_for_timeout(500)
    expect(page.locator(".comparison")).to_contain_text("Two runs compared")


def test_the_page_says_when_the_service_cannot_do_its_work_and_what_was_lost(
    server: Callable[..., Server], open_tab: Callable[..., Tab], tmp_path: Path
) -> None:
    service = server()
    tab = open_tab(service)
    page = tab.open("/")
    banner = page.locator("#health")
    expect(banner).to_be_hidden()
    # A record that was refused is a warning; a database that is gone is a fault.
    with contextlib.closing(sqlite3.connect(tmp_path / "serve.db")) as connection:
        connection.execute("INSERT INTO refused_records VALUES ('x', 'event', 'w', 'w', 's', 'why', x'00', 1, 1)")
        connection.commit()
    page.reload()
    expect(banner).to_contain_text("1 record(s) were refused")
    expect(banner).to_have_attribute("data-state", "warning")
    (tmp_path / "serve.db").rename(tmp_path / "kept.db")
    page.reload()
    expect(banner).to_contain_text("gone")
    expect(banner).to_have_attribute("data-state", "fault")
    (tmp_path / "kept.db").rename(tmp_path / "serve.db")
    # The browser logs the failed requests.
    tab.errors[:] = [error for error in tab.errors if "Failed to load resource" not in error]
