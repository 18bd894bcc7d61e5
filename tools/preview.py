"""Draw the dashboards as pages with data from a real Prometheus: ``make preview``.

Not Grafana: a small renderer to judge layout, units, legends and colours when no Grafana is at hand. Each panel is
drawn at its grid position from the results of its own queries. The pictures go to docs/images/dashboards, labelled as
previews.
"""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools.browser import chromium  # noqa: E402
from tools.dashboard_load import recorded_runs, run_load, write_fast_rules  # noqa: E402
from tools.local_service import (  # noqa: E402
    STOP_TIMEOUT_SECONDS,
    TACHOGRAPH,
    LocalService,
    environment,
    eventually,
    free_port,
    request,
)

PAGE = ROOT / "tools" / "preview_page"
VENDOR = ROOT / "exporter" / "tachograph_exporter" / "web" / "vendor"
IMAGES = ROOT / "docs" / "images" / "dashboards"
LOAD_SECONDS = 150
STEP_SECONDS = 3
GRID_ROW_PIXELS = 38
SUCCESS_TARGET = 0.95
"""Low enough for an error budget from the runs of the load."""
CHOSEN = {
    "workflow": {"$workflow": "data_pipeline"},
    "step": {"$workflow": "agent_chain", "$step": "research"},
}
"""What dashboards about one workflow or step show."""
VARIABLES = {
    "$__rate_interval": "12s", "$__interval": "6s", "$__range": f"{LOAD_SECONDS}s", "$workspace": ".*",
    "$workflow": ".*", "$step": ".*", "$instance": ".*",
}  # fmt: skip


def documents() -> dict[str, Any]:
    """Every dashboard under the name of its file."""
    return {path.stem: json.loads(path.read_text()) for path in (ROOT / "dashboards" / "grafana").glob("*.json")}


def query_panels(
    prometheus: str, document: Any, chosen: dict[str, str], since: float, until: float
) -> list[dict[str, Any]]:
    """Every panel of a dashboard with the results of its queries."""
    panels = []
    for panel in document["panels"]:
        results = []
        for target in panel.get("targets") or []:
            expression = target["expr"]
            for name, value in {**VARIABLES, **chosen}.items():
                expression = expression.replace(name, value)
            if target.get("instant"):
                path = f"query?{urlencode({'query': expression, 'time': until})}"
            else:
                window = {"query": expression, "start": since, "end": until, "step": STEP_SECONDS}
                path = f"query_range?{urlencode(window)}"
            status, body = request(f"{prometheus}/api/v1/{path}")
            if status != 200:
                raise RuntimeError(f"{panel['title']}: {body}")
            results.append({"legend": target.get("legendFormat", ""), "series": body["data"]["result"]})
        panels.append({"panel": panel, "results": results})
    return panels


@contextmanager
def prometheus_of(service: LocalService, directory: Path) -> Iterator[str]:
    """A Prometheus that scrapes the service and evaluates the rules; its address."""
    port = free_port()
    limits = directory / "limits.toml"
    limits.write_text(f"[default]\nsuccess_target = {SUCCESS_TARGET}\nlast_failed_seconds = 20\n")
    rules = write_fast_rules(directory, limits=limits)
    configuration = directory / "prometheus.yml"
    configuration.write_text(
        f"global:\n  scrape_interval: 2s\n  evaluation_interval: 2s\nrule_files: [{rules}]\n"
        "scrape_configs:\n  - job_name: tachograph\n"
        f"    static_configs: [{{targets: ['127.0.0.1:{service.port}']}}]\n"
    )
    command = [shutil.which("prometheus") or "prometheus", f"--config.file={configuration}",
               f"--storage.tsdb.path={directory}/tsdb", f"--web.listen-address=127.0.0.1:{port}"]  # fmt: skip
    with (directory / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)  # noqa: S603 - ours
    try:
        eventually(lambda: request(f"http://127.0.0.1:{port}/-/ready")[0] == 200)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(STOP_TIMEOUT_SECONDS)


def expected(directory: str) -> Path:
    """A file of schedules, so that something is due."""
    file = Path(directory) / "expectations.toml"
    file.write_text('[default]\ntimezone = "Europe/Berlin"\n[workflow.rare]\nschedule = "0 3 * * *"\n')
    return file


def main() -> None:
    """Run a load, query Prometheus and draw every dashboard."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as directory,
        LocalService(
            Path(directory), "--measure", "rows", "--measure", "database", "--expectations", str(expected(directory))
        ) as service,
        prometheus_of(service, Path(directory)) as prometheus,
    ):
        # A client on the stream, so that its panels have data too.
        watcher = subprocess.Popen(  # noqa: S603 - ours
            [*TACHOGRAPH, "watch", "--url", service.address], stdout=subprocess.DEVNULL, env=environment()
        )
        try:
            since = time.time()
            with recorded_runs(service.address):
                run_load(service, LOAD_SECONDS)
            draw(prometheus, since + 10, time.time())
        finally:
            watcher.terminate()
            watcher.wait(STOP_TIMEOUT_SECONDS)


def draw(prometheus: str, since: float, until: float) -> None:
    """Write a picture of every dashboard."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        for file in (*PAGE.iterdir(), VENDOR / "uPlot.esm.js", VENDOR / "uPlot.min.css"):
            shutil.copy(file, root)
        for name, document in documents().items():
            data = {"title": document["title"], "description": document["description"],
                    "panels": query_panels(prometheus, document, CHOSEN.get(name, {}), since, until)}  # fmt: skip
            (root / f"{name}.json").write_text(json.dumps(data))

        class QuietHandler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *_: object) -> None: ...

        handler = functools.partial(QuietHandler, directory=str(root))
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as files, chromium() as browser:
            threading.Thread(target=files.serve_forever, daemon=True).start()
            for name, document in documents().items():
                rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in document["panels"])
                height = rows * GRID_ROW_PIXELS + 70
                page = browser.new_page(viewport={"width": 1400, "height": height}, color_scheme="dark")
                page.goto(f"http://127.0.0.1:{files.server_address[1]}/index.html?{name}")
                page.wait_for_selector("body[data-drawn]")
                page.wait_for_timeout(300)
                page.screenshot(path=str(IMAGES / f"{name}.png"))
                page.close()
                print(f"{name}.png")
            files.shutdown()


if __name__ == "__main__":
    main()
