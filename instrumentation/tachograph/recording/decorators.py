"""Record plain Python: `workflow` and `step` around functions or blocks, without an engine.

They produce the same events, spans, metrics and timeline as the executor. Both work as decorators (with or without
arguments; on sync and async functions) and as ``with`` and ``async with`` blocks, nested and in threads. A step outside
any workflow is recorded as an execution of its own. What the code returns or raises never changes.

Dependencies between steps are inferred from the order they ran in; see `tachograph.inferred_dependencies`.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Generic, ParamSpec, TypeVar, overload

from tachograph.errors import DoNotRetry
from tachograph.expectation import expectation_of, step_expectation_of
from tachograph.identity import ExecutionRef, random01
from tachograph.names import clean_name, encodable
from tachograph.recording import callables, open_execution
from tachograph.recording.callables import Retry
from tachograph.recording.scopes import ExecutionScope, StepScope
from tachograph.workflow.definition import Backoff
from tachograph.workflow.reporter import current_reporter

_BACKOFF = Backoff()

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S", ExecutionScope, StepScope)


def _arguments(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any] | None:
    if not args and not kwargs:
        return None
    try:
        bound = inspect.signature(function).bind(*args, **kwargs).arguments
    except Exception:
        # A signature that cannot be read, or that the call does not fit: the call itself says so.
        return None
    return {name: value for name, value in bound.items() if name not in ("self", "cls")}


class _Block(Generic[S]):
    """A context manager, sync and async, that opens a new scope each time it is entered, and a decorator."""

    def __init__(self, name: str | None, inputs: Mapping[str, Any] | None, capture: bool) -> None:
        self._name = clean_name(name) if name is not None else None
        self._inputs = inputs
        self._capture = capture
        self._entered: dict[tuple[int, int], list[S]] = {}

    def _scope(self, name: str | None, inputs: Mapping[str, Any] | None) -> S:
        raise AssertionError

    def _retry(self) -> Retry | None:
        return None

    def __enter__(self) -> S:
        scope = self._scope(self._name, self._inputs)
        self._entered.setdefault(_here(), []).append(scope)
        return scope.__enter__()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        # Where it is left in another task than it was entered in, there is only one to leave.
        here = _here()
        key = here if here in self._entered else next(iter(self._entered), here)
        scopes = self._entered.get(key)
        if scopes:
            scope = scopes.pop()
            if not scopes:
                del self._entered[key]
            scope.__exit__(kind, error, tb)

    async def __aenter__(self) -> S:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, tb)

    @property
    def _innermost(self) -> S | None:
        scopes = self._entered.get(_here())
        return scopes[-1] if scopes else None

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Decorate a function of any kind: every call is recorded. Generators are recorded while they are iterated."""
        name = self._name or clean_name(callables.name_of(function))

        def build(args: tuple[Any, ...], kwargs: dict[str, Any]) -> S:
            inputs = self._inputs or (_arguments(function, args, kwargs) if self._capture else None)
            return self._scope(name, inputs)

        return callables.recorded(function, build, self._retry(), capture_result=self._capture)


def _here() -> tuple[int, int]:
    try:
        task = asyncio.current_task()
    except RuntimeError:
        task = None
    return threading.get_ident(), id(task) if task is not None else 0


class WorkflowRecorder(_Block[ExecutionScope]):
    """What `workflow` returns: a context manager, and a decorator for functions."""

    def __init__(
        self,
        name: str | None = None,
        *,
        workspace: str | None = None,
        version: str = "1",
        inputs: Mapping[str, Any] | None = None,
        capture: bool = True,
        schedule: str | None = None,
        timezone: str | None = None,
        grace: str | float | None = None,
        deadline: str | float | None = None,
        success_target: float | None = None,
    ) -> None:
        super().__init__(name, inputs, capture)
        self._workspace = clean_name(workspace) if workspace else None
        self._version = clean_name(version)
        self._expects = expectation_of(schedule, timezone, grace, deadline, success_target)

    def _scope(self, name: str | None, inputs: Mapping[str, Any] | None) -> ExecutionScope:
        return ExecutionScope(
            name or "workflow",
            workspace=self._workspace,
            version=self._version,
            inputs=inputs,
            expects=self._expects,
        )

    @property
    def execution(self) -> ExecutionRef | None:
        """The execution that is open where this is read, if the block was entered there."""
        scope = self._innermost
        return scope.execution if scope is not None else None


