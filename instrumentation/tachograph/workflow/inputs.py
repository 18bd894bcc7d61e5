"""Input variables at the start of an execution: checked against the definition, defaults filled in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from tachograph.errors import Fault, InvalidInputs
from tachograph.workflow.definition import DataType, Variable, Workflow
from tachograph.workflow.hints import did_you_mean


def fits(value: Any, kind: DataType) -> bool:
    """Whether a JSON value has this data type. An int is also a float; only a boolean is a bool."""
    if kind is DataType.JSON:
        return True
    if isinstance(value, bool):
        return kind is DataType.BOOL
    if kind is DataType.STRING:
        return isinstance(value, str)
    if kind is DataType.INT:
        return isinstance(value, int) and -(2**63) <= value < 2**63
    if kind is DataType.FLOAT:
        return isinstance(value, int | float) and math.isfinite(value)
    return False


def bind(workflow: Workflow, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Every variable's value. Raises `InvalidInputs` naming every missing, unknown or wrongly typed variable."""
    faults: list[Fault] = []
    variables = {variable.name: variable for variable in workflow.variables}
    for name in inputs:
        if name not in variables:
            hint = did_you_mean(name, variables, faults)
            faults.append(
                Fault(
                    "unknown_variable", f"input_variables.{name}", f'"{name}" is not a variable of this workflow{hint}'
                )
            )
    values: dict[str, Any] = {}
    for variable in workflow.variables:
        at = f"input_variables.{variable.name}"
        value = inputs.get(variable.name)
        if value is None:
            if variable.is_required and variable.default_value is None:
                faults.append(Fault("missing_variable", at, f'variable "{variable.name}" is required'))
            value = variable.default_value
        elif not fits(value, variable.data_type):
            faults.append(
                Fault("wrong_type", at, f"expected {variable.data_type}, not {type(value).__name__} {value!r:.60}")
            )
        values[variable.name] = value
    if faults:
        raise InvalidInputs(faults, name=workflow.name)
    return values


def from_text(workflow: Workflow, pairs: Mapping[str, str]) -> dict[str, Any]:
    """Values given as text (``k=v`` on a command line), converted to their variable's type.

    What cannot be converted stays text, so that `bind` can report it together with all other faults.
    """
    variables = {variable.name: variable for variable in workflow.variables}
    return {name: _read(variables.get(name), text) for name, text in pairs.items()}


def _read(variable: Variable | None, text: str) -> Any:
    if variable is None or variable.data_type is DataType.STRING:
        return text
    if variable.data_type is DataType.BOOL:
        return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}.get(text.lower(), text)
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text
