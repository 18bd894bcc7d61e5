"""Plays Prefect flows on a Prefect server of its own. python prefect_kinds.py [SCENE …]

The truth is from the server's API: flow runs, task runs, their states and inputs.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import prefect
from telling import execution, spawn, step, stop_at_sigterm, tell

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
STATUSES = {
    "COMPLETED": "completed", "FAILED": "failed", "CRASHED": "failed", "CANCELLED": "cancelled", "PENDING": "skipped",
    "RUNNING": "lost", "SCHEDULED": "skipped",
}  # fmt: skip
BRIDGE = os.environ.get("BRIDGE")
"""The command of Tachograph that follows the server."""
OTEL = {name: value for name, value in os.environ.items() if name.startswith("OTEL_")}
PLAIN = {name: value for name, value in os.environ.items() if name not in OTEL}


class Server:
    """A Prefect server with a database below this directory."""

    def __init__(self):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        home = {"PREFECT_HOME": os.path.abspath("prefect-home"), "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
                "PREFECT_CLI_PROMPT": "false", "DO_NOT_TRACK": "1"}  # fmt: skip
        command = [BIN / "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
        self.process = spawn(command, "server.log", env=PLAIN | home)
        self.environment = PLAIN | OTEL | home | {
            "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_METRICS_EXPORTER": "none",
            "OTEL_BSP_SCHEDULE_DELAY": "200",
        }  # fmt: skip
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}/api", timeout=30)
        deadline = time.monotonic() + 300
        while True:
            try:
                if self.client.get("/health").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            if time.monotonic() > deadline:
                self.stop()
                raise TimeoutError(Path("server.log").read_text())
            time.sleep(0.2)

    def stop(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def start_bridge(self):
        command = [BRIDGE, "bridge", "prefect", self.environment["PREFECT_API_URL"], "--state", "bridge.jsonl"]
        self.bridge = spawn(command, "bridge.log", env=PLAIN)

    def kill_bridge(self):
        os.killpg(self.bridge.pid, signal.SIGKILL)
        self.bridge.wait()

    def start_flow(self, name):
        command = [BIN / "opentelemetry-instrument", sys.executable, HERE / "prefect_flows.py", name]
        return spawn(command, "flow.log", env=self.environment)

    def ask(self, path, **body):
        answer = self.client.post(path, json=body)
        answer.raise_for_status()
        return answer.json()

    def flow_run(self, run_id):
        return self.client.get(f"/flow_runs/{run_id}").json()

    def states(self, run_id):
        states = self.client.get("/flow_run_states/", params={"flow_run_id": run_id}).json()
        return sorted(states, key=lambda state: state["timestamp"])

    def flow_runs(self, seen):
        """The runs that earlier scenes did not have, in order of start."""
        runs = [run for run in self.ask("/flow_runs/filter", limit=50) if run["id"] not in seen]
        seen.update(run["id"] for run in runs)
        return sorted(runs, key=lambda run: run["start_time"] or "")

    def settled(self, run_id):
        """The task runs of a flow run, once all that it says has come: states of tasks travel as events."""
        last, since = None, time.monotonic()
        while time.monotonic() - since < 1.5:
            runs = self.ask("/task_runs/filter", flow_runs={"id": {"any_": [run_id]}}, limit=100)
            # One that has no state yet will have one.
            now = {run["id"]: run["state"] and run["state"]["timestamp"] for run in runs}
            if now != last or None in now.values():
                last, since = now, time.monotonic()
            time.sleep(0.2)
        return sorted(runs, key=lambda run: (run["start_time"] or "9", int(run["dynamic_key"].rpartition("-")[2] or 0)
                                             if run["dynamic_key"].isdigit() else 0))  # fmt: skip


def task_name(run):
    # A task run is called NAME-xxx, a subflow's NAME-0.
    return run["name"].rpartition("-")[0]


def named(name, index):
    return name if index is None else f"{name}#{index}"


def tries_of(server, run):
    tries = []
    states = server.client.get("/task_run_states/", params={"task_run_id": run["id"]}).json()
    for state in sorted(states, key=lambda state: state["timestamp"]):
        when, name = state["timestamp"], state["name"]
        if name in ("Running", "Retrying"):
            tries.append({"attempt": len(tries) + 1, "status": "lost", "started_at": when})
        elif tries and "ended_at" not in tries[-1] and state["type"] != "PENDING":
            status = "completed" if state["type"] == "COMPLETED" else "failed"
            tries[-1].update(status=status, ended_at=when)
    return tries


def steps_of(server, flow_run, numbers):
    runs = server.settled(flow_run["id"])
    names, counts = {}, {}
    for run in runs:
        name = task_name(run)
        several = sum(task_name(other) == name for other in runs) > 1
        index = counts.get(name, 0) if several else None
        counts[name] = counts.get(name, 0) + 1
        names[run["id"]] = (name, index)
    steps = []
    for run in runs:
        name, index = names[run["id"]]
        given = {key: values for key, values in run["task_inputs"].items() if key != "__parents__"}
        inputs = [i["id"] for values in given.values() for i in values if i["input_type"] == "task_run"]
        depends_on = [names[i] for i in dict.fromkeys(inputs) if i in names]
        more = {}
        child = run["state"].get("state_details", {}).get("child_flow_run_id")
        if child:
            more = {"optional": not BRIDGE, "child_run": f"executions/{numbers[child]}"}
            if BRIDGE:
                # The task run that stands for a flow run is updated after it.
                run |= {key: server.flow_run(child)[key] for key in ("start_time", "end_time")}
        parents = [names[i["id"]] for i in run["task_inputs"].get("__parents__", ()) if i["id"] in names]
        if BRIDGE and parents:
            more["parent"] = named(*parents[0])
        tries = tries_of(server, run)
        message = run["state"].get("message")
        told = step(
            name, STATUSES[run["state_type"]], 1 if child else len(tries) or (run["state_type"] == "COMPLETED"),
            # Where an input is a plain value Prefect does not know where it is from: nothing is claimed.
            [named(n, i) for n, i in depends_on] or ([] if BRIDGE else None), index=index,
            engine_status=run["state_name"], run_id=run["id"], tries=tries if tries and not child else None,
            started_at=run["start_time"], ended_at=run["end_time"],
            error=message.partition("with an exception: ")[2] or message.partition("exception ")[2] or None
            if run["state_type"] == "FAILED" else None, **more,
        )  # fmt: skip
        told["attempts"] = int(told["attempts"])
        steps.append(told)
    return steps


def executions_of(server, seen):
    runs = server.flow_runs(seen)
    numbers = {run["id"]: number for number, run in enumerate(runs)}
    by_task = {}
    executions = []
    for run in runs:
        name = server.client.get(f"/flows/{run['flow_id']}").json()["name"]
        steps = steps_of(server, run, numbers)
        by_task.update({told["run_id"]: numbers[run["id"]] for told in steps})
        state = run["state"]
        status = "timeout" if state["name"] == "TimedOut" else STATUSES[state["type"]]
        told = execution(
            name, status, steps, run_id=run["id"], run_name=run["name"], engine_status=state["name"],
            workflow_not=[run["name"], "prefect"], started_at=run["start_time"], ended_at=run["end_time"],
        )  # fmt: skip
        if run["parent_task_run_id"]:
            told["parent"] = f"executions/{by_task[run['parent_task_run_id']]}"
        executions.append(told)
    return executions


# Spans have the name of the run and the flow's id, not its name.
NAMELESS = [{"field": "workflow"}]


def play(server, name, seen):
    process = server.start_flow(name)
    if process.wait(120) != 0:
        raise RuntimeError(Path("flow.log").read_text()[-3000:])
    return executions_of(server, seen)


def nightly(server, seen):
    executions = play(server, "nightly", seen)
    # A mapped task's parameter is the mapped value, so its span has no link; nor has it an index.
    return executions, [{"step": "work", "field": "index"}, {"step": "cached", "field": "index"},
                        {"execution": 0, "edge": "extract->work*"}]  # fmt: skip


def failing(server, seen):
    return play(server, "failing", seen), [{"step": "unreachable"}]


def varied(server, seen):
    """Tasks beside each other, a task after all of them, flows in flows, one of which fails and is not minded."""
    return play(server, "varied", seen), [{"step": "load", "field": "index"}]


def twice(server, seen):
    executions = play(server, "twice", seen)
    # The flow's span ends with its first try, whose last event says Running again; of the second try only tasks tell.
    executions[0]["status_not"] = ["failed"]
    return executions, [{"step": "extract", "field": "index"}, {"field": "status"}, {"field": "ended_at"}]


def slow(server, seen):
    return play(server, "slow", seen), []


def killed(server, seen):
    process = server.start_flow("sleeping")
    deadline = time.monotonic() + 60
    while not os.path.exists("asleep"):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(Path("flow.log").read_text()[-3000:])
        time.sleep(0.1)
    time.sleep(0.6)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    executions = executions_of(server, seen)
    # The flow's span never comes.
    executions[0]["workflow_not"].remove("prefect")
    return executions, [{"field": "status"}, {"field": "started_at"}]


def wide(server, seen):
    return play(server, "wide", seen), []


def cancelled(server, seen):
    process = server.start_flow("sleeping")
    run = wait_for(lambda: asleep(process) and server.flow_runs({*seen})[-1], process)
    state = {"type": "CANCELLED", "name": "Cancelled", "message": "enough"}
    server.client.post(f"/flow_runs/{run['id']}/set_state", json={"state": state, "force": True}).raise_for_status()
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    os.unlink("asleep")
    return executions_of(server, seen), []


def crashed(server, seen):
    """The server starts it, in a process of its own, which is killed."""
    log = open("serve.log", "ab")  # noqa: SIM115 - as long as the process
    runner = subprocess.Popen([sys.executable, HERE / "prefect_flows.py", "serve", "sleeping"], stdout=log, stderr=log,
                              env=server.environment, start_new_session=True)  # fmt: skip
    try:
        found = wait_for(lambda: server.ask("/deployments/filter", deployments={"name": {"any_": ["kinds"]}}), runner)
        answer = server.client.post(f"/deployments/{found[0]['id']}/create_flow_run", json={})
        run_id = answer.json()["id"]
        wait_for(lambda: asleep(runner), runner)
        time.sleep(1)
        for child in children_of(runner.pid):
            os.kill(child, signal.SIGKILL)
        wait_for(lambda: server.flow_run(run_id)["state"]["type"] == "CRASHED", runner)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(runner.pid, signal.SIGTERM)
        runner.wait()
    os.unlink("asleep")
    executions = executions_of(server, seen)
    executions[0]["queued_at"] = next(
        state["timestamp"] for state in server.states(run_id) if state["type"] == "PENDING"
    )
    executions[0]["steps"][0]["status_or"] = ["lost"]
    return executions, []


def children_of(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


def bridge_killed(server, seen):
    """The bridge dies in the middle of a run, and starts again when that has ended."""
    process = server.start_flow("nightly")
    wait_for(lambda: server.flow_runs({*seen}), process)
    time.sleep(0.7)
    server.kill_bridge()
    process.wait(120)
    server.start_bridge()
    return executions_of(server, seen), []


def asleep(process):
    return os.path.exists("asleep")


def wait_for(condition, process):
    deadline = time.monotonic() + 60
    while not (result := condition()):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(Path("flow.log").read_text()[-3000:])
        time.sleep(0.1)
    return result


UNKNOWN = {
    "nightly": ["the name of the flow, only its id", "what a mapped task waits for, and its index"],
    "failing": ["a task that was not ready: no span"],
    "twice": ["the end of a flow that was tried again: its span ends with the first try"],
    "varied": ["the name of the flow, only its id", "which of several runs of a task is which"],
    "slow": ["the name of the flow, only its id"],
    "killed": ["that the flow's process was killed: its span never came"],
}
"""What spans cannot tell of a scene, in words."""

SCENES = [nightly, failing, varied, twice, slow, killed]
if BRIDGE:
    os.environ.pop("TACHOGRAPH_DATABASE_URL", None)
    SCENES[2:] = [twice, slow, wide, cancelled, crashed, bridge_killed, killed]
    # Which of several of a name is which, only their order tells.
    ALIKE = [{"step": name, "field": "index"} for name in ("work", "cached", "extract", "load")]


def main(names):
    stop_at_sigterm()
    version = "".join(prefect.__version__.split(".")[:2])
    server = Server()
    seen = set()
    if BRIDGE:
        server.start_bridge()
    try:
        for scene in SCENES:
            if not names or scene.__name__ in names:
                executions, unknowable = scene(server, seen)
                if BRIDGE:
                    tell(f"prefect{version}_bridge_{scene.__name__}", executions, unknowable=ALIKE,
                         truth_from="the server's API: flow runs, task runs, states, inputs")  # fmt: skip
                    continue
                tell(
                    f"prefect{version}_{scene.__name__}",
                    executions,
                    unknowable=[*NAMELESS, *unknowable],
                    unknown=UNKNOWN.get(scene.__name__, []),
                    index_from="none",
                    edges_from="recording",
                    truth_from="the server's API: flow runs, task runs, states, inputs",
                )
    finally:
        if BRIDGE:
            server.kill_bridge()
        server.stop()


if __name__ == "__main__":
    main(sys.argv[1:])
