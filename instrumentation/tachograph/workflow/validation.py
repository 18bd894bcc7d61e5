"""Validates a definition: reports every fault and warning at once, each with a code, the place and the way out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from tachograph.errors import ConditionError, Fault
from tachograph.workflow.conditions import compile_condition
from tachograph.workflow.definition import Step, StepType, TriggerRule, Workflow
from tachograph.workflow.document import read
from tachograph.workflow.faults import Faults
from tachograph.workflow.graph import Graph
from tachograph.workflow.handlers import HandlerRegistry
from tachograph.workflow.hints import did_you_mean
from tachograph.workflow.inputs import fits

MAX_FALLBACKS: Final = 20
"""Steps that may stand in for each other, one for the next."""
MAX_CONDITION_CHARACTERS: Final = 400_000
"""Characters of all conditions of a workflow: compiling more takes seconds."""
_SOURCES: Final = 4_096


class Report(msgspec.Struct):
    """The result of validation. A definition with warnings runs; one with errors does not."""

    errors: list[Fault]
    warnings: list[Fault]

    @property
    def is_valid(self) -> bool:
        """Whether there are no errors."""
        return not self.errors


def validate_document(
    document: bytes | str | Mapping[str, Any], handlers: HandlerRegistry | None = None
) -> tuple[Workflow | None, Report]:
    """Read and validate a document. The workflow is None if there are errors."""
    workflow, faults = read(document)
    report = validate(workflow, handlers) if workflow is not None else Report([], [])
    faults += report.errors
    report.errors = faults
    return (workflow if report.is_valid else None), report


def validate(workflow: Workflow, handlers: HandlerRegistry | None = None) -> Report:
    """Validate a definition's variables, graph, conditions, trigger rules and (given a registry) handlers."""
    report = Report(Faults(), Faults())
    _variables(workflow, report)
    if not workflow.steps:
        report.errors.append(Fault("no_steps", "steps", "a workflow needs at least one step"))
        return report
    _names(workflow, report)
    graph = Graph(workflow.steps)
    _dependencies(workflow, graph, report)
    chain = graph.longest_fallback_chain()
    if len(chain) > MAX_FALLBACKS:
        at = f"steps[{chain[-1]}].fallback_step"
        message = f"{len(chain)} steps stand in for each other; at most {MAX_FALLBACKS} may"
        report.errors.append(Fault("bad_fallback", at, message))
        return report
    if cycle := graph.cycle():
        at = f"steps[{graph.positions[cycle[0]]}].depends_on_steps"
        report.errors.append(Fault("cycle", at, "steps wait for each other: " + " → ".join(cycle)))
    _conditions(workflow, graph, report)
    if handlers is not None:
        _handlers(workflow, handlers, report)
    return report


def _variables(workflow: Workflow, report: Report) -> None:
    seen: dict[str, int] = {}
    for i, variable in enumerate(workflow.variables):
        at = f"variables[{i}]"
        if variable.name in seen:
            first = seen[variable.name]
            report.errors.append(
                Fault("duplicate_variable", f"{at}.name", f'variable "{variable.name}" is also variables[{first}]')
            )
        seen.setdefault(variable.name, i)
        if variable.default_value is not None and not fits(variable.default_value, variable.data_type):
            actual = f"{type(variable.default_value).__name__} {variable.default_value!r:.60}"
            report.errors.append(
                Fault("wrong_type", f"{at}.default_value", f"expected {variable.data_type}, not {actual}")
            )
        if variable.name in ("inputs", "steps"):
            report.errors.append(
                Fault(
                    "reserved_name",
                    f"{at}.name",
                    f'"{variable.name}" is reserved: conditions use it for all {variable.name}',
                )
            )


def _names(workflow: Workflow, report: Report) -> None:
    seen: dict[str, int] = {}
    for i, step in enumerate(workflow.steps):
        if step.name in seen:
            report.errors.append(
                Fault("duplicate_step", f"steps[{i}].name", f'step "{step.name}" is also steps[{seen[step.name]}]')
            )
        seen.setdefault(step.name, i)


def _dependencies(workflow: Workflow, graph: Graph, report: Report) -> None:
    stands_in: dict[str, str] = {}
    for i, step in enumerate(workflow.steps):
        seen: set[str] = set()
        for j, name in enumerate(step.depends_on_steps):
            at = f"steps[{i}].depends_on_steps[{j}]"
            if name not in graph.positions:
                hint = did_you_mean(name, graph.positions, report.errors)
                message = f'step "{step.name}" depends on "{name}", which is not a step of this workflow{hint}'
                report.errors.append(Fault("unknown_dependency", at, message))
            elif name in seen:
                report.warnings.append(Fault("repeated_dependency", at, f'"{name}" is listed twice; once is enough'))
            seen.add(name)
        if step.fallback_step is not None:
            _fallback(i, step, graph, stands_in, report)
        rule = step.trigger_rule
        if rule in (TriggerRule.ONE_SUCCESS, TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS) and not graph.upstream[i]:
            message = f'step "{step.name}" can never run: {rule} needs a step before it, and it depends on none'
            report.errors.append(Fault("unreachable", f"steps[{i}].trigger_rule", message))


