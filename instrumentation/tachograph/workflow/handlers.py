"""The registry of step handlers: the only code that a document can run.

A document names a handler; it can never name code to import. Handlers come from the ``@handler`` decorator, from the
entry point group ``tachograph.handlers`` (each entry is a handler function, or a module that registers handlers), and
from `tachograph.workflow.builtin`.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from importlib import metadata
from typing import Any, Final, TypeAlias, TypeVar

import msgspec

from tachograph.workflow.context import StepContext
from tachograph.workflow.references import has_reference

HandlerFunction: TypeAlias = Callable[[StepContext], Any] | Callable[[StepContext], Awaitable[Any]]
"""Takes the step's context and returns the step's output (JSON-like).

Sync functions run in a thread; what one returns that can be awaited (it only passes an async function on) is awaited.
"""

F = TypeVar("F", bound=Callable[..., Any])

ENTRY_POINTS: Final = "tachograph.handlers"


class Handler(msgspec.Struct, frozen=True):
    """A registered handler. ``config_type`` describes the config keys it takes beside ``handler``."""

    name: str
    function: Callable[..., Any]
    is_async: bool
    config_type: type[msgspec.Struct] | None = None
    is_dangerous: bool = False
    """Disabled unless allowed by name when the process starts."""

    @property
    def how_to_allow(self) -> str:
        """The command-line option that allows a dangerous handler."""
        return f"--allow-handler {self.name}"

    def config_faults(self, config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Faults of a step's config as (place below config, message). References are only checked at run time."""
        if self.config_type is None:
            return
        fields = {field.encode_name: field for field in msgspec.structs.fields(self.config_type)}
        for key, value in config.items():
            if key == "handler":
                continue
            if key not in fields:
                yield f".{key}", f'handler "{self.name}" takes no "{key}"; it takes {", ".join(fields) or "nothing"}'
            elif not has_reference(value):
                try:
                    msgspec.convert(value, fields[key].type)
                except msgspec.ValidationError as error:
                    message = str(error)
                    yield f".{key}", message[:1].lower() + message[1:]
        for key, field in fields.items():
            if field.required and key not in config:
                yield f".{key}", f'handler "{self.name}" needs "{key}"'


def _is_async(function: Callable[..., Any]) -> bool:
    """Whether calling it only creates a coroutine: an async function, a partial of one, an object that is called so."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


class HandlerRegistry:
    """Handlers by name, and the names of the dangerous handlers that are allowed."""

    def __init__(self, allow: Iterable[str] = ()) -> None:
        self._handlers: dict[str, Handler] = {}
        self.allowed = set(allow)

    def register(
        self, name: str, *, config: type[msgspec.Struct] | None = None, dangerous: bool = False
    ) -> Callable[[F], F]:
        """Decorator: register a function as the handler ``name``, replacing any other handler of that name."""

        def add(function: F) -> F:
            self._handlers[name] = Handler(name, function, _is_async(function), config, dangerous)
            return function

        return add

    def find(self, name: str) -> Handler | None:
        """The handler with this name, or None."""
        return self._handlers.get(name)

    def is_allowed(self, handler: Handler) -> bool:
        """Whether it may run in this process."""
        return not handler.is_dangerous or handler.name in self.allowed

    def names(self) -> list[str]:
        """All registered names, sorted."""
        return sorted(self._handlers)

    def load_entry_points(self) -> None:
        """Register the handlers of the entry point group ``tachograph.handlers``; they never replace a handler."""
        for entry in metadata.entry_points(group=ENTRY_POINTS):
            loaded = entry.load()
            if callable(loaded) and entry.name not in self._handlers:
                self.register(entry.name)(loaded)

    def copy(self, allow: Iterable[str] = ()) -> HandlerRegistry:
        """A separate registry with the same handlers; ``allow`` is added to the allowed names."""
        other = HandlerRegistry({*self.allowed, *allow})
        other._handlers = dict(self._handlers)
        return other


registry: Final = HandlerRegistry()
"""The process's default registry; ``@handler`` adds to it."""


def handler(name: str, *, config: type[msgspec.Struct] | None = None, dangerous: bool = False) -> Callable[[F], F]:
    """Decorator: register a function, sync or async, as the step handler ``name``.

    >>> @handler("greet")
    ... def greet(context):
    ...     return {"greeting": f"hello {context.inputs['who']}"}
    """
    return registry.register(name, config=config, dangerous=dangerous)
