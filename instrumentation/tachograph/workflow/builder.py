"""Building definitions in Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tachograph.errors import InvalidWorkflow
from tachograph.workflow.definition import DEFAULT_HANDLER, DataType, Step, StepType, TriggerRule, Variable, Workflow
from tachograph.workflow.validation import validate


class WorkflowBuilder:
    """Builds a `Workflow` step by step, in Python.

    >>> flow = WorkflowBuilder("etl").variable("day", is_required=True)
    >>> flow = flow.step("extract", handler="fetch").step("load", handler="store", after="extract", max_retries=2)
    >>> [step.name for step in flow.build().steps]
    ['extract', 'load']
    """

    def __init__(self, name: str, **fields: Any) -> None:
        self._name = name
        self._fields = fields
        self._steps: list[Step] = []
        self._variables: list[Variable] = []

    def variable(self, name: str, data_type: str = "string", **fields: Any) -> WorkflowBuilder:
        """Add an input variable; ``fields`` are those of `Variable`."""
        self._variables.append(Variable(name=name, data_type=DataType(data_type), **fields))
        return self

    def step(
        self,
        name: str,
        *,
        handler: str = DEFAULT_HANDLER,
        after: str | Sequence[str] = (),
        config: Mapping[str, Any] | None = None,
        when: str | None = None,
        **fields: Any,
    ) -> WorkflowBuilder:
        """Add a step that depends on ``after`` and runs if ``when`` holds; ``fields`` are those of `Step`."""
        for key, kind in (("trigger_rule", TriggerRule), ("step_type", StepType)):
            if key in fields:
                fields[key] = kind(fields[key])
        self._steps.append(
            Step(
                name=name,
                step_order=fields.pop("step_order", len(self._steps) + 1),
                depends_on_steps=(after,) if isinstance(after, str) else tuple(after),
                condition_expression=when,
                config={"handler": handler, **(config or {})},
                **fields,
            )
        )
        return self

    def build(self) -> Workflow:
        """The definition. Raises `InvalidWorkflow` naming every fault of its graph and conditions."""
        workflow = Workflow(name=self._name, variables=tuple(self._variables), steps=tuple(self._steps), **self._fields)
        if faults := validate(workflow).errors:
            raise InvalidWorkflow(faults, name=self._name)
        return workflow
