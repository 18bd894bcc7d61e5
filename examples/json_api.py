"""Use a running service from a script: register a workflow, execute it, wait, read the timeline.

Without an address the script starts its own service:  python json_api.py [http://127.0.0.1:9923]
"""

import json
import subprocess
import sys
import time
import urllib.request
from typing import Any


def call(method: str, url: str, body: Any = None) -> Any:
    """Send a JSON request and return the decoded response."""
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=10) as response:
        return json.load(response)


def show(address: str) -> None:
    """Run an example workflow and print its slowest step and critical path."""
    api = f"{address}/api/workflows"
    registered = {item["name"] for item in call("GET", api)["items"]}
    (template,) = [item for item in call("GET", f"{api}/templates") if item["name"] == "data_pipeline"]
    if template["name"] not in registered:
        call("POST", api, template)
    execution = call("POST", f"{api}/data_pipeline/execute", {"input_variables": {"minimum_rows": 5}})["execution_id"]
    while call("GET", f"{api}/executions/{execution}/status")["status"] in ("pending", "running"):
        time.sleep(0.05)
    timeline = call("GET", f"{api}/executions/{execution}/timeline")
    slowest = max(timeline["step_timeline"], key=lambda step: step["duration_seconds"] or 0)
    print(f"{timeline['status']}: {slowest['step_name']} took longest, {slowest['duration_seconds']:.3f} s")
    print("critical path:", " → ".join(step["step_name"] for step in timeline["critical_path"]))


def show_with_own_service() -> None:
    """Start a service on a free port, use it, and stop it."""
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
        show_with_own_service()
