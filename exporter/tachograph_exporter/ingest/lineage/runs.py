"""The runs that OpenLineage events tell of, and their places: executions, and the steps and tries of these.

Pure functions of the events that are there, in whatever order they came. A run without a run above it is an execution.
So is one whose job type says that it is a workflow of its own (an application of Spark, an invocation of dbt, a DAG),
wherever it runs. Any other run is a step of the execution that it ran in, or a try of such a step.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from tachograph_exporter.ingest.lineage.airflow import AirflowFacts
from tachograph_exporter.ingest.lineage.events import ENDS, JobRun, LineageError, LineageEvent

_WORKFLOWS: Final = frozenset({"DAG", "APPLICATION", "JOB", "WORKFLOW", "PIPELINE", "FLOW"})
"""Job types of runs that are executions wherever they run."""
_END_ORDER: Final = {"COMPLETE": 0, "ABORT": 1, "FAIL": 2}


_QUERY_ID: Final = re.compile(r"[0-9]{8}_[0-9]{6}_[0-9]{5}_[0-9a-z]{5}")
"""Trino names a job after its query, which has another id each time."""


def workflow_of(run: Run) -> str:
    """The name of an execution's workflow."""
    return _QUERY_ID.sub("query", run.job)


class Run:
    """One run, from all its events.

    Attributes:
        started_ns: when it started; before its first event has arrived that says so, the time of its earliest event.
        ended_ns, end: when and how it ended (one of `ENDS`), if it has.
        is_told: whether any event of its own has arrived; otherwise only runs inside it have named it.
        facts: what Airflow says of it: the fields of all its events together.
    """

    def __init__(self, run_id: str, namespace: str, job: str) -> None:
        self.run_id = run_id
        self.namespace = namespace
        self.job = job
        self.job_type = self.integration = self.engine = self.node = ""
        self.parent: JobRun | None = None
        self.root: JobRun | None = None
        self.is_told = False
        self.started_ns = 0
        self.ended_ns: int | None = None
        self.end = ""
        self.inputs: tuple[str, ...] = ()
        self.outputs: tuple[str, ...] = ()
        self.error: LineageError | None = None
        self.nominal = ""
        self.facts: AirflowFacts | None = None
        # The DAG as its run's first event has it, and how its tasks ended as the last one has it.
        self.dag: AirflowFacts | None = None
        self.states: AirflowFacts | None = None
        self.children: list[Run] = []
        self.above: Run | None = None
        self.execution: Run = self
        # Of a DAG: the tasks that each task waits for, and the steps by task and index.
        self.upstream: dict[str, list[str]] = {}
        self.instances: dict[tuple[str, int | None], Step] = {}

    @property
    def is_workflow(self) -> bool:
        """Whether it is an execution: nothing is above it, or its job is a workflow."""
        return self.above is None or (self.job_type in _WORKFLOWS and self.is_told)

    @property
    def start_order(self) -> tuple[int, str]:
        return (self.started_ns, self.run_id)

    @property
    def told_above(self) -> Run | None:
        """The nearest run around it of which events have arrived."""
        run = self.above
        while run is not None and not run.is_told:
            run = run.above
        return run

    def take(self, events: Sequence[LineageEvent]) -> None:
        """Fill in what its events say. ``events``: by time."""
        self.is_told = True
        starts = [event.time_ns for event in events if event.kind == "START"]
        self.started_ns = starts[0] if starts else events[0].time_ns
        ends = [event for event in events if event.kind in ENDS]
        if ends:
            last = max(ends, key=lambda event: (event.time_ns, _END_ORDER[event.kind]))
            self.ended_ns, self.end = max(last.time_ns, self.started_ns), last.kind
        inputs: dict[str, None] = {}
        outputs: dict[str, None] = {}
        for event in events:
            self.namespace, self.job = event.namespace, event.job
            self.job_type = event.job_type or self.job_type
            self.integration = event.integration or self.integration
            self.engine = event.engine or self.engine
            self.node = event.node or self.node
            self.parent = event.parent or self.parent
            self.root = event.root or self.root
            self.error = event.error or self.error
            self.nominal = event.nominal or self.nominal
            inputs |= dict.fromkeys(event.inputs)
            outputs |= dict.fromkeys(event.outputs)
            facts = event.airflow
            if facts is not None:
                self.facts = facts if self.facts is None or facts.task_id or not self.facts.task_id else self.facts
                self.dag = facts if facts.downstream is not None else self.dag
                self.states = facts if facts.run_state or facts.states else self.states
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)


class Step:
    """One step of an execution: the runs that are its tries, by their start.

    ``index`` is the engine's number of a mapped instance. ``word``: how it ended, where the engine says more than its
    events. ``is_untold``: it has no run of its own; the engine only said how it ended.
    """

    def __init__(self, execution: Run, key: str, name: str, index: int | None = None) -> None:
        self.execution = execution
        self.key = key
        self.name = name
        self.index = index
        self.tries: list[Run] = []
        self.word = ""
        self.is_untold = False
        # Where it has no run, or no end: its time, and the seconds that it took.
        self.started_ns = self.ended_ns = 0
        self.duration_ns: int | None = None
        self.depends_on: tuple[Step, ...] = ()
        self.knows_dependencies = False

    @property
    def first(self) -> Run:
        return self.tries[0]

    @property
    def last(self) -> Run:
        return self.tries[-1]


