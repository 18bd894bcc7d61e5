"""The stacks of a step on the page: asked for by a button, and as a flame graph that can be walked by keyboard."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import msgspec
import pytest
from playwright.sync_api import Page, expect
from tests.conftest import make_execution, make_step
from tests.e2e.browser import chromium, errors_of
from tests.e2e.conftest import Server, get

from tachograph.clock import NS
from tachograph.events import ExecutionStarted, StepStacks, StepStarted
from tachograph.folded_stacks import FoldedStack, StacksKind


@pytest.mark.slow
def test_what_a_step_does_now_is_asked_for_and_what_it_did_is_a_flame_graph(
    server: Callable[..., Server],
) -> None:
    service = server()
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        errors = errors_of(page)
        _use(service, page)
        assert errors == []


def _use(service: Server, page: Page) -> None:
    holding = {"name": "holding", "steps": [{"name": "hold", "config": {"handler": "sleep", "seconds": 120}}]}
    service.post("/api/workflows", holding)
    execution = service.post("/api/workflows/holding/execute", {"input_variables": {}})["execution_id"]
    page.goto(f"{service.address}/#/executions/{execution}")
    page.get_by_role("option", name=re.compile("^hold,")).click()
    panel = page.get_by_label("Stacks", exact=True)
    panel.get_by_role("button", name="What is it doing now?").click()
    expect(panel.locator("li.innermost").first).to_contain_text("asyncio.tasks.sleep")
    service.post(f"/api/workflows/executions/{execution}/cancel", {})

    ref = make_execution()
    step = make_step(ref, "load")
    now = time.time_ns()
    stacks = (
        FoldedStack("job.main (job.py:3);job.load (job.py:9);time.sleep (native)", 80),
        FoldedStack("job.main (job.py:3);<script>alert(1)</script> (x.py:1)", 20),
    )
    events = [
        ExecutionStarted(execution=ref, time_ns=now - 60 * NS, step_count=1, process="p"),
        StepStarted(step=step, time_ns=now - 60 * NS),
        StepStacks(step=step, time_ns=now, attempt=1, kind=StacksKind.PROFILE, started_ns=now - 50 * NS, stacks=stacks,
                   samples=100, interval_ns=50_000_000),
    ]  # fmt: skip
    batch = {"version": 1, "sender": "s", "sequence": 1, "events": [msgspec.to_builtins(event) for event in events]}
    assert get(f"{service.address}/api/events", method="POST", body=batch)[0] == 200
    page.goto(f"{service.address}/#/executions/{ref.execution_id}")
    page.get_by_role("option", name=re.compile("^load,")).click()
    expect(panel).to_contain_text("Mostly in time.sleep (native) (80 %)")
    tree = panel.get_by_role("tree")
    expect(tree.get_by_role("treeitem")).to_have_count(5)
    tree.locator("[tabindex='0']").focus()
    for key in ("ArrowDown", "ArrowDown"):
        page.keyboard.press(key)
    expect(panel.locator(".flame-about")).to_have_text("job.load (job.py:9): 80 %, 4.0 s")
    page.keyboard.press("Enter")
    expect(tree.get_by_role("treeitem")).to_have_count(2)
    page.keyboard.press("Escape")
    expect(tree.get_by_role("treeitem")).to_have_count(5)
    with page.expect_download() as download:
        panel.get_by_role("button", name="Save for speedscope").click()
    assert download.value.suggested_filename == "load.speedscope.json"
