"""The page in Chromium with a run of 10,000 steps, and with 1,000 live events a second.

    python benchmarks/run.py page

First drawn: from the end of the timeline's arrival to the first frame with its rows. Frames: how many a second are
drawn while the run is panned in time, scrolled through, and zoomed; and while a run goes on whose events arrive. Beside
it, what the browser manages when nothing is drawn.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.e2e.browser import chromium
from tests.e2e.conftest import Server, eventually

STEPS = 10_000
ROUNDS = 5
SECONDS = 3
EVENTS_STEPS = 6_000

FRAMES = """async ({ seconds, how }) => {
  const canvas = document.querySelector("canvas.bars");
  const rows = document.querySelector(".rows");
  const box = canvas?.getBoundingClientRect();
  const times = [];
  const begun = performance.now();
  let at = begun;
  let turn = 0;
  while (at - begun < seconds * 1000) {
    turn += 1;
    const back = Math.floor(turn / 40) % 2 ? -1 : 1;
    if (how === "pan") {
      const wheel = { deltaX: 40 * back, shiftKey: true, bubbles: true, cancelable: true };
      canvas.dispatchEvent(new WheelEvent("wheel", wheel));
    } else if (how === "scroll") rows.scrollTop += 130 * back;
    else if (how === "zoom") {
      const wheel = { deltaY: 60 * back, ctrlKey: true, bubbles: true, cancelable: true,
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


@contextmanager
def serving() -> Iterator[Server]:
    """A service on SQLite."""
    with tempfile.TemporaryDirectory() as directory:
        service = Server(Path(directory), "--database", f"sqlite:///{directory}/x.db")
        service.start()
        try:
            yield service
        finally:
            service.stop()


def run(service: Server, name: str, steps: list[dict[str, Any]], **more: Any) -> str:
    """Register and execute; the execution's id."""
    identifier = service.post("/api/workflows", {"name": name, "steps": steps, **more})["id"]
    return str(service.post(f"/api/workflows/{identifier}/execute")["execution_id"])


def frames(times: list[float]) -> list[str]:
    """Frames a second, and how long all but one in twenty, and the longest, took."""
    ordered = sorted(times)
    slow = ordered[int(len(ordered) * 0.95)]
    return [f"{1000 * len(times) / sum(times):.0f}", f"{slow:.0f} ms", f"{ordered[-1]:.0f} ms"]


def main(console: Console) -> None:
    """Print the table."""
    names = [f"transform part {i:05}" for i in range(STEPS)]
    steps = [{"name": n, "depends_on_steps": [names[(i - 1) // 8]] if i else []} for i, n in enumerate(names)]
    table = Table("in Chromium", "first drawn after arrival", "frames/s", "95 % of frames", "longest")
    with serving() as service, chromium() as browser:
        execution = run(service, "ten thousand", steps)
        path = f"/api/workflows/executions/{execution}/status"
        eventually(lambda: service.get(path)["status"] == "completed", 120)
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.goto(f"{service.address}/docs")
        table.add_row("an idle page", "", *frames(page.evaluate(FRAMES, {"seconds": SECONDS, "how": ""})))
        first: list[float] = []
        for number in range(ROUNDS + 1):
            fresh = browser.new_page(viewport={"width": 1440, "height": 900})
            fresh.add_init_script(f"({DRAWN})()")
            fresh.goto(f"{service.address}/#/executions/{execution}")
            eventually(lambda page=fresh: page.evaluate("window.drawnAt ?? 0"), 60)
            took = fresh.evaluate(
                """window.drawnAt - performance.getEntriesByType("resource")
                  .find((entry) => entry.name.endsWith("/timeline")).responseEnd"""
            )
            if number:
                first.append(took)
            if number < ROUNDS:
                fresh.close()
        fresh.wait_for_timeout(500)
        drawn = f"{statistics.median(first):.0f} ms (most {max(first):.0f})"
        table.add_row(f"{STEPS:,} steps, standing", drawn, *frames(fresh.evaluate(FRAMES, {"seconds": 2, "how": ""})))
        for _ in range(8):
            fresh.get_by_role("button", name="Zoom in").click()
        for how in ("pan", "scroll", "zoom"):
            times = fresh.evaluate(FRAMES, {"seconds": SECONDS, "how": how})
            table.add_row(f"{STEPS:,} steps, {how}", "", *frames(times))
        fresh.close()
        # Two events a step: begun and done.
        live = [{"name": f"s{i:05}", "config": {"handler": "sleep", "seconds": 0.04}} for i in range(EVENTS_STEPS)]

        execution = run(service, "live", live, config={"max_concurrency": 24})
        page.goto(f"{service.address}/#/executions/{execution}")
        page.wait_for_selector("[role=option]", timeout=60_000)
        page.wait_for_timeout(1500)
        times = page.evaluate(FRAMES, {"seconds": 6, "how": ""})
        path = f"/api/workflows/executions/{execution}/status"
        eventually(lambda: service.get(path)["status"] == "completed", 120)
        timeline = service.get(f"/api/workflows/executions/{execution}/timeline")
        rate = 2 * EVENTS_STEPS / timeline["total_duration_seconds"]
        table.add_row(f"a run live, {rate:,.0f} events/s", "", *frames(times))

    console.print(table)


if __name__ == "__main__":
    main(Console())
