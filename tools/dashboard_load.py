"""A load under which every dashboard panel has data, and the rules evaluated often enough to watch them."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Protocol

import yaml
from tools.local_service import environment

from tachograph_exporter.alerting.alerts import alerts
from tachograph_exporter.alerting.recording_rules import recording_rules
from tachograph_exporter.alerting.thresholds import read_thresholds

LONG_WORKFLOW = {"name": "long", "steps": [{"name": "wait", "config": {"handler": "sleep", "seconds": 300}}]}

RARE_WORKFLOW = {"name": "rare", "steps": [{"name": "once"}]}
FAILING_WORKFLOW = {"name": "failing", "steps": [{"name": "fail", "config": {"handler": "fail", "message": "no"}}]}


class Client(Protocol):
    """The JSON API of a service."""

    def get(self, path: str) -> Any: ...

    def post(self, path: str, body: Any = None) -> Any: ...


def write_fast_rules(directory: Path, *, fire_at_once: bool = False, limits: Path | None = None) -> Path:
    """Write the shipped rules with an interval of two seconds.

    ``fire_at_once``: alerts skip their pending time. ``limits``: a file of thresholds.
    """
    thresholds = read_thresholds(limits)
    groups = [*recording_rules(thresholds), *alerts(thresholds)]
    for group in groups:
        group["interval"] = "2s"
        for rule in group["rules"]:
            if fire_at_once and "for" in rule:
                rule["for"] = "0s"
    file = directory / "fast.rules.yml"
    file.write_text(yaml.safe_dump({"groups": groups}))
    return file


def run_load(service: Client, seconds: float) -> None:
    """Run all example workflows repeatedly. Some retry, some skip steps, some fail, some report costs."""
    for document in service.get("/api/workflows/templates"):
        service.post("/api/workflows", document)
    for document, times in ((LONG_WORKFLOW, 1), (RARE_WORKFLOW, 1), (FAILING_WORKFLOW, 4)):
        service.post("/api/workflows", document)
        for _ in range(times):
            service.post(f"/api/workflows/{document['name']}/execute")
    run_examples(service, seconds)


def run_examples(service: Client, seconds: float) -> None:
    """Run the example workflows, which are registered, repeatedly."""
    deadline = time.monotonic() + seconds
    number = 0
    while time.monotonic() < deadline:
        for name, inputs in (
            ("basic_sequence", {}),
            ("parallel_processing", {}),
            ("conditional_workflow", {"mode": "fast"}),
            ("with_retries", {}),
            ("agent_chain", {}),
            ("data_pipeline", {"minimum_rows": 1_000_000} if number % 3 == 0 else {}),
        ):
            service.post(f"/api/workflows/{name}/execute", {"input_variables": inputs})
        number += 1
        time.sleep(0.7)


_RECORDED: Final = """
import time
import tachograph

@tachograph.step
def load():
    time.sleep(0.03)

@tachograph.workflow
def recorded():
    load()

while True:
    recorded()
    time.sleep(0.3)
"""


@contextlib.contextmanager
def recorded_runs(address: str) -> Iterator[None]:
    """Meanwhile a program reports its runs to the service. Of its steps, which it runs alone, the memory is known."""
    variables = {**environment(), "TACHOGRAPH_URL": address}
    process = subprocess.Popen([sys.executable, "-c", _RECORDED], env=variables)  # noqa: S603 - ours
    try:
        yield
    finally:
        process.kill()
        process.wait()
