"""User-defined rules: the TOML file of ``tachograph serve --mapping``. They come before the built-in rules.

A value is read from a span attribute (``NAME`` or ``span.NAME``), a resource attribute (``resource.NAME``) or the
span's name (``span:name``). The first of a list that has a value is used::

    [[rule]]
    engine = "acme"
    role = "step"                    # execution, step, attempt, queued, outcome, end, inside
    kind = "consumer"                # internal, server, client, producer, consumer; or a list of them
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
from tachograph_exporter.ingest.rules import Kind, Links, Read, Role, Rule, Rulebook, own_name
from tachograph_exporter.ingest.spans import SpanRecord
from tachograph_exporter.ingest.usage import usage_of

_Names = str | list[str]
_Outcome = Literal["completed", "failed", "cancelled", "timeout", "skipped", "retrying"]
_Kind = Literal["internal", "server", "client", "producer", "consumer"]


class _Rule(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A rule in the file, with the fields of `Rule`."""

    engine: str
    role: Role
    has: list[str] = []
    lacks: list[str] = []
    equals: dict[str, str | int | bool] = {}
    resource_has: list[str] = []
    kind: _Kind | list[_Kind] = []
    names: list[str] = []
    scopes: list[str] = []
    name: _Names = "span:name"
    index: _Names = []
    workflow: _Names = []
    run_id: _Names = []
    workflow_id: _Names = []
    version: _Names = []
    attempt: _Names = []
    first_attempt: int = 1
    state: _Names = []
    why: _Names = []
    states: dict[str, _Outcome] = {}
    outcome: _Outcome | Literal[""] = ""
    key: _Names = []
    links: Links = Links.UNKNOWN
    follows: bool = False
    waits: bool = False
    lasting: bool = False
    opens: bool = False
    retries: bool = False
    across_traces: bool = False
    linked: bool = False


class _File(msgspec.Struct, forbid_unknown_fields=True):
    rule: list[_Rule]


_READERS: Final = ("index", "workflow", "run_id", "workflow_id", "version", "attempt", "state", "why", "key")


def read_rules(path: Path) -> Rulebook:
    """The rules in a file, followed by the built-in ones. Raises `ConfigError`, which names the place of the fault."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read the mapping {path}: {error.strerror or error}") from None
    try:
        file = msgspec.toml.decode(content, type=_File)
    except msgspec.ValidationError as error:
        raise ConfigError(f"the mapping {path} is not valid: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the mapping {path} is not TOML: {error}") from None
    for number, rule in enumerate(file.rule):
        if not (rule.has or rule.equals or rule.resource_has or rule.kind or rule.names or rule.scopes):
            raise ConfigError(
                f"the mapping {path}: rule[{number}] would match every span; narrow it with has, equals, resource_has, "
                "kind, names or scopes"
            )
    return Rulebook([*map(_rule, file.rule), *RULES])


def _rule(rule: _Rule) -> Rule:
    kinds = [rule.kind] if isinstance(rule.kind, str) else rule.kind
    readers: dict[str, Any] = {field: _reader(getattr(rule, field)) for field in _READERS}
    return Rule(
        engine=rule.engine,
        role=rule.role,
        has=tuple(rule.has),
        lacks=tuple(rule.lacks),
        equals=rule.equals,
        resource_has=tuple(rule.resource_has),
        kinds=tuple(Kind[kind.upper()] for kind in kinds),
        names=tuple(rule.names),
        scopes=tuple(rule.scopes),
        name=_reader(rule.name) or own_name,
        first_attempt=rule.first_attempt,
        states={**RESULTS, **{word.lower(): status for word, status in rule.states.items()}},
        outcome=rule.outcome,
        links=rule.links,
        follows=rule.follows,
        waits=rule.waits,
        lasting=rule.lasting,
        opens=rule.opens,
        retries=rule.retries,
        across_traces=rule.across_traces,
        linked=rule.linked,
        usage=usage_of,
        **readers,
    )


def _reader(names: _Names) -> Read | None:
    sources = [names] if isinstance(names, str) else names
    if not sources:
        return None

    def read(span: SpanRecord) -> Any:
        for name in sources:
            if name == "span:name":
                return span.name
            if name.startswith("resource."):
                value = span.resource_attributes.get(name.removeprefix("resource."))
            else:
                value = span.attributes.get(name.removeprefix("span."), span.attributes.get(name))
            if value is not None:
                return value
        return None

    return read
