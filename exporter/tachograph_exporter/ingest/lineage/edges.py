"""What steps waited for, and steps that no event is of: by what the engine says, else by datasets."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Final

from tachograph.clock import NS
from tachograph_exporter.ingest.lineage.airflow import AirflowFacts
from tachograph_exporter.ingest.lineage.runs import Run, Step
from tachograph_exporter.ingest.lineage.vocabulary import STATES

NEVER_STARTED: Final = frozenset({"skipped", "upstream_failed", "removed", "not_started"})
MAX_DEPENDENCIES: Final = 1_000
"""Dependencies that are listed of one step: those that ended last."""
MAX_EDGES: Final = 20_000
"""Edges that are listed into all instances of a mapped task, unless these are more than `MIN_DEPENDENCIES` of each."""
MIN_DEPENDENCIES: Final = 32


def complete(execution: Run, steps: list[Step]) -> None:
    """Add the steps that only the engine's own list of states tells of, and set what each step waited for."""
    tasks = [step for step in steps if step.tries and step.last.facts is not None and step.last.facts.task_id]
    by_task: dict[str, list[Step]] = defaultdict(list)
    for step in tasks:
        facts = step.last.facts
        if facts is not None and step.last.told_above is (execution if execution.is_told else None):
            by_task[facts.task_id].append(step)
            execution.instances[facts.task_id, step.index] = step
    steps += _by_state(execution, by_task)
    for same in by_task.values():
        most = min(MAX_DEPENDENCIES, max(MIN_DEPENDENCIES, MAX_EDGES // len(same)))
        last: dict[str, tuple[Step, ...]] = {}
        for step in same:
            _set_upstream(execution, step, by_task, last, most)
    _set_times(execution, [step for same in by_task.values() for step in same])
    _by_datasets([step for step in steps if not step.knows_dependencies and step.tries])


def _by_state(execution: Run, by_task: dict[str, list[Step]]) -> list[Step]:
    """Give the tasks of a DAG the states that its run's last event lists; returns steps for tasks without events."""
    states = execution.states
    added: list[Step] = []
    if states is None or execution.ended_ns is None:
        return added
    for task_id, told in states.states.items():
        # A task may be left running, or deferred: that is not how it ended.
        word = told if told in STATES else ""
        same = by_task.get(task_id)
        if same is None:
            step = Step(execution, f"{task_id}[-1]", task_id)
            step.is_untold, step.word = True, word or "not_started"
            step.duration_ns = round(states.durations.get(task_id, 0.0) * NS)
            by_task[task_id] = [step]
            added.append(step)
        elif len(same) == 1 and same[0].index is None and word:
            # There is one state a task; of a mapped one it is that of any instance.
            same[0].word = word
    return added


def _set_upstream(
    execution: Run, step: Step, by_task: Mapping[str, list[Step]], last: dict[str, tuple[Step, ...]], most: int
) -> None:
    """Set what a task waited for: at most so many steps. ``last``: by task, those of its instances that ended last."""
    facts = step.last.facts if step.tries else None
    dag = execution.dag
    downstream = dag.downstream if dag is not None else None
    upstream: set[str] = set()
    task_id = facts.task_id if facts is not None else step.name
    if downstream is not None:
        step.knows_dependencies = True
        upstream.update(_upstream_of(execution, downstream).get(task_id, ()))
    if facts is not None and facts.upstream is not None:
        step.knows_dependencies = True
        upstream.update(facts.upstream)
    depends_on: list[Step] = []
    for other_id in sorted(upstream - {task_id}):
        others = by_task.get(other_id, [])
        if others and _is_of_one_index(others[0], step, dag):
            same_index = execution.instances.get((other_id, step.index))
            depends_on += [same_index] if same_index is not None else []
        else:
            if other_id not in last:
                last[other_id] = _last_ones(others, most)
            depends_on += last[other_id]
    step.depends_on = _last_ones(depends_on, most)


def _last_ones(steps: list[Step], most: int) -> tuple[Step, ...]:
    if len(steps) > most:
        steps = sorted(steps, key=lambda step: (step.ended_ns, step.key))[-most:]
    return tuple(steps)


def _upstream_of(execution: Run, downstream: Mapping[str, Sequence[str]]) -> Mapping[str, Sequence[str]]:
    if not execution.upstream:
        for task_id, followers in downstream.items():
            for follower in followers:
                execution.upstream.setdefault(follower, []).append(task_id)
    return execution.upstream


def _is_of_one_index(other: Step, step: Step, dag: AirflowFacts | None) -> bool:
    """Whether the instances of two tasks are of one mapped group, so that each waits for its own index only."""
    facts = step.last.facts if step.tries else None
    theirs = other.last.facts if other.tries else None
    if facts is None or theirs is None or step.index is None or other.index is None:
        return False
    if facts.is_mapped or theirs.is_mapped:
        return False
    ours, their = _group_of(facts, dag), _group_of(theirs, dag)
    return bool(ours) and ours.partition(".")[0] == their.partition(".")[0]


def _group_of(facts: AirflowFacts, dag: AirflowFacts | None) -> str:
    return facts.group or (dag.groups.get(facts.task_id, "") if dag is not None else "")


def _set_times(execution: Run, steps: Sequence[Step]) -> None:
    """Place steps without events where they can only have been: after what they waited for."""
    end_ns = execution.ended_ns
    if end_ns is None:
        return
    open_steps = {id(step): step for step in steps if step.is_untold}
    for step in _dependencies_first(list(open_steps.values()), open_steps):
        ends = [other.ended_ns for other in step.depends_on if other.ended_ns]
        met_ns = min(max([execution.started_ns, *ends]), end_ns)
        if step.word in NEVER_STARTED:
            step.started_ns = step.ended_ns = met_ns
        else:
            step.started_ns, step.ended_ns = met_ns, min(met_ns + (step.duration_ns or 0), end_ns)


def _dependencies_first(steps: Sequence[Step], among: Mapping[int, Step]) -> list[Step]:
    """The steps, each after those of them that it depends on, whatever cycles there are."""
    ordered: list[Step] = []
    seen: set[int] = set()
    for first in steps:
        pending: list[tuple[Step, bool]] = [(first, False)]
        while pending:
            step, is_ready = pending.pop()
            if is_ready:
                ordered.append(step)
                continue
            if id(step) in seen:
                continue
            seen.add(id(step))
            pending.append((step, True))
            pending += [(other, False) for other in step.depends_on if id(other) in among and id(other) not in seen]
    return ordered


def _by_datasets(steps: Sequence[Step]) -> None:
    """A step that reads what another one beside it has written depends on that one."""
    beside: dict[int, list[Step]] = defaultdict(list)
    for step in steps:
        beside[id(step.first.told_above)].append(step)
    for group in beside.values():
        if not any(run.inputs or run.outputs for step in group for run in step.tries):
            continue
        writers: dict[str, list[Step]] = defaultdict(list)
        for step in group:
            for dataset in dict.fromkeys(name for run in step.tries for name in run.outputs):
                writers[dataset].append(step)
        for step in group:
            step.knows_dependencies = True
            waited_for: dict[int, Step] = {}
            for dataset in dict.fromkeys(name for run in step.tries for name in run.inputs):
                earlier = [w for w in writers.get(dataset, ()) if w is not step and w.started_ns < step.started_ns]
                ended = [w for w in earlier if w.ended_ns and w.ended_ns <= step.started_ns]
                waited_for |= {id(writer): writer for writer in ended or earlier}
            step.depends_on = _last_ones(list(waited_for.values()), MAX_DEPENDENCIES)