class StepRecorder(_Block[StepScope]):
    """What `step` returns: a context manager, and a decorator for functions."""

    def __init__(
        self,
        name: str | None = None,
        *,
        step_type: str = "task",
        max_retries: int = 0,
        backoff: Backoff = _BACKOFF,
        inputs: Mapping[str, Any] | None = None,
        capture: bool = True,
        deadline: str | float | None = None,
    ) -> None:
        super().__init__(name, inputs, capture)
        self._expects = step_expectation_of(deadline)
        self._step_type = encodable(clean_name(step_type), 40)
        self._max_retries = max_retries
        self._backoff = backoff

    def _scope(self, name: str | None, inputs: Mapping[str, Any] | None) -> StepScope:
        return StepScope(name or "step", step_type=self._step_type, inputs=inputs, expects=self._expects)

    def _retry(self) -> Retry | None:
        return self._delay if self._max_retries else None

    def _delay(self, attempt: int, error: Exception) -> float | None:
        if attempt > self._max_retries or isinstance(error, DoNotRetry):
            return None
        return self._backoff.delay_seconds(attempt, random01())

    def measure(self, name: str, value: float, unit: str = "") -> None:
        """Report a custom value of the step that is open where this is called; see `measure`."""
        if (scope := self._innermost) is not None:
            scope.measure(name, value, unit)

    def cost(self, usd: float = 0.0, tokens_in: int = 0, tokens_out: int = 0, model: str = "") -> None:
        """Report money and tokens spent by the step that is open where this is called; see `cost`."""
        if (scope := self._innermost) is not None:
            scope.cost(usd, tokens_in, tokens_out, model)

    def log(self, message: str, level: str = "info") -> None:
        """Record a log line of the step that is open where this is called; see `log`."""
        if (scope := self._innermost) is not None:
            scope.log(message, level)


@overload
def workflow(function: Callable[P, R], /) -> Callable[P, R]: ...
@overload
def workflow(
    name: str | None = None,
    *,
    workspace: str | None = None,
    version: str = "1",
    inputs: Mapping[str, Any] | None = None,
    capture: bool = True,
    schedule: str | None = None,
    timezone: str | None = None,
    grace: str | float | None = None,
    deadline: str | float | None = None,
    success_target: float | None = None,
) -> WorkflowRecorder: ...
def workflow(name: Any = None, **options: Any) -> Any:
    """Record a function or a block as a workflow.

    >>> @workflow
    ... def nightly(): ...
    >>> @workflow(name="nightly", workspace="team-a")
    ... async def nightly(): ...
    >>> @workflow(schedule="0 3 * * *", timezone="Europe/Berlin", grace="10m", deadline="1h")
    ... def nightly(): ...
    >>> with workflow("nightly"):
    ...     ...

    Args:
        name: the workflow's name (default: the function's).
        workspace: slug of its workspace (default: the process's; see `configure`).
        version: version of the workflow.
        inputs: recorded with the execution, summarised and masked (default: a decorated function's arguments).
        capture: False keeps a decorated function's arguments out of the record.
        schedule: when it should start: a cron expression, an alias (``@daily``), ``every 15m`` or ``learned``. This
            and what follows is what the service expects and says when it is not met; nothing is started by it.
        timezone: the schedule's time zone (default: UTC).
        grace: how late it may start: seconds, or a text such as ``10m``.
        deadline: how long it may take, in the same form.
        success_target: the fraction of executions that should complete.

    Raises ValueError for an expectation that cannot be read.
    """
    return WorkflowRecorder()(name) if callables.is_callable(name) else WorkflowRecorder(name, **options)


@overload
def step(function: Callable[P, R], /) -> Callable[P, R]: ...
@overload
def step(
    name: str | None = None,
    *,
    step_type: str = "task",
    max_retries: int = 0,
    backoff: Backoff = _BACKOFF,
    inputs: Mapping[str, Any] | None = None,
    capture: bool = True,
    deadline: str | float | None = None,
) -> StepRecorder: ...
def step(name: Any = None, **options: Any) -> Any:
    """Record a function or a block as a step of the enclosing workflow.

    >>> @step
    ... def load(path): ...
    >>> @step(name="load", max_retries=2)
    ... async def load(path): ...
    >>> with step("load") as load:
    ...     load.measure("rows", 1200)

    Args:
        name: the step's name (default: the function's).
        step_type: task, condition, parallel, sequential or agent.
        max_retries: how often a decorated function is retried after it raised (a block cannot be retried).
        backoff: how long to wait between attempts.
        inputs: recorded with the step, summarised and masked (default: a decorated function's arguments).
        capture: False keeps a decorated function's arguments and result out of the record.
        deadline: how long it may take, all attempts together: seconds, or a text such as ``10m``. The service says when
            it takes longer; nothing is stopped.

    Raises ValueError for a deadline that cannot be read.
    """
    return StepRecorder()(name) if callables.is_callable(name) else StepRecorder(name, **options)


def measure(name: str, value: float, unit: str = "") -> None:
    """Report a custom value of the current step. Outside any step it does nothing."""
    if (reporter := current_reporter.get()) is not None:
        reporter.measure(name, value, unit)


def cost(usd: float = 0.0, tokens_in: int = 0, tokens_out: int = 0, model: str = "") -> None:
    """Report money (US dollars) and tokens that the current step spent. Outside any step it does nothing."""
    if (reporter := current_reporter.get()) is not None:
        reporter.cost(usd, tokens_in, tokens_out, model)


def log(message: str, level: str = "info") -> None:
    """Record a log line of the current step (level debug, info, warning or error). Outside any step it does nothing."""
    if (reporter := current_reporter.get()) is not None:
        reporter.log(message, level)


def current_execution() -> ExecutionRef | None:
    """The execution that the calling code runs in, or None."""
    return open_execution.current_execution()
