"""Override methods of an engine's classes in place, where it has no hook for the whole: as a subclass would."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
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

    def override(
        self,
        owner: type,
        name: str,
        before: Callable[..., Any] | None = None,
        after: Callable[..., None] | None = None,
    ) -> None:
        """Override a method that ``owner`` itself defines.

        ``before`` gets what the method gets. ``after`` gets first what ``before`` returned (or None) and what the
        method returned (or raised), then what the method gets.
        """
        original = owner.__dict__[name]

        @functools.wraps(original)
        def method(*args: Any, **kwargs: Any) -> Any:
            if not self._is_on:
                return original(*args, **kwargs)
            state = _quietly(before, name, *args, **kwargs) if before is not None else None
            try:
                result = original(*args, **kwargs)
            except BaseException as error:
                if after is not None:
                    _quietly(after, name, state, error, *args, **kwargs)
                raise
            if after is not None:
                _quietly(after, name, state, result, *args, **kwargs)
            return result

        self._is_on = True
        setattr(owner, name, method)
        self._overrides.append(_Override(owner, name, method, original))

    def restore(self) -> None:
        """Take everything back. A method that somebody else has overridden since stays theirs, and passes through."""
        self._is_on = False
        while self._overrides:
            entry = self._overrides.pop()
            if entry.owner.__dict__.get(entry.name) is entry.method:
                setattr(entry.owner, entry.name, entry.original)


def _quietly(act: Callable[..., Any], name: str, *args: Any, **kwargs: Any) -> Any:
    try:
        return act(*args, **kwargs)
    except Exception:
        quiet.exception((act.__module__, name), "not reported: %s", name)
        return None
