"""Conditions: CEL expressions, and the ``${name}`` form of older documents.

A condition is an expression of the Common Expression Language (https://cel.dev) over

- the workflow's variables by name, and all of them as ``inputs``;
- ``steps``: for every settled step before this one ``steps.NAME.status`` and ``steps.NAME.output``.

``${path}`` inside an expression stands for the path. A condition that is a single ``${path}`` holds if the value is
*truthy* (not false, zero, empty, null or missing); ``!${path}`` is the opposite. Python's ``eval`` is never used.

What a condition may cost is estimated before it is evaluated (`condition_cost`). What may take longer than a few
milliseconds is evaluated in a process of its own with limits (`condition_process`).
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

from tachograph.errors import ConditionError
from tachograph.workflow import condition_process
from tachograph.workflow.condition_cost import Cost, TooLarge
from tachograph.workflow.references import REFERENCE, lookup

MAX_LENGTH: Final = 4096
"""Characters in a condition; a longer condition is a fault."""
MAX_COST: Final = 200_000
"""What a condition may cost in this process (see `condition_cost`): about twenty milliseconds."""
_PATH: Final = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*|\[\d+\]|\[\"[^\"\]]*\"\])*")
# A reference to a step; or a quoted text, which is skipped because nothing inside it is a reference.
_STEP_OR_TEXT: Final = re.compile(
    r"""(?P<step>\bsteps(?:\.(?P<word>[A-Za-z_]\w*)|\[\s*(?:"(?P<double>[^"]*)"|'(?P<single>[^']*)')\s*\]))"""
    r"""|"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'"""
)
_LONG_SECONDS: Final = 0.0005
"""A condition that takes longer to compile is followed by a pause of the same length, for everybody else."""
_MAX_PAUSE_SECONDS: Final = 0.005
_compiling = threading.Lock()
_BOUND: Final = re.compile(r"\.(?:all|exists|exists_one|map|filter)\(\s*([A-Za-z_]\w*)\s*,")


class Condition:
    """A compiled condition. Raises `ConditionError` when it does not compile."""

    __slots__ = ("_cost", "_names", "_negated", "_path", "_program", "_text", "source", "steps", "variables")

    source: str
    variables: frozenset[str]
    """The top-level names that it reads, ``inputs`` and ``steps`` included."""
    steps: frozenset[str]
    """The steps whose outcome it reads."""

    def __init__(self, source: str) -> None:
        self.source = source
        if len(source) > MAX_LENGTH:
            raise ConditionError(f"condition of {len(source)} characters is longer than {MAX_LENGTH}")
        for match in REFERENCE.finditer(source):
            if not _PATH.fullmatch(match[1]):
                raise ConditionError(f'"{match[0]}" is not a reference: expected ${{name}} or ${{steps.NAME.output}}')
        text = source.strip()
        self._negated = False
        self._path: str | None = None
        bare = text.removeprefix("!").strip() if text.startswith("!") else text
        if whole := REFERENCE.fullmatch(bare):
            self._negated, self._path = text.startswith("!"), whole[1]
            text = whole[1]
        else:
            text = REFERENCE.sub(lambda match: match[1], text)
        try:
            self._program = _compile(text)
        except (ValueError, RuntimeError, TypeError, RecursionError) as error:
            reason = str(error).splitlines()[0].partition("ERROR: ")[2] or str(error).splitlines()[0]
            raise ConditionError(f'condition "{source[:200]}" does not parse: {reason}') from None
        self._text = text
        self._cost: Cost | None = None
        self._names = frozenset(self._program.variables())
        # CEL also lists the names that its macros bind; those are not the workflow's.
        self.variables = self._names - set(_BOUND.findall(text))
        self.steps = frozenset(
            match["word"] or match["double"] or match["single"]
            for match in _STEP_OR_TEXT.finditer(text)
            if match["step"]
        )

    def is_costly(self, scope: Mapping[str, Any]) -> bool:
        """Whether it may take long in ``scope``: call it off the event loop then. Raises `ConditionError`."""
        if self._path is not None:
            return False
        try:
            if self._cost is None:
                self._cost = Cost(self._text)
            return self._cost.of(scope, self._names) > MAX_COST
        except TooLarge as error:
            raise self._error(f"what it reads is too large: {error}") from None

    def __call__(self, scope: Mapping[str, Any]) -> bool:
        """Whether it holds in ``scope`` (see the module's docstring). Raises `ConditionError` if evaluation fails."""
        if self._path is not None:
            try:
                value = lookup(self._path, scope)
            except KeyError:
                value = None
            return bool(value) is not self._negated
        is_costly = self.is_costly(scope)
        # CEL copies its input, so it gets only what the condition reads.
        read = {name: scope[name] for name in self._names if name in scope}
        try:
            result = condition_process.evaluate(self._text, read) if is_costly else self._program.execute(read)
        except Exception as error:
            raise self._error(str(error)) from error
        if not isinstance(result, bool):
            kind = result if is_costly else f"{type(result).__name__} {result!r:.80}"
            raise ConditionError(
                f'condition "{self.source}" is {kind}, not true or false; '
                "compare it with something, or write ${...} to ask whether it is set"
            )
        return result

    def _error(self, reason: str) -> ConditionError:
        return ConditionError(f'condition "{self.source}" cannot be evaluated: {reason}')


def _after_fork() -> None:
    global _compiling
    _compiling = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _compile(text: str) -> Any:
    # Imported on first use: it takes longer to import than the rest of the package.
    import cel

    # It keeps the interpreter for milliseconds. Several threads that compile would hand it to each other, and everybody
    # else would wait for all of them; so would they for hundreds of long conditions one after the other.
    with _compiling:
        began = time.perf_counter()
        try:
            return cel.compile(text)
        finally:
            if (took := time.perf_counter() - began) > _LONG_SECONDS:
                time.sleep(min(took, _MAX_PAUSE_SECONDS))


@lru_cache(maxsize=4096)
def compile_condition(source: str) -> Condition:
    """A cached `Condition`."""
    return Condition(source)
