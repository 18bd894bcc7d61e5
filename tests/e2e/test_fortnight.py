"""A fortnight in a minute: what Prometheus counts is what the JSON API counts, whoever recorded and whatever restarted.

Six workflows, from two runs to a thousand, are recorded by scripts, by two services, and from spans of another program,
while services are killed and restarted. Prometheus servers scrape them all the time, in protobuf with native
histograms, in OpenMetrics and in plain text, with the shipped rules and the shipped relabelling.

`make check` has those days on which something happens, with a few runs each; `make slow` all fourteen.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.conftest import ROOT
from tests.e2e import preloaded
from tests.e2e.conftest import Server, environment, eventually, get
from tests.e2e.fortnight.prometheus import TextProxy, increases, samples
from tests.e2e.fortnight.spans import trace
from tools.dashboard_load import write_fast_rules

PROGRAMS = ROOT / "tests" / "e2e" / "fortnight"
FEATURES = "--enable-feature=native-histograms,exemplar-storage"
NATIVE, OPENMETRICS, TEXT = "native", "openmetrics", "text"

DELIVERY = {
    "name": "delivery",
    "variables": [{"name": "flaky", "data_type": "bool", "default_value": False}],
    "steps": [
        {"name": "pack", "config": {"handler": "fortnight.pack"}, "max_retries": 1, "retry_backoff": 0.01},
        {"name": "send", "config": {"handler": "fortnight.send"}, "depends_on_steps": ["pack"]},
    ],
}
MESSAGES = {
    "name": "messages",
    "variables": [
        {"name": "fail", "data_type": "bool", "default_value": False},
        {"name": "seconds", "data_type": "float", "default_value": 0},
    ],
    "steps": [{"name": "send", "config": {"handler": "fortnight.send"}}],
}
IMPORT_STEPS = ("fetch", "store")
A_DAY = 71
"""Runs of `messages` a day: a thousand in a fortnight."""


class House:
    """Two services on one database, and the Prometheus servers that scrape them."""

    def __init__(
        self, directory: Path, url: str, kinds: Sequence[str], prometheus: Callable[..., str], proxy: TextProxy
    ) -> None:
        self.url = url
        self.expected: Counter[str] = Counter()
        """Executions by workflow."""
        options = ("--database", url, "--handlers", str(PROGRAMS / "handlers.py"))
        self.services = [Server(directory, *options) for _ in range(2)]
        self.start(self.services)
        relabel = relabelling()
        rules = fast_rules(directory)
        self.prometheus = {}
        for kind in kinds:
            configuration = {
                "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                "rule_files": [str(rules)],
                "scrape_configs": [
                    {
                        "job_name": f"tachograph-{service.port}",
                        "metrics_path": f"/{service.port}/metrics" if kind == TEXT else "/metrics",
                        "static_configs": [{"targets": [f"127.0.0.1:{proxy.port if kind == TEXT else service.port}"]}],
                        # One job for both, as shipped; the path of the proxy needs two.
                        "relabel_configs": [
                            {"target_label": "job", "replacement": "tachograph"},
                            {"target_label": "instance", "replacement": f"127.0.0.1:{service.port}"},
                        ],
                        "metric_relabel_configs": relabel,
                    }
                    for service in self.services
                ],
            }
            address = prometheus(yaml.safe_dump(configuration), *([FEATURES] if kind == NATIVE else []))
            self.prometheus[kind] = address
        for address in self.prometheus.values():
            # Each has scraped both services, before anything is counted.
            eventually(lambda: len(samples(address, "tachograph_workflow_metrics_shown")) == 2)  # noqa: B023

    def start(self, services: list[Server]) -> None:
        """Start services again, on their ports."""
        threads = [threading.Thread(target=service.start) for service in services]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    # Who records

    def script(self, name: str, *options: str) -> preloaded.Process:
        """Start a script that records one run."""
        self.expected[name] += 1
        variables = environment(TACHOGRAPH_DATABASE_URL=self.url)
        program = (PROGRAMS / "nightly.py").read_text()
        return preloaded.start([name, *options], variables, Path(os.devnull), program=program)

    def execute(self, service: Server, workflow: str, number: int = 1, **inputs: Any) -> None:
        """Submit executions."""
        with ThreadPoolExecutor(8) as pool:
            path, body = f"/api/workflows/{workflow}/execute", {"input_variables": inputs}
            for submitted in [pool.submit(service.post, path, body) for _ in range(number)]:
                submitted.result()
        self.expected[workflow] += number

    def spans(self, service: Server, workflow: str, number: int) -> None:
        """Send finished traces."""
        for _ in range(number):
            status, body = get(f"{service.address}/v1/traces", method="POST", body=trace(workflow, IMPORT_STEPS))
            assert status == 200, body
            self.expected[workflow] += 1

    # What is known

    @property
    def up(self) -> list[Server]:
        return [service for service in self.services if service.process is not None and service.process.poll() is None]

    def holder(self) -> Server:
        """The service that shows the workflow metrics."""
        return eventually(lambda: next((service for service in self.up if shows(service)), None))  # type: ignore[no-any-return]

    def recorded(self) -> bool:
        """Whether every execution so far is recorded and has ended, as a service that is up says."""
        service = self.up[0]
        for workflow, number in self.expected.items():
            status, body = get(f"{service.address}/api/workflows/{workflow}/metrics")
            if status != 200 or (body["total_executions"], body["open_executions"]) != (number, 0):
                return False
        return True

    def counted(self) -> dict[str, Counter[tuple[str, ...]]]:
        """What the JSON API counts: executions by workflow and status, steps by workflow, step and status, …"""
        executions: Counter[tuple[str, ...]] = Counter()
        steps: Counter[tuple[str, ...]] = Counter()
        started: Counter[tuple[str, ...]] = Counter()
        retries: Counter[tuple[str, ...]] = Counter()
        for workflow in self.expected:
            body = self.up[0].get(f"/api/workflows/{workflow}/metrics")
            started[(workflow,)] = body["total_executions"]
            for status, one in body["by_status"].items():
                executions[workflow, status] = one["count"]
            for step in body["steps"]:
                for status, count in step["by_status"].items():
                    steps[workflow, step["step_name"], status] = count
                retries[workflow, step["step_name"]] = step["retry_count"]
        return {name: Counter({key: value for key, value in counter.items() if value})
                for name, counter in (("executions", executions), ("steps", steps), ("started", started),
                                      ("retries", retries))}  # fmt: skip

    def seen(self, kind: str) -> dict[str, Counter[tuple[str, ...]]]:
        """The same as increases of the series that a Prometheus scraped."""
        address, count = self.prometheus[kind], "" if kind == NATIVE else "_count"
        return {
            "executions": increases(address, f"workflow_execution_duration_seconds{count}", ("workflow", "status")),
            "steps": increases(address, f"workflow_step_duration_seconds{count}", ("workflow", "step", "status")),
            "started": increases(address, "workflow_executions_started_total", ("workflow",)),
            "retries": increases(address, "workflow_step_retries_total", ("workflow", "step")),
        }

    def summed(self, kind: str) -> Counter[tuple[str, ...]]:
        """What the recording rules counted, by workflow and status."""
        counts: Counter[tuple[str, ...]] = Counter()
        for metric, values in samples(self.prometheus[kind], "workflow:executions_ended:increase"):
            counts[metric["workflow"], metric["status"]] += round(sum(values))
        return counts

    def firing(self, kind: str) -> set[tuple[str, str]]:
        """The alerts about workflows that fired at any time."""
        alerts = samples(self.prometheus[kind], 'ALERTS{alertstate="firing", workflow!=""}')
        return {(metric["alertname"], metric["workflow"]) for metric, _ in alerts}


def shows(service: Server) -> bool:
    return "tachograph_workflow_metrics_shown 1.0" in str(
        get(f"{service.address}/metrics?name[]=tachograph_workflow_metrics_shown")[1]
    )


def relabelling() -> Any:
    """The relabelling of the shipped `prometheus.yml`."""
    shipped = yaml.safe_load((ROOT / "dashboards" / "provisioning" / "prometheus" / "prometheus.yml").read_text())
    return shipped["scrape_configs"][0]["metric_relabel_configs"]


def fast_rules(directory: Path) -> Path:
    """The shipped rules for scrapes every second: evaluated as often, and firing at once."""
    file = write_fast_rules(directory, fire_at_once=True)
    groups = yaml.safe_load(file.read_text())
    for group in groups["groups"]:
        group["interval"] = "1s"
        for rule in group["rules"]:
            # Where the first value of a series is looked for.
            rule["expr"] = rule["expr"].replace("[2m:5s]", "[2m:250ms]")
    file.write_text(yaml.safe_dump(groups))
    return file


@pytest.fixture
def house(tmp_path: Path, prometheus: Callable[..., str]) -> Iterator[Callable[..., House]]:
    """Starts the services on a database."""
    with contextlib.ExitStack() as stack:

        def build(url: str, *kinds: str) -> House:
            house = House(tmp_path, url, kinds, prometheus, stack.enter_context(TextProxy()))
            for service in house.services:
                stack.callback(_kill, service)
            return house

        yield build


def _kill(service: Server) -> None:
    if service.process is not None and service.process.poll() is None:
        service.process.kill()
        service.process.wait()


def kill(service: Server) -> None:
    assert service.stop(signal.SIGKILL) == -signal.SIGKILL


def differences(
    counted: dict[str, Counter[tuple[str, ...]]], seen: dict[str, Counter[tuple[str, ...]]]
) -> list[tuple[str, tuple[str, ...], float, float]]:
    """(what, labels, counted, seen) wherever the two differ."""
    return [
        (what, key, numbers[key], seen[what][key])
        for what, numbers in counted.items()
        for key in sorted(numbers | seen[what])
        if numbers[key] != seen[what][key]
    ]


def check(house: House) -> None:
    """Every number of every Prometheus is that of the JSON API."""
    eventually(house.recorded)
    counted = house.counted()
    assert sum(counted["executions"].values()) == sum(house.expected.values())
    for kind in house.prometheus:
        # The last scrapes may be under way.
        with contextlib.suppress(AssertionError):
            eventually(lambda: differences(counted, house.seen(kind)) == [])  # noqa: B023
        assert differences(counted, house.seen(kind)) == [], kind
        rules = {"executions": counted["executions"]}
        with contextlib.suppress(AssertionError):
            eventually(lambda: differences(rules, {"executions": house.summed(kind)}) == [])  # noqa: B023
        assert differences(rules, {"executions": house.summed(kind)}) == [], kind
        # Nothing was alerted but the nightly job's one failure. Alerts do not wait here, so for messages, of which one
        # failed and some may be lost, it depends on the moment: on what a window of minutes has of a day.
        firing = {(alert, workflow) for alert, workflow in house.firing(kind) if workflow != "messages"}
        assert firing == {("WorkflowLastRunFailed", "nightly")}


def days(*eventful: int) -> pytest.MarkDecorator:
    """The days and the runs of `messages` on each: some of a fortnight, and all of it.

    So many that two that fail are less than 3 %, which would burn the error budget.
    """
    return pytest.mark.parametrize(
        ("calendar", "messages"),
        [
            pytest.param(eventful, 15, id="eventful days"),
            pytest.param(tuple(range(14)), A_DAY, id="fortnight", marks=pytest.mark.slow),
        ],
    )


def a_day(home: House, day: int, messages: int, interrupt: Callable[[int], list[Server]]) -> None:
    """One day's runs. ``interrupt`` stops services between the runs of two days; they are back for its second half."""
    if day == 0:
        home.up[-1].post("/api/workflows", MESSAGES)
    if day == 2:
        home.up[0].post("/api/workflows", DELIVERY)
    stopped = interrupt(day)
    scripts = [home.script("nightly", *(["--fail"] if day == 4 else []))]
    if day >= 7:
        scripts.append(home.script("backup"))
    if day in (6, 13):
        scripts.append(home.script("weekly"))
    if stopped:
        # Nobody serves while they run, or only the other service.
        for script in scripts:
            script.wait()
        home.start(stopped)
    home.execute(home.up[-1], "messages", messages)
    if day >= 1:
        home.spans(home.up[0], "imports", 10)
    if day >= 2:
        home.execute(home.up[0], "delivery", 4)
        home.execute(home.up[0], "delivery", flaky=True)
    if day == 9:
        home.execute(home.up[-1], "messages", fail=True)
    for script in scripts:
        script.wait()
    eventually(home.recorded)
    if day == 4:
        # The job that failed, and no other; before its next success, which ends the alert.
        for kind in home.prometheus:
            eventually(lambda: home.firing(kind) == {("WorkflowLastRunFailed", "nightly")})  # noqa: B023


