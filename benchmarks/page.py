"""The page in Chromium with a run of 10,000 steps, with 1,000 live events a second, and with a night of 2,000 runs.

    python benchmarks/run.py page

First drawn: from the arrival of the timeline to the first frame with its rows. Frames: how many per second are drawn
while the run is panned, scrolled and zoomed, and while the events of a running execution arrive. The baseline is what
the browser manages when nothing is drawn. Of the night, the time from the request to the drawing is shown, too.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser
from rich.console import Console
from rich.table import Table
from summary import Line, against

sys.path.insert(0, str(Path(__file__).parent.parent))

from tools.browser import chromium
from tools.local_service import LocalService, eventually
from tools.night_of_runs import write_night

from tachograph_exporter.store.writer import open_writer

STEPS = 10_000
ROUNDS = 5
SECONDS = 3
NIGHT_RUNS = 2_000
NIGHT_LIMIT_MS = 1_000.0
EVENTS_STEPS = 6_000

FRAMES = """async ({ seconds, how }) => {
  const canvas = document.querySelector("canvas.bars");
  const rows = document.querySelector(".rows");
  const box = canvas?.getBoundingClientRect();
  const times = [];
  const start = performance.now();
  let at = start;
  let turn = 0;
  while (at - start < seconds * 1000) {
    turn += 1;
    const direction = Math.floor(turn / 40) % 2 ? -1 : 1;
    if (how === "pan") {
      const wheel = { deltaX: 40 * direction, shiftKey: true, bubbles: true, cancelable: true };
      canvas.dispatchEvent(new WheelEvent("wheel", wheel));
    } else if (how === "scroll") rows.scrollTop += 130 * direction;
    else if (how === "zoom") {
      const wheel = { deltaY: 60 * direction, ctrlKey: true, bubbles: true, cancelable: true,
                      clientX: box.left + box.width / 2, clientY: box.top + 50 };
      canvas.dispatchEvent(new WheelEvent("wheel", wheel));
    }
    const next = await new Promise(requestAnimationFrame);
    times.push(next - at);
    at = next;
  }
  return times.slice(1);
}"""
DRAWN = """() => {
  const watch = () => {
    if (document.querySelector("[role=option]")) requestAnimationFrame(() => { window.drawnAt = performance.now(); });
    else requestAnimationFrame(watch);
  };
  watch();
}"""

NIGHT_DRAWN = DRAWN.replace("[role=option]", "canvas[data-runs]")
NIGHT_TIMES = """() => {
  const answer = performance.getEntriesByType("resource").find((entry) => entry.name.includes("/api/night"));
  return [window.drawnAt - answer.responseEnd, window.drawnAt - answer.startTime];
}"""


def start(service: LocalService, name: str, steps: list[dict[str, Any]], **fields: Any) -> str:
    """Register a workflow and start it; the execution's id."""
    identifier = service.post("/api/workflows", {"name": name, "steps": steps, **fields})["id"]
    return str(service.post(f"/api/workflows/{identifier}/execute")["execution_id"])


def frames(times: list[float]) -> list[str]:
    """Frames per second, the 95th percentile and the maximum of the time of a frame."""
    ordered = sorted(times)
    slow = ordered[int(len(ordered) * 0.95)]
    return [f"{1000 * len(times) / sum(times):.0f}", f"{slow:.0f} ms", f"{ordered[-1]:.0f} ms"]


