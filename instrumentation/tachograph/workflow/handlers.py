"""The registry of step handlers: the only work a document can ask for.

A document names a handler; it can never name code to import. Handlers come from the ``@handler`` decorator, from the
entry point group ``tachograph.handlers`` (each entry a function or a module that registers its own), and from
`tachograph.workflow.builtin`.
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
"""Takes the step's context; what it returns (JSON-like) is the step's output. Plain functions run in a thread."""

F = TypeVar("F", bound=Callable[..., Any])

ENTRY_POINTS: Final = "tachograph.handlers"


class Handler(msgspec.Struct, frozen=True):
    """A registered handler. ``config_type`` describes the keys its step's config may hold beside ``handler``."""

    name: str
    function: Callable[..., Any]
    is_async: bool
    config_type: type[msgspec.Struct] | None = None
    is_dangerous: bool = False
    """Off unless allowed by name when the process starts."""

    @property
    def how_to_allow(self) -> str:
        """What the operator writes to switch a dangerous handler on."""
        return f"--allow-handler {self.name}"

    def config_faults(self, config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """What is wrong with a step's config: (place below config, message). References are judged when they run."""
        if self.config_type is None:
            return
        known = {field.encode_name: field for field in msgspec.structs.fields(self.config_type)}
        for key, value in config.items():
            if key == "handler":
                continue
            if key not in known:
                yield f".{key}", f'handler "{self.name}" knows no "{key}"; it knows {", ".join(known) or "nothing"}'
            elif not has_reference(value):
                try:
                    msgspec.convert(value, known[key].type)
                except msgspec.ValidationError as error:
                    message = str(error)
                    yield f".{key}", message[:1].lower() + message[1:]
        for key, field in known.items():
            if field.required and key not in config:
                yield f".{key}", f'handler "{self.name}" needs "{key}"'


class HandlerRegistry:
    """Handlers by name, and which of the dangerous ones are allowed."""

    def __init__(self, allow: Iterable[str] = ()) -> None:
        self._handlers: dict[str, Handler] = {}
        self.allowed = set(allow)

    def register(
        self, name: str, *, config: type[msgspec.Struct] | None = None, dangerous: bool = False
    ) -> Callable[[F], F]:
        """Decorator: make a function the handler called ``name``, replacing any other of that name."""

        def add(function: F) -> F:
            is_async = inspect.iscoroutinefunction(inspect.unwrap(function))
            self._handlers[name] = Handler(name, function, is_async, config, dangerous)
            return function

        return add

    def find(self, name: str) -> Handler | None:
        """The handler of that name, or None."""
        return self._handlers.get(name)

    def is_allowed(self, handler: Handler) -> bool:
        """Whether it may run in this process."""
        return not handler.is_dangerous or handler.name in self.allowed

    def names(self) -> list[str]:
        """All registered names, sorted."""
        return sorted(self._handlers)

    def load_entry_points(self) -> None:
        """Register what installed distributions offer under ``tachograph.handlers``."""
        for entry in metadata.entry_points(group=ENTRY_POINTS):
            found = entry.load()
            if callable(found) and entry.name not in self._handlers:
                self.register(entry.name)(found)

    def copy(self, allow: Iterable[str] = ()) -> HandlerRegistry:
        """A registry of its own with the same handlers and ``allow`` added to what is allowed."""
        other = HandlerRegistry({*self.allowed, *allow})
        other._handlers = dict(self._handlers)
        return other


registry: Final = HandlerRegistry()
"""The process's own registry, which ``@handler`` fills."""


def handler(name: str, *, config: type[msgspec.Struct] | None = None, dangerous: bool = False) -> Callable[[F], F]:
    """Decorator: register a function, sync or async, as the step handler called ``name``.

    >>> @handler("greet")
    ... def greet(context):
    ...     return {"greeting": f"hello {context.inputs['who']}"}
    """
    return registry.register(name, config=config, dangerous=dangerous)
