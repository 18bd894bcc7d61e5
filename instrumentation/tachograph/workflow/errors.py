"""Everything that can go wrong before or while a workflow runs, in one tree.

WorkflowError
├── InvalidWorkflow      a definition with faults: all of them, each with a code and a place
├── InvalidInputs        the variables given at the start do not fit the definition
├── ConditionError       a condition could not be evaluated
├── StepFailed           the built-in ``fail`` handler, and a handler's own word that it failed
│   └── DoNotRetry       ... and that trying again cannot help
└── ExecutorClosed       the executor takes no more work
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

import msgspec


class Fault(msgspec.Struct, frozen=True):
    """One thing wrong with a document: a stable ``code``, the place (``steps[3].name``) and the way out."""

    code: str
    at: str
    message: str

    def __str__(self) -> str:
        return f"{self.message} at {self.at or 'the top'} [{self.code}]"


class WorkflowError(Exception):
    """Base of all errors of this package."""


class _Faulty(WorkflowError):
    _what = "document"

    def __init__(self, faults: Sequence[Fault], *, name: str = "") -> None:
        self.faults = tuple(faults)
        self.name = name
        count = len(self.faults)
        title = f'{self._what} "{name}"' if name else self._what
        super().__init__(
            f"{title} has {count} fault{'s' if count != 1 else ''}: " + "; ".join(str(fault) for fault in self.faults)
        )


class InvalidWorkflow(_Faulty):
    """A definition with faults; ``faults`` holds every one of them."""

    _what = "workflow"


class InvalidInputs(_Faulty):
    """The variables given at the start do not fit the definition; ``faults`` holds every misfit."""

    _what = "inputs of workflow"


class ConditionError(WorkflowError):
    """A condition could not be evaluated."""


class StepFailed(WorkflowError):
    """A step's own word that it failed."""


class DoNotRetry(StepFailed):
    """Raised by a handler when another attempt cannot help: the step fails at once."""


class ExecutorClosed(WorkflowError):
    """The executor is shutting down and takes no more work."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`` (did you mean "x"?)`` for the closest known word, or nothing when none is close."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f' (did you mean "{close[0]}"?)' if close else ""
