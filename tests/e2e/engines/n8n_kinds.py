"""Plays n8n workflows. python n8n_kinds.py [SCENE …]

n8n must be on the path; the variables of its database and its folder (`DB_TYPE`, `N8N_USER_FOLDER`, …) are its own. The
truth is from n8n's record of each execution, as its API has it.
"""

import http.cookiejar
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from telling import at, execution, spawn, step, stop_at_sigterm, tell

WORKFLOWS = Path(__file__).parent / "n8n_workflows" / "workflows.json"
STATUSES = {"success": "completed", "error": "failed", "crashed": "failed", "canceled": "cancelled"}
OWNER = {"email": "owner@example.org", "firstName": "A", "lastName": "B", "password": "Abcdefgh1"}
SETTINGS = {
    "N8N_OTEL_ENABLED": "true",
    "N8N_OTEL_EXPORTER_OTLP_ENDPOINT": os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"],
    "N8N_DIAGNOSTICS_ENABLED": "false",
    "N8N_SECURE_COOKIE": "false",
    "N8N_LISTEN_ADDRESS": "127.0.0.1",
    "OTEL_BSP_SCHEDULE_DELAY": "200",
}


class Server:
    """A running n8n."""

    def __init__(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        self.process = spawn(["n8n", "start"], "n8n.log", env=os.environ | SETTINGS | {"N8N_PORT": str(port)})
        self.opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()))

    def ask(self, path, body=None):
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"})
        with self.opener.open(request, timeout=60) as answer:
            return json.load(answer)

    def enter(self):
        """Wait until it answers, and log in."""
        limit = time.monotonic() + 200
        while True:
            try:
                try:
                    self.ask("/rest/owner/setup", OWNER)
                except urllib.error.HTTPError as error:
                    if error.code != 400:  # It has an owner.
                        raise
                    self.ask("/rest/login", {"emailOrLdapLoginId": OWNER["email"], "password": OWNER["password"]})
                return
            except (urllib.error.URLError, ValueError):
                if time.monotonic() > limit:
                    raise
                time.sleep(0.5)

    def newest(self, name):
        """The newest execution of a workflow."""
        found = self.ask("/rest/executions?limit=20")["data"]["results"]
        return max((entry for entry in found if entry["workflowName"] == name), key=lambda entry: int(entry["id"]))

    def record_of(self, execution_id):
        """n8n's record of an execution, and what it has of each node's runs."""
        record = self.ask(f"/rest/executions/{execution_id}")["data"]
        return record, unpacked(record["data"])["resultData"].get("runData", {})

    def stop(self):
        self.process.terminate()
        self.process.wait(30)


def unpacked(text):
    """The record's data: a list of values that refer to each other by index."""
    values = json.loads(text)

    def value(index, depth=0):
        found = values[int(index)]
        if depth > 8:
            return None
        if isinstance(found, dict):
            return {k: value(v, depth + 1) if isinstance(v, str) else v for k, v in found.items()}
        if isinstance(found, list):
            return [value(v, depth + 1) if isinstance(v, str) else v for v in found]
        return found

    return value(0)


def steps_of(run_data, *, are_timed=True):
    for name, runs in run_data.items():
        for run in runs:
            status = STATUSES[run["executionStatus"]]
            error = run.get("error")
            times = {}
            if are_timed:
                start = run["startTime"] / 1000
                times = {"started_at": at(start), "ended_at": at(start + run["executionTime"] / 1000)}
            yield step(
                name, status, 1, [entry["previousNode"] for entry in run["source"] if entry],
                engine_status=run["executionStatus"], error=f"{error['name']}: {error['message']}" if error else None,
                **times,
            )  # fmt: skip


def play(server, name):
    server.ask(f"/webhook/{name}", {})
    limit = time.monotonic() + 60
    while (found := server.newest(name))["stoppedAt"] is None:
        if time.monotonic() > limit:
            raise TimeoutError(name)
        time.sleep(0.2)
    record, run_data = server.record_of(found["id"])
    status = STATUSES[record["status"]]
    tell(
        f"n8n_{name}",
        [execution(name, status, list(steps_of(run_data)), started_at=record["startedAt"],
                   ended_at=record["stoppedAt"], engine_status=record["status"])],
        unknown=[NO_EDGES], unknowable=[{"edge": "*"}], **FIELDS,
    )  # fmt: skip


def nightly(server):
    play(server, "nightly")


def failing(server):
    play(server, "failing")


def killed(server):
    server.ask("/webhook/sleeping", {})
    time.sleep(5)  # The exporter sends every 0.2 s; the workflow waits for 50 s.
    found = server.newest("sleeping")
    server.process.kill()
    server.process.wait()
    again = Server()
    try:
        # n8n says itself that it was killed, and which node it was in.
        again.enter()
        limit = time.monotonic() + 100
        while True:
            record, run_data = again.record_of(found["id"])
            if record["status"] == "crashed" and run_data:
                break
            if time.monotonic() > limit:
                raise TimeoutError("n8n does not say that it was killed")
            time.sleep(1)
    finally:
        again.stop()
    # What it recovers has whole seconds only.
    steps = list(steps_of(run_data, are_timed=False))
    run = execution("sleeping", "lost", steps, engine_status=record["status"])
    unknown = [
        NO_EDGES,
        "of a server that was killed: the run's name and end, and the node that ran: their spans never came",
    ]
    unknowable = [{"edge": "*"}, {"execution": 0, "field": "workflow"}, {"execution": 0, "step": "wait"}]
    tell("n8n_killed", [run], unknown=unknown, unknowable=unknowable, **FIELDS)


NO_EDGES = "which node waited for which: nodes run one after the other, and their spans have no links"
FIELDS = {"index_from": "none", "edges_from": "order", "truth_from": "n8n's record of the execution, by its API"}


def main(names):
    stop_at_sigterm()
    published = [["publish:workflow", f"--id={entry['id']}"] for entry in json.loads(WORKFLOWS.read_text())]
    for command in (["import:workflow", f"--input={WORKFLOWS}"], *published):
        subprocess.run(["n8n", *command], env=os.environ | SETTINGS, check=True, stdout=subprocess.DEVNULL)
    server = Server()
    try:
        server.enter()
        for scene in (nightly, failing, killed):
            if not names or scene.__name__ in names:
                scene(server)
    finally:
        if server.process.poll() is None:
            server.stop()


if __name__ == "__main__":
    main(sys.argv[1:])
