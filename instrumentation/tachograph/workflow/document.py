"""Reads a definition from JSON and reports every fault of its shape at once, each with a code and a place.

The tables at the end are the format. Documents written for the system that Tachograph's API is compatible with are
accepted, too: keys that only that system uses (`project_id`, `agent_definition_id`, …) are ignored, ``meta_data`` is
read as ``metadata``, and its names of data types are understood. ``is_active`` is about a registered definition, not
part of it: see `active_flag`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any, Final

import msgspec

from tachograph.errors import Fault, InvalidWorkflow
from tachograph.expectation import (
    Expectation,
    StepExpectation,
    parse_seconds,
    schedule_fault,
    severity_fault,
    timezone_fault,
)
from tachograph.workflow.definition import Backoff, DataType, Step, StepType, TriggerRule, Variable, Workflow
from tachograph.workflow.faults import Faults
from tachograph.workflow.hints import did_you_mean

MAX_STEPS: Final = 100_000
MAX_NAME: Final = 200
MAX_SECONDS: Final = 366 * 24 * 3600.0
MAX_RETRIES: Final = 10_000
MAX_EXPECTED_STEPS: Final = 1_000

_DATA_TYPES: Final[Mapping[str, DataType]] = {
    **{kind.value: kind for kind in DataType},
    "str": DataType.STRING,
    "text": DataType.STRING,
    "integer": DataType.INT,
    "number": DataType.FLOAT,
    "boolean": DataType.BOOL,
    "object": DataType.JSON,
    "array": DataType.JSON,
    "dict": DataType.JSON,
    "list": DataType.JSON,
}


def parse(document: bytes | str | Mapping[str, Any]) -> Workflow:
    """The definition in ``document`` (JSON, or what JSON decodes to).

    Raises `InvalidWorkflow` naming every fault of its shape. `tachograph.workflow.validation` checks the graph, the
    conditions and the handlers.
    """
    workflow, faults = read(document)
    if faults or workflow is None:
        raise InvalidWorkflow(faults, name=workflow.name if workflow else "")
    return workflow


def read(document: bytes | str | Mapping[str, Any]) -> tuple[Workflow | None, list[Fault]]:
    """The definition as far as it is readable, and every fault of its shape. Never raises for a bad document."""
    reader = _Reader()
    text = document if isinstance(document, bytes | str) else b"{}"
    try:
        fields = reader.object(_decoded(document) if text is document else document, "", _WORKFLOW)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None, [Fault("invalid_json", "", f"the document is not JSON: {_error_in(text)}")]
    if fields is None:
        return None, reader.faults
    if "name" not in fields:
        reader.fault("missing_field", "name", "a workflow needs a name")
        fields["name"] = ""
    return Workflow(**fields), reader.faults


def to_json(workflow: Workflow) -> bytes:
    """`to_document` as JSON, without the values in between: of many steps, they take a lot of memory."""
    text = msgspec.json.encode(workflow)
    return text if workflow.expectation is not None else text.removesuffix(_NOTHING_EXPECTED) + b"}"


_NOTHING_EXPECTED: Final = b',"expectation":null}'
if Workflow.__struct_fields__[-1] != "expectation":
    raise AssertionError("the expectation is not the last field of a definition")


class _Entries:
    """The entries of a list in JSON, decoded one by one: of many, all at once take a lot of memory."""

    def __init__(self, entries: Sequence[msgspec.Raw]) -> None:
        self._entries = entries

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Any]:
        return map(msgspec.json.decode, self._entries)


_decode_fields: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_entries: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode


def _decoded(document: bytes | str) -> Any:
    """The document, with its steps as `_Entries`. Raises what decoding raises, or reading the steps will."""
    try:
        fields = _decode_fields(document)
        steps = _Entries(_decode_entries(fields["steps"])) if "steps" in fields else None
    except msgspec.ValidationError:
        return msgspec.json.decode(document)
    return {key: steps if key == "steps" else msgspec.json.decode(value) for key, value in fields.items()}


def _error_in(document: bytes | str) -> str:
    """What is wrong with JSON, with its place in the whole document."""
    try:
        msgspec.json.decode(document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return str(error)
    return "it is nested too deeply"


def active_flag(document: Mapping[str, Any]) -> bool | None:
    """What a document says about whether a service may execute it (``is_active``); None if it says nothing."""
    flag = document.get("is_active")
    return flag if isinstance(flag, bool) else None


def read_expectation(value: Any, at: str = "") -> tuple[Expectation, list[Fault]]:
    """An expectation as far as it is readable, and every fault of it. Never raises for a bad value."""
    reader = _Reader()
    expectation = _expectation(reader, value, at)
    return (expectation if expectation is not _BAD else Expectation()), reader.faults


def to_document(workflow: Workflow) -> dict[str, Any]:
    """The definition as JSON-ready values; `parse` reads them back as an equal definition."""
    document: dict[str, Any] = msgspec.to_builtins(workflow)
    if workflow.expectation is None:
        del document["expectation"]
    return document


class _Reader:
    """Reads a document by the tables below and collects faults instead of stopping at the first."""

    def __init__(self) -> None:
        self.faults = Faults()

    def fault(self, code: str, at: str, message: str) -> None:
        self.faults.append(Fault(code, at, message))

    def object(self, value: Any, at: str, table: Mapping[str, _Field]) -> dict[str, Any] | None:
        if not isinstance(value, Mapping):
            self.fault("wrong_type", at, f"expected an object, not {_type(value)}")
            return None
        fields: dict[str, Any] = {}
        for key, item in value.items():
            place = f"{at}.{key}" if at else str(key)
            field = table.get(key)
            if field is None:
                names = [name for name in table if not name.endswith("_id") and name != "meta_data"]
                self.fault("unknown_key", place, f'unknown key "{key}"{did_you_mean(str(key), names, self.faults)}')
            elif item is None and not field.nullable:
                if not field.optional:
                    self.fault("wrong_type", place, "must not be null")
            elif (read := field.read(self, item, place)) is not _BAD and field.into is not None:
                fields[field.into] = read
        return fields

    def list(self, value: Any, at: str, read: Callable[[_Reader, Any, str], Any], limit: int) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple | _Entries):
            self.fault("wrong_type", at, f"expected a list, not {_type(value)}")
            return ()
        if len(value) > limit:
            self.fault("too_many", at, f"{len(value)} entries exceed the limit of {limit}")
            return ()
        items = (read(self, item, f"{at}[{i}]") for i, item in enumerate(value))
        return tuple(item for item in items if item is not _BAD)


_BAD: Final[Any] = object()


class _Field(msgspec.Struct, frozen=True):
    read: Callable[[_Reader, Any, str], Any]
    into: str | None
    optional: bool = True
    nullable: bool = False


def _type(value: Any) -> str:
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)


def _text(limit: int, *, empty: bool = True) -> Callable[[_Reader, Any, str], Any]:
    def read(reader: _Reader, value: Any, at: str) -> Any:
        if not isinstance(value, str):
            reader.fault("wrong_type", at, f"expected a string, not {_type(value)}")
        elif not empty and not value.strip():
            reader.fault("empty", at, "must not be empty")
        elif len(value) > limit:
            reader.fault("too_long", at, f"{len(value)} characters exceed the limit of {limit}")
        elif not value.isprintable() and not empty:
            reader.fault("unprintable", at, "must not contain control characters")
        elif _has_lone_surrogate(value):
            reader.fault("bad_unicode", at, "contains a lone surrogate, which UTF-8 cannot encode")
        else:
            return value
        return _BAD

    return read


def _has_lone_surrogate(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return True
    return False


def _version(reader: _Reader, value: Any, at: str) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    return _text(MAX_NAME)(reader, value, at)


def _number(low: float, high: float, *, whole: bool = False) -> Callable[[_Reader, Any, str], Any]:
    def read(reader: _Reader, value: Any, at: str) -> Any:
        kind = "a whole number" if whole else "a number"
        if isinstance(value, bool) or not isinstance(value, int | float):
            reader.fault("wrong_type", at, f"expected {kind}, not {_type(value)}")
        elif whole and value != int(value) if math.isfinite(value) else True:
            reader.fault("wrong_type", at, f"expected {kind}, not {value}")
        elif not low <= value <= high:
            reader.fault("out_of_range", at, f"{value} is not between {low:g} and {high:g}")
        else:
            return int(value) if whole else float(value)
        return _BAD

    return read


def _boolean(reader: _Reader, value: Any, at: str) -> Any:
    if isinstance(value, bool):
        return value
    reader.fault("wrong_type", at, f"expected true or false, not {_type(value)}")
    return _BAD


def _mapping(reader: _Reader, value: Any, at: str) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    reader.fault("wrong_type", at, f"expected an object, not {_type(value)}")
    return _BAD


def _anything(_reader: _Reader, value: Any, _at: str) -> Any:
    return value


def _choice(kind: type[StrEnum], what: str) -> Callable[[_Reader, Any, str], Any]:
    members = {str(member.value): member for member in kind}

    def read(reader: _Reader, value: Any, at: str) -> Any:
        if isinstance(value, str) and value.lower() in members:
            return members[value.lower()]
        shown = f'"{value}"' if isinstance(value, str) else _type(value)
        hint = did_you_mean(str(value), members, reader.faults)
        reader.fault("unknown_value", at, f"{shown} is not a {what}{hint}; use one of {', '.join(members)}")
        return _BAD

    return read


def _data_type(reader: _Reader, value: Any, at: str) -> Any:
    if isinstance(value, str) and (kind := _DATA_TYPES.get(value.lower())):
        return kind
    return _choice(DataType, "data type")(reader, value, at)


def _names(reader: _Reader, value: Any, at: str) -> Any:
    return reader.list(value, at, _text(MAX_NAME, empty=False), MAX_STEPS)


def _config(reader: _Reader, value: Any, at: str) -> Any:
    if not isinstance(value, Mapping):
        return _mapping(reader, value, at)
    if "handler" in value and not isinstance(value["handler"], str):
        reader.fault("wrong_type", f"{at}.handler", f"expected a string, not {_type(value['handler'])}")
        return _BAD
    return dict(value)


def _workflow_config(reader: _Reader, value: Any, at: str) -> Any:
    if isinstance(value, Mapping) and value.get("max_concurrency") is not None:
        place = f"{at}.max_concurrency"
        if _number(1, MAX_STEPS, whole=True)(reader, value["max_concurrency"], place) is _BAD:
            return _BAD
    return _mapping(reader, value, at)


def _backoff(reader: _Reader, value: Any, at: str) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = {"initial_seconds": value}
    fields = reader.object(value, at, _BACKOFF)
    return _BAD if fields is None else Backoff(**fields)


def _checked(fault_of: Callable[[str], str]) -> Callable[[_Reader, Any, str], Any]:
    def read(reader: _Reader, value: Any, at: str) -> Any:
        text = _text(MAX_NAME, empty=False)(reader, value, at)
        if text is not _BAD and (fault := fault_of(text)):
            reader.fault("bad_value", at, f'"{text}": {fault}')
            return _BAD
        return text

    return read


def _seconds(reader: _Reader, value: Any, at: str) -> Any:
    try:
        return parse_seconds(value)
    except ValueError as error:
        shown = f'"{value}"' if isinstance(value, str) else _type(value)
        reader.fault("bad_value", at, f"{shown}: {error}")
        return _BAD


def _expectation(reader: _Reader, value: Any, at: str) -> Any:
    fields = reader.object(value, at, _EXPECTATION)
    return _BAD if fields is None else Expectation(**fields)


def _step_expectations(reader: _Reader, value: Any, at: str) -> Any:
    if not isinstance(value, Mapping):
        return _mapping(reader, value, at)
    if len(value) > MAX_EXPECTED_STEPS:
        reader.fault("too_many", at, f"{len(value)} steps exceed the limit of {MAX_EXPECTED_STEPS}")
        return _BAD
    steps = {}
    for name, item in value.items():
        fields = reader.object(item, f"{at}.{name}", _STEP_EXPECTATION)
        if fields is not None:
            steps[str(name)] = StepExpectation(**fields)
    return steps


def _variable(reader: _Reader, value: Any, at: str) -> Any:
    fields = reader.object(value, at, _VARIABLE)
    if fields is None:
        return _BAD
    if "name" not in fields:
        if isinstance(value, Mapping) and "name" not in value:
            reader.fault("missing_field", f"{at}.name", "a variable needs a name")
        return _BAD
    return Variable(**fields)


def _step(reader: _Reader, value: Any, at: str) -> Any:
    fields = reader.object(value, at, _STEP)
    if fields is None:
        return _BAD
    if "name" not in fields:
        if isinstance(value, Mapping) and "name" not in value:
            reader.fault("missing_field", f"{at}.name", "a step needs a name")
        # Keep its position, so that the places of later steps stay right.
        fields["name"] = f"\0{at}"
    return Step(**fields)


_LONG: Final = 100_000
_FOREIGN: Final[Mapping[str, _Field]] = {
    "id": _Field(_anything, None),
    "workspace_id": _Field(_anything, None),
    "project_id": _Field(_anything, None),
    "workflow_id": _Field(_anything, None),
    "created_at": _Field(_anything, None),
    "updated_at": _Field(_anything, None),
}

_WORKFLOW: Final[Mapping[str, _Field]] = {
    "name": _Field(_text(MAX_NAME, empty=False), "name", optional=False),
    "description": _Field(_text(_LONG), "description"),
    "version": _Field(_version, "version"),
    "timeout_seconds": _Field(_number(0.001, MAX_SECONDS), "timeout_seconds"),
    "max_retries": _Field(_number(0, MAX_RETRIES, whole=True), "max_retries"),
    "config": _Field(_workflow_config, "config"),
    "metadata": _Field(_mapping, "metadata"),
    "meta_data": _Field(_mapping, "metadata"),
    "variables": _Field(lambda r, v, at: r.list(v, at, _variable, 1000), "variables"),
    "steps": _Field(lambda r, v, at: r.list(v, at, _step, MAX_STEPS), "steps"),
    "expectation": _Field(_expectation, "expectation"),
    "is_active": _Field(_boolean, None),
    **_FOREIGN,
}
_VARIABLE: Final[Mapping[str, _Field]] = {
    "name": _Field(_text(MAX_NAME, empty=False), "name", optional=False),
    "data_type": _Field(_data_type, "data_type"),
    "is_required": _Field(_boolean, "is_required"),
    "default_value": _Field(_anything, "default_value", nullable=True),
    "description": _Field(_text(_LONG), "description"),
    "metadata": _Field(_mapping, "metadata"),
    "meta_data": _Field(_mapping, "metadata"),
    **_FOREIGN,
}
_STEP: Final[Mapping[str, _Field]] = {
    "name": _Field(_text(MAX_NAME, empty=False), "name", optional=False),
    "step_type": _Field(_choice(StepType, "step type"), "step_type"),
    "step_order": _Field(_number(0, 2**31 - 1, whole=True), "step_order"),
    "depends_on_steps": _Field(_names, "depends_on_steps"),
    "condition_expression": _Field(_text(_LONG), "condition_expression"),
    "timeout_seconds": _Field(_number(0.001, MAX_SECONDS), "timeout_seconds"),
    "max_retries": _Field(_number(0, MAX_RETRIES, whole=True), "max_retries"),
    "retry_backoff": _Field(_backoff, "retry_backoff"),
    "trigger_rule": _Field(_choice(TriggerRule, "trigger rule"), "trigger_rule"),
    "fallback_step": _Field(_text(MAX_NAME, empty=False), "fallback_step"),
    "config": _Field(_config, "config"),
    "metadata": _Field(_mapping, "metadata"),
    "meta_data": _Field(_mapping, "metadata"),
    "description": _Field(_text(_LONG), "description"),
    "agent_definition_id": _Field(_anything, None),
    "agent_instance_id": _Field(_anything, None),
    **_FOREIGN,
}
_BACKOFF: Final[Mapping[str, _Field]] = {
    "initial_seconds": _Field(_number(0, MAX_SECONDS), "initial_seconds"),
    "factor": _Field(_number(1, 1000), "factor"),
    "max_seconds": _Field(_number(0, MAX_SECONDS), "max_seconds"),
    "jitter": _Field(_number(0, 1), "jitter"),
}
_STEP_EXPECTATION: Final[Mapping[str, _Field]] = {
    "deadline": _Field(_seconds, "deadline_seconds"),
    "deadline_seconds": _Field(_seconds, "deadline_seconds"),
}
_EXPECTATION: Final[Mapping[str, _Field]] = {
    "schedule": _Field(_checked(schedule_fault), "schedule"),
    "timezone": _Field(_checked(timezone_fault), "timezone"),
    "grace": _Field(_seconds, "grace_seconds"),
    "grace_seconds": _Field(_seconds, "grace_seconds"),
    **_STEP_EXPECTATION,
    "is_paused": _Field(_boolean, "is_paused"),
    "severity": _Field(_checked(severity_fault), "severity"),
    "success_target": _Field(_number(0.0001, 0.999999), "success_target"),
    "steps": _Field(_step_expectations, "steps"),
    **{
        name: _Field(_number(0, MAX_SECONDS), name)
        for name in Expectation.__struct_fields__
        if name.startswith(("burn_", "last_failed_", "stuck_", "stale_", "regression_", "retry_", "queue_", "cost_"))
    },
}
