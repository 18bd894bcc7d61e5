"""Draw the dashboards as pages with the data of a real Prometheus: ``make preview``.

Not Grafana: a small tool to judge layout, units, legends and colours by eye, for whoever changes a dashboard without
one at hand. Each panel is drawn where its grid position says, from the answers to its own queries. Pictures go to
docs/images/dashboards, labelled as previews.
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
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from tests.dashboards.test_boards import VARIABLES, documents, panels  # noqa: E402
from tests.e2e.browser import chromium  # noqa: E402
from tests.e2e.conftest import TACHOGRAPH, Server, environment, eventually, free_port, get  # noqa: E402
from tests.e2e.test_dashboards import load, quick_rules  # noqa: E402

PAGE = HERE / "preview_page"
WEB = HERE.parent / "exporter" / "tachograph_exporter" / "web"
IMAGES = HERE.parent / "docs" / "images" / "dashboards"
SECONDS = 150
STEP = 3
FILLED = {**VARIABLES, "$__rate_interval": "12s", "$__interval": "6s", "$__range": f"{SECONDS}s"}


def answers(prometheus: str, document: Any, since: float, until: float) -> list[dict[str, Any]]:
    """Every panel with what Prometheus answers to its queries."""
    found = []
    for panel in document["panels"]:
        drawn = {"panel": panel, "results": []}
        for target in panel.get("targets") or []:
            expression = target["expr"]
            for name, value in FILLED.items():
                expression = expression.replace(name, value)
            if target.get("instant") and panel["type"] in ("bargauge", "table"):
                query = f"query?{urlencode({'query': expression, 'time': until})}"
            else:
                query = f"query_range?{urlencode({'query': expression, 'start': since, 'end': until, 'step': STEP})}"
            status, body = get(f"{prometheus}/api/v1/{query}")
            if status != 200:
                raise RuntimeError(f"{panel['title']}: {body}")
            drawn["results"].append({"legend": target.get("legendFormat", ""), "series": body["data"]["result"]})
        found.append(drawn)
    return found


def main() -> None:
    """Run a load, ask, draw, take pictures."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        here = Path(directory)
        service = Server(
            here, "--database", f"sqlite:///{directory}/x.db", "--measure", "rows", "--measure", "database"
        )
        service.start()
        port = free_port()
        prometheus = f"http://127.0.0.1:{port}"
        configuration = here / "prometheus.yml"
        configuration.write_text(
            f"global:\n  scrape_interval: 2s\n  evaluation_interval: 2s\nrule_files: [{quick_rules(here)}]\n"
            "scrape_configs:\n  - job_name: tachograph\n"
            f"    static_configs: [{{targets: ['127.0.0.1:{service.port}']}}]\n"
        )
        with (here / "log").open("wb") as log:
            command = [shutil.which("prometheus") or "prometheus", f"--config.file={configuration}",
                       f"--storage.tsdb.path={directory}/tsdb", f"--web.listen-address=127.0.0.1:{port}"]  # fmt: skip
            running = subprocess.Popen(command, stdout=log, stderr=log)  # noqa: S603 - ours
        follower = subprocess.Popen(  # noqa: S603 - ours
            [*TACHOGRAPH, "watch", "--url", service.address], stdout=subprocess.DEVNULL, env=environment()
        )
        try:
            eventually(lambda: get(f"{prometheus}/-/ready")[0] == 200)
            since = time.time()
            load(service, SECONDS)
            draw(prometheus, since + 10, time.time())
        finally:
            for process in (follower, running):
                process.terminate()
                process.wait(20)
            service.stop()


def draw(prometheus: str, since: float, until: float) -> None:
    """A picture of every dashboard."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        for file in PAGE.iterdir():
            shutil.copy(file, root)
        for name in ("uPlot.esm.js", "uPlot.min.css"):
            shutil.copy(WEB / "vendor" / name, root)
        for name, document in documents().items():
            data = {"title": document["title"], "description": document["description"],
                    "panels": answers(prometheus, document, since, until)}  # fmt: skip
            (root / f"{name}.json").write_text(json.dumps(data))

        class Quiet(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *_: object) -> None: ...

        handler = functools.partial(Quiet, directory=str(root))
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as files, chromium() as browser:
            threading.Thread(target=files.serve_forever, daemon=True).start()
            for name, document in documents().items():
                tall = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in document["panels"])
                page = browser.new_page(viewport={"width": 1400, "height": tall * 38 + 70}, color_scheme="dark")
                page.goto(f"http://127.0.0.1:{files.server_address[1]}/index.html?{name}")
                page.wait_for_selector("body[data-drawn]")
                page.wait_for_timeout(300)
                page.screenshot(path=str(IMAGES / f"{name}.png"))
                page.close()
                empty = [one["title"] for one in panels(document) if not one["targets"]]
                print(f"{name}.png", *empty)
            files.shutdown()


if __name__ == "__main__":
    main()
