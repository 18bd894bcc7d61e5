"""The built-in handlers and what their config takes, as Markdown, from their docstrings and config types."""

from __future__ import annotations

import inspect
from typing import Any

import msgspec

from tachograph.workflow import builtin as _builtin
from tachograph.workflow.handlers import Handler, registry

del _builtin

BUILT_IN = ("noop", "sleep", "fail", "http", "shell")
_KINDS: dict[type[msgspec.inspect.Type], str] = {
    msgspec.inspect.FloatType: "number", msgspec.inspect.IntType: "integer", msgspec.inspect.StrType: "text",
    msgspec.inspect.NoneType: "null", msgspec.inspect.AnyType: "any JSON",
}  # fmt: skip


def handler_docs() -> str:
    """A section for each handler. Raises LookupError for one that is not registered, or a field without a meaning."""
    return "\n\n".join(_section(name) for name in BUILT_IN)


def _section(name: str) -> str:
    handler = registry.find(name)
    if handler is None:
        raise LookupError(f"the handler {name} is not built in")
    text = " ".join(inspect.cleandoc(handler.function.__doc__ or "").split()).replace("``", "`")
    allowed = f" Off unless allowed: `{handler.how_to_allow}`." if handler.is_dangerous else ""
    return "\n".join([f"### `{name}`", "", f"{text}{allowed}", *_table(handler)])


def _table(handler: Handler) -> list[str]:
    if handler.config_type is None:
        return []
    info = msgspec.inspect.type_info(handler.config_type)
    if not isinstance(info, msgspec.inspect.StructType):
        raise TypeError(f"the config of {handler.name} is not a struct")
    rows = ["", "| `config` | is | default | |", "|---|---|---|---|"]
    for field in info.fields:
        kind, meaning = _kind(field.type), _meaning(field.type)
        if not meaning:
            raise LookupError(f"the field {field.name} of {handler.name} has no description")
        default = "required" if field.required else f"`{msgspec.json.encode(_default(field)).decode()}`"
        rows.append(f"| `{field.encode_name}` | {kind} | {default} | {meaning} |")
    return rows


def _default(field: msgspec.inspect.Field) -> Any:
    return field.default if field.default is not msgspec.NODEFAULT else field.default_factory()


def _kind(kind: msgspec.inspect.Type) -> str:
    if isinstance(kind, msgspec.inspect.Metadata):
        return _kind(kind.type)
    if isinstance(kind, msgspec.inspect.UnionType):
        return " or ".join(_kind(part) for part in kind.types)
    if isinstance(kind, msgspec.inspect.ListType):
        return f"list of {_kind(kind.item_type)}"
    if isinstance(kind, msgspec.inspect.DictType):
        return f"object of {_kind(kind.value_type)}"
    return _KINDS[type(kind)]


def _meaning(kind: msgspec.inspect.Type) -> str:
    if isinstance(kind, msgspec.inspect.Metadata):
        return str((kind.extra_json_schema or {}).get("description", "")) or _meaning(kind.type)
    return ""
