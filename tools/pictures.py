"""Make the pictures of docs/page.md again, from real runs: ``make pictures``. Needs Chromium and what tests need."""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.e2e.browser import chromium  # noqa: E402
from tests.e2e.conftest import Server, eventually, get  # noqa: E402

IMAGES = ROOT / "docs" / "images"


def sleep(seconds: float) -> dict[str, Any]:
    """A step's work that takes so long."""
    return {"handler": "sleep", "seconds": seconds}


def nightly(slow: float = 1.0) -> dict[str, Any]:
    """A pipeline with branches that run at once, a source that fails twice, and a branch that is skipped."""
    sources = {"orders": 0.45, "customers": 0.3, "stock": 0.25, "prices": 0.12}
    steps: list[dict[str, Any]] = [{"name": "open_window", "config": sleep(0.05)}]
    for name, seconds in sources.items():
        factor = slow if name == "orders" else 1
        steps.append(
            {"name": f"extract_{name}", "depends_on_steps": ["open_window"], "config": sleep(seconds * factor)}
        )
        steps.append({"name": f"clean_{name}", "depends_on_steps": [f"extract_{name}"], "config": sleep(seconds / 3)})
    steps += [
        {"name": "exchange_rates", "depends_on_steps": ["open_window"], "max_retries": 3,
         "retry_backoff": {"initial_seconds": 0.1},
         "config": {"handler": "fail", "times": 2, "message": "503 Service Unavailable from rates.example"}},
        {"name": "join", "depends_on_steps": [f"clean_{name}" for name in sources] + ["exchange_rates"],
         "config": sleep(0.2)},
        {"name": "full_reload", "step_type": "condition", "depends_on_steps": ["join"],
         "condition_expression": "reload", "config": sleep(0.3)},
        {"name": "check_totals", "depends_on_steps": ["join"], "config": sleep(0.08)},
        {"name": "publish", "depends_on_steps": ["check_totals"], "config": sleep(0.15)},
        {"name": "notify", "depends_on_steps": ["publish", "full_reload"],
         "trigger_rule": "none_failed_min_one_success", "config": sleep(0.02)},
    ]  # fmt: skip
    variables = [{"name": "reload", "data_type": "bool", "default_value": False},
                 {"name": "day", "data_type": "string", "default_value": "2026-11-23"}]  # fmt: skip
    return {"name": "nightly_sales", "variables": variables, "steps": steps}


def main() -> None:
    """Run, look, take pictures."""
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        service = Server(Path(directory), "--database", f"sqlite:///{directory}/x.db",
                         "--trace-url", "http://localhost:16686/trace/{trace_id}")  # fmt: skip
        service.start()
        try:
            take(service)
        finally:
            service.stop()


def take(service: Server) -> None:
    """The pictures."""
    for document in service.get("/api/workflows/templates")["items"]:
        service.post("/api/workflows", document)

    def run(name: str, **inputs: Any) -> str:
        found = service.post(f"/api/workflows/{name}/execute", {"input_variables": inputs})["execution_id"]
        eventually(lambda: service.get(f"/api/workflows/executions/{found}/status")["completed_at"])
        return str(found)

    chance = random.Random(7)  # noqa: S311
    identifier = service.post("/api/workflows", nightly())["id"]
    for _ in range(14):
        for _ in range(3):
            run(
                chance.choice(
                    ["basic_sequence", "parallel_processing", "conditional_workflow", "with_retries", "agent_chain"]
                )
            )
        run("nightly_sales")
    run("data_pipeline")
    run("data_pipeline", minimum_rows=1_000_000)
    status_code, _ = get(f"{service.address}/api/workflows/{identifier}", method="PATCH", body=nightly(2.6))
    if status_code != 200:
        raise RuntimeError(f"the definition could not be changed: {status_code}")
    slow = run("nightly_sales")
    live = service.post("/api/workflows/nightly_sales/execute", {"input_variables": {}})["execution_id"]
    steps = {
        s["step_name"]: s["step_id"] for s in service.get(f"/api/workflows/executions/{slow}/timeline")["step_timeline"]
    }
    with chromium() as browser:
        pictures = (
            ("runs", "/", "light", (1280, 640), "tbody tr"),
            ("run", f"/executions/{slow}?selected={steps['exchange_rates']}", "light", (1280, 720), ".attempts"),
            ("graph", f"/executions/{slow}?view=graph", "dark", (1280, 640), "canvas.graph"),
            ("workflow", f"/workflows/{identifier}?range=24h&a={slow}", "light", (1280, 1000), ".comparison table"),
            ("phone", f"/executions/{slow}", "dark", (360, 700), "[role=option]"),
        )
        for name, address, scheme, (width, height), wanted in pictures:
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            page.goto(f"{service.address}/#{address}")
            page.locator(wanted).first.wait_for()
            if "workflows" not in address:
                page.locator("#connection[data-state=live]").wait_for()
            page.wait_for_timeout(900)
            page.screenshot(path=str(IMAGES / f"{name}.png"))
            page.close()
    eventually(lambda: service.get(f"/api/workflows/executions/{live}/status")["completed_at"])


if __name__ == "__main__":
    main()
