"""How settled steps look to the steps after them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tachograph.identity import StepRef
from tachograph.workflow.graph import Graph
from tachograph.workflow.node import Node


class SettledSteps(Mapping[str, Any]):
    """``{"status", "output"}`` of settled steps by name, built on access: what ``steps`` means in a reference."""

    __slots__ = ("_nodes", "_positions")

    def __init__(self, nodes: Sequence[Node], positions: Mapping[str, int]) -> None:
        self._nodes = nodes
        self._positions = positions

    def _node(self, name: str) -> Node:
        return self._nodes[self._positions[name]]

    def __getitem__(self, name: str) -> Any:
        node = self._node(name)
        if not node.status.is_terminal:
            raise KeyError(name)
        return {"status": str(node.status), "output": node.effective_output}

    def __iter__(self) -> Iterator[str]:
        return (node.step.name for node in self._nodes if node.status.is_terminal)

    def __len__(self) -> int:
        return sum(node.status.is_terminal for node in self._nodes)


class Outputs(SettledSteps):
    """Outputs of completed steps by name; for a failed step, what its fallback returned."""

    __slots__ = ("_graph", "_waited_for")

    def __init__(self, nodes: Sequence[Node], graph: Graph) -> None:
        super().__init__(nodes, graph.positions)
        self._graph = graph
        self._waited_for: list[list[int]] | None = None

    def before(self, step: StepRef) -> dict[str, Any]:
        """The outputs of the steps that a step waited for, of those that these waited for, and so on."""
        upstream = self._waited_for
        if upstream is None:
            upstream = self._waited_for = self._graph.waited_for()
        positions = [next(node.position for node in self._nodes if node.ref is step)]
        before: dict[int, None] = {}
        while positions:
            for position in upstream[positions.pop()]:
                if position not in before:
                    before[position] = None
                    positions.append(position)
        nodes = [self._nodes[position] for position in sorted(before)]
        return {node.step.name: node.effective_output for node in nodes if node.has_output}

    def __getitem__(self, name: str) -> Any:
        node = self._node(name)
        if not node.has_output:
            raise KeyError(name)
        return node.effective_output

    def __iter__(self) -> Iterator[str]:
        return (node.step.name for node in self._nodes if node.has_output)

    def __len__(self) -> int:
        return sum(node.has_output for node in self._nodes)
