"""Compares what the service shows of a recording with what happened according to the engine (`recordings/README.md`).

`differences` returns what differs as plain sentences; what the truth lists as unknowable is not compared.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

RECORDINGS: Final = Path(__file__).parent / "recordings"

Truth = Mapping[str, Any]
"""A ``NAME.truth.json``."""
Entry = Mapping[str, Any]
"""A step of a timeline as the API gives it, or a step of the truth."""


def read_truth(name: str) -> Truth:
    truth: Truth = json.loads((RECORDINGS / f"{name}.truth.json").read_bytes())
    return truth


def differences(
    truth: Truth,
    timelines: Iterable[Mapping[str, Any]],
    *,
    tolerance_seconds: float = 1.0,
    aside: Sequence[Entry] = (),
    offsets: list[float] | None = None,
) -> list[str]:
    """What the timelines of a recording (as ``/timeline`` gives them) say otherwise than its truth.

    ``tolerance_seconds``: how far times may be apart. ``aside``: more that need not be right, as ``unknowable`` has it.
    ``offsets``: gets how many seconds later than the truth's each start and end of a step and attempt is shown.
    """
    unknowable = _Unknowable([*truth["unknowable"], *aside])
    pairs, rest = _pair_executions(truth["executions"], list(timelines))
    problems = []
    for number, (execution, timeline) in enumerate(pairs):
        name = execution["workflow"] or f"executions/{number}"
        if timeline is None:
            if not unknowable(number):
                problems.append(f"{name}: there is no such execution")
            continue
        comparison = _Comparison(number, execution, timeline, unknowable, tolerance_seconds, offsets)
        comparison.child_ids = {
            f"executions/{i}": child["execution_id"] for i, (_, child) in enumerate(pairs) if child is not None
        }
        problems += [f"{name}: {problem}" for problem in comparison.problems()]
        if (parent := execution.get("parent")) is not None:
            outer = pairs[int(parent.removeprefix("executions/"))][1]
            outer_id = outer["execution_id"] if outer is not None else None
            if timeline["parent_execution_id"] != outer_id:
                problems.append(f"{name}: its parent is not {parent}")
        elif timeline["parent_execution_id"] is not None and truth.get("engine") != "any":
            problems.append(f"{name}: it has a parent")
    problems += [f"{timeline['workflow_name']}: there was no such execution" for timeline in rest]
    return problems


class _Unknowable:
    """The entries of ``unknowable``."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._entries = entries

    def __call__(self, execution: int, *, step: Entry | None = None, field: str | None = None) -> bool:
        """Whether a field of an execution or step, or without ``field`` all of it, need not be right."""
        for entry in self._entries:
            if entry.get("execution", execution) != execution or "edge" in entry:
                continue
            if "step" in entry:
                if step is None or entry["step"] not in (step["name"], reference(step)):
                    continue
            elif step is not None or (field is not None and "field" not in entry and "execution" not in entry):
                continue
            if entry.get("field", field) == field:
                return True
        return False

    def edge(self, execution: int, source: str, target: str) -> bool:
        """Whether an edge need not be right."""
        edges = [e["edge"] for e in self._entries if "edge" in e and e.get("execution", execution) == execution]
        patterns = [re.escape(edge).replace(r"\*", ".*") for edge in edges]
        return any(re.fullmatch(pattern, f"{source}->{target}") for pattern in patterns)


def reference(step: Entry) -> str:
    """A step of the truth as its edges name it."""
    return step["name"] if step.get("index") is None else f"{step['name']}#{step['index']}"


def _pair_executions(
    executions: Sequence[Entry], timelines: list[Mapping[str, Any]]
) -> tuple[list[tuple[Entry, Mapping[str, Any] | None]], list[Mapping[str, Any]]]:
    """The timeline of each execution, and the timelines that are left: by run id, then name, then in order of start."""
    rest = sorted(timelines, key=lambda timeline: timeline["started_at"] or "")
    chosen: dict[int, Mapping[str, Any]] = {}

    def fits_id(execution: Entry, timeline: Mapping[str, Any]) -> bool:
        return bool(timeline["execution_id"] == execution.get("run_id"))

    def fits_name(execution: Entry, timeline: Mapping[str, Any]) -> bool:
        return timeline["workflow_name"] in (execution["workflow"], *execution.get("workflow_also", ()))

    for fits in (fits_id, fits_name, lambda _execution, _timeline: True):
        for number, execution in enumerate(executions):
            if number in chosen:
                continue
            timeline = next((timeline for timeline in rest if fits(execution, timeline)), None)
            if timeline is not None:
                chosen[number] = timeline
                rest.remove(timeline)
    return [(execution, chosen.get(number)) for number, execution in enumerate(executions)], rest


