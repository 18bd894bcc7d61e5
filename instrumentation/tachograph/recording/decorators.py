"""Record plain Python: `workflow` and `step` around functions or blocks, without an engine.

They produce the same events, spans, metrics and timeline as the executor. Both work as decorators (with or without
arguments; on sync and async functions) and as ``with`` and ``async with`` blocks, nested and in threads. A step outside
any workflow is recorded as an execution of its own. What the code returns or raises never changes.

Dependencies between steps are inferred from the order they ran in; see `tachograph.inferred_dependencies`.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import time
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar, cast, overload

from tachograph.errors import DoNotRetry
from tachograph.identity import ExecutionRef, random01
from tachograph.recording import scopes
from tachograph.recording.scopes import ExecutionScope, StepScope
from tachograph.workflow.definition import Backoff
from tachograph.workflow.reporter import current_reporter

_BACKOFF = Backoff()

P = ParamSpec("P")
R = TypeVar("R")


def _arguments(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any] | None:
    if not args and not kwargs:
        return None
    try:
        bound = inspect.signature(function).bind(*args, **kwargs).arguments
    except (TypeError, ValueError):
        return None
    return {name: value for name, value in bound.items() if name not in ("self", "cls")}


class WorkflowRecorder(ExecutionScope):
    """What `workflow` returns: a context manager, and a decorator for functions."""

    def __init__(
        self,
        name: str | None = None,
        *,
        workspace: str | None = None,
        version: str = "1",
        inputs: Mapping[str, Any] | None = None,
        capture: bool = True,
    ) -> None:
        super().__init__(name or "workflow", workspace=workspace, version=version, inputs=inputs)
        self._name = name
        self._capture = capture

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Decorate a function, sync or async: every call is an execution."""
        name = self._name or function.__name__

        def scope(args: tuple[Any, ...], kwargs: dict[str, Any]) -> ExecutionScope:
            inputs = self._inputs or (_arguments(function, args, kwargs) if self._capture else None)
            return ExecutionScope(name, workspace=self._workspace, version=self._version, inputs=inputs)

        return _wrap(function, scope)


class StepRecorder(StepScope):
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
    ) -> None:
        super().__init__(name or "step", step_type=step_type, inputs=inputs)
        self._name = name
        self._capture = capture
        self._max_retries = max_retries
        self._backoff = backoff

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Decorate a function, sync or async: every call is a step."""
        name = self._name or function.__name__

        def scope(args: tuple[Any, ...], kwargs: dict[str, Any]) -> StepScope:
            inputs = self._inputs or (_arguments(function, args, kwargs) if self._capture else None)
            return StepScope(name, step_type=self._step_type, inputs=inputs)

        def delay(attempt: int, error: Exception) -> float | None:
            if attempt > self._max_retries or isinstance(error, DoNotRetry):
                return None
            return self._backoff.delay_seconds(attempt, random01())

        return _wrap(function, scope, delay if self._max_retries else None, capture_result=self._capture)


def _wrap(
    function: Callable[P, R],
    build_scope: Callable[[tuple[Any, ...], dict[str, Any]], ExecutionScope | StepScope],
    delay: Callable[[int, Exception], float | None] | None = None,
    *,
    capture_result: bool = True,
) -> Callable[P, R]:
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(
            f"{function.__qualname__} is a generator; decorate the function that iterates over it, or use a with block"
        )

    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def run_async(*args: P.args, **kwargs: P.kwargs) -> Any:
            with build_scope(args, kwargs) as scope:
                attempt = 1
                while True:
                    try:
                        result = await function(*args, **kwargs)
                        break
                    except Exception as error:
                        wait_seconds = delay(attempt, error) if delay is not None else None
                        if wait_seconds is None or not isinstance(scope, StepScope):
                            raise
                        scope.retrying(error, wait_seconds)
                    await asyncio.sleep(wait_seconds)
                    attempt += 1
                    scope.try_again()
                if capture_result:
                    scope.result = result
                return result

        return cast("Callable[P, R]", run_async)

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with build_scope(args, kwargs) as scope:
            attempt = 1
            while True:
                try:
                    result = function(*args, **kwargs)
                    break
                except Exception as error:
                    wait_seconds = delay(attempt, error) if delay is not None else None
                    if wait_seconds is None or not isinstance(scope, StepScope):
                        raise
                    scope.retrying(error, wait_seconds)
                time.sleep(wait_seconds)
                attempt += 1
                scope.try_again()
            if capture_result:
                scope.result = result
            return result

    return run


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
) -> WorkflowRecorder: ...
def workflow(name: Any = None, **options: Any) -> Any:
    """Record a function or a block as a workflow.

    >>> @workflow
    ... def nightly(): ...
    >>> @workflow(name="nightly", workspace="team-a")
    ... async def nightly(): ...
    >>> with workflow("nightly"):
    ...     ...

    Args:
        name: the workflow's name (default: the function's).
        workspace: slug of its workspace (default: the process's; see `configure`).
        version: version of the workflow.
        inputs: recorded with the execution, summarised and masked (default: a decorated function's arguments).
        capture: False keeps a decorated function's arguments out of the record.
    """
    return WorkflowRecorder()(name) if callable(name) else WorkflowRecorder(name, **options)


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
    """
    return StepRecorder()(name) if callable(name) else StepRecorder(name, **options)


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
    return scopes.current_execution()
