"""Override methods of an engine's classes in place, where it has no hook for the whole: as a subclass would."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from tachograph.quiet_log import QuietLog

quiet = QuietLog(logging.getLogger(__name__))


class _Override(NamedTuple):
    owner: type
    name: str
    method: Any
    original: Any


class Overriding:
    """Methods that are overridden from `override` until `restore`.

    What is called before and after a method never raises into the engine, and can change neither its arguments nor its
    result.
    """

    def __init__(self) -> None:
        self._overrides: list[_Override] = []
        self._is_on = False

    @property
    def is_on(self) -> bool:
        """Whether methods are overridden."""
        return self._is_on

    def overrides(self, owner: type, name: str) -> bool:
        """Whether a method is overridden here, and by nobody else since."""
        return any(entry.owner is owner and owner.__dict__.get(name) is entry.method for entry in self._overrides)

    def override(
        self,
        owner: type,
        name: str,
        before: Callable[..., Any] | None = None,
        after: Callable[..., None] | None = None,
    ) -> None:
        """Override a method that ``owner`` itself defines.

        ``before`` gets what the method gets. ``after`` gets first what ``before`` returned (or None) and what the
        method returned (or raised), then what the method gets. Of a coroutine function, ``before`` may be one, and
        ``after`` gets what was awaited.
        """
        original = owner.__dict__[name]
        is_coroutine = inspect.iscoroutinefunction(original)
        method = (
            self._coroutine(original, name, before, after)
            if is_coroutine
            else self._function(original, name, before, after)
        )
        self._is_on = True
        setattr(owner, name, method)
        self._overrides.append(_Override(owner, name, method, original))

    def _function(
        self, original: Any, name: str, before: Callable[..., Any] | None, after: Callable[..., None] | None
    ) -> Callable[..., Any]:
        @functools.wraps(original)
        def method(instance: Any, /, *args: Any, **kwargs: Any) -> Any:
            # What somebody else overrides it with may need to know the object.
            call = original.__get__(instance, type(instance))
            if not self._is_on:
                return call(*args, **kwargs)
            state = _quietly(before, name, instance, *args, **kwargs) if before is not None else None
            try:
                result = call(*args, **kwargs)
            except BaseException as error:
                if after is not None:
                    _quietly(after, name, state, error, instance, *args, **kwargs)
                raise
            if after is not None:
                _quietly(after, name, state, result, instance, *args, **kwargs)
            return result

        return method

    def _coroutine(
        self, original: Any, name: str, before: Callable[..., Any] | None, after: Callable[..., None] | None
    ) -> Callable[..., Any]:
        @functools.wraps(original)
        async def method(instance: Any, /, *args: Any, **kwargs: Any) -> Any:
            call = original.__get__(instance, type(instance))
            if not self._is_on:
                return await call(*args, **kwargs)
            state = _quietly(before, name, instance, *args, **kwargs) if before is not None else None
            if inspect.isawaitable(state):
                state = await _awaited(state, before, name)
            try:
                result = await call(*args, **kwargs)
            except BaseException as error:
                if after is not None:
                    _quietly(after, name, state, error, instance, *args, **kwargs)
                raise
            if after is not None:
                _quietly(after, name, state, result, instance, *args, **kwargs)
            return result

        return method

    def restore(self) -> None:
        """Take everything back. A method that somebody else has overridden since stays theirs, and passes through."""
        self._is_on = False
        while self._overrides:
            entry = self._overrides.pop()
            if entry.owner.__dict__.get(entry.name) is entry.method:
                setattr(entry.owner, entry.name, entry.original)


async def _awaited(state: Awaitable[Any], act: Any, name: str) -> Any:
    try:
        return await state
    except Exception:
        quiet.exception((act.__module__, name), "not reported: %s", name)
        return None


def _quietly(act: Callable[..., Any], name: str, *args: Any, **kwargs: Any) -> Any:
    try:
        return act(*args, **kwargs)
    except Exception:
        quiet.exception((act.__module__, name), "not reported: %s", name)
        return None
