"""Rules of one's own for `mapping`: a TOML file that ``tachograph serve --mapping`` reads; they come before the others.

A value is read from an attribute of the span by its name, from ``resource.NAME``, or from ``span:name``. Several are
tried in turn::

    [[rule]]
    engine = "acme"
    role = "step"                    # execution, step, attempt, queued, end, inside
    has = ["acme.task"]
    equals = { "acme.kind" = "task" }
    name = ["acme.task.title", "acme.task"]
    run_id = "acme.run"
    state = "acme.result"
    states = { won = "completed", lost = "failed" }
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from tachograph_exporter.config import ConfigError
from tachograph_exporter.ingest.built_in_rules import RESULTS, RULES
from tachograph_exporter.ingest.rules import Read, Role, Rule, Rulebook, own_name
from tachograph_exporter.ingest.spans import SpanRecord

_Names = str | list[str]
_Outcome = Literal["completed", "failed", "cancelled", "timeout", "skipped"]


class _Rule(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A rule as it is written. The fields are `Rule`'s."""

    engine: str
    role: Role
    has: list[str] = []
    lacks: list[str] = []
    equals: dict[str, str | int | bool] = {}
    resource_has: list[str] = []
    names: list[str] = []
    scopes: list[str] = []
    name: _Names = "span:name"
    workflow: _Names = []
    run_id: _Names = []
    workflow_id: _Names = []
    version: _Names = []
    attempt: _Names = []
    first_attempt: int = 1
    state: _Names = []
    why: _Names = []
    states: dict[str, _Outcome] = {}
    key: _Names = []
    follows: bool = False
    lasting: bool = False
    opens: bool = False
    retries: bool = False


class _File(msgspec.Struct, forbid_unknown_fields=True):
    rule: list[_Rule]


_READ: Final = ("workflow", "run_id", "workflow_id", "version", "attempt", "state", "why", "key")


def read_rules(path: Path) -> Rulebook:
    """The rules in a file, and behind them the built-in ones. Raises `ConfigError`, which says where."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read the mapping {path}: {error.strerror or error}") from None
    try:
        found = msgspec.toml.decode(content, type=_File)
    except msgspec.ValidationError as error:
        raise ConfigError(f"the mapping {path} does not fit: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the mapping {path} is not TOML: {error}") from None
    for number, one in enumerate(found.rule):
        if not (one.has or one.equals or one.resource_has or one.names or one.scopes):
            raise ConfigError(
                f"the mapping {path}: rule[{number}] would take every span; say which with has, equals, resource_has, "
                "names or scopes"
            )
    return Rulebook([*map(_rule, found.rule), *RULES])


def _rule(one: _Rule) -> Rule:
    return Rule(
        engine=one.engine,
        role=one.role,
        has=tuple(one.has),
        lacks=tuple(one.lacks),
        equals=one.equals,
        resource_has=tuple(one.resource_has),
        names=tuple(one.names),
        scopes=tuple(one.scopes),
        name=_reading(one.name) or own_name,
        first_attempt=one.first_attempt,
        states={**RESULTS, **{word.lower(): status for word, status in one.states.items()}},
        follows=one.follows,
        lasting=one.lasting,
        opens=one.opens,
        retries=one.retries,
        **{field: _reading(getattr(one, field)) for field in _READ},
    )


def _reading(names: _Names) -> Read | None:
    wanted = [names] if isinstance(names, str) else names
    if not wanted:
        return None

    def read(span: SpanRecord) -> Any:
        for name in wanted:
            if name == "span:name":
                return span.name
            if name.startswith("resource."):
                found = span.around.get(name.removeprefix("resource."))
            else:
                found = span.attributes.get(name.removeprefix("span."), span.attributes.get(name))
            if found is not None:
                return found
        return None

    return read