def runs_of(events: Iterable[LineageEvent]) -> dict[str, Run]:
    """The runs that events tell of, or name, by id, each with those inside it."""
    by_run: dict[str, list[LineageEvent]] = defaultdict(list)
    for event in events:
        by_run[event.run_id].append(event)
    runs: dict[str, Run] = {}
    for run_id, own in by_run.items():
        own.sort(key=lambda event: (event.time_ns, event.kind in ENDS, event.event_id))
        run = runs[run_id] = Run(run_id, own[-1].namespace, own[-1].job)
        run.take(own)
    for run in list(runs.values()):
        for other in (run.parent, run.root):
            if other is not None and other.run_id not in runs:
                runs[other.run_id] = Run(other.run_id, other.namespace, other.name)
        if run.parent is None and run.root is not None:
            run.parent = run.root
        elif run.parent is not None and run.root is not None and not runs[run.parent.run_id].is_told:
            # Nothing says what lies between the two.
            runs[run.parent.run_id].parent = run.root
    tops: dict[str, str] = {}
    for run in sorted(runs.values(), key=lambda run: run.run_id):
        # Whatever events say, no run is inside itself.
        if run.parent is not None and _top(tops, run.parent.run_id) != run.run_id:
            run.above = runs[run.parent.run_id]
            run.above.children.append(run)
            tops[run.run_id] = run.parent.run_id
    _place(runs)
    return runs


def _top(tops: dict[str, str], run_id: str) -> str:
    """The topmost run around a run, as far as runs have been put inside others; shortens the way to it."""
    top = run_id
    while top in tops:
        top = tops[top]
    while run_id in tops:
        tops[run_id], run_id = top, tops[run_id]
    return top


def _place(runs: Mapping[str, Run]) -> None:
    """Set each run's execution, and a start where no event says one."""
    tops = sorted((run for run in runs.values() if run.above is None), key=lambda run: run.run_id)
    pending = [*tops]
    ordered: list[Run] = []
    while pending:
        run = pending.pop()
        ordered.append(run)
        pending += run.children
    for run in ordered:
        if not run.is_workflow:
            assert run.above is not None  # noqa: S101
            run.execution = run.above.execution
    for run in reversed(ordered):
        if not run.is_told and run.children:
            run.started_ns = min([child.started_ns for child in run.children])


def name_of(run: Run) -> str:
    """The name of a step: its own, after that of the step around it if its job's name begins with that one's."""
    name, above = _own_name(run), run.told_above
    if above is None or above.execution is above or not run.job.startswith(f"{above.job}."):
        return name
    return f"{_own_name(above)}.{name}"


def _own_name(run: Run) -> str:
    """A task or node, else the job without the name of the job around it."""
    if run.facts is not None and run.facts.task_id and run.job_type in ("", "TASK"):
        return run.facts.task_id
    kind, _, rest = run.node.partition(".")
    node = rest.partition(".")[2]
    if node and kind == "test":
        # test.PROJECT.NAME.HASH; a test of the user's own has no hash.
        return node.partition(".")[0]
    if node and kind in ("model", "seed", "snapshot", "analysis") and run.job_type != "TEST":
        # model.PROJECT.NAME, or with a version NAME.v2
        return node
    outer = run.parent.name if run.parent is not None else ""
    if outer and run.job.startswith(f"{outer}.") and len(run.job) > len(outer) + 1:
        return run.job[len(outer) + 1 :]
    return _QUERY_ID.sub("query", run.job)


def steps_of(execution: Run, runs: Iterable[Run]) -> list[Step]:
    """The steps of an execution. ``runs``: those in it, without its own."""
    steps: dict[str, Step] = {}
    newest: dict[tuple[str, str], Step] = {}
    counts: dict[tuple[str, str], int] = defaultdict(int)
    for run in sorted(runs, key=lambda run: run.start_order):
        facts, outer = run.facts, run.told_above.run_id if run.told_above is not None else ""
        if facts is not None and facts.task_id and run.above is execution:
            index = facts.map_index if facts.map_index >= 0 else None
            key = f"{facts.task_id}[{facts.map_index}]"
            step = steps.get(key)
            if step is None:
                step = steps[key] = Step(execution, key, facts.task_id, index)
        else:
            place = (outer, run.job)
            before = newest.get(place)
            if before is not None and _is_retry(before.last, run):
                step = before
            else:
                key = f"{outer}/{run.namespace}/{run.job}/{counts[place]}"
                counts[place] += 1
                step = steps[key] = newest[place] = Step(execution, key, name_of(run))
        step.tries.append(run)
    for step in steps.values():
        step.tries.sort(key=lambda run: (number_of(run), *run.start_order))
        step.started_ns, step.ended_ns = step.first.started_ns, step.last.ended_ns or 0
    return list(steps.values())


def number_of(run: Run) -> int:
    """The number of a try that the engine says, else 0."""
    return run.facts.try_number if run.facts is not None else 0


def _is_retry(before: Run, run: Run) -> bool:
    """Whether a run of the same job in the same place is another try: the one before had failed when it started."""
    return before.end == "FAIL" and before.ended_ns is not None and before.ended_ns <= run.started_ns
