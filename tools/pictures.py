"""Take the screenshots of docs/page.md and docs/oncall.md: ``make pictures``. Needs Chromium."""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from playwright.sync_api import Browser

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools import history  # noqa: E402
from tools.browser import chromium  # noqa: E402
from tools.local_service import LocalService, request  # noqa: E402
from tools.night_of_runs import write_night  # noqa: E402

from tachograph_exporter.store.writer import open_writer  # noqa: E402

IMAGES = ROOT / "docs" / "images"
BACKGROUND = ("basic_sequence", "parallel_processing", "conditional_workflow", "with_retries", "agent_chain")


class Picture(NamedTuple):
    """A page to show, its size in pixels, and the element to wait for."""

    name: str
    path: str
    scheme: Literal["light", "dark"]
    size: tuple[int, int]
    element: str


def sleep(seconds: float) -> dict[str, Any]:
    """The configuration of a step that takes this long."""
    return {"handler": "sleep", "seconds": seconds}


def nightly(slowdown: float = 1.0) -> dict[str, Any]:
    """A pipeline with parallel branches, a source that fails twice, and a branch that is skipped."""
    sources = {"orders": 0.45, "customers": 0.3, "stock": 0.25, "prices": 0.12}
    steps: list[dict[str, Any]] = [{"name": "open_window", "config": sleep(0.05)}]
    for name, seconds in sources.items():
        factor = slowdown if name == "orders" else 1
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
    return {"name": "nightly_report", "variables": variables, "steps": steps}


def start(service: LocalService, workflow: str, **inputs: Any) -> str:
    """Start an execution; its id."""
    return str(service.post(f"/api/workflows/{workflow}/execute", {"input_variables": inputs})["execution_id"])


def run(service: LocalService, workflow: str, **inputs: Any) -> str:
    """Run an execution to its end; its id."""
    execution_id = start(service, workflow, **inputs)
    service.wait_for_end(execution_id)
    return execution_id


def main() -> None:
    """Fill a service with runs and take the pictures."""
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        past = history.write(f"sqlite:///{directory}/tachograph.db")
        options = ("--trace-url", "http://localhost:16686/trace/{trace_id}")
        with LocalService(Path(directory), *options) as service, chromium() as browser:
            # The service tells whose process is alive: what is open now is pictured first.
            take(service, browser, on_call_pictures(service, past))
            take(service, browser, run_pictures(service))
        with tempfile.TemporaryDirectory() as other, chromium() as browser:
            writer = open_writer(f"sqlite:///{other}/tachograph.db")
            write_night(writer, time.time_ns(), 1_200)
            writer.close()
            with LocalService(Path(other), "--lease", "86400") as service:
                take(service, browser, NIGHT)


NIGHT = (
    Picture("night", "/night?window=12h", "light", (1440, 860), "canvas[data-runs]"),
    Picture("night_phone", "/night?window=12h", "dark", (390, 844), "canvas[data-runs]"),
)


def on_call_pictures(service: LocalService, past: Mapping[str, str]) -> Sequence[Picture]:
    """Pictures of weeks of runs."""
    workflows = {item["name"]: item["id"] for item in service.get("/api/workflows?limit=100")["items"]}
    wide, phone = (1440, 860), (390, 844)
    slow, failed, still_open = (f"/executions/{past[name]}" for name in ("slow", "failed", "open"))
    stock = f"/workflows/{workflows['import_stock']}?range=30d"
    return (
        Picture("oncall", "/", "light", wide, ".block.failed"),
        Picture("oncall_open", still_open, "light", (1440, 520), ".sentence:not([hidden])"),
        Picture("workflows", "/workflows", "light", (1440, 480), ".strip"),
        Picture("oncall_phone", "/", "dark", phone, ".block.failed"),
        Picture("oncall_failed", failed, "light", (1440, 760), ".panel .error-text"),
        Picture("oncall_failed_phone", failed, "light", phone, ".sentence:not([hidden])"),
        Picture("oncall_slow", slow, "light", (1440, 760), ".sentence:not([hidden])"),
        Picture("workflows_phone", "/workflows", "light", phone, ".strip"),
        Picture("oncall_since", stock, "light", (1440, 900), ".dots circle"),
        Picture("oncall_search", "/?q=db-orders", "light", (1440, 520), "tbody th a"),
        Picture("phone", slow, "dark", phone, "[role=option]"),
    )


def run_pictures(service: LocalService) -> Sequence[Picture]:
    """Run the workflows, and the pictures of single runs of them."""
    for document in service.get("/api/workflows/templates"):
        service.post("/api/workflows", document)
    rng = random.Random(7)  # noqa: S311
    workflow_id = service.post("/api/workflows", nightly())["id"]
    for _ in range(14):
        for _ in range(3):
            run(service, rng.choice(BACKGROUND))
        run(service, "nightly_report")
    url = f"{service.address}/api/workflows/{workflow_id}"
    status, body = request(url, method="PATCH", body=nightly(slowdown=2.6))
    if status != 200:
        raise RuntimeError(f"PATCH {url}: {status} {body}")
    slow = run(service, "nightly_report")
    timeline = service.get(f"/api/workflows/executions/{slow}/timeline")
    step_ids = {step["step_name"]: step["step_id"] for step in timeline["step_timeline"]}
    selected = step_ids["exchange_rates"]
    comparison = f"/workflows/{workflow_id}?range=24h&a={slow}"
    return (
        Picture("runs", "/?status=completed", "light", (1440, 640), "tbody tr"),
        Picture("run", f"/executions/{slow}?selected={selected}", "light", (1440, 800), ".attempts"),
        Picture("graph", f"/executions/{slow}?view=graph", "dark", (1440, 700), "canvas.graph"),
        Picture("workflow", comparison, "light", (1440, 1000), ".comparison table"),
    )


def take(service: LocalService, browser: Browser, pictures: Iterable[Picture]) -> None:
    """Write pictures."""
    for picture in pictures:
        width, height = picture.size
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=picture.scheme)
        page.goto(f"{service.address}/#{picture.path}")
        page.locator(picture.element).first.wait_for()
        page.wait_for_timeout(1_500)
        page.screenshot(path=str(IMAGES / f"{picture.name}.png"))
        page.close()


if __name__ == "__main__":
    main()
