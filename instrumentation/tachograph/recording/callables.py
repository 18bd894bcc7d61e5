"""Callables of every kind, recorded from their call to the end of their work.

The work of a plain function ends when it returns, that of a coroutine when it has been awaited, that of a generator
when it is exhausted or closed. Between the pieces of such work the caller's context does not belong to it.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from types import CoroutineType
from typing import Any, ParamSpec, TypeAlias, TypeVar, cast

from tachograph.recording.scopes import ExecutionScope, StepScope

P = ParamSpec("P")
R = TypeVar("R")

AnyScope: TypeAlias = ExecutionScope | StepScope
BuildScope: TypeAlias = Callable[[tuple[Any, ...], dict[str, Any]], AnyScope]
Retry: TypeAlias = Callable[[int, Exception], float | None]
"""Given the number of the attempt that raised, and what: seconds to wait before the next one, or None: no other."""


def innermost(function: Any) -> Any:
    """The function that does the work: of a partial what it calls, of another object its ``__call__``."""
    while isinstance(function, functools.partial):
        function = function.func
    if inspect.isroutine(function) or inspect.isclass(function):
        return function
    return getattr(type(function), "__call__", function)  # noqa: B004


def is_callable(value: Any) -> bool:
    """Whether a decorator was given the function itself; a classmethod cannot be called, but stands for one."""
    return callable(value) or isinstance(value, classmethod)


def name_of(function: Any) -> str:
    """What a callable is called when nobody says."""
    while isinstance(function, functools.partial | staticmethod | classmethod):
        function = function.func if isinstance(function, functools.partial) else function.__func__
    name = getattr(function, "__name__", None)
    return name if isinstance(name, str) else type(function).__name__


def recorded(
    function: Callable[P, R], build_scope: BuildScope, retry: Retry | None, *, capture_result: bool
) -> Callable[P, R]:
    """``function``, with a scope around every call. What it returns, yields or raises never changes."""
    if isinstance(function, staticmethod | classmethod):
        inner = recorded(function.__func__, build_scope, retry, capture_result=capture_result)
        return cast("Callable[P, R]", type(function)(inner))
    work = innermost(function)
    call = _Call(function, build_scope, retry, capture_result)
    if inspect.iscoroutinefunction(work):
        wrapper = call.awaited()
    elif inspect.isasyncgenfunction(work):
        wrapper = call.iterated_async()
    elif inspect.isgeneratorfunction(work):
        wrapper = call.iterated()
    else:
        wrapper = call.called()
    updated = () if work is not function and not isinstance(function, functools.partial) else ("__dict__",)
    return cast("Callable[P, R]", functools.update_wrapper(wrapper, function, updated=updated))


class _Call:
    """How one decorated callable is called."""

    def __init__(self, function: Any, build_scope: BuildScope, retry: Retry | None, capture_result: bool) -> None:
        self._function = function
        self._build_scope = build_scope
        self._retry = retry
        self._captures = capture_result

    def _delay(self, scope: AnyScope, attempt: int, error: Exception) -> float | None:
        """Seconds until the next attempt, which is announced; None: the error stands."""
        delay = self._retry(attempt, error) if self._retry is not None else None
        if delay is not None and isinstance(scope, StepScope):
            scope.retrying(error, delay)
            return delay
        return None

    def called(self) -> Callable[..., Any]:
        function, build_scope, captures = self._function, self._build_scope, self._captures

        def run(*args: Any, **kwargs: Any) -> Any:
            scope = build_scope(args, kwargs)
            scope.is_plain = True
            scope.__enter__()
            attempt = 1
            try:
                while True:
                    try:
                        result = function(*args, **kwargs)
                        break
                    except Exception as error:
                        if (delay := self._delay(scope, attempt, error)) is None:
                            raise
                    time.sleep(delay)
                    attempt += 1
                    scope.try_again()  # type: ignore[union-attr]
            except BaseException as error:
                scope.__exit__(type(error), error, error.__traceback__)
                raise
            if type(result) is CoroutineType:
                # The caller goes on, and the work is done when somebody awaits it.
                scope.suspend()
                return self._finish(scope, result, attempt, args, kwargs)
            if captures:
                scope.result = result
            scope.__exit__(None, None, None)
            return result

        return run

    async def _finish(
        self, scope: AnyScope, coroutine: Coroutine[Any, Any, Any], attempt: int, args: Any, kwargs: Any
    ) -> Any:
        """Await what a plain function returned; the scope ends with it."""
        scope.resume()
        try:
            result = await self._attempts(scope, coroutine, attempt, args, kwargs)
        except BaseException as error:
            scope.__exit__(type(error), error, error.__traceback__)
            raise
        if self._captures:
            scope.result = result
        scope.__exit__(None, None, None)
        return result

    async def _attempts(
        self, scope: AnyScope, coroutine: Coroutine[Any, Any, Any], attempt: int, args: Any, kwargs: Any
    ) -> Any:
        while True:
            try:
                return await coroutine
            except Exception as error:
                if (delay := self._delay(scope, attempt, error)) is None:
                    raise
            await asyncio.sleep(delay)
            attempt += 1
            scope.try_again()  # type: ignore[union-attr]
            coroutine = self._function(*args, **kwargs)

    def awaited(self) -> Callable[..., Any]:
        async def run_async(*args: Any, **kwargs: Any) -> Any:
            scope = self._build_scope(args, kwargs)
            with scope:
                result = await self._attempts(scope, self._function(*args, **kwargs), 1, args, kwargs)
                if self._captures:
                    scope.result = result
                return result

        return run_async

    def iterated(self) -> Callable[..., Any]:
        def run_generator(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
            scope = self._build_scope(args, kwargs)
            with scope:
                attempt = items = 0
                generator = self._function(*args, **kwargs)
                step: Callable[[Any], Any] = generator.send
                value: Any = None
                while True:
                    try:
                        item = step(value)
                    except StopIteration as stop:
                        if self._captures:
                            scope.result = f"<{items} items>"
                        return stop.value
                    except Exception as error:
                        # Once something was yielded, doing it again would yield it twice.
                        attempt += 1
                        delay = self._delay(scope, attempt, error) if not items else None
                        if delay is None:
                            raise
                        time.sleep(delay)
                        scope.try_again()  # type: ignore[union-attr]
                        generator, value = self._function(*args, **kwargs), None
                        step = generator.send
                        continue
                    items += 1
                    scope.suspend()
                    try:
                        value, step = (yield item), generator.send
                    except GeneratorExit:
                        scope.resume()
                        generator.close()
                        raise
                    except BaseException as error:
                        value, step = error, generator.throw
                    scope.resume()

        return run_generator

    def iterated_async(self) -> Callable[..., Any]:
        async def run_async_generator(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
            scope = self._build_scope(args, kwargs)
            with scope:
                attempt = items = 0
                generator = self._function(*args, **kwargs)
                step: Callable[[Any], Any] = generator.asend
                value: Any = None
                while True:
                    try:
                        item = await step(value)
                    except StopAsyncIteration:
                        if self._captures:
                            scope.result = f"<{items} items>"
                        return
                    except Exception as error:
                        attempt += 1
                        delay = self._delay(scope, attempt, error) if not items else None
                        if delay is None:
                            raise
                        await asyncio.sleep(delay)
                        scope.try_again()  # type: ignore[union-attr]
                        generator, value = self._function(*args, **kwargs), None
                        step = generator.asend
                        continue
                    items += 1
                    scope.suspend()
                    try:
                        value, step = (yield item), generator.asend
                    except GeneratorExit:
                        scope.resume()
                        await generator.aclose()
                        raise
                    except BaseException as error:
                        value, step = error, generator.athrow
                    scope.resume()

        return run_async_generator
