"""Use a running service from a script: register, execute, wait, read the timeline.

Without an address it starts a service of its own:  python json_api.py [http://127.0.0.1:9923]
"""

import json
import subprocess
import sys
import time
import urllib.request
from typing import Any


def call(method: str, url: str, body: Any = None) -> Any:
    """A JSON request and its JSON answer."""
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=10) as response:
        return json.load(response)


def show(address: str) -> None:
    """Run an example workflow there and print which step took longest."""
    api = f"{address}/api/workflows"
    known = {item["name"] for item in call("GET", api)["items"]}
    (template,) = [item for item in call("GET", f"{api}/templates")["items"] if item["name"] == "data_pipeline"]
    if template["name"] not in known:
        call("POST", api, template)
    execution = call("POST", f"{api}/data_pipeline/execute", {"input_variables": {"minimum_rows": 5}})["execution_id"]
    while call("GET", f"{api}/executions/{execution}/status")["status"] in ("pending", "running"):
        time.sleep(0.05)
    timeline = call("GET", f"{api}/executions/{execution}/timeline")
    slowest = max(timeline["step_timeline"], key=lambda step: step["duration_seconds"] or 0)
    print(f"{timeline['status']}: {slowest['step_name']} took longest, {slowest['duration_seconds']:.3f} s")
    print("critical path:", " → ".join(step["step_name"] for step in timeline["critical_path"]))


def own_service() -> None:
    """Start a service on a free port, use it, stop it."""
    command = [sys.executable, "-m", "tachograph_exporter", "serve", "--listen", "127.0.0.1:0", "--handlers",
               "examples", "--database", "sqlite:///json_api.db"]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            words = process.stdout.readline().split()
            show(next(word for word in words if word.startswith("http://")))
        finally:
            process.terminate()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        show(sys.argv[1])
    else:
        own_service()
