"""Records one command: as a run with one step, or as a step of the recorded command around it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tachograph.variables import WORKSPACE_VARIABLE
from tachograph_exporter.command import events
from tachograph_exporter.command.child import Ended, Line
from tachograph_exporter.command.delivery import Courier
from tachograph_exporter.command.events import Event, Step
from tachograph_exporter.command.notes import ENDING, MAX_STEPS, Note, Notes

STEP_VARIABLE = "TACHOGRAPH_STEP"
"""Tells the commands inside a recorded command which step they are in; as JSON."""
_MAX_DEPENDENCIES = 32
MAX_LIVE_BYTES = 8 << 20
"""About how many bytes of output are told of while the command runs: they wait in the spool, and in memory."""
_LIVE_BYTES = 64 << 10
"""Bytes of the lines that are told of at once."""
_LINE_BYTES, _EVENT_BYTES = 100, 1000
"""About what a line and an event are, besides their text."""
_ABANDONED = {"type": "Abandoned", "message": "still running when its run ended"}


def recording(
    command: Sequence[str], name: str, environment: Mapping[str, str], clock: Callable[[], int],
    say: Callable[[str], None],
) -> Recording:  # fmt: skip
    """The recording of a command that is about to start."""
    outer = _outer(environment)
    if outer is not None:
        inner = InnerRecording(command, name, environment, clock, say, outer)
        if inner.is_recorded:
            return inner
    return RunRecording(command, name, environment, clock, say)


def _outer(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """What the recorded command around this one says of its step; None: there is none, or it has ended."""
    try:
        outer = json.loads(environment.get(STEP_VARIABLE, ""))
        is_there = Notes(outer["notes"]).is_there
        return outer if is_there and {"execution", "step", "started_ns"} <= outer.keys() else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


class Recording:
    """The attempts of one command. Nothing here raises, and nothing holds up the command."""

    step: Step

    def __init__(self, command: Sequence[str], name: str, clock: Callable[[], int], say: Callable[[str], None]) -> None:
        self.name = name
        self._clock = clock
        self._inputs = events.masked_command(command)
        self._courier = Courier(say)
        self._attempt = 0
        self._first_ns = self._attempt_ns = self._ended_ns = 0
        self._run_ns = self._backoff_ns = self._last_backoff_ns = 0
        self._is_between = False
        self._told = 0
        self._live_bytes = 0
        self._notes = Notes("")

    def environment(self) -> dict[str, str]:
        """What to add to the environment of the command."""
        ref = self.step.ref
        trace = f"00-{ref['execution']['trace_id']}-{ref['span_id']}-01"
        context = {
            "execution": ref["execution"],
            "step": {"id": ref["step_id"], "span_id": ref["span_id"], "order": ref["step_order"]},
            "started_ns": self._attempt_ns,
            "notes": self._notes.path,
        }
        return {"TRACEPARENT": trace, STEP_VARIABLE: json.dumps(context)}

    def began(self) -> None:
        """An attempt begins now."""
        now = self._clock()
        self._is_between = False
        self._attempt += 1
        self._told = 0
        self._attempt_ns = now
        if self._attempt == 1:
            self._first_ns = now
        else:
            self._last_backoff_ns = now - self._ended_ns
            self._backoff_ns += self._last_backoff_ns
        start = events.started(self.step, now, self._attempt, self._inputs, self._last_backoff_ns)
        self._courier.put([*self._before(now), start])
        if self._attempt == 1:
            self._courier.begin(self._heartbeat())

    def _before(self, _now: int) -> list[Event]:
        return []

    def _heartbeat(self) -> Event | None:
        return None

    def retrying(self, ended: Ended, lines: Sequence[Line], delay: float, timeout: float | None) -> None:
        """An attempt ended, and another one is due."""
        now = self._note_end()
        event: Event = {
            "event": "step_retrying", "step": self.step.ref, "time_ns": now, "attempt": self._attempt,
            "status": "timeout" if ended.timed_out else "failed", "started_ns": self._attempt_ns,
            "delay_ns": round(delay * 1e9), "failure": events.failure_of(ended, lines, timeout),
            "backoff_ns": self._last_backoff_ns, **self._used(ended),
        }  # fmt: skip
        if self._attempt == 1:
            event |= events.first_waits(self.step, self._first_ns)
        self._courier.put([*self._logged(lines), event])
        self._is_between = True

    def finished(self, ended: Ended, lines: Sequence[Line], timeout: float | None, stopped_by: int) -> None:
        """The last attempt ended."""
        now = self._clock() if self._is_between else self._note_end()
        if self._is_between:
            self._backoff_ns += now - self._ended_ns
        status = events.status_of(ended, stopped_by)
        failure = events.failure_of(ended, lines, timeout)
        event: Event = {
            "event": "step_finished", "step": self.step.ref, "time_ns": now, "status": status, "attempt": self._attempt,
            "started_ns": self._first_ns, "attempt_started_ns": self._attempt_ns,
            **events.first_waits(self.step, self._first_ns),
            "backoff_ns": self._backoff_ns, "run_ns": self._run_ns, "last_backoff_ns": self._last_backoff_ns,
            "inputs": self._inputs, "output": events.output_of(ended), **self._used(ended),
            **({"failure": failure} if failure is not None else {}),
            **({"between_attempts": True} if self._is_between else {}),
        }  # fmt: skip
        self._courier.put([*self._logged(lines), event, *self._after(now, status, failure)])

    def _after(self, _now: int, _status: str, _failure: Event | None) -> list[Event]:
        return []

    def _note_end(self) -> int:
        now = self._clock()
        self._run_ns += now - self._attempt_ns
        self._ended_ns = now
        return now

    def tell(self, lines: Sequence[Line]) -> None:
        """Tell of lines of the attempt that runs. What is told like this has a bound: the end tells the last ones."""
        if self._live_bytes >= MAX_LIVE_BYTES:
            return
        new = [line for line in lines if line.number > self._told]
        size = 0
        for i in range(len(new) - 1, -1, -1):
            size += len(new[i].text) + _LINE_BYTES
            if size > _LIVE_BYTES:
                # The last ones; those before them may come with the end.
                del new[: i + 1]
                break
        self._live_bytes += min(size, _LIVE_BYTES) + _EVENT_BYTES
        self._courier.put(events.logged(self.step, new, self._attempt))
        if new:
            self._told = new[-1].number

    def _logged(self, lines: Sequence[Line]) -> list[Event]:
        return events.logged(self.step, lines, self._attempt)

    def _used(self, ended: Ended) -> Event:
        return {"resources": ended.resources} if ended.resources is not None else {}

    def close(self) -> None:
        """Deliver what is left, for a moment."""
        self._courier.end()


class RunRecording(Recording):
    """A command that is a run of its own, with one step of the same name."""

    def __init__(
        self, command: Sequence[str], name: str, environment: Mapping[str, str], clock: Callable[[], int],
        say: Callable[[str], None],
    ) -> None:  # fmt: skip
        super().__init__(command, name, clock, say)
        clean = events.clean(name)
        workspace = events.clean(environment.get(WORKSPACE_VARIABLE, "").strip() or "default")
        self._execution = execution = events.new_execution(workspace, clean, _trace_parent(environment))
        now = clock()
        ref = {
            "execution": execution,
            "step_id": events.derived_id(execution["workflow_id"], clean),
            "name": clean,
            "span_id": os.urandom(8).hex(),
            "parent_span_id": execution["span_id"],
            "step_type": events.STEP_TYPE,
            "step_order": 1,
        }
        self.step = Step(ref, now, now)
        self._started_ns = now
        journal = self._courier.journal
        if journal is not None:
            notes = Notes(f"{journal.directory}/{execution['execution_id']}{ENDING}")
            if notes.create():
                self._notes = notes

    def _before(self, now: int) -> list[Event]:
        if self._attempt > 1:
            return []
        process = events.process_identity()
        return [
            {"event": "execution_started", "execution": self._execution, "time_ns": self._started_ns, "step_count": 1,
             "inputs": self._inputs, "process": process},
        ]  # fmt: skip

    def _heartbeat(self) -> Event:
        return {"event": "heartbeat", "execution": self._execution}

    def _after(self, now: int, status: str, failure: Event | None) -> list[Event]:
        counts, lost = {status: 1}, list[Event]()
        if self._notes.is_there:
            with self._notes.locked() as notes:
                self._notes.remove()
                for note in notes.begun:
                    ended = notes.ended.get(note["id"])
                    if ended is None:
                        lost.append(_abandoned(note, now))
                    outcome = ended["status"] if ended is not None else "lost"
                    counts[outcome] = counts.get(outcome, 0) + 1
        path = {"step_id": self.step.ref["step_id"], "step": self.step.ref["name"], "duration_ns": now - self._first_ns}
        finished: Event = {
            "event": "execution_finished", "execution": self._execution, "time_ns": now, "status": status,
            "started_ns": self._started_ns, "step_count": sum(counts.values()),
            "completed_step_count": counts.get("completed", 0),
            "failed_step_count": counts.get("failed", 0) + counts.get("timeout", 0),
            "work_ns": self._run_ns, "critical_path": [path], "inputs": self._inputs,
            **({"failure": failure} if failure is not None else {}),
        }  # fmt: skip
        return [*lost, finished]

    def close(self) -> None:
        """Deliver what is left, for a moment."""
        self._notes.remove()
        super().close()


def _abandoned(note: Note, now: int) -> Event:
    """The end of a step that did not say that it ended."""
    started = note["start"]
    return {
        "event": "step_finished", "step": note["step"], "time_ns": max(now, started), "status": "lost", "attempt": 1,
        "started_ns": started, "attempt_started_ns": started, "run_ns": max(0, now - started), "failure": _ABANDONED,
        **note["waits"],
    }  # fmt: skip


class InnerRecording(Recording):
    """A command that is a step of the recorded command around it. ``is_recorded``: whether that takes more steps."""

    def __init__(
        self, command: Sequence[str], name: str, environment: Mapping[str, str], clock: Callable[[], int],
        say: Callable[[str], None], outer: dict[str, Any],
    ) -> None:  # fmt: skip
        super().__init__(command, name, clock, say)
        self.is_recorded = False
        self._notes = Notes(outer["notes"])
        clean, execution, around = events.clean(name), outer["execution"], outer["step"]
        try:
            with self._notes.locked() as notes:
                if len(notes.begun) >= MAX_STEPS:
                    say(f"not recorded as a step: the run around it has {MAX_STEPS} steps")
                    return
                index = notes.repetitions(around["id"], clean)
                before = notes.before(around["id"])[-_MAX_DEPENDENCIES:]
                key = f"{around['id']}/{clean}" + (f"#{index}" if index else "")
                ref = {
                    "execution": execution,
                    "step_id": events.derived_id(execution["workflow_id"], key),
                    "name": clean,
                    "span_id": os.urandom(8).hex(),
                    "parent_span_id": around["span_id"],
                    "step_type": events.STEP_TYPE,
                    "step_order": around["order"] + 1 + sum(note["parent"] == around["id"] for note in notes.begun),
                    "index": index,
                    "depends_on": [note["id"] for note in before],
                    "links": [note["step"]["span_id"] for note in before],
                    "parent_step_id": around["id"],
                }
                ready_ns = max([note["end"] for note in before], default=outer["started_ns"])
                self.step = Step(ref, outer["started_ns"], ready_ns)
                now = clock()
                waits = events.first_waits(self.step, now)
                notes.add({"id": ref["step_id"], "parent": around["id"], "name": clean, "start": now, "step": ref,
                           "waits": waits})  # fmt: skip
                self.is_recorded = True
        except (OSError, KeyError, TypeError, ValueError):
            return

    def _after(self, now: int, status: str, _failure: Event | None) -> list[Event]:
        try:
            with self._notes.locked() as notes:
                notes.add({"id": self.step.ref["step_id"], "status": status, "end": now})
        except OSError:
            return []  # The run around it is over.
        return []


def _trace_parent(environment: Mapping[str, str]) -> tuple[str, str] | None:
    """The (trace id, span id) of ``TRACEPARENT`` (https://www.w3.org/TR/trace-context/#traceparent-header)."""
    parts = environment.get("TRACEPARENT", "").strip().lower().split("-")
    if len(parts) < 4 or parts[0] == "ff" or len(parts[1]) != 32 or len(parts[2]) != 16:
        return None
    if not all(set(part) <= set("0123456789abcdef") for part in parts[1:3]) or not int(parts[1], 16) * int(
        parts[2], 16
    ):
        return None
    return parts[1], parts[2]


def anchored_clock() -> Callable[[], int]:
    """Unix nanoseconds that do not step back, as `tachograph.clock.AnchoredClock`: the machine's monotonic clock."""
    offset = time.time_ns() - time.perf_counter_ns()
    return lambda: offset + time.perf_counter_ns()
