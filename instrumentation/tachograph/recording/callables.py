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
        def run(*args: Any, **kwargs: Any) -> Any:
            scope = self._build_scope(args, kwargs)
            with _Held(scope) as held:
                attempt = 1
                while True:
                    try:
                        result = self._function(*args, **kwargs)
                        break
                    except Exception as error:
                        if (delay := self._delay(scope, attempt, error)) is None:
                            raise
                    time.sleep(delay)
                    attempt += 1
                    scope.try_again()  # type: ignore[union-attr]
                if inspect.iscoroutine(result):
                    held.hand_over()
                    return self._finish(scope, result, attempt, args, kwargs)
                if self._captures:
                    scope.result = result
                return result

        return run

    async def _finish(
        self, scope: AnyScope, coroutine: Coroutine[Any, Any, Any], attempt: int, args: Any, kwargs: Any
    ) -> Any:
        """Await what a plain function returned; the scope ends with it."""
        with _Held(scope, is_suspended=True):
            result = await self._attempts(scope, coroutine, attempt, args, kwargs)
            if self._captures:
                scope.result = result
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
            with _Held(scope):
                result = await self._attempts(scope, self._function(*args, **kwargs), 1, args, kwargs)
                if self._captures:
                    scope.result = result
                return result

        return run_async

    def iterated(self) -> Callable[..., Any]:
        def run_generator(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
            scope = self._build_scope(args, kwargs)
            with _Held(scope):
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
            with _Held(scope):
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


class _Held:
    """Keeps a scope open for a block, or until it is handed over to somebody who will close it."""

    def __init__(self, scope: AnyScope, *, is_suspended: bool = False) -> None:
        self._scope = scope
        self._is_suspended = is_suspended
        self._is_handed_over = False

    def __enter__(self) -> _Held:
        if self._is_suspended:
            self._scope.resume()
        else:
            self._scope.__enter__()
        return self

    def hand_over(self) -> None:
        """Somebody else closes the scope; the calling context no longer belongs to it."""
        self._is_handed_over = True
        self._scope.suspend()

    def __exit__(self, kind: Any, error: BaseException | None, tb: Any) -> None:
        if not self._is_handed_over:
            self._scope.__exit__(kind, error, tb)
