"""Hamilton: ``driver.Builder().with_adapters(tachograph.integrations.hamilton.adapter("nightly"))``.

An execution of the graph is a run, a node is a step; nodes of a ``Parallelizable`` block are instances of one step.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection
from typing import Any, Final

from tachograph.identity import new_id
from tachograph.integrations.places import Memory
from tachograph.quiet_log import QuietLog
from tachograph.report import Run, Step, run

quiet = QuietLog(logging.getLogger(__name__))
_harmless = quiet.harmless("Hamilton")

MAX_NODES: Final = 20_000
_NUMBERS: Final = re.compile(r"(?<=\.)\d{1,9}(?=\.)")
_SIMPLE: Final = (str, int, float, bool, type(None))


def adapter(workflow: str = "hamilton") -> Any:
    """An adapter that reports the executions of a driver as runs of a workflow. It never raises into Hamilton.

    Of inputs and results, those that are no numbers or texts are told by their type.
    """
    from hamilton import lifecycle

    class TachographAdapter(lifecycle.GraphExecutionHook, lifecycle.NodeExecutionHook):  # type: ignore[misc]
        """Tells what happens to nodes."""

        def __init__(self) -> None:
            self._reports = _Executions(workflow)

        def run_before_graph_execution(self, **told: Any) -> None:
            self._reports.begin(**told)

        def run_after_graph_execution(self, **told: Any) -> None:
            self._reports.end(**told)

        def run_before_node_execution(self, **told: Any) -> None:
            self._reports.node_starts(**told)

        def run_after_node_execution(self, **told: Any) -> None:
            self._reports.node_ended(**told)

    return TachographAdapter()


class _Execution:
    """An execution of a graph."""

    def __init__(self, reported: Run, graph: Any, path: Collection[str]) -> None:
        self.run = reported
        nodes = {node.name: node for node in graph.nodes if not node.is_external_input}
        chosen = [name for name in path if name in nodes][:MAX_NODES]
        names = frozenset(chosen)
        self.above = {
            name: names & (nodes[name].required_dependencies | nodes[name].optional_dependencies) for name in chosen
        }

    def step(self, name: str, task_id: str | None) -> Step:
        return self.run.step(name, depends_on=sorted(self.above.get(name, ())), index=_instance(task_id))


class _Executions:
    """What happens to the executions of a driver."""

    def __init__(self, workflow: str) -> None:
        self._workflow = workflow
        self._executions = Memory()

    @_harmless
    def begin(
        self, *, graph: Any, inputs: dict[str, Any], execution_path: Collection[str], run_id: str, **_: Any
    ) -> None:
        # Hamilton's own id is unique in the process only.
        execution = _Execution(run(self._workflow, run_id=new_id(), engine="hamilton"), graph, execution_path)
        self._executions.put(run_id, execution)
        execution.run.begin(inputs={name: _plain(value) for name, value in (inputs or {}).items()})

    @_harmless
    def end(self, *, success: bool, error: BaseException | None, run_id: str, **_: Any) -> None:
        execution: _Execution | None = self._executions.take(run_id)
        if execution is None:
            return
        if success:
            execution.run.finished()
            return
        for name in execution.above:
            if not execution.run.known(execution.run.step_id(name)):
                execution.step(name, None).skipped("upstream_failed")
        execution.run.failed(error)

    @_harmless
    def node_starts(self, *, node_name: str, run_id: str, task_id: str | None = None, **_: Any) -> None:
        execution: _Execution | None = self._executions.get(run_id)
        if execution is not None and node_name in execution.above:
            execution.step(node_name, task_id).started()

    @_harmless
    def node_ended(
        self, *, node_name: str, run_id: str, success: bool, error: BaseException | None, result: Any,
        task_id: str | None = None, **_: Any,
    ) -> None:  # fmt: skip
        execution: _Execution | None = self._executions.get(run_id)
        if execution is None or node_name not in execution.above:
            return
        step = execution.step(node_name, task_id)
        if success:
            step.finished(_plain(result))
        else:
            step.failed(error)


def _instance(task_id: str | None) -> int | str | None:
    """The number of an instance of a parallel block, by its task: 2 of ``expand-city.2.block-city``."""
    numbers = _NUMBERS.findall(task_id or "")
    if len(numbers) > 1:
        return ".".join(numbers)
    return int(numbers[0]) if numbers else None


def _plain(value: Any) -> Any:
    return value if isinstance(value, _SIMPLE) else type(value).__name__
