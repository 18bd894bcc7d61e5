"""Records one command: as a run with one step, or as a step of the recorded command around it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from tachograph import recorded_command, spool_places
from tachograph.recorded_command import ENDING, MAX_STEPS, STEP_VARIABLE, Around, BegunStep, Note, Notes
from tachograph.variables import WORKSPACE_VARIABLE
from tachograph_exporter.command import events
from tachograph_exporter.command.child import Ended, Line
from tachograph_exporter.command.delivery import WAIT_SECONDS, Courier
from tachograph_exporter.command.events import Event

MAX_LIVE_BYTES = 8 << 20
"""About how many bytes of output are told of while the command runs: they wait in the spool, and in memory."""
_LIVE_BYTES = 64 << 10
"""Bytes of the lines that are told of at once."""
_LINE_BYTES, _EVENT_BYTES = 100, 1000
"""About what a line and an event are, besides their text."""
if TYPE_CHECKING:
    from tachograph_exporter.command.otlp import Export

_EXPORT_VARIABLES = (
    "OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
)  # fmt: skip
"""One of them is set where spans are asked for."""
_ABANDONED = {"type": "Abandoned", "message": "still running when its run ended"}


def recording(
    command: Sequence[str], name: str, environment: Mapping[str, str], clock: Callable[[], int],
    say: Callable[[str], None],
) -> Recording:  # fmt: skip
    """The recording of a command that is about to start."""
    outer = recorded_command.around(environment)
    if outer is not None:
        inner = InnerRecording(command, name, environment, clock, say, outer)
        if inner.is_recorded:
            return inner
    return RunRecording(command, name, environment, clock, say)


class Recording:
    """The attempts of one command. Nothing here raises, and nothing holds up the command."""

    step: BegunStep

    def __init__(
        self, command: Sequence[str], name: str, environment: Mapping[str, str], clock: Callable[[], int],
        say: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.name = name
        self._clock = clock
        self._inputs = events.masked_command(command)
        self._environment = environment
        self._export = _export(environment, say)
        self._courier = Courier(say, is_required=self._export is None)
        self._is_sampled = True
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
        flags = "01" if self._is_sampled else "00"
        trace = f"00-{ref['execution']['trace_id']}-{ref['span_id']}-{flags}"
        around = Around(
            ref["execution"], ref["step_id"], ref["span_id"], ref["step_order"], self._attempt_ns, self._notes.path,
            self._courier.destination,
        )  # fmt: skip
        return {"TRACEPARENT": trace, STEP_VARIABLE: around.to_text()}

    def _sample(self, trace_id: str, parent: TraceParent | None) -> None:
        """Decide whether spans are exported, as for the trace around this command."""
        around = parent.is_sampled if parent is not None else None
        self._is_sampled = around is not False
        if self._export is not None:
            self._is_sampled = self._export.is_sampled(self._environment, trace_id, around)
            if not self._is_sampled:
                self._export = None

    def _put(self, recorded: list[Event]) -> None:
        self._courier.put(recorded)
        if self._export is not None:
            self._export.add(recorded)

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
        self._put([*self._before(now), start])
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
            event |= self._waits()
        self._put([*self._logged(lines), event])
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
            **self._waits(),
            "backoff_ns": self._backoff_ns, "run_ns": self._run_ns, "last_backoff_ns": self._last_backoff_ns,
            "inputs": self._inputs, "output": events.output_of(ended), **self._used(ended),
            **({"failure": failure} if failure is not None else {}),
            **({"between_attempts": True} if self._is_between else {}),
        }  # fmt: skip
        self._put([*self._logged(lines), event, *self._after(now, status, failure)])

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
        before = [line for line in lines if line.number < new[0].number] if new else []
        self._courier.put(events.logged(self.step, new, self._attempt, before))
        if new:
            self._told = new[-1].number

    def _logged(self, lines: Sequence[Line]) -> list[Event]:
        return events.logged(self.step, lines, self._attempt)

    def _waits(self) -> Event:
        return recorded_command.first_waits(self.step.origin_ns, self.step.ready_ns, self._first_ns)

    def _used(self, ended: Ended) -> Event:
        return {"resources": ended.resources} if ended.resources is not None else {}

    def close(self) -> None:
        """Deliver what is left, for a moment."""
        if self._export is None:
            self._courier.end()
            return
        until = time.monotonic() + WAIT_SECONDS
        self._export.begin(WAIT_SECONDS)
        self._courier.end()
        self._export.end(until - time.monotonic())


class RunRecording(Recording):
    """A command that is a run of its own, with one step of the same name."""

    def __init__(
        self, command: Sequence[str], name: str, environment: Mapping[str, str], clock: Callable[[], int],
        say: Callable[[str], None],
    ) -> None:  # fmt: skip
        super().__init__(command, name, environment, clock, say)
        clean = events.clean(name)
        workspace = events.clean(environment.get(WORKSPACE_VARIABLE, "").strip() or "default")
        parent = _trace_parent(environment)
        ids = (parent.trace_id, parent.span_id) if parent is not None else None
        self._execution = execution = events.new_execution(workspace, clean, ids)
        may_have_steps = self._courier.journal is not None or self._export is not None
        self._sample(execution["trace_id"], parent)
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
        self.step = BegunStep(ref, now, now)
        self._started_ns = now
        directory = self._notes_directory() if may_have_steps else None
        if directory is not None:
            notes = Notes(f"{directory}/{execution['execution_id']}{ENDING}")
            if notes.create():
                self._notes = notes

    def _notes_directory(self) -> str | None:
        """Where commands inside note what they do; None: no directory can be written."""
        if self._courier.journal is not None and self._courier.journal.directory:
            return self._courier.journal.directory
        for directory in spool_places.default_directories():
            with contextlib.suppress(OSError):
                spool_places.make_private(directory)
                return str(directory)
        return None

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
        say: Callable[[str], None], outer: Around,
    ) -> None:  # fmt: skip
        super().__init__(command, name, environment, clock, say)
        self.is_recorded = False
        self._notes = Notes(outer.notes)
        try:
            begun = recorded_command.begin_step(
                outer, self._notes, events.clean(name), events.STEP_TYPE, clock, events.derived_id
            )
        except (OSError, KeyError, TypeError, ValueError):
            self._courier.give_up()
            return
        if begun is None:
            self._courier.give_up()
            say(f"not recorded as a step: the run around it has {MAX_STEPS} steps")
            return
        self.step = begun
        self.is_recorded = True
        parent = _trace_parent(environment)
        trace_id = outer.execution["trace_id"]
        self._sample(trace_id, parent if parent is not None and parent.trace_id == trace_id else None)

    def _after(self, now: int, status: str, _failure: Event | None) -> list[Event]:
        if not recorded_command.end_step(self._notes, self.step.ref["step_id"], status, now):
            self._export = None  # The run around it is over, and has exported this step as lost.
        return []


class TraceParent(NamedTuple):
    """What ``TRACEPARENT`` says (https://www.w3.org/TR/trace-context/#traceparent-header)."""

    trace_id: str
    span_id: str
    is_sampled: bool


def _trace_parent(environment: Mapping[str, str]) -> TraceParent | None:
    parts = environment.get("TRACEPARENT", "").strip().lower().split("-")
    if len(parts) < 4 or parts[0] == "ff" or [len(part) for part in parts[1:4]] != [32, 16, 2]:
        return None
    if not set("".join(parts[1:4])) <= set("0123456789abcdef"):
        return None
    if not int(parts[1], 16) or not int(parts[2], 16):
        return None
    return TraceParent(parts[1], parts[2], bool(int(parts[3], 16) & 1))


def _export(environment: Mapping[str, str], say: Callable[[str], None]) -> Export | None:
    """What exports the command's spans, if the environment asks for that; else nothing is imported."""
    if not any(environment.get(variable, "").strip() for variable in _EXPORT_VARIABLES):
        return None
    try:
        from tachograph_exporter.command import otlp

        collector = otlp.collector_of(environment)
        return otlp.Export(collector, say) if collector is not None else None
    except Exception as error:
        say(f"spans are not exported: {str(error) or type(error).__name__}")
        return None


def anchored_clock() -> Callable[[], int]:
    """Unix nanoseconds that do not step back, as `tachograph.clock.AnchoredClock`: the machine's monotonic clock."""
    offset = time.time_ns() - time.perf_counter_ns()
    return lambda: offset + time.perf_counter_ns()
