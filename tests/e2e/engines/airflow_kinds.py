"""Plays Airflow DAGs on a scheduler, an API server and a DAG processor of its own. python airflow_kinds.py [SCENE …]

The truth is from Airflow's database: dag_run, task_instance, task_instance_history. Edges are from the DAGs.
"""

import os
import secrets
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

from telling import execution, spawn, step, stop_at_sigterm, tell

# Then Airflow's listener interface tells, besides its traces.
HOOKS = os.environ.get("HOOKS") == "1"
HERE = Path(__file__).parent
AIRFLOW = Path(sys.executable).with_name("airflow")
HOME = Path("airflow-home").absolute()
STATUSES = {"success": "completed", "failed": "failed", "skipped": "skipped", "upstream_failed": "skipped"}
EDGES = {
    "failing": {"extract": [], "broken": ["extract"], "after": ["broken"], "load": ["extract"]},
    "nightly": {
        "extract": [], "work": ["extract"], "merge": [f"work#{i}" for i in range(5)], "skipper": [],
        "checks.check": ["merge"], "flaky": ["merge"], "choose": ["flaky"], "load": ["choose"], "never": ["choose"],
    },
    # A try whose process is killed, and a task that starts a run of another DAG.
    "starting": {"fragile": [], "start": ["fragile"]},
    "child": {"load": []},
    # Its second task hands its wait to the triggerer, and goes on in another process.
    "waiting": {"extract": [], "pause": ["extract"], "load": ["pause"]},
}  # fmt: skip

STARTS = {"starting": ["child"]}
"""DAGs whose runs a run of another one starts."""
SCENES = [dag for dag in EDGES if dag != "child" and (HOOKS or dag != "starting")]