def main(console: Console) -> list[Line]:
    """Print the table."""
    names = [f"transform part {i:05}" for i in range(STEPS)]
    steps = [{"name": n, "depends_on_steps": [names[(i - 1) // 8]] if i else []} for i, n in enumerate(names)]
    table = Table("in Chromium", "first drawn after arrival", "frames/s", "95 % of frames", "longest")
    with (
        tempfile.TemporaryDirectory() as directory,
        LocalService(Path(directory)) as service,
        chromium() as browser,
    ):
        execution = start(service, "ten thousand", steps)
        service.wait_for_end(execution, 120)
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.goto(f"{service.address}/docs")
        table.add_row("an idle page", "", *frames(page.evaluate(FRAMES, {"seconds": SECONDS, "how": ""})))
        first: list[float] = []
        for number in range(ROUNDS + 1):
            fresh = browser.new_page(viewport={"width": 1440, "height": 900})
            fresh.add_init_script(f"({DRAWN})()")
            fresh.goto(f"{service.address}/#/executions/{execution}")
            eventually(partial(fresh.evaluate, "window.drawnAt ?? 0"), 60)
            took = fresh.evaluate(
                """window.drawnAt - performance.getEntriesByType("resource")
                  .find((entry) => entry.name.endsWith("/timeline")).responseEnd"""
            )
            if number:
                first.append(took)
            if number < ROUNDS:
                fresh.close()
        fresh.wait_for_timeout(500)
        drawn = f"{statistics.median(first):.0f} ms (at most {max(first):.0f})"
        table.add_row(f"{STEPS:,} steps, at rest", drawn, *frames(fresh.evaluate(FRAMES, {"seconds": 2, "how": ""})))
        for _ in range(8):
            fresh.get_by_role("button", name="Zoom in").click()
        for how in ("pan", "scroll", "zoom"):
            times = fresh.evaluate(FRAMES, {"seconds": SECONDS, "how": how})
            table.add_row(f"{STEPS:,} steps, {how}", "", *frames(times))
        fresh.close()
        # Two events per step: started and finished.
        live = [{"name": f"s{i:05}", "config": {"handler": "sleep", "seconds": 0.04}} for i in range(EVENTS_STEPS)]

        execution = start(service, "live", live, config={"max_concurrency": 24})
        page.goto(f"{service.address}/#/executions/{execution}")
        page.wait_for_selector("[role=option]", timeout=60_000)
        page.wait_for_timeout(1500)
        times = page.evaluate(FRAMES, {"seconds": 6, "how": ""})
        service.wait_for_end(execution, 120)
        timeline = service.get(f"/api/workflows/executions/{execution}/timeline")
        rate = 2 * EVENTS_STEPS / timeline["total_duration_seconds"]
        table.add_row(f"a running execution, {rate:,.0f} events/s", "", *frames(times))

    with tempfile.TemporaryDirectory() as directory, chromium() as browser:
        writer = open_writer(f"sqlite:///{directory}/tachograph.db")
        write_night(writer, time.time_ns(), NIGHT_RUNS)
        writer.close()
        with LocalService(Path(directory), "--lease", "86400") as service:
            asked = night(browser, service, table)
    console.print(table)
    subject = f"a night of {NIGHT_RUNS:,} runs of 30 workflows, from the request to the drawing"
    return [against(subject, asked, "ms", "the limit", NIGHT_LIMIT_MS, goal=1)]


def night(browser: Browser, service: LocalService, table: Table) -> float:
    """Add the row of a night with thirty workflows. Returns the milliseconds from the request to the drawing."""
    times: list[tuple[float, float]] = []
    for number in range(ROUNDS + 1):
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.add_init_script(f"({NIGHT_DRAWN})()")
        page.goto(f"{service.address}/#/night?window=12h")
        eventually(partial(page.evaluate, "window.drawnAt ?? 0"), 60)
        if number:
            times.append(tuple(page.evaluate(NIGHT_TIMES)))
        if number < ROUNDS:
            page.close()
    drawn, asked = (statistics.median(column) for column in zip(*times, strict=True))
    label = f"{drawn:.0f} ms (at most {max(time[0] for time in times):.0f}); {asked:.0f} from the request"
    table.add_row(
        f"a night of {NIGHT_RUNS:,} runs", label, *frames(page.evaluate(FRAMES, {"seconds": 2, "how": "pan"}))
    )
    return float(asked)


if __name__ == "__main__":
    main(Console())
