"""Years of a service without its database: what it tells of runs, and what it shows to Prometheus, in a minute.

What is known of runs, which elsewhere is read from a database, is told to `evaluate` as it happens; what is told and
shown follows by the service's own functions. `scraped_service` does the same with a database.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from typing import Any, Final

from prometheus_client.registry import Collector

from tachograph.clock import NS
from tachograph.expectation import Expectation
from tachograph.metrics.specs import LAST_FAILURE, LAST_SUCCESS, OLDEST_RUNNING
from tachograph_exporter.expectations import transitions as rules
from tachograph_exporter.expectations.evaluation import Evaluation, evaluate
from tachograph_exporter.expectations.history import History, LongStep, Run, RunningStep
from tachograph_exporter.expectations.limits import limits_of
from tachograph_exporter.expectations.metrics import ExpectationMetrics
from tachograph_exporter.expectations.reading import Expected
from tachograph_exporter.expectations.watch import Watched
from tachograph_exporter.store.notices import NEWEST
from tests.expectations.promtool import TICK, Told
from tests.expectations.scraped_service import STEP
from tests.expectations.simulation import KEPT, Plan, Simulated

WORKSPACE: Final = "default"


class EvaluatedService:
    """Evaluates each workflow whenever there is something new; all of it at multiples of `TICK`."""

    def __init__(self) -> None:
        self.samples: dict[str, list[tuple[int, float | None]]] = {}
        """See `promtool.Samples`."""
        self._expected: dict[str, Expected] = {}

    def expect(self, name: str, plan: Plan, expectation: Expectation) -> None:
        """Expect something of a workflow, from an hour before its first time on."""
        known_ns = (plan.times[0] - 3600) * NS
        self._expected[name] = Expected(WORKSPACE, name, {"file": expectation}, limits_of(expectation), known_ns)

    def live(self, workflows: Mapping[str, Simulated], begin: int, end: int) -> list[Told]:
        """Live through all runs of the workflows. Returns what was told, oldest first."""
        told: list[Told] = []
        for name, simulated in workflows.items():
            told += _Workflow(self._expected[name], simulated, self.samples).live(begin, end)
        return sorted(told, key=lambda notice: notice.told_at)


class _Shown:
    """What `ExpectationMetrics` reads of a watch."""

    def __init__(self) -> None:
        self.watched: dict[tuple[str, str], Watched] = {}
        self.slugs: Mapping[str, str] = {}


class _Workflow:
    """One workflow, through its years."""

    def __init__(
        self, expected: Expected, simulated: Simulated, samples: dict[str, list[tuple[int, float | None]]]
    ) -> None:
        self._expected = expected
        self._samples = samples
        runs = sorted((round(start * NS), round(end * NS), status) for start, end, status in simulated.runs)
        self._runs = [Run(str(number), start, end, status) for number, (start, end, status) in enumerate(runs)]
        self._starts = [run.started_ns for run in self._runs]
        ids = {run.started_ns: run.execution_id for run in self._runs}
        steps = [(round(start * NS), round(end * NS)) for start, end in sorted(simulated.steps.items())]
        self._steps = [(ids[start], start, end) for start, end in steps]
        ends = [run.finished_ns or 0 for run in self._runs]
        self._facts = sorted({*self._starts, *ends, *(end for _, _, end in self._steps)})
        self._told: list[rules.Told] = []
        self._notices: dict[str, Told] = {}
        self._mine: set[str] = set()
        shown = _Shown()
        self._shown = shown
        watch: Any = shown
        self._metrics: Collector = ExpectationMetrics(watch, 10)

    def live(self, begin: int, end: int) -> list[Told]:
        now, since_ns = begin, begin * NS
        limits, known_ns = self._expected.limits, self._expected.known_ns
        while now <= end:
            now_ns = now * NS
            history = self._known(now_ns)
            evaluation = evaluate(limits, history, since_ns, now_ns, known_ns=known_ns, settled_ns=0)
            self._scrape(now, history.runs, evaluation)
            place = bisect.bisect_right(self._facts, now_ns)
            wakes = [self._facts[place]] if place < len(self._facts) else []
            wakes += [evaluation.next_ns] if evaluation.next_ns else []
            since_ns = now_ns
            now = max(now + TICK, -(-min([(end + 1) * NS, *wakes]) // (TICK * NS)) * TICK)
        return list(self._notices.values())

    def _known(self, now_ns: int) -> History:
        started = bisect.bisect_right(self._starts, now_ns)
        runs = [
            run if (run.finished_ns or 0) <= now_ns else run._replace(finished_ns=None, status="running")
            for run in self._runs[max(0, started - KEPT) : started]
        ]
        running, long = [], []
        for execution_id, start, end in self._steps:
            if start <= now_ns < end:
                running.append(RunningStep(execution_id, STEP, start))
            elif end <= now_ns < end + 86_400 * NS:
                long.append(LongStep(execution_id, STEP, start, end))
        return History(runs=runs, steps=running, long_steps=long)

    def _tell(self, evaluation: Evaluation, now: int) -> frozenset[str]:
        """Note what is told, and what is over. Returns the kinds that are told and not over."""
        change = rules.transitions(self._told, evaluation.findings, now * NS)
        open_kinds = rules.open_kinds(self._told, change)
        for recovery in change.recovered:
            self._told[self._told.index(recovery.told)] = recovery.told._replace(resolved_ns=recovery.until_ns)
            over = self._notices[recovery.told.id]
            self._notices[recovery.told.id] = over._replace(recovered_at=recovery.until_ns / NS)
        for finding in change.opened:
            identifier = f"{finding.kind}:{finding.key}"
            assert identifier not in self._notices, identifier
            until = None if finding.until_ns is None else finding.until_ns / NS
            self._notices[identifier] = Told(self._expected.workflow, finding.kind, finding.key, now, until)
            entry = rules.Told(identifier, finding.kind, finding.key, finding.since_ns, finding.until_ns)
            self._told.append(entry)
        del self._told[:-NEWEST]
        return open_kinds

    def _scrape(self, now: int, runs: Sequence[Run], evaluation: Evaluation) -> None:
        open_kinds = self._tell(evaluation, now)
        place = (WORKSPACE, self._expected.workflow)
        self._shown.watched = {place: Watched(self._expected, evaluation, None, now * NS, (), 0, {}, 0, open_kinds)}
        values = {
            sample.name + "{" + ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items())) + "}":
            float(sample.value)
            for family in self._metrics.collect() for sample in family.samples
        }  # fmt: skip
        labels = f'{{workflow="{place[1]}",workspace="{WORKSPACE}"}}'
        ends = {name: [run.finished_ns or 0 for run in runs if getattr(run, name)] for name in ("is_good", "is_bad")}
        open_ = [run.started_ns for run in runs if run.finished_ns is None]
        for spec, time_ns in (
            (LAST_SUCCESS, max(ends["is_good"], default=None)),
            (LAST_FAILURE, max(ends["is_bad"], default=None)),
            (OLDEST_RUNNING, min(open_, default=None)),
        ):
            before = self._samples.get(spec.name + labels)
            if time_ns is not None:
                values[spec.name + labels] = time_ns / NS
            elif before and spec is not OLDEST_RUNNING and before[-1][1] is not None:
                values[spec.name + labels] = before[-1][1]  # Longer ago than what is looked at.
        for series, value in values.items():
            samples = self._samples.setdefault(series, [])
            if not samples or samples[-1][1] != value:
                samples.append((now, value))
        for series in self._mine - values.keys():
            self._samples[series].append((now, None))
        self._mine = set(values)