def settings(port):
    return os.environ | {
        "AIRFLOW_HOME": str(HOME),
        "AIRFLOW__CORE__DAGS_FOLDER": str(HERE / "airflow_dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__PARALLELISM": "2",
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "True",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{port}/execution/",
        "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_hex(32),
        "AIRFLOW__API__WORKERS": "1",
        # A task whose process waits longer for an answer has failed, on a busy machine too.
        "AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT": "60",
        "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.5",
        "AIRFLOW__TRACES__OTEL_ON": "True",
        # The default exporter is gRPC, and OTEL_EXPORTER_OTLP_PROTOCOL is not read.
        "OTEL_TRACES_EXPORTER": "otlp_proto_http",
        "OTEL_BSP_SCHEDULE_DELAY": "300",
    }


def rows(query, *parameters):
    with sqlite3.connect(f"file:{HOME}/airflow.db?mode=ro", uri=True, timeout=30) as connection:
        connection.row_factory = sqlite3.Row
        return connection.execute(query, parameters).fetchall()


def time_of(text):
    return None if text is None else text.replace(" ", "T").replace("+00:00", "") + "Z"


def told_of(dag):
    """The run of a DAG, by the database."""
    run = rows("SELECT * FROM dag_run WHERE dag_id = ?", dag)[0]
    steps = []
    for row in rows("SELECT * FROM task_instance WHERE dag_id = ? ORDER BY task_id, map_index", dag):
        earlier = rows("SELECT * FROM task_instance_history WHERE dag_id = ? AND task_id = ? AND map_index = ?"
                       " AND try_number < ? ORDER BY try_number",
                       dag, row["task_id"], row["map_index"], row["try_number"])  # fmt: skip
        tries = [] if row["start_date"] is None else [*earlier, row]
        tries = [
            {"attempt": number, "status": "failed" if one in earlier else STATUSES[one["state"]],
             "started_at": time_of(one["start_date"]), "ended_at": time_of(one["end_date"])}
            for number, one in enumerate(tries, 1)
        ]  # fmt: skip
        never = row["state"] == "upstream_failed" or (row["state"] == "skipped" and row["pid"] is None)
        steps.append(
            step(row["task_id"], STATUSES[row["state"]], 0 if never else len(tries), EDGES[dag][row["task_id"]],
                 index=row["map_index"] if row["map_index"] >= 0 else None, engine_status=row["state"],
                 tries=None if never else tries, started_at=None if never else tries[0]["started_at"],
                 ended_at=None if never else tries[-1]["ended_at"])
        )  # fmt: skip
    return execution(dag, STATUSES[run["state"]], steps, run_id=run["run_id"], engine_status=run["state"],
                     started_at=time_of(run["start_date"]), ended_at=time_of(run["end_date"]),
                     queued_at=time_of(run["queued_at"]))  # fmt: skip


# A task that never ran has no span, and no span has the exception of a try.
UNKNOWABLE = {
    # For the first task Airflow counts the start of the first processes, 20 s.
    "failing": [{"step": "after"}, {"step": "extract", "field": "started_at"}, {"field": "started_at"}],
    # The check had ended when `choose` was ready, and there are no links.
    "waiting": [{"step": "extract", "field": "started_at"}, {"field": "started_at"}],
    "nightly": [{"step": "never"}, {"step": "flaky", "field": "error"}, {"edge": "checks.check->choose"}],
}


def play(dag, variables):
    for each in (*STARTS.get(dag, ()), dag):
        subprocess.run([AIRFLOW, "dags", "unpause", "-y", each], env=variables, check=True, capture_output=True)
    deadline = time.monotonic() + 250
    while not rows("SELECT 1 FROM dag_run WHERE dag_id = ? AND state IN ('success', 'failed')", dag):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{dag}: {[tuple(row) for row in rows('SELECT task_id, state FROM task_instance')]}")
        time.sleep(0.3)


if HOOKS:
    # Only of the first task: Airflow counts the start of the first processes.
    FIRST = [{"step": "extract", "field": "started_at"}, {"step": "skipper", "field": "started_at"}]
    UNKNOWABLE = {"failing": FIRST, "nightly": FIRST, "waiting": FIRST, "starting": []}

UNKNOWN = {
    "failing": ["which task waits for which: no links, only the order", "what never ran: no span"],
    "waiting": ["which task waits for which: no links, only the order"],
    "nightly": [
        "which task waits for which: no links, only the order",
        "what never ran: no span",
        "what a failed try failed with",
    ],
}
"""What spans cannot tell of a scene, in words."""


def main(names):
    stop_at_sigterm()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    HOME.mkdir()
    variables = settings(port)
    subprocess.run([AIRFLOW, "db", "migrate"], env=variables, check=True, capture_output=True)
    commands = {"api-server": ["--host", "127.0.0.1", "--port", str(port)], "scheduler": [], "dag-processor": [],
                "triggerer": []}  # fmt: skip
    processes = []
    try:
        for command, options in commands.items():
            processes.append(spawn([AIRFLOW, command, *options], f"{command}.log", env=variables))
        deadline = time.monotonic() + 200
        while len(rows("SELECT 1 FROM dag")) < len(EDGES):
            if time.monotonic() > deadline:
                raise TimeoutError("the DAG processor found no DAGs")
            time.sleep(0.5)
        for dag in SCENES:
            if not names or dag in names:
                play(dag, variables)
                tell(
                    f"airflow33_hooks_{dag}" if HOOKS else f"airflow33_{dag}",
                    [told_of(each) for each in (dag, *STARTS.get(dag, ()))],
                    unknowable=UNKNOWABLE[dag],
                    unknown=[] if HOOKS else UNKNOWN.get(dag, []),
                    index_from="engine",
                    edges_from="order",
                    truth_from="the database (dag_run, task_instance, task_instance_history); edges from the DAG",
                )
    finally:
        for process in processes:
            os.killpg(process.pid, signal.SIGTERM)
        for process in processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


if __name__ == "__main__":
    main(sys.argv[1:])