class _Pair(NamedTuple):
    step: Entry
    entry: Entry | None


class _Comparison:
    """One execution."""

    def __init__(
        self, number: int, execution: Entry, timeline: Mapping[str, Any], unknowable: _Unknowable, tolerance: float,
        offsets: list[float] | None,
    ) -> None:  # fmt: skip
        self._offsets = offsets
        self._number = number
        self._execution = execution
        self._timeline = timeline
        self._unknowable = unknowable
        self._tolerance = tolerance
        self._steps: list[Entry] = list(execution.get("steps", ()))
        self._pairs: list[_Pair] = []
        self.child_ids: dict[str, str] = {}
        """The ids of all executions, as the truth calls them."""
        self._names: dict[str, str] = {}
        """What the truth calls each step of the timeline, by id."""

    def problems(self) -> Iterator[str]:
        yield from self._execution_problems()
        if "steps" in self._execution:
            yield from self._pair_steps()
            for step, entry in self._pairs:
                if entry is not None:
                    yield from self._step_problems(step, entry)
            yield from self._edge_problems()
            yield from self._critical_path_problems()

    def _execution_problems(self) -> Iterator[str]:
        execution, timeline = self._execution, self._timeline
        name = timeline["workflow_name"]
        is_named = name in (execution["workflow"], *execution.get("workflow_also", ()))
        if not is_named and not self._unknowable(self._number, field="workflow"):
            yield f"the workflow is called {name!r}"
        if name in execution.get("workflow_not", ()):
            yield f"the workflow is called {name!r}, which is surely wrong"
        yield from self._status(execution, timeline["status"], None)
        yield from self._times(execution, timeline, None)
        if "queued_at" in execution and not self._unknowable(self._number, field="queued_at"):
            queued = _seconds(execution["started_at"]) - _seconds(execution["queued_at"])
            shown = timeline["queued_seconds"]
            if shown is None or abs(shown - queued) > self._tolerance:
                yield f"it was queued for {shown} s instead of {queued:.3f}"
        if execution.get("error") and not _tells(timeline, execution["error"]):
            yield f"the error is {_error(timeline)!r} instead of {execution['error']!r}"
        entries = timeline["step_timeline"]
        costs = [entry["cost"] for entry in entries if entry["cost"] is not None]
        for field, key in (("tokens_in", "tokens_in"), ("tokens_out", "tokens_out"), ("cost_usd", "usd")):
            if field in execution and not self._unknowable(self._number, field=field):
                total = sum(cost[key] or 0 for cost in costs)
                if abs(total - execution[field]) > 1e-9:
                    yield f"{field} is {total} instead of {execution[field]}"

    def _status(self, known: Entry, status: str, step: Entry | None) -> Iterator[str]:
        if status in known.get("status_not", ()):
            yield f"the status is {status}, which is surely wrong"
        elif self._unknowable(self._number, step=step, field="status"):
            # That it was stopped or killed, no span may tell; what its own span calls good is another matter.
            if status == "completed" and known["status"] not in ("completed", "skipped", "failed"):
                yield "the status is completed, though nothing says so"
        elif status not in (known["status"], *known.get("status_or", ())):
            yield f"the status is {status} instead of {known['status']}"

    def _times(self, known: Entry, shown: Entry, step: Entry | None) -> Iterator[str]:
        for field, key in (("started_at", "started_at"), ("ended_at", "completed_at")):
            if field not in known or self._unknowable(self._number, step=step, field=field):
                continue
            if self._offsets is not None and step is not None and shown[key] is not None:
                self._offsets.append(_seconds(shown[key]) - _seconds(known[field]))
            if shown[key] is None or abs(_seconds(shown[key]) - _seconds(known[field])) > self._tolerance:
                yield f"{key} is {shown[key]} instead of {known[field]}"
        is_measured = "duration_seconds" in known and "started_at" not in known and "duration_seconds" in shown
        if is_measured and not self._unknowable(self._number, step=step, field="duration_seconds"):
            duration = shown["duration_seconds"]
            if duration is None or abs(duration - known["duration_seconds"]) > self._tolerance:
                yield f"it took {duration} s instead of {known['duration_seconds']}"

    def _pair_steps(self) -> Iterator[str]:
        """Find the entry of each step, and say which are missing or too many."""
        rest = list(self._timeline["step_timeline"])
        for name in dict.fromkeys(step["name"] for step in self._steps):
            yield from self._pair_name([step for step in self._steps if step["name"] == name], rest)
        for entry in rest:
            yield f"there was no step {_shown_name(entry)}"

    def _pair_name(self, steps: Sequence[Entry], rest: list[Entry]) -> Iterator[str]:
        candidates = [entry for entry in rest if any(self._fits(step, entry) for step in steps)]
        left = list(candidates)
        open_steps = []
        for step in steps:
            # An index first: names are the same. A step that is no instance may be shown with the index 0.
            fitting = [entry for entry in left if self._fits(step, entry) and self._has_index(step, entry)]
            entry = next((entry for entry in fitting if entry["status"] == step["status"]), None)
            entry = entry or next(iter(fitting), None)
            if entry is None:
                open_steps.append(step)
            else:
                left.remove(entry)
                self._pair(step, entry, rest)
        for step in open_steps:
            are_alike = self._unknowable(self._number, step=step, field="index")
            entry = self._nearest(step, left) if are_alike else None
            if entry is not None:
                left.remove(entry)
                self._pair(step, entry, rest)
            elif step.get("merge_ok") and self._is_merged(steps):
                continue
            else:
                self._pairs.append(_Pair(step, None))
                if not (step.get("optional") or self._unknowable(self._number, step=step)):
                    yield f"there is no step {reference(step)}"

    def _pair(self, step: Entry, entry: Entry, rest: list[Entry]) -> None:
        rest.remove(entry)
        self._pairs.append(_Pair(step, entry))
        self._names[entry["step_id"]] = reference(step)

    def _fits(self, step: Entry, entry: Entry) -> bool:
        if (child := step.get("child_run")) is not None and entry["child_execution_id"] == self.child_ids.get(child):
            # It may be called like its workflow, of which nobody may know the name.
            return True
        return entry["step_name"] in (step["name"], *step.get("also", ()))

    def _has_index(self, step: Entry, entry: Entry) -> bool:
        if step.get("index") is None:
            return True
        if self._unknowable(self._number, step=step, field="index"):
            return False
        if entry["step_name"] != step["name"] and entry["step_name"] in step.get("also", ()):
            # The other name has the index in it, or is one of several of the same name.
            return entry["step_name"].endswith(f"[{step['index']}]") or str(entry.get("step_index")) == str(
                step["index"]
            )
        return str(entry.get("step_index")) == str(step["index"])

    def _nearest(self, step: Entry, entries: Sequence[Entry]) -> Entry | None:
        candidates = [entry for entry in entries if self._fits(step, entry)]
        if "started_at" not in step or not candidates:
            return candidates[0] if candidates else None
        start = _seconds(step["started_at"])
        end = _seconds(step["ended_at"])

        def distance(entry: Entry) -> float:
            shown = (entry["started_at"], entry["completed_at"])
            if None in shown:
                return float("inf")
            return abs(_seconds(shown[0]) - start) + abs(_seconds(shown[1]) - end)

        return min(candidates, key=distance)

    def _is_merged(self, steps: Sequence[Entry]) -> bool:
        """Whether the steps are shown as attempts of one."""
        shown = [entry for step, entry in self._pairs if step in steps and entry is not None]
        return len(shown) == 1 and len(shown[0]["attempts"]) == len(steps)

    def _step_problems(self, step: Entry, entry: Entry) -> Iterator[str]:
        if self._unknowable(self._number, step=step):
            return
        name = reference(step)
        merged = sum(1 for other in self._steps if other["name"] == step["name"] and other.get("merge_ok"))
        is_merged = merged > 1 and len(entry["attempts"]) == merged
        problems = [] if is_merged else [*self._status(step, entry["status"], step), *self._times(step, entry, step)]
        if not is_merged and not self._unknowable(self._number, step=step, field="attempts"):
            if len(entry["attempts"]) != step["attempts"]:
                problems.append(f"it has {len(entry['attempts'])} attempts instead of {step['attempts']}")
            else:
                problems += self._try_problems(step, entry)
        if (
            "queued_at" in step
            and "started_at" in step
            and not self._unknowable(self._number, step=step, field="queued_at")
        ):
            queued = _seconds(step["started_at"]) - _seconds(step["queued_at"])
            shown = sum(attempt["queue_seconds"] for attempt in entry["attempts"][:1])
            if abs(shown - queued) > self._tolerance:
                problems.append(f"it was queued for {shown:.3f} s instead of {queued:.3f}")
        if "scheduled_at" in step and not self._unknowable(self._number, step=step, field="scheduled_at"):
            late = _seconds(step["started_at"]) - _seconds(step["scheduled_at"])
            # It has no attempt while not all of its spans have arrived.
            shown = sum(attempt["queue_seconds"] for attempt in entry["attempts"][:1])
            if abs(shown - late) > self._tolerance:
                problems.append(f"it was queued for {shown:.3f} s instead of {late:.3f}")
            early = _seconds(step["scheduled_at"]) - _seconds(step["asked_at"])
            scheduled = entry["wait"]["scheduled"] if entry["wait"] is not None else 0.0
            if abs(scheduled - early) > self._tolerance:
                problems.append(f"it was scheduled for {scheduled:.3f} s instead of {early:.3f}")
        is_known = step.get("error") and not is_merged and not self._unknowable(self._number, step=step, field="error")
        if is_known and not _tells(entry, step["error"]):
            problems.append(f"the error is {_error(entry)!r} instead of {step['error']!r}")
        problems += self._cost_problems(step, entry, is_merged=is_merged)
        if (parent := step.get("parent")) is not None and not self._is_within(entry, parent):
            problems.append(f"it is not within {parent}")
        if (child := step.get("child_run")) is not None and entry["child_execution_id"] is None:
            problems.append(f"it does not name {child}")
        yield from (f"{name}: {problem}" for problem in problems)

    def _try_problems(self, step: Entry, entry: Entry) -> Iterator[str]:
        for known, attempt in zip(step.get("tries", ()), entry["attempts"], strict=False):
            number = known["attempt"]
            if attempt["status"] != known["status"] and not self._unknowable(self._number, step=step, field="tries"):
                yield f"attempt {number} is {attempt['status']} instead of {known['status']}"
            yield from (f"attempt {number}: {problem}" for problem in self._times(known, attempt, step))
            if known.get("error") and not _tells(attempt, known["error"]):
                yield f"attempt {number}: the error is {_error(attempt)!r} instead of {known['error']!r}"

    def _cost_problems(self, step: Entry, entry: Entry, *, is_merged: bool) -> Iterator[str]:
        cost = entry["cost"] or {}
        for field, key in (("tokens_in", "tokens_in"), ("tokens_out", "tokens_out"), ("cost_usd", "usd")):
            if field not in step or is_merged or self._unknowable(self._number, field=field):
                continue
            if abs((cost.get(key) or 0) - step[field]) > 1e-9:
                yield f"{field} is {cost.get(key)} instead of {step[field]}"

    def _is_within(self, entry: Entry, parent: str) -> bool:
        """Whether a step is shown within another one, or within what that is within, if that one need not be shown."""
        shown = {reference(step): other for step, other in self._pairs}
        known = {reference(step): step for step in self._steps}
        while (step := known.get(parent)) is not None and shown.get(parent) is None and step.get("optional"):
            parent = step.get("parent", "")
        outer = shown.get(parent)
        above = entry["parent_step_id"]
        by_id = {other["step_id"]: other for other in self._timeline["step_timeline"]}
        while above is not None and (outer is None or above != outer["step_id"]):
            name = self._names.get(above)
            if name is None or not known[name].get("optional"):
                return False
            above = by_id[above]["parent_step_id"]
        return (above is None) is (outer is None)

    def _edge_problems(self) -> Iterator[str]:
        shown = {reference(step): entry for step, entry in self._pairs if entry is not None}
        by_name = {reference(step): step for step in self._steps}
        for step, entry in self._pairs:
            if entry is None or "depends_on" not in step or self._unknowable(self._number, step=step):
                continue
            name = reference(step)
            known = self._with_detours(step, shown)
            actual = {self._names.get(other, other) for other in self._with_detours_shown(entry)}
            if step.get("merge_ok"):
                known, actual = set(), set()
            for source in sorted(known - actual):
                if not self._unknowable.edge(self._number, source, name):
                    yield f"{name}: it is not shown to wait for {source}"
            for source in sorted(actual - known):
                # A container may be shown or not; what it waited for, and what waited for it, is the program's order.
                is_open = step.get("optional") or by_name.get(source, {}).get("optional")
                if not is_open and not self._unknowable.edge(self._number, source, name):
                    yield f"{name}: it did not wait for {source}"

    def _critical_path_problems(self) -> Iterator[str]:
        """Whether the critical path is one by the engine's own times and edges, where all of them are known."""
        outer = {reference(step): step for step in self._steps if "parent" not in step and step["attempts"]}
        if self._timeline["completed_at"] is None or not all(map(self._is_timed, outer.values())):
            return
        names = [self._names.get(part["step_id"], part["step_name"]) for part in self._timeline["critical_path"]]
        if not names:
            if outer:
                yield "there is no critical path"
            return

        def ended(name: str) -> float:
            return _seconds(outer[name]["ended_at"])

        if strange := [name for name in names if name not in outer]:
            yield f"the critical path has {', '.join(strange)}"
            return
        if ended(names[-1]) < max(map(ended, outer)) - self._tolerance:
            yield f"the critical path ends with {names[-1]}, which did not end last"
        for before, name in zip([None, *names], names, strict=False):
            begun = _seconds(outer[name]["started_at"]) + self._tolerance
            waits = [other for other in self._that_ran(outer[name], outer) if ended(other) <= begun]
            last = max(map(ended, waits), default=0.0)
            if before is None:
                if waits:
                    yield f"the critical path begins with {name}, which waited for {', '.join(sorted(waits))}"
            elif before not in waits or ended(before) < last - self._tolerance:
                yield f"the critical path has {before} before {name}"

    def _that_ran(self, step: Entry, outer: Mapping[str, Entry]) -> list[str]:
        """What a step waited for; in place of one that never ran, what that one waited for."""
        known = {reference(other): other for other in self._steps}
        result: dict[str, None] = {}
        pending, seen = list(step["depends_on"]), set[str]()
        while pending:
            name = pending.pop()
            if name in outer:
                result[name] = None
            elif name not in seen:
                pending += known.get(name, {}).get("depends_on", ())
            seen.add(name)
        return list(result)

    def _is_timed(self, step: Entry) -> bool:
        """Whether the truth has all that a critical path needs of a step, and nothing of it is unknowable."""
        if step.get("optional") or step.get("merge_ok") or not {"started_at", "ended_at", "depends_on"} <= step.keys():
            return False
        fields = (None, "started_at", "ended_at", "status", "attempts", "index")
        edges = [(source, reference(step)) for source in map(reference, self._steps)]
        return not (
            any(self._unknowable(self._number, step=step, field=field) for field in fields)
            or any(self._unknowable.edge(self._number, source, target) for source, target in edges)
        )

    def _with_detours(self, step: Entry, shown: Mapping[str, Entry]) -> set[str]:
        """What a step waited for; in place of a step that need not be shown, and is not, what that one waited for."""
        known = {reference(other): other for other in self._steps}
        result: set[str] = set()
        pending, seen = list(step["depends_on"]), set[str]()
        while pending:
            name = pending.pop()
            if name in seen:
                continue
            seen.add(name)
            other = known.get(name)
            if other is not None and name not in shown and (
                other.get("optional") or other.get("merge_ok") or self._unknowable(self._number, step=other)
            ):  # fmt: skip
                pending += other.get("depends_on", ())
            else:
                result.add(name)
        return result

    def _with_detours_shown(self, entry: Entry) -> set[str]:
        """Ids of the steps an entry waited for, without plumbing that nobody need show."""
        by_id = {other["step_id"]: other for other in self._timeline["step_timeline"]}
        known = {reference(step): step for step in self._steps}
        result: set[str] = set()
        pending, seen = list(entry["depends_on"]), set[str]()
        while pending:
            step_id = pending.pop()
            if step_id in seen:
                continue
            seen.add(step_id)
            step = known.get(self._names.get(step_id, ""))
            if step is not None and step.get("optional") and "child_run" not in step:
                pending += by_id[step_id]["depends_on"]
            else:
                result.add(step_id)
        return result


def _shown_name(entry: Entry) -> str:
    index = entry.get("step_index")
    return entry["step_name"] if index is None else f"{entry['step_name']}#{index}"


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _error(shown: Entry) -> str:
    return f"{shown['error_type']}: {shown['error_message']}"


def _tells(shown: Entry, error: str) -> bool:
    """Whether an error (type and message) is shown, the type with or without its module."""
    kind, _, message = error.partition(": ")
    name = str(shown["error_type"]).rpartition(".")[2]
    # Where spans have no type, it is `Error`.
    return name in (kind.rpartition(".")[2], "Error") and message in str(shown["error_message"])
