"""A run carried to another process: who it is, packed small, and opened there."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, Final, Generic, ParamSpec, TypeVar

import msgspec
from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags
from opentelemetry.trace.propagation import set_span_in_context

from tachograph.clock import AnchoredClock
from tachograph.folding import Limits, Repetitions, RowCount, limits
from tachograph.identity import ExecutionRef, StepRef
from tachograph.recording import log_handler, open_execution, setup
from tachograph.recording.open_execution import OpenExecution
from tachograph.recording.relay import RelayAddress
from tachograph.stacks import guests
from tachograph.workflow.attempts import StepAttempts
from tachograph.workflow.reporter import Reporter
from tachograph.workflow.step_counts import StepCounts

P = ParamSpec("P")
R = TypeVar("R")


class CarriedRun(msgspec.Struct, frozen=True, kw_only=True):
    """An open execution, and the step inside which work was submitted, if any.

    Attributes:
        execution: the execution.
        started_ns: when it started, or the step's attempt.
        clock_offset_ns: of the execution's clock.
        step: the step around the work, None for work of the workflow itself.
        attempt: the step's attempt.
        frontier: what a step of the workflow itself would depend on; see `OpenExecution.frontier`.
        relay: where the submitting process takes events; None: it takes none.
        database: URL of where to record when the submitting process is gone.
        token: the token for that, if it was given explicitly.
        workspace: the submitting process's workspace.
        limits: of steps with rows of their own; see `tachograph.folding`.
        log_level: from which level log records are kept; None: they are not.
    """

    execution: ExecutionRef
    started_ns: int
    clock_offset_ns: int
    step: StepRef | None = None
    attempt: int = 1
    frontier: list[tuple[int, str, str]] = []
    relay: RelayAddress | None = None
    database: str | None = None
    token: str | None = None
    workspace: str = "default"
    limits: Limits = Limits()
    log_level: int | None = None


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(CarriedRun).decode


def current() -> CarriedRun | None:
    """What to carry of the run that the calling code belongs to; None: it belongs to none."""
    reporter, run = open_execution.current()
    if reporter is None and run is None:
        return None
    clock = reporter.clock if reporter is not None else run.clock  # type: ignore[union-attr]
    if not isinstance(clock, AnchoredClock):
        return None
    recorder = setup.get_recorder()
    common: dict[str, Any] = {
        "clock_offset_ns": clock.offset_ns,
        "relay": recorder.relay_address(),
        "database": setup.database_url(),
        "token": setup.service_token(),
        "workspace": setup.default_workspace(),
        "limits": limits(),
        "log_level": log_handler.installed_level(),
    }
    if reporter is not None:
        open_execution.watch(reporter)
        attempts = reporter.attempts
        return CarriedRun(
            execution=reporter.step.execution,
            started_ns=attempts.attempt_started_ns,
            step=reporter.step,
            attempt=attempts.attempt,
            **common,
        )
    assert run is not None  # noqa: S101
    return CarriedRun(execution=run.ref, started_ns=run.started_ns, frontier=run.frontier(), **common)


@contextlib.contextmanager
def entered(carried: CarriedRun) -> Iterator[None]:
    """The code inside belongs to the carried run. Nothing that goes wrong in opening it reaches the code."""
    tokens, otel_token = _open(carried)
    reporter = _come(carried)
    try:
        yield
    finally:
        if reporter is not None:
            guests.go(reporter)
            setup.get_recorder().leave(carried.execution)
        open_execution.restore(tokens)
        otel_context.detach(otel_token)


def _come(carried: CarriedRun) -> Reporter | None:
    """What the calling thread does from now on is a part of the carried step, whose stacks may be asked for."""
    reporter, _ = open_execution.current()
    if reporter is not None:
        guests.come(reporter)
        setup.get_recorder().visit(carried.execution)
    return reporter


def _open(carried: CarriedRun) -> tuple[open_execution.Tokens, Any]:
    recorder = setup.recorder_for_child(
        carried.relay, carried.database, carried.workspace, carried.token, carried.log_level
    )
    clock = AnchoredClock(carried.clock_offset_ns)
    span_id = carried.execution.span_id
    run: OpenExecution | None = None
    reporter: Reporter | None = None
    if carried.step is not None:
        attempts = StepAttempts.resumed(
            carried.step,
            attempt=carried.attempt,
            started_ns=carried.started_ns,
            attempt_started_ns=carried.started_ns,
            since_ns=carried.started_ns,
            is_running=True,
        )
        counts = StepCounts()
        reporter = Reporter(attempts, recorder, clock, counts)
        reporter.process = 0  # Not this one: ids of steps inside are this process's own.
        is_folded = carried.step.folded_as is not None
        within = carried.limits._replace(repetitions=0) if is_folded else carried.limits
        reporter.repetitions, counts.rows = _repetitions_in(carried.execution, carried.step.step_id, within)
        span_id = carried.step.span_id
    else:
        run = OpenExecution(carried.execution, recorder, clock, None, started_ns=carried.started_ns)
        run.continue_from(carried.frontier)
        run.repetitions, run.counts.rows = _repetitions_in(carried.execution, "", carried.limits)
    around = SpanContext(int(carried.execution.trace_id, 16), int(span_id, 16), True, TraceFlags(TraceFlags.SAMPLED))
    otel_token = otel_context.attach(set_span_in_context(NonRecordingSpan(around), Context()))
    return open_execution.enter(run, reporter), otel_token


_repetitions: OrderedDict[tuple[str, str], tuple[Repetitions, RowCount]] = OrderedDict()
_MAX_REPETITIONS: Final = 1_000


def _repetitions_in(execution: ExecutionRef, step_id: str, within: Limits) -> tuple[Repetitions, RowCount]:
    """How often each step was repeated here, over all the work of one execution that this process was given."""
    key = (execution.execution_id, step_id)
    pair = _repetitions.get(key)
    if pair is None:
        pair = _repetitions[key] = (Repetitions(within), RowCount())
    _repetitions.move_to_end(key)
    if len(_repetitions) > _MAX_REPETITIONS:
        _repetitions.popitem(last=False)
    return pair


class CarriedCall(Generic[P, R]):
    """A function that runs inside a carried run, in whatever process it is called. Pickles as small as its function."""

    def __init__(self, function: Callable[P, R], run: CarriedRun | bytes) -> None:
        self._function = function
        self._run = run if isinstance(run, bytes) else _encode(run)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        with entered(_decode(self._run)):
            return self._function(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return CarriedCall, (self._function, self._run)


class Envelope:
    """Pickled with a `multiprocessing.Process`: unpickling it opens the run in the new process, for all it does."""

    def __init__(self, run: CarriedRun) -> None:
        self._run = _encode(run)

    def __reduce__(self) -> tuple[Any, ...]:
        return _open_for_good, (self._run,)


def _open_for_good(run: bytes) -> None:
    carried = _decode(run)
    _open(carried)
    _come(carried)


def envelope() -> Envelope | None:
    """The envelope for the run that the calling code belongs to."""
    carried = current()
    return Envelope(carried) if carried is not None else None