@pytest.mark.timeout(900)
@days(0, 2, 4, 5, 7, 9, 13)
def test_a_fortnight_on_sqlite(
    house: Callable[..., House], tmp_path: Path, calendar: Sequence[int], messages: int
) -> None:
    home = house(f"sqlite:///{tmp_path}/fortnight.db", NATIVE, OPENMETRICS, TEXT)

    def interrupt(day: int) -> list[Server]:
        if day == 5:
            holder = home.holder()
            holder.stop()
            return [holder]
        stopped = home.services if day == 7 else [home.holder()] if day in (3, 10) else []
        for service in stopped:
            kill(service)
        return stopped

    for day in calendar:
        a_day(home, day, messages, interrupt)
    assert home.expected["messages"] == len(calendar) * messages + 1
    check(home)


@pytest.mark.timeout(900)
@days(0, 2, 4, 6, 9)
def test_a_fortnight_of_two_services_on_postgresql(
    house: Callable[..., House], postgres: Callable[..., str], calendar: Sequence[int], messages: int
) -> None:
    home = house(postgres(), OPENMETRICS)
    # As many as are lost with their service without burning the error budget.
    running = max(1, messages // 20)

    def interrupt(day: int) -> list[Server]:
        if day == 6:
            # Killed while it runs executions, and gone for three days.
            holder = home.holder()
            home.execute(holder, "messages", running, seconds=60)
            survivor = next(service for service in home.up if service is not holder)
            path = "/api/workflows/messages/executions?status=running"
            eventually(lambda: survivor.get(path)["total"] == running)
            kill(holder)
            assert home.holder() is survivor
            eventually(home.recorded)
        if day == 9:
            home.start([service for service in home.services if service not in home.up])
        return []

    for day in calendar:
        a_day(home, day, messages, interrupt)
    assert home.expected["messages"] == len(calendar) * messages + running + 1
    check(home)
    assert home.counted()["executions"]["messages", "lost"] == running
