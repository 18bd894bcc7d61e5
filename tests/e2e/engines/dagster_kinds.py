"""Plays Dagster jobs. python dagster_kinds.py [SCENE …]

Each job runs in a process of its own; with ONE_PROCESS=1 in this one, which is cheaper. The truth is from Dagster's
instance: runs and their event logs; edges are from the jobs' definitions.
"""

import os
import subprocess
import sys
from pathlib import Path

os.environ["DAGSTER_HOME"] = os.path.abspath("dagster-home")
os.environ["DAGSTER_DISABLE_TELEMETRY"] = "1"

VARIABLES = {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf", "OTEL_METRICS_EXPORTER": "none",
             "OTEL_BSP_SCHEDULE_DELAY": "200"}  # fmt: skip
ONE_PROCESS = os.environ.get("ONE_PROCESS") == "1"
if ONE_PROCESS:
    from opentelemetry.instrumentation.auto_instrumentation import initialize

    os.environ |= VARIABLES
    # As the launcher does, before Dagster is imported.
    initialize()

from dagster import DagsterEventType, DagsterInstance, RunsFilter  # noqa: E402
from telling import at, execution, step, stop_at_sigterm, tell, without_module  # noqa: E402

HERE = Path(__file__).parent
STATUSES = {"SUCCESS": "completed", "FAILURE": "failed", "STARTED": "lost", "CANCELED": "cancelled"}
EDGES = {
    "nightly": {
        "extract": [], "fan": ["extract"], "work": ["fan"], "merge": ["work#m0", "work#m1", "work#m2"],
        "flaky": ["merge"], "choose": ["flaky"], "never": ["choose"], "store": ["choose"], "sub.load": ["flaky"],
    },
    "failing": {"extract": [], "broken": ["extract"], "load": ["broken"]},
    "warehouse": {"orders": [], "customers": [], "report": ["orders", "customers"]},
    "varied": {
        "extract": [], "outer.sub.load": ["extract"], "outer.check": ["outer.sub.load"], "fan": ["outer.check"],
        "for_each.first": ["fan"], "for_each.second": ["for_each.first"],
        "merge": [f"for_each.second#m{i}" for i in range(3)], "other": [], "refused": ["other"], "after": ["refused"],
    },
    "dying": {"extract": [], "die": ["extract"]},
}  # fmt: skip


def run(name, instance):
    if ONE_PROCESS:
        import dagster_jobs
        from opentelemetry import trace

        getattr(dagster_jobs, name).execute_in_process(instance=instance, raise_on_error=False)
        trace.get_tracer_provider().force_flush()
        return
    command = [
        Path(sys.executable).with_name("opentelemetry-instrument"),
        sys.executable,
        HERE / "dagster_jobs.py",
        name,
    ]
    with open("job.log", "ab") as log:
        subprocess.run(command, env=os.environ | VARIABLES, stdout=log, stderr=log, timeout=120, check=False)


def told_of(instance, job):
    """The newest run of a job, by its record and event log."""
    record = instance.get_run_records(RunsFilter(job_name=job), limit=1)[0]
    run = record.dagster_run
    tries, statuses, errors = {}, {}, {}
    for entry in instance.all_logs(run.run_id):
        event = entry.dagster_event
        if event is None or event.step_key is None:
            continue
        key, kind, when = event.step_key, event.event_type, at(entry.timestamp)
        if kind in (DagsterEventType.STEP_START, DagsterEventType.STEP_RESTARTED):
            number = len(tries.setdefault(key, [])) + 1
            tries[key].append({"attempt": number, "status": "lost", "started_at": when})
            statuses[key] = "lost"
        elif kind in (DagsterEventType.STEP_SUCCESS, DagsterEventType.STEP_FAILURE, DagsterEventType.STEP_UP_FOR_RETRY):
            status = "completed" if kind is DagsterEventType.STEP_SUCCESS else "failed"
            tries[key][-1].update(status=status, ended_at=when)
            statuses[key] = status
            if kind is DagsterEventType.STEP_FAILURE:
                cause = event.event_specific_data.error.cause or event.event_specific_data.error
                errors[key] = without_module(cause.message.strip())
        elif kind is DagsterEventType.STEP_SKIPPED:
            statuses[key] = "skipped"

    def waits(name, index):
        # A step for each of several waits for that of its own index.
        return [f"{other}#{index}" if other == "for_each.first" else other for other in EDGES[job][name]]

    steps = []
    for key, status in statuses.items():
        name, _, index = key.partition("[")
        attempts = tries.get(key, [])
        steps.append(
            step(name, status, len(attempts), waits(name, index.rstrip("]")), index=index.rstrip("]") or None,
                 tries=attempts, error=errors.get(key), started_at=attempts[0]["started_at"] if attempts else None,
                 ended_at=attempts[-1].get("ended_at") if attempts else None, also=[key])
        )  # fmt: skip
    return execution(job, STATUSES[run.status.value], steps, run_id=run.run_id, engine_status=run.status.value,
                     started_at=at(record.start_time))  # fmt: skip


# A run has no span of its own, and a skipped step has none.
UNKNOWABLE = {
    "nightly": [{"field": "started_at"}, {"field": "status"}, {"field": "ended_at"}, {"step": "never"}],
    "failing": [{"field": "started_at"}, {"field": "status"}, {"field": "ended_at"}, {"step": "load"}],
    "warehouse": [{"field": "started_at"}, {"field": "status"}, {"field": "ended_at"}],
    "varied": [{"field": "started_at"}, {"field": "status"}, {"field": "ended_at"}, {"step": "after"}],
    "dying": [{"field": "started_at"}, {"field": "status"}, {"step": "die"}],
}


UNKNOWN = {
    "nightly": ["when the run began and ended, and how: a run has no span", "what was skipped: no span"],
    "failing": ["when the run began and ended, and how: a run has no span", "what was skipped: no span"],
    "warehouse": ["when the run began and ended, and how: a run has no span"],
    "varied": ["when the run began and ended, and how: a run has no span", "what was skipped: no span"],
    "dying": ["that the process was killed: the span of its step died with it"],
}
"""What spans cannot tell of a scene, in words."""


def main(names):
    stop_at_sigterm()
    os.makedirs(os.environ["DAGSTER_HOME"], exist_ok=True)
    Path(os.environ["DAGSTER_HOME"], "dagster.yaml").touch()
    with DagsterInstance.get() as instance:
        for job in EDGES:
            if not names or job in names:
                run(job, instance)
                tell(
                    f"dagster113_{job}",
                    [told_of(instance, job)],
                    unknowable=UNKNOWABLE[job],
                    unknown=UNKNOWN.get(job, []),
                    index_from="engine",
                    edges_from="recording",
                    truth_from="the run's record and event log; edges from the job's definition",
                )


if __name__ == "__main__":
    main(sys.argv[1:])
