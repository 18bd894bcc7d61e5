"""The dependency resolver: who waits for whom, and in which order all could run.

A fallback step waits for the step it stands in for, and whoever waits for that step also waits for its fallback,
because only then is its outcome known.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

from tachograph.workflow.definition import Step


class Graph:
    """Dependencies of a workflow's steps, by their positions. Building it costs O(steps + dependencies).

    ``upstream[i]`` are the positions step i waits for (as declared, without repetition; a fallback's primary first),
    ``downstream`` the reverse. Unknown names are left out: validation reports them.
    """

    __slots__ = ("downstream", "fallback_of", "names", "positions", "upstream")

    def __init__(self, steps: Sequence[Step]) -> None:
        self.names = [step.name for step in steps]
        self.positions: Mapping[str, int] = {name: i for i, name in reversed(list(enumerate(self.names)))}
        self.fallback_of: dict[int, int] = {}
        for i, step in enumerate(steps):
            if step.fallback_step is not None and (target := self.positions.get(step.fallback_step)) is not None:
                self.fallback_of.setdefault(target, i)
        self.upstream: list[list[int]] = []
        for i, step in enumerate(steps):
            wanted = [self.positions[name] for name in dict.fromkeys(step.depends_on_steps) if name in self.positions]
            if (primary := self.fallback_of.get(i)) is not None and primary not in wanted:
                wanted.insert(0, primary)
            self.upstream.append(wanted)
        self.downstream: list[list[int]] = [[] for _ in steps]
        for i, wanted in enumerate(self.upstream):
            for j in wanted:
                self.downstream[j].append(i)

    def order(self) -> list[int]:
        """Positions such that each comes after all it waits for; shorter than the steps if there is a cycle."""
        waiting = [len(wanted) for wanted in self._edges_up()]
        ready = deque(i for i, count in enumerate(waiting) if count == 0)
        result: list[int] = []
        down = self._edges_down()
        while ready:
            i = ready.popleft()
            result.append(i)
            for j in down[i]:
                waiting[j] -= 1
                if waiting[j] == 0:
                    ready.append(j)
        return result

    def cycle(self) -> list[str] | None:
        """The names along one cycle, first name repeated at the end, or None. Reads as "a waits for b waits for …"."""
        inside = set(range(len(self.names))) - set(self.order())
        if not inside:
            return None
        up = self._edges_up()
        # Every step that could not be ordered waits for another such step: walk until one comes again.
        path, seen = [min(inside)], {min(inside): 0}
        while True:
            step = next(j for j in up[path[-1]] if j in inside)
            if step in seen:
                return [self.names[i] for i in [*path[seen[step] :], step]]
            seen[step] = len(path)
            path.append(step)

    def ancestors(self, position: int) -> set[int]:
        """Positions of all steps that have an outcome before this one can start."""
        up = self._edges_up()
        found: set[int] = set()
        stack = list(up[position])
        while stack:
            i = stack.pop()
            if i not in found:
                found.add(i)
                stack.extend(up[i])
        return found

    def _edges_up(self) -> list[list[int]]:
        if not self.fallback_of:
            return self.upstream
        stand_in = {primary: fallback for fallback, primary in self.fallback_of.items()}
        return [
            list(wanted)
            + [stand_in[j] for j in wanted if j in stand_in and stand_in[j] not in wanted and stand_in[j] != i]
            for i, wanted in enumerate(self.upstream)
        ]

    def _edges_down(self) -> list[list[int]]:
        if not self.fallback_of:
            return self.downstream
        down: list[list[int]] = [[] for _ in self.names]
        for i, wanted in enumerate(self._edges_up()):
            for j in wanted:
                down[j].append(i)
        return down
