"""Rules of Snakemake as users write them. python snakemake_kinds.py [SCENE …]

The truth is what Snakemake keeps of the outputs of its jobs (`.snakemake/metadata`): rules, inputs, starts and ends. Of
jobs that made none, and of attempts, it is what the jobs wrote down.
"""

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from telling import at, execution, play_scenes, spawn, step, stop_at_sigterm, tell

SHOP = Path(__file__).with_name("snakemake_shop")
JOURNAL = os.environ.setdefault("JOURNAL", os.path.abspath("snakemake.jsonl"))
WORK = Path("shop")
SNAKEMAKE = [os.path.join(os.path.dirname(sys.executable), "snakemake"), "--logger", "tachograph", "--cores", "3"]
LATENCY = ["--latency-wait", "0"]


def entries():
    if not os.path.exists(JOURNAL):
        return []
    with open(JOURNAL) as journal:
        return [json.loads(line) for line in journal]


def kept():
    """What Snakemake keeps of each output."""
    records = {}
    for path in (WORK / ".snakemake" / "metadata").glob("**/*"):
        if path.is_file():
            name = "".join(path.relative_to(WORK / ".snakemake" / "metadata").parts).replace("@", "")
            records[base64.b64decode(name).decode()] = json.loads(path.read_text())
    # Of a job that failed, there may be a record of an output that was not made.
    return {output: record for output, record in records.items() if (WORK / output).exists()}


def command(target, *options):
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir()
    if os.path.exists(JOURNAL):
        os.unlink(JOURNAL)
    return [*SNAKEMAKE, "--snakefile", str(SHOP / "Snakefile"), "--directory", str(WORK), *LATENCY, *options, target]


def again(target, *options):
    return [*SNAKEMAKE, "--snakefile", str(SHOP / "Snakefile"), "--directory", str(WORK), *LATENCY, *options, target]


def run(line):
    with open("snakemake.log", "ab") as log:
        return subprocess.run(line, stdout=log, stderr=log, timeout=120, check=False).returncode


def instance(entry):
    return entry["wildcards"] or None


def reference(rule, index):
    return rule if index is None else f"{rule}#{index}"


def told_of(status, ends, **more):
    """The run, by what is kept of its outputs and by its journal. ``ends``: of jobs that made nothing."""
    records, begun = kept(), {}
    for entry in entries():
        begun.setdefault((entry["rule"], instance(entry)), []).append(entry["at"])
    makers = {}
    for output, record in records.items():
        item = os.path.basename(output).removesuffix(".txt")
        makers[output] = (record["rule"], f"item={item}" if "/" in output else None)
    steps = []
    for (rule, index), starts in begun.items():
        record = next((records[output] for output, maker in makers.items() if maker == (rule, index)), {})
        # What is kept of an output that was made at a second try is of that try; and of a job with Python code, of the
        # Snakemake that its own process is.
        is_told = len(starts) == 1 and rule != "report" and record.get("starttime")
        first = {"started_at": at(record["starttime"])} if is_told else {}
        if record and not record["incomplete"]:
            above = sorted(reference(*makers[file]) for file in record["input"])
            steps.append(
                step(rule, "completed", len(starts), above, index=index, ended_at=at(record["endtime"]), **first)
            )
        else:
            end, above, error = ends[rule]
            steps.append(step(rule, end, len(starts), above, index=index, error=error, **first))
    for rule, (end, above, error) in ends.items():
        if not any(rule == name for name, _ in begun):
            steps.append(step(rule, end, 1 if end == "completed" else 0, above, error=error))
    return execution("snakemake_shop", status, steps, **more)


def nightly():
    assert run(command("nightly")) == 0
    return [told_of("completed", {"nightly": ("completed", ["report"], None)})]


def nothing_to_do():
    assert run(command("extract")) == 0
    done = told_of("completed", {})
    assert run(again("extract")) == 0
    return [done, execution("snakemake_shop", "completed", [])]


def failing():
    error = "CalledProcessError: Command"
    assert run(command("failing", "--keep-going")) != 0
    ends = {
        "fragile": ("failed", ["extract"], error),
        "failed_merge": ("skipped", ["fragile#item=0", "fragile#item=1", "fragile#item=2"], None),
        "failing": ("skipped", ["failed_merge"], None),
    }
    return [told_of("failed", ends, error=error)]


def missing_output():
    error = "MissingOutputException: Job"
    assert run(command("missing")) != 0
    return [told_of("failed", {"missing": ("failed", [], error)}, error=error)]


def killed_job():
    assert run(command("killed")) != 0
    return [told_of("failed", {"killed": ("failed", [], "CalledProcessError: Command")})]


def wait_for(rule):
    while not any(entry["rule"] == rule for entry in entries()):
        time.sleep(0.05)


def cancelled():
    process = spawn(command("stuck"), "cancelled.log")
    wait_for("stuck")
    os.killpg(process.pid, signal.SIGINT)
    process.wait(60)
    return [told_of("cancelled", {"stuck": ("cancelled", [], None)})]


def killed():
    process = spawn(command("stuck"), "killed.log")
    wait_for("stuck")
    begun = min([record["starttime"] for record in kept().values()], default=entries()[0]["at"])
    lost = execution("snakemake_shop", "lost", [step("stuck", "lost", 1, [], started_at=at(begun))])
    tell("snakemake_at_work", [lost], goes_on=True)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return [lost]


SCENES = [nightly, nothing_to_do, failing, missing_output, killed_job, cancelled, killed]


def main(names):
    stop_at_sigterm()
    play_scenes("snakemake", SCENES, names, index_from="the wildcards", edges_from="the inputs",
         truth_from="what Snakemake keeps of outputs; attempts from the jobs")  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
