"""The dependency graph of a workflow's steps: order, cycles, ancestors.

A fallback step waits for the step it stands in for. Steps that wait for that step also wait for its fallback, because
its outcome is known only then.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping, Sequence

from tachograph.workflow.definition import Step


class Graph:
    """Dependencies of a workflow's steps, by their positions. Building it costs O(steps + dependencies).

    ``upstream[i]`` are the positions of the steps that step i waits for (as declared, without repetition; a fallback's
    primary first), ``downstream`` is the reverse. Unknown names are left out: validation reports them.
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
        # Of many steps most may have none before or after them: they share one list, which nobody changes.
        none: list[int] = []
        for i, step in enumerate(steps):
            upstream = [self.positions[name] for name in dict.fromkeys(step.depends_on_steps) if name in self.positions]
            if (primary := self.fallback_of.get(i)) is not None and primary not in upstream:
                upstream.insert(0, primary)
            self.upstream.append(upstream or none)
        downstream: defaultdict[int, list[int]] = defaultdict(list)
        for i, upstream in enumerate(self.upstream):
            for j in upstream:
                downstream[j].append(i)
        self.downstream: list[list[int]] = [downstream.get(i, none) for i in range(len(steps))]

    def order(self) -> list[int]:
        """Positions in topological order; steps on or behind a cycle are left out."""
        waiting = [len(upstream) for upstream in self.waited_for()]
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
        """The names along one cycle ("a waits for b waits for …"), the first one repeated at the end, or None."""
        unordered = set(range(len(self.names))) - set(self.order())
        if not unordered:
            return None
        up = self.waited_for()
        # Every unordered step waits for another one: walk until a step comes up again.
        path, seen = [min(unordered)], {min(unordered): 0}
        while True:
            step = next(j for j in up[path[-1]] if j in unordered)
            if step in seen:
                return [self.names[i] for i in [*path[seen[step] :], step]]
            seen[step] = len(path)
            path.append(step)

    def settled_before(self, sources: Sequence[int]) -> list[int]:
        """For each step a mask of those of ``sources`` that have settled before it can start: bit k is ``sources[k]``.

        Steps on or behind a cycle, which never start, have all bits. Costs O(steps + dependencies) for every few
        thousand sources.
        """
        up = self.waited_for()
        own = [0] * len(up)
        for k, i in enumerate(sources):
            own[i] |= 1 << k
        masks = [(1 << len(sources)) - 1] * len(up)
        for i in self.order():
            mask = 0
            for j in up[i]:
                mask |= masks[j] | own[j]
            masks[i] = mask
        return masks

    def longest_fallback_chain(self) -> list[int]:
        """Positions of the longest row of steps that stand in for each other, as far as it does not repeat itself."""
        longest: list[int] = []
        visited: set[int] = set()
        # From the ends of chains; what is left then are circles.
        for i in (*sorted(self.fallback_of.keys() - self.fallback_of.values()), *self.fallback_of):
            chain: list[int] = []
            step: int | None = i
            while step is not None and step not in visited:
                visited.add(step)
                chain.append(step)
                step = self.fallback_of.get(step)
            longest = max(longest, chain, key=len)
        return longest

    def waited_for(self) -> list[list[int]]:
        """The positions of the steps that have settled before each step can start: `upstream`, with their fallbacks."""
        if not self.fallback_of:
            return self.upstream
        stand_in = {primary: fallback for fallback, primary in self.fallback_of.items()}
        edges: list[list[int]] = []
        for i, upstream in enumerate(self.upstream):
            up = dict.fromkeys(upstream)
            for j in upstream:
                # Its fallback, that one's fallback, and so on; but a fallback does not wait for itself.
                fallback = stand_in.get(j)
                while fallback is not None and fallback != i and fallback not in up:
                    up[fallback] = None
                    fallback = stand_in.get(fallback)
            edges.append(list(up))
        return edges

    def _edges_down(self) -> list[list[int]]:
        if not self.fallback_of:
            return self.downstream
        down: list[list[int]] = [[] for _ in self.names]
        for i, upstream in enumerate(self.waited_for()):
            for j in upstream:
                down[j].append(i)
        return down
