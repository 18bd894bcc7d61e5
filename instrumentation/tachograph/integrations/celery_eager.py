"""Tasks that run within this process's task: which one the code belongs to, and those that it runs itself (`apply`)."""

from __future__ import annotations

from contextvars import ContextVar, Token
from typing import Any, Final

from tachograph.integrations.celery_places import attempt_of
from tachograph.integrations.celery_sending import inner_place
from tachograph.integrations.places import Memory, Place
from tachograph.report import Step

_innermost: Final[ContextVar[tuple[str, Place] | None]] = ContextVar("tachograph_celery_task", default=None)
_tokens: Final = Memory()


def innermost() -> Place | None:
    """The place of the innermost task that runs here."""
    here = _innermost.get()
    return here[1] if here is not None else None


def eager_step(request: Any) -> Step | None:
    """The step of a task that another one runs within itself, while it runs."""
    here = _innermost.get()
    return here[1].step if here is not None and here[0] == request.id else None


def enter(request: Any, place: Place) -> None:
    """A task begins."""
    _tokens.put(_key(request), _innermost.set((str(request.id), place)))


def leave(request: Any) -> None:
    """It has ended, however."""
    token: Token[tuple[str, Place] | None] | None = _tokens.take(_key(request))
    if token is not None:
        try:
            _innermost.reset(token)
        except ValueError:  # In another context than the one it began in.
            _innermost.set(None)


def start(request: Any, name: str) -> None:
    """A task begins within another one, in the same thread: a step of that. Of one alone nothing is told."""
    outer = innermost()
    if outer is None:
        return
    again = eager_step(request)
    if again is not None:
        # It is tried again within itself.
        place = outer
        again.retrying("Retry: it asked to be run again")
    else:
        place = inner_place(outer, name)
        place.run.step(name, key=place.key, parent=outer.step)
    place.step.started(
        attempt=attempt_of(request), inputs={"args": list(request.args or ()), "kwargs": request.kwargs or {}}
    )
    enter(request, place)


def forget() -> None:
    """Forget what runs."""
    _tokens.clear()


def _key(request: Any) -> tuple[str, int]:
    return str(request.id), attempt_of(request)