def _fallback(i: int, step: Step, graph: Graph, stands_in: dict[str, str], report: Report) -> None:
    at, name = f"steps[{i}].fallback_step", step.fallback_step or ""
    if name not in graph.positions:
        hint = did_you_mean(name, graph.positions, report.errors)
        message = f'the fallback of step "{step.name}" is "{name}", which is not a step of this workflow{hint}'
        report.errors.append(Fault("unknown_fallback", at, message))
    elif name == step.name:
        report.errors.append(Fault("bad_fallback", at, f'step "{name}" cannot stand in for itself'))
    elif name in stands_in:
        message = f'"{name}" already stands in for "{stands_in[name]}"; give each step a fallback of its own'
        report.errors.append(Fault("bad_fallback", at, message))
    else:
        stands_in[name] = step.name


def _conditions(workflow: Workflow, graph: Graph, report: Report) -> None:
    variables = {variable.name for variable in workflow.variables}
    read: list[tuple[int, str, frozenset[str]]] = []
    characters = 0
    for i, step in enumerate(workflow.steps):
        if step.condition_expression is None:
            continue
        at = f"steps[{i}].condition_expression"
        characters += len(step.condition_expression)
        if characters > MAX_CONDITION_CHARACTERS:
            message = f"the conditions of a workflow have at most {MAX_CONDITION_CHARACTERS} characters together"
            report.errors.append(Fault("bad_condition", at, message))
            break
        try:
            condition = compile_condition(step.condition_expression)
        except ConditionError as error:
            report.errors.append(Fault("bad_condition", at, str(error)))
            continue
        for name in sorted(condition.variables - variables - {"inputs", "steps"}):
            message = (
                f'the condition reads "{name}", which is not a variable{did_you_mean(name, variables, report.errors)}'
            )
            if name in graph.positions:
                message += f'; the outcome of step "{name}" is steps.{name}.output'
            report.errors.append(Fault("unknown_variable", at, message))
        read.append((i, at, condition.steps))
    unsettled = _unsettled(graph, read)
    for i, at, names in read:
        for name in sorted(names):
            if name not in graph.positions:
                hint = did_you_mean(name, graph.positions, report.errors)
                message = f'the condition reads step "{name}", which is not a step of this workflow{hint}'
            elif (i, name) in unsettled:
                message = (
                    f'the condition reads step "{name}", which may not have settled when "{graph.names[i]}" is due; '
                    "add it to depends_on_steps"
                )
            else:
                continue
            report.errors.append(Fault("unreachable_condition", at, message))


def _unsettled(graph: Graph, read: Sequence[tuple[int, str, frozenset[str]]]) -> set[tuple[int, str]]:
    """(step, name) for each step whose condition reads the named one, which may not have settled then."""
    sources = sorted({graph.positions[name] for _, _, names in read for name in names if name in graph.positions})
    unsettled = set()
    for start in range(0, len(sources), _SOURCES):
        bits = {graph.names[j]: 1 << k for k, j in enumerate(sources[start : start + _SOURCES])}
        masks = graph.settled_before(sources[start : start + _SOURCES])
        unsettled |= {(i, name) for i, _, names in read for name in names if name in bits and not masks[i] & bits[name]}
    return unsettled


def _handlers(workflow: Workflow, handlers: HandlerRegistry, report: Report) -> None:
    for i, step in enumerate(workflow.steps):
        at = f"steps[{i}].config.handler"
        if "handler" not in step.config:
            if step.step_type is not StepType.CONDITION:
                message = f'step "{step.name}" names no handler and will do nothing (noop)'
                report.warnings.append(Fault("no_handler", at, message))
            continue
        handler = handlers.find(step.handler)
        if handler is None:
            hint = did_you_mean(step.handler, handlers.names(), report.errors)
            message = f'step "{step.name}" uses handler "{step.handler}", which is not registered{hint}'
            report.errors.append(Fault("unknown_handler", at, message))
        elif not handlers.is_allowed(handler):
            message = (
                f'handler "{step.handler}" is disabled; allow it when starting the process ({handler.how_to_allow})'
            )
            report.errors.append(Fault("handler_not_allowed", at, message))
        else:
            for key, message in handler.config_faults(step.config):
                report.errors.append(Fault("bad_config", f"steps[{i}].config{key}", message))
