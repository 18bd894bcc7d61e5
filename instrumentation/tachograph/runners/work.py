"""What travels to a worker and back when a step is done elsewhere, and how the worker does it.

A `Work` is an attempt of one step: the handler's name, what it reads, and the span that it continues. A `Done` is what
became of it: the output or the failure, what the handler reported (values, cost, log lines, steps inside the step), and
what it used of the machine. Both are JSON, so that a worker runs what is registered with it and nothing else.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec
from opentelemetry import context as otel_context
from opentelemetry.propagate import extract

from tachograph.clock import AnchoredClock
from tachograph.errors import DoNotRetry
from tachograph.events import (
    Event,
    Failure,
    StepCost,
    StepEvent,
    StepFinished,
    StepLines,
    StepLogged,
    StepMeasured,
    StepRetrying,
    StepStacks,
)
from tachograph.identity import StepRef
from tachograph.recording import line_buffers, log_handler
from tachograph.recording.line_buffers import MAX_LINES
from tachograph.resources import Resources, cleaned
from tachograph.spans.propagation import propagation
from tachograph.stacks.passing_on import StackBox
from tachograph.summary import failure as describe
from tachograph.summary import is_clean_exit
from tachograph.workflow.attempts import StepAttempts
from tachograph.workflow.context import StepContext
from tachograph.workflow.handlers import Handler, HandlerRegistry
from tachograph.workflow.reporter import Reporter, current_reporter
from tachograph.workflow.runner import FailedElsewhere, FailedElsewhereForGood
from tachograph.workflow.step_counts import StepCounts

VERSION: Final = 1
MAX_BYTES: Final = 8 << 20
"""Bytes of a `Work` or a `Done`. What is larger belongs into a storage of its own, and its place into the message."""
LOST: Final = "WorkerLost"
"""The type of the failure of an attempt whose worker is gone."""


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt of a step, for a worker.

    Attributes:
        outputs: of the steps that it waited for, of those that these waited for, and so on, by name.
        headers: ``traceparent`` and others, of the step's span.
        attempt_started_ns: when the executor sent it, unix nanoseconds.
    """

    version: int = VERSION
    handler: str
    step: StepRef
    attempt: int
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    config: dict[str, Any]
    headers: dict[str, str]
    attempt_started_ns: int


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a `Work`.

    Attributes:
        failure: None if it did not fail. With ``is_final``, another attempt would fail too.
        events: what the handler reported, and the steps inside it.
        worker: the process that did it, as ``name``.
    """

    version: int = VERSION
    output: Any = None
    failure: Failure | None = None
    is_final: bool = False
    events: list[StepEvent] = []
    resources: Resources | None = None
    worker: str = ""


_read_work: Final = msgspec.json.Decoder(Work).decode
_read_done: Final = msgspec.json.Decoder(Done).decode
_read_stacks: Final = msgspec.json.Decoder(list[StepStacks]).decode
_encode: Final = msgspec.json.Encoder().encode


def work_of(
    handler: Handler, context: StepContext, headers: Mapping[str, str] | None = None, limit: int = MAX_BYTES
) -> bytes:
    """The message for a worker, of at most ``limit`` bytes. ``headers``: default those of the current span.

    Raises `DoNotRetry` if what the step reads is not JSON, or too large."""
    outputs = getattr(context.outputs, "before", None)
    work = Work(
        handler=handler.name,
        step=context.step,
        attempt=context.attempt,
        inputs=dict(context.inputs),
        outputs=dict(context.outputs) if outputs is None else outputs(context.step),
        config=dict(context.config),
        headers=dict(headers if headers is not None else context.propagation()),
        attempt_started_ns=context.attempt_started_ns,
    )
    return _encoded(work, f'what step "{context.step.name}" reads', limit)


def perform(
    body: bytes | str,
    handlers: HandlerRegistry,
    worker: str = "",
    stops: Callable[[BaseException], bool] = lambda error: isinstance(error, KeyboardInterrupt),
    limit: int = MAX_BYTES,
    box: StackBox | None = None,
) -> bytes:
    """Do a `Work` in this process and thread; the `Done`.

    ``worker``: the name of the process. ``stops``: what is raised to stop the process, and not by the handler; nothing
    else is raised here. ``box``: for stacks that are asked for meanwhile.
    """
    try:
        work = _read_work(body)
    except msgspec.MsgspecError as error:
        return _encode(_refused(f"this worker cannot read the work: {error}; is it older than the service?", worker))
    if work.version > VERSION:
        return _encode(
            _refused(f"this worker is older than the service: it knows no work of version {work.version}", worker)
        )
    handler = handlers.find(work.handler)
    if handler is None:
        known = ", ".join(handlers.names())
        return _encode(
            _refused(f'the worker has no handler "{work.handler}" (it has {known}); start it with --handlers', worker)
        )
    if not handlers.is_allowed(handler):
        return _encode(
            _refused(f'handler "{work.handler}" is off in the worker; start it with {handler.how_to_allow}', worker)
        )
    log_handler.install_from_environment()
    done = _done(work, handler, worker, stops, box or StackBox())
    try:
        return _encoded(done, f'what step "{work.step.name}" returned', limit, smaller=_smaller(done))
    except DoNotRetry as error:
        unsent = msgspec.structs.replace(
            done, output=None, failure=describe(error, stack=False), is_final=True, events=[]
        )
        return _encode(unsent)


def lost(worker: str, reason: str) -> bytes:
    """The `Done` of an attempt whose worker is gone."""
    return _encode(Done(failure=Failure(LOST, reason), worker=worker))


def finish(body: bytes | str, context: StepContext) -> Any:
    """The output of a step from its `Done`, once everything that it reported is reported here.

    Raises `FailedElsewhere` if the step failed, and `DoNotRetry` if the message cannot be read.
    """
    try:
        done = _read_done(body)
    except msgspec.MsgspecError as error:
        raise DoNotRetry(f"the worker's answer cannot be read: {error}; is it newer than the service?") from None
    _relay(done.events, context)
    if done.resources is not None:
        context.resources = cleaned(done.resources)
    if done.failure is not None:
        raise (FailedElsewhereForGood if done.is_final else FailedElsewhere)(done.failure)
    return done.output


def stacks_message(events: Sequence[StepStacks]) -> bytes:
    """Stacks that a worker tells of while it does an attempt, as a message."""
    return _encode(events)


def relay_stacks(body: bytes | str, context: StepContext) -> None:
    """Record here what a worker tells in a `stacks_message`. Raises `ValueError` if that cannot be read."""
    _relay(_read_stacks(body), context)


def _relay(events: Sequence[StepEvent], context: StepContext) -> None:
    for event in events:
        if _is_own(event, context.step):
            context.relay(event)


def _is_own(event: StepEvent, step: StepRef) -> bool:
    """Whether a worker may tell of it: a report of the step, or something inside it."""
    if event.step.execution.execution_id != step.execution.execution_id:
        return False
    if event.step.step_id == step.step_id:
        return isinstance(event, StepLogged | StepMeasured | StepCost | StepLines | StepStacks)
    return event.step.parent_step_id is not None


def _refused(reason: str, worker: str) -> Done:
    return Done(failure=Failure("DoNotRetry", reason), is_final=True, worker=worker)


def _smaller(done: Done) -> Done | None:
    """The same without what was logged and sampled; None if nothing was."""
    events = [event for event in done.events if not isinstance(event, StepLines | StepStacks)]
    return msgspec.structs.replace(done, events=events) if len(events) < len(done.events) else None


def _encoded(value: Any, what: str, limit: int, *, smaller: Any = None) -> bytes:
    try:
        body = _encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise DoNotRetry(f"{what} is not JSON, so no worker can get it: {error}") from None
    if len(body) > limit and smaller is not None:
        return _encoded(smaller, what, limit)
    if len(body) > limit:
        raise DoNotRetry(
            f"{what} takes {len(body) / (1 << 20):.3g} MiB, more than the {limit / (1 << 20):.2g} MiB that go to a "
            "worker and back; store it, and pass on where it is"
        )
    return body


def _done(work: Work, handler: Handler, worker: str, stops: Callable[[BaseException], bool], box: StackBox) -> Done:
    events: list[StepEvent] = []
    lines: deque[StepLines] = deque()

    def keep(event: Event) -> None:
        if isinstance(event, StepLines):
            # Those that would be kept: a step may log for hours.
            lines.append(event)
            while len(lines) > 1 and sum(len(each.lines) for each in lines) - len(lines[0].lines) >= MAX_LINES:
                lines.popleft()
        elif isinstance(event, StepStacks):
            box.put(event)
        elif isinstance(event, StepEvent):
            if isinstance(event, StepFinished | StepRetrying):
                line_buffers.end_attempt(event)
            events.append(event)

    attempts = StepAttempts(work.step, work.attempt_started_ns)
    attempts.attempt = work.attempt
    attempts.attempt_started_ns = work.attempt_started_ns
    reporter = Reporter(attempts, keep, AnchoredClock(), counts := StepCounts())
    context = StepContext(
        work.step,
        attempt=work.attempt,
        inputs=work.inputs,
        outputs=work.outputs,
        config=work.config,
        reporter=reporter,
        carrier=propagation,
    )
    span = otel_context.attach(extract(work.headers))
    current = current_reporter.set(reporter)
    output: Any = None
    failure: Failure | None = None
    is_final = False
    try:
        context.start_measuring()
        try:
            output = _called(handler, context)
        finally:
            context.stop_measuring()
    except BaseException as error:
        if stops(error):
            raise
        output = None
        if not is_clean_exit(error):
            failure, is_final = describe(error), issubclass(type(error), DoNotRetry)
    finally:
        reporter.is_open = False
        line_buffers.end_step(work.step)
        current_reporter.reset(current)
        otel_context.detach(span)
        counts.close_open_steps(reporter.clock())
    return Done(
        output=output,
        failure=failure,
        is_final=is_final,
        events=[*events, *lines, *box.profiles()],
        resources=context.resources,
        worker=worker,
    )


def _called(handler: Handler, context: StepContext) -> Any:
    result = handler.function(context)
    if not inspect.isawaitable(result):
        return result

    async def awaited() -> Any:
        return await result

    return asyncio.run(awaited())
